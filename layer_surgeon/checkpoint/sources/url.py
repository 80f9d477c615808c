"""Read checkpoints at a URL: a folder, or one file with its config next to it. Files are read in ranges and checked."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from layer_surgeon.checkpoint.sources.base import Chunk
from layer_surgeon.checkpoint.sources.retry import HubLimits, Tries, TroubleError, retried
from layer_surgeon.errors import SourceChangedError, SourceError, SourceNotFoundError


@dataclass(frozen=True, kw_only=True)
class Stat:
    """The size and version of a remote file.

    Attributes:
        size: Size in bytes.
        version: An ETag or a time, which changes when the file is replaced. None if the server sends neither.
        lasting: A version that guarantees equal bytes, so a later run can rely on it too. None if there is none.
    """

    size: int
    version: str | None
    lasting: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.size:,} bytes, version {self.version}"


class Remote(Protocol):
    """A server or file system behind a URL.

    Each method makes one attempt, and raises TroubleError if another one may succeed.
    """

    limits: HubLimits
    """Timeouts and retries."""

    def list_files(self, file: str | None) -> dict[str, int | None]:
        """Return the sizes of the files that a checkpoint in this folder can use.

        With `file`, leave out the weights of other checkpoints.
        """

    def find(self, names: Iterable[str]) -> dict[str, int | None]:
        """Return the sizes of those of the named files that exist, if `list_files` may have left them out."""

    def stat(self, file: str) -> Stat:
        """Return the size and version of a file."""

    def read(self, file: str, start: int, length: int, stat: Stat) -> Iterator[Chunk]:
        """Yield exactly `length` bytes from `start`. Raises SourceChangedError if the file no longer matches `stat`."""


class UrlSource:
    """A folder at a URL, or one checkpoint file with its neighbours.

    Two things are checked: the number of bytes, and that the size and version of each file (its ETag or modification
    time, if the server sends one) stay the same from the first read to the last. There is no check against a hash,
    because servers offer none for a part of a file.

    Args:
        remote: The server or file system.
        name: The URL without secrets.
        file: The checkpoint file to read; None for the whole folder.

    Raises:
        SourceNotFoundError: The folder has no checkpoint files.
        SourceAccessError: Reading it is not allowed.
        SourceError: The server can't be reached.
    """

    kind = "url"
    repo_id: str | None = None
    commit: str | None = None
    connections = 8

    def __init__(self, remote: Remote, *, name: str, file: str | None = None) -> None:
        self.name = name
        self._remote = remote
        self._stats: dict[str, Stat] = {}
        self._locks: dict[str, threading.Lock] = {}
        tries = Tries(f"The folder at {name}", remote.limits, remote.limits.contact_tries)
        self._listed_sizes: Mapping[str, int | None] = retried(tries, lambda: remote.list_files(file))

    def list_files(self) -> dict[str, int | None]:
        """Return the files that a checkpoint can use, as listed by the constructor."""
        return dict(sorted(self._listed_sizes.items()))

    def look_for(self, names: Iterable[str]) -> None:
        """Add those of the named files that exist to the listing: most web servers don't list folders."""
        missing = [name for name in names if name not in self._listed_sizes]
        self._listed_sizes = {**self._listed_sizes, **self._remote.find(missing)}

    def size(self, file: str) -> int:
        """Return the size of `file` in bytes."""
        return self._stat(file).size

    def version(self, file: str) -> str | None:
        """Return the size and version of the file; None if no version guarantees equal bytes."""
        stat = self._stat(file)
        return None if stat.lasting is None else f"{stat.size} {stat.lasting}"

    def sha256(self, file: str) -> str | None:
        """Return None: servers list no hashes that are known to be a sha256 of the content."""
        return None

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """Return the whole content of a small file."""
        if (size := self.size(file)) > max_bytes:
            raise SourceError(
                f"{self._title(file)} has {size:,} bytes, more than the limit of {max_bytes:,} for such a file. "
                "Check that it is the right file."
            )
        return self.read_range(file, 0, size)

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        return b"".join(bytes(chunk) for chunk in self.stream_range(file, start, length))

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Yield exactly `length` bytes from `start`. After an error, resume at the byte that was reached."""
        stat = self._stat(file)
        if start < 0 or length < 0 or start + length > stat.size:
            raise SourceError(
                f"{self._title(file)} ends at byte {stat.size:,}, but bytes {start:,} to {start + length:,} were "
                "requested. The file is truncated, or the index belongs to another file. Check both, or get them again."
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
                tries.progressed(done - reached)
                tries.wait(trouble)

    def _title(self, file: str) -> str:
        return f"{file} at {self.name}"

    def _stat(self, file: str) -> Stat:
        """Return the size and version of `file`, requested once. Every later response is compared with them."""
        if file not in self._listed_sizes:
            raise SourceNotFoundError(f"There is no file {file!r} at {self.name}. Check the URL.")
        with self._locks.setdefault(file, threading.Lock()):
            if file not in self._stats:
                stat = retried(Tries(self._title(file), self._remote.limits), lambda: self._remote.stat(file))
                if (listed_size := self._listed_sizes[file]) is not None and listed_size != stat.size:
                    raise changed(self._title(file), f"{listed_size:,} bytes", stat)
                self._stats[file] = stat
            return self._stats[file]


def changed(file: str, before: object, now: object) -> SourceChangedError:
    """Build the error for a file that was replaced between two reads."""
    return SourceChangedError(
        f"{file} changed while it was being read: it had {before}, and now has {now}. "
        "Start again when nothing writes to it."
    )
