"""The folder that a run is written in, next to its final folder, and which an interrupted run goes on in.

states/.Llama-3.1-8B-texts.partial/   .identity.json, .lock, depth-<k>.bin, states.safetensors, a layer, shares
states/Llama-3.1-8B-texts/            states.safetensors, texts.jsonl, run.json: always complete
"""

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from layer_surgeon._folders import check_name, check_replaceable, foreign_files, put_in_place, remove_ours
from layer_surgeon._format import format_bytes, list_names
from layer_surgeon._io import BusyError, FileLock, read_json, write_json
from layer_surgeon.errors import ArtifactError, LayerSurgeonError
from layer_surgeon.extract.artifact import REPLACEABLE_FILES
from layer_surgeon.run.states import FILES, RUN_FILE, HiddenStates, is_states

_KIND = "folder of hidden states"
_LOCK_FILE, _IDENTITY_FILE = ".lock", ".identity.json"
_LAYERS = tuple(f"{folder}/{name}" for folder in ("layer-*", ".layer-*.partial") for name in REPLACEABLE_FILES)
_DEPTHS = "depth-*.bin"
_OF_RUN = (*FILES, _IDENTITY_FILE, _DEPTHS, ".*.tmp", ".layer-*.partial/.journal", *_LAYERS)
# The shares of a run in several processes, with the folders in which they run.
_OF_SHARES = (
    *(f"share-*{suffix}" for suffix in (".json", ".jsonl", ".log", ".tokens.json", ".failed.json")),
    *(f"{folder}/{name}" for folder in ("share-*", ".share-*.partial") for name in (*_OF_RUN, _LOCK_FILE)),
)
_WRITTEN = (*_OF_RUN, *_OF_SHARES)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFolder:
    """Context manager in which a run is written.

    Leaving it with an error keeps the folder if the states of any depth are complete, and removes it otherwise.

    Args:
        folder: The final folder.
        identity: Everything that determines the result. A run goes on only from files with the same identity.
        force: Replace other hidden states in the final folder.
        num_shares: In how many shares a new run is computed; 0 without shares.

    Attributes:
        path: The temporary folder to write into.
        kept: Whether it was left for a later run.
        num_shares: In how many shares the run is computed. A run that goes on keeps its number.

    Raises:
        ArtifactError: The folder can't be written, is in use, or holds something else.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, force: bool, num_shares: int = 0) -> None:
        check_name(folder, _KIND, ArtifactError)
        self.num_shares = num_shares
        self._folder, self._identity, self._force = folder, dict(identity), force
        self.path = folder.with_name(f".{folder.name}.partial")
        self.kept = False
        self._lock = FileLock(self.path / _LOCK_FILE)

    def find_existing(self) -> HiddenStates | None:
        """Return the result that the final folder already holds, if it has the same identity.

        Raises:
            ArtifactError: The folder holds something else that may not be replaced.
        """
        if not self._force and is_states(self._folder):
            states = HiddenStates.open(self._folder)
            if states.info.get("identity") == self._identity:
                return states
        self._check_replaceable()
        return None

    def __enter__(self) -> Self:
        try:
            self._lock.take()
            foreign = foreign_files(self.path, (*_WRITTEN, _LOCK_FILE))
            if foreign:
                raise ArtifactError(
                    f"The temporary folder {self.path} holds files that no run has made: {list_names(foreign)}. "
                    "Delete that folder, or name another one with --output."
                )
            stored = self._stored_shares()
            if stored is None:
                remove_ours(self.path, _WRITTEN)
                write_json(self.path / _IDENTITY_FILE, {**self._identity, "shares": self.num_shares})
            else:
                self.num_shares = stored
            remove_ours(self.path, [".*.tmp"])
        except (OSError, LayerSurgeonError) as error:
            self._lock.release()
            if isinstance(error, LayerSurgeonError):
                raise
            raise self._explain(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            patterns = (_DEPTHS, f"share-*/{RUN_FILE}", f".share-*.partial/{_DEPTHS}")
            self.kept = any(path for pattern in patterns for path in self.path.glob(pattern))
            if not self.kept:
                remove_ours(self.path, _WRITTEN)
                remove_ours(self.path, [_LOCK_FILE])
        self._lock.release()
        if isinstance(error, OSError) and not isinstance(error, LayerSurgeonError):
            raise self._explain(error) from error

    def check_space(self, num_bytes: int) -> None:
        """Refuse to begin if the disk has too little space.

        Args:
            num_bytes: Bytes that the run needs at most, including what an earlier run left.

        Raises:
            ArtifactError: There is too little.
        """
        present = sum(path.stat().st_blocks * 512 for path in self.path.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.path).free + present
        if free < num_bytes:
            raise ArtifactError(
                f"The hidden states take {format_bytes(num_bytes)} of disk, but the disk of {self._folder.parent} has "
                f"{format_bytes(free)} left. Keep fewer layers (--layers) or one state per text (--pool mean), free "
                "some space, or choose another folder with --output."
            )

    def finish(self, info: Mapping[str, Any]) -> None:
        """Write run.json, and rename the folder to its final path."""
        write_json(self.path / RUN_FILE, {**info, "identity": self._identity})
        remove_ours(self.path, [name for name in _WRITTEN if name not in FILES])
        # Somebody may have put files there in the meantime.
        self._check_replaceable()
        put_in_place(self.path, self._folder)
        # The lock was renamed too. Deleting it earlier would let another process start in this folder.
        (self._folder / _LOCK_FILE).unlink(missing_ok=True)

    def _stored_shares(self) -> int | None:
        """The number of shares of an interrupted run with the same identity; None if there is none."""
        try:
            content = dict(read_json(self.path / _IDENTITY_FILE))
            num_shares = int(content.pop("shares"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return num_shares if content == self._identity else None

    def _check_replaceable(self) -> None:
        check_replaceable(
            self._folder,
            (*FILES, _LOCK_FILE),
            is_ours=is_states,
            force=self._force,
            kind=_KIND,
            error=ArtifactError,
        )

    def _explain(self, error: OSError) -> ArtifactError:
        if isinstance(error, BusyError):
            return ArtifactError(
                f"Another process is writing {self._folder} right now. Wait for it, or name another folder."
            )
        if error.errno in _DISK_FULL:
            return ArtifactError(
                f"The disk of {self._folder.parent} is full ({error.strerror}). Free some space and run the same "
                "command again: it goes on from the last complete layer."
            )
        return ArtifactError(
            f"{self._folder} can't be written: {error.strerror or error}. Name another folder with --output."
        )
