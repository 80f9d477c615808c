"""The folder beside its place in which an artifact grows, and the moment when it takes its place.

    layers/.Llama-3.1-8B-L31.partial/     model.safetensors, growing; .journal; .lock
    layers/Llama-3.1-8B-L31/              only ever a whole artifact

It has a fixed name, so that a later run finds it and goes on, and a lock, so that two runs don't write into one.
"""

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from layer_surgeon._io import put_in_place
from layer_surgeon.errors import ArtifactError, LayerSurgeonError, SourceChangedError, SourceError

JOURNAL_FILE = ".journal"
_LOCK_FILE = ".lock"


class Staging:
    """The context in which an artifact is written.

    Leaving it with an error removes what was made, except what a journal tells of after a network failure or an
    interruption: then the folder stays, and the next run goes on from it.

    Args:
        folder: The artifact's place.
        num_bytes: What it will take.

    Attributes:
        path: The folder to write into.

    Raises:
        ArtifactError: The place can't be written, has too little space, or another process is writing there.
    """

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self._folder = folder
        self._num_bytes = num_bytes
        self.path = folder.with_name(f".{folder.name}.partial")
        self.kept = False
        """Whether the folder was left for a later run."""
        self._made: list[Path] = []
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self._made = [parent for parent in self._folder.parents if not parent.exists()]
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(exist_ok=True)
            self._take_lock()
            self._check_space()
        except OSError as error:
            self._leave(remove=not isinstance(error, _BusyError))
            raise _explain(error, self._folder) from error
        except ArtifactError:
            self._leave(remove=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        can_go_on = isinstance(error, SourceError | KeyboardInterrupt) and not isinstance(error, SourceChangedError)
        self.kept = can_go_on and _has_progress(self.path / JOURNAL_FILE)
        self._leave(remove=error is not None and not self.kept)
        if isinstance(error, OSError) and not isinstance(error, LayerSurgeonError):
            raise _explain(error, self._folder) from error

    def put_in_place(self) -> None:
        """Make the whole artifact appear at its place; what is there is replaced in the last moment."""
        for name in (JOURNAL_FILE, _LOCK_FILE):
            (self.path / name).unlink(missing_ok=True)
        put_in_place(self.path, self._folder)

    def drop(self) -> None:
        """Remove what was written: its place holds the same already."""
        shutil.rmtree(self.path)

    def _take_lock(self) -> None:
        self._lock = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Gone with the process that holds it, however that ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _BusyError from error

    def _check_space(self) -> None:
        there = sum(file.stat().st_blocks * 512 for file in self.path.iterdir())
        free = shutil.disk_usage(self.path).free + there
        if free < self._num_bytes:
            raise ArtifactError(
                f"The layer takes {self._num_bytes:,} bytes, but the disk of {self._folder.parent} has {free:,} left. "
                "Free some space, or choose another place with --output or --workspace."
            )

    def _leave(self, *, remove: bool) -> None:
        if remove:
            shutil.rmtree(self.path, ignore_errors=True)
            for parent in self._made:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class _BusyError(OSError):
    """Another process holds the lock."""


def _has_progress(journal: Path) -> bool:
    """Whether a journal tells of more than what is being extracted."""
    try:
        return journal.read_bytes().count(b'"crc"') > 0
    except OSError:
        return False


def _explain(error: OSError, folder: Path) -> ArtifactError:
    if isinstance(error, _BusyError):
        return ArtifactError(f"Another process is writing {folder} right now. Wait for it, or name another folder.")
    return ArtifactError(f"{folder} can't be written: {error.strerror or error}. Name another folder with --output.")
