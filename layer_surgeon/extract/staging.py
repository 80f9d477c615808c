"""The temporary folder that an artifact is written into, next to the folder that it replaces at the end.

    layers/.Llama-3.1-8B-L31.partial/     model.safetensors, growing; .journal; .lock
    layers/Llama-3.1-8B-L31/              always a complete artifact

Its name is fixed, so that a later run can continue in it. Its lock keeps two runs from writing into it.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Self

from layer_surgeon._folders import foreign_files, put_in_place, remove_ours
from layer_surgeon._format import list_names
from layer_surgeon._io import BusyError, FileLock
from layer_surgeon.checkpoint.safetensors import SINGLE_FILE
from layer_surgeon.errors import ArtifactError, LayerSurgeonError, SourceChangedError, SourceError
from layer_surgeon.extract.artifact import REPLACEABLE_FILES
from layer_surgeon.extract.copy import DiskFullError

JOURNAL_FILE = ".journal"
# The donor's rows, and their journal, from which a table for another vocabulary is made.
ROWS_FILE, ROWS_JOURNAL_FILE = ".rows", ".journal-rows"
_LOCK_FILE = ".lock"


@dataclass(frozen=True, kw_only=True)
class StagedFiles:
    """The files that a temporary folder may hold.

    Attributes:
        noun: The thing that they form, for messages, such as `layer`.
        maker: The command that makes it, such as `extraction`, for messages.
        kept: Patterns of the files that a later run continues with: weights and journals.
        replaceable: Patterns of all files of the finished folder.
    """

    noun: str
    maker: str
    kept: tuple[str, ...]
    replaceable: tuple[str, ...]

    @property
    def written(self) -> tuple[str, ...]:
        """Patterns of all files. The last one matches leftovers of a kill while a small file was being written."""
        return (*self.replaceable, *self.kept, _LOCK_FILE, ".*.tmp")


LAYER_FILES = StagedFiles(
    noun="layer",
    maker="extraction",
    kept=(SINGLE_FILE, JOURNAL_FILE, ROWS_FILE, ROWS_JOURNAL_FILE),
    replaceable=REPLACEABLE_FILES,
)


class Staging:
    """Context manager in which an artifact, or another folder with weights, is written.

    Leaving it with an error removes everything that was written. After a network failure, an interruption or a full
    disk, the folder stays if its journal records progress, and the next run continues from it.

    Args:
        folder: The artifact's final folder.
        num_bytes: Bytes that the artifact needs on disk.
        files: The files that it consists of.

    Attributes:
        path: The temporary folder to write into.

    Raises:
        ArtifactError: The folder can't be written, the disk has too little space, or another process is writing there.
    """

    def __init__(self, folder: Path, num_bytes: int, files: StagedFiles = LAYER_FILES) -> None:
        self._folder = folder
        self._files = files
        self._num_bytes = num_bytes
        self.path = folder.with_name(f".{folder.name}.partial")
        self.kept = False
        """Whether the folder was left for a later run."""
        self._made: list[Path] = []
        self._lock = FileLock(self.path / _LOCK_FILE)

    def __enter__(self) -> Self:
        existed = False
        try:
            existed = self.path.exists()
            self._made = [parent for parent in self._folder.parents if not parent.exists()]
            self._lock.take()
            self._check_contents()
        except OSError as error:
            # What an earlier run has read, or another one is writing, stays.
            self._leave(remove=not existed and not isinstance(error, BusyError))
            raise _explain(error, self._folder) from error
        except ArtifactError:
            self._leave(remove=False)
            raise
        try:
            self._check_space()
        except ArtifactError:
            self._leave(remove=not existed)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        was_interrupted = isinstance(error, SourceError | KeyboardInterrupt | DiskFullError)
        can_go_on = was_interrupted and not isinstance(error, SourceChangedError)
        self.kept = can_go_on and any(_has_progress(journal) for journal in self._journals())
        self._leave(remove=error is not None and not self.kept)
        if isinstance(error, OSError) and not isinstance(error, LayerSurgeonError):
            raise _explain(error, self._folder) from error

    def put_in_place(self) -> None:
        """Rename the finished folder to its final path. An existing artifact is replaced."""
        # All other files are on the disk already. After a power cut, no artifact must have a header without weights.
        # This can take long, so the journals are still there: a run that is killed meanwhile goes on from them.
        finished = {path for pattern in self._files.kept for path in self.path.glob(pattern)}
        for path in finished - {*self._journals(), self.path / ROWS_FILE}:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for path in (*self._journals(), self.path / ROWS_FILE):
            path.unlink(missing_ok=True)
        put_in_place(self.path, self._folder)
        # The lock was renamed too. Deleting it earlier would let another process start in this folder.
        (self._folder / _LOCK_FILE).unlink(missing_ok=True)

    def _check_contents(self) -> None:
        """Refuse files that no extraction creates: they could redirect writes, or become part of the artifact."""
        written, kept = self._files.written, (*self._files.kept, _LOCK_FILE)
        foreign = foreign_files(self.path, written)
        foreign += [path.name for pattern in kept for path in self.path.glob(pattern) if path.lstat().st_nlink > 1]
        if foreign:
            raise ArtifactError(
                f"The temporary folder {self.path} holds files or links that no {self._files.maker} has made: "
                f"{list_names(foreign)}. Delete that folder, or name another one with --output."
            )
        for path in list(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if path.is_file() and not any(fnmatchcase(name, pattern) for pattern in kept):
                path.unlink()

    def _check_space(self) -> None:
        staged_bytes = sum(file.stat().st_blocks * 512 for file in self.path.iterdir())
        needed, free = self._num_bytes - staged_bytes, shutil.disk_usage(self.path).free
        if free < needed:
            raise ArtifactError(
                f"The {self._files.noun} needs {needed:,} more bytes, but the disk of {self._folder.parent} has "
                f"{free:,} left. Free some space, or choose another place with --output or --workspace."
            )

    def _journals(self) -> Iterator[Path]:
        return self.path.glob(f"{JOURNAL_FILE}*")

    def _leave(self, *, remove: bool) -> None:
        if remove:
            remove_ours(self.path, self._files.written)
            for parent in self._made:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
        self._lock.release()


def _has_progress(journal: Path) -> bool:
    """Whether a journal records any copied bytes."""
    try:
        return journal.read_bytes().count(b'"crc"') > 0
    except OSError:
        return False


def _explain(error: OSError, folder: Path) -> ArtifactError:
    if isinstance(error, BusyError):
        return ArtifactError(f"Another process is writing {folder} right now. Wait for it, or name another folder.")
    return ArtifactError(f"{folder} can't be written: {error.strerror or error}. Name another folder with --output.")
