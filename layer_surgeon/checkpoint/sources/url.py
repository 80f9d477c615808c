"""Checkpoints at a URL: a folder of files, or one file with its config beside it, read in parts and checked."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES, Chunk
from layer_surgeon.checkpoint.sources.hub_errors import HubLimits, Tries, TroubleError, retried
from layer_surgeon.errors import SourceChangedError, SourceError, SourceNotFoundError


@dataclass(frozen=True, kw_only=True)
class Stat:
    """What a place says about a file without sending it.

    Attributes:
        size: In bytes.
        version: Differs once the file was replaced: an ETag, a time. None where the place tells nothing.
        lasting: A version that a later run may rely on too: one that promises equal bytes. None where there is none.
    """

    size: int
    version: str | None
    lasting: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.size:,} bytes, version {self.version}"


class Remote(Protocol):
    """A place behind a URL. Each method asks once, and raises TroubleError where a repetition may help."""

    limits: HubLimits
    """Timeouts and tries."""

    def list_files(self, file: str | None) -> dict[str, int | None]:
        """The files that a checkpoint in this folder can use; with `file`, that one and no other weights."""

    def stat(self, file: str) -> Stat:
        """The size and version of a file."""

    def read(self, file: str, start: int, length: int, stat: Stat) -> Iterator[Chunk]:
        """Exactly `length` bytes from `start` of the file that `stat` describes; SourceChangedError for another."""


class UrlSource:
    """A folder at a URL, or one checkpoint file there and what lies beside it.

    What is checked of the bytes: their number, and that size and version of a file (its ETag or time of change, where
    the place tells one) stay the same from the first to the last read. Places give no hash of a part of a file.

    Args:
        remote: The place.
        name: The URL, without the secrets that it may hold.
        file: The one checkpoint file that is meant; None is all of the folder.

    Raises:
        SourceNotFoundError: There is no checkpoint's file.
        SourceAccessError: Whoever asks may not read it.
        SourceError: The place can't be reached.
    """

    kind = "url"
    commit: str | None = None
    connections = 8

    def __init__(self, remote: Remote, *, name: str, file: str | None = None) -> None:
        self.name = name
        self._remote = remote
        self._stats: dict[str, Stat] = {}
        self._locks: dict[str, threading.Lock] = {}
        tries = Tries(f"The folder at {name}", remote.limits, remote.limits.contact_tries)
        self._listed: Mapping[str, int | None] = retried(tries, lambda: remote.list_files(file))

    def list_files(self) -> dict[str, int | None]:
        """The files that a checkpoint can use, as found when the object was made."""
        return dict(sorted(self._listed.items()))

    def size(self, file: str) -> int:
        """The size of `file` in bytes."""
        return self._stat(file).size

    def version(self, file: str) -> str | None:
        """Size and version of the file; None where the place tells no version that promises equal bytes."""
        stat = self._stat(file)
        return None if stat.lasting is None else f"{stat.size} {stat.lasting}"

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """The whole of a small file."""
        if (size := self.size(file)) > max_bytes:
            raise SourceError(
                f"{self._title(file)} has {size:,} bytes, over the {max_bytes:,} that such a file may have. "
                "Check that it is the right file."
            )
        return self.read_range(file, 0, size)

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        return b"".join(bytes(chunk) for chunk in self.stream_range(file, start, length))

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Exactly `length` bytes from `start`; after a fault it goes on from the byte that was reached."""
        stat = self._stat(file)
        if start < 0 or length < 0 or start + length > stat.size:
            raise SourceError(
                f"{self._title(file)} ends at byte {stat.size:,}, but bytes {start:,} to {start + length:,} are "
                "wanted. The file is truncated, or the index that points into it belongs to another one."
            )
        tries = Tries(self._title(file), self._remote.limits)
        done = 0
        while done < length:
            reached = done
            try:
                for chunk in self._remote.read(file, start + done, length - done, stat):
                    yield chunk
                    done += len(chunk)
            except TroubleError as trouble:
                if done - reached >= CHUNK_BYTES:
                    tries.start_over()
                tries.wait(trouble)

    def _title(self, file: str) -> str:
        return f"{file} at {self.name}"

    def _stat(self, file: str) -> Stat:
        """What the place says of `file`, asked once: every later answer is compared with it."""
        if file not in self._listed:
            raise SourceNotFoundError(f"There is no file {file!r} at {self.name}. Check the URL.")
        with self._locks.setdefault(file, threading.Lock()):
            if file not in self._stats:
                stat = retried(Tries(self._title(file), self._remote.limits), lambda: self._remote.stat(file))
                if (listed := self._listed[file]) is not None and listed != stat.size:
                    raise changed(self._title(file), f"{listed:,} bytes", stat)
                self._stats[file] = stat
            return self._stats[file]


def changed(what: str, before: object, now: object) -> SourceChangedError:
    """The error for a file that was replaced between two reads."""
    return SourceChangedError(
        f"{what} is no longer what it was when reading began: it had {before}, and now has {now}. "
        "Start again when nothing writes there, so that everything is read from one version."
    )
