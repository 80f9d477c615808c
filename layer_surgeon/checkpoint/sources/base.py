"""`Source`, the protocol of the objects that read a checkpoint's files. Nothing else does I/O on them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Protocol

Chunk = bytes | bytearray | memoryview

# Larger chunks are no faster: with 512 KiB and 1 MiB, extracting 436 MB takes equally much processor time. Each of the
# up to 16 connections has a buffer of this size.
CHUNK_BYTES = 512 << 10

# An event of the threads that read for one copy. When it is set, they no longer wait, not even if a server asks for it.
STOPPED: ContextVar[threading.Event | None] = ContextVar("STOPPED", default=None)


def stoppable_pool(num_threads: int, name: str, stopped: threading.Event | None = None) -> ThreadPoolExecutor:
    """Make threads that no longer wait when `stopped` is set; by default, the event of the calling thread."""
    return ThreadPoolExecutor(num_threads, name, initializer=STOPPED.set, initargs=(stopped or STOPPED.get(),))


class Source(Protocol):
    """A folder, a file, a Hub repo or a URL. Files are named by POSIX paths relative to its root.

    The constructor checks that the source exists. For a Hub repo it also resolves the revision to a commit, and
    everything is then read at that commit. `read_range` and `stream_range` are thread-safe.

    Every method raises SourceError: SourceNotFoundError if the file does not exist, SourceAccessError if reading it is
    not allowed, and SourceChangedError if the file has changed since it was first read.
    """

    name: str
    """The path, repo id or URL that the user typed, without secrets."""

    kind: str
    """`folder`, `file`, `hub` or `url`."""

    repo_id: str | None
    """The model repo on the Hub; None for other sources."""

    commit: str | None
    """The commit that is read, as 40 hex digits; None if the source has no commits."""

    connections: int
    """How many ranges to read in parallel: 1 for a local disk."""

    def list_files(self) -> dict[str, int | None]:
        """Return the size in bytes of every file, or None for a size that takes another request to find out."""

    def size(self, file: str) -> int:
        """Return the size of `file` in bytes."""

    def version(self, file: str) -> str | None:
        """Return a string that changes whenever the content of `file` changes; None if the source offers none.

        The string stays valid across runs: an interrupted extraction is resumed only if the version is known and
        unchanged.
        """

    def sha256(self, file: str) -> str | None:
        """Return the sha256 of `file` as hex if the Hub has listed it, without reading the file; otherwise None."""

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """Return the whole content of a small file (config.json, an index, a licence).

        Raises SourceError if the file is larger than `max_bytes`.
        """

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`. Raises SourceError if the file is too short."""

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Yield exactly `length` bytes from `start`, in chunks of about `CHUNK_BYTES`. Retries happen internally.

        A chunk is only valid until the next one is requested, because its buffer may be reused.
        """
