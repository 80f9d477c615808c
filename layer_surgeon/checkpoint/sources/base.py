"""The one kind of object that reads: a place where a checkpoint's files lie."""

from collections.abc import Iterator
from typing import Protocol

Chunk = bytes | bytearray | memoryview

# Reading and writing 1 MiB at a time is as fast as any larger step (stdlib copy of 1.7 GB: 0.64 s with 1 MiB and with
# 8 MiB), and keeps a process that copies 141 GB shards at the size of its interpreter.
CHUNK_BYTES = 1 << 20


class Source(Protocol):
    """A folder, a file, a Hub repo or a URL. Files are named by POSIX paths relative to its root.

    Making one checks that the place exists, and for a Hub repo resolves the revision to a commit at which everything
    is then read. `read_range` and `stream_range` may be called from several threads at once.

    Every method raises SourceError (SourceNotFoundError: no such file; SourceAccessError: no right to read it;
    SourceChangedError: the file is no longer the one that was read before).
    """

    name: str
    """What the user typed: a path, a repo id or a URL, without secrets."""

    kind: str
    """`folder`, `file`, `hub` or `url`."""

    commit: str | None
    """The 40-hex commit that is read; None where a place has none."""

    connections: int
    """How many ranges are worth reading at once: 1 for a local disk."""

    def list_files(self) -> dict[str, int | None]:
        """All files and their sizes in bytes; None where a size is not known without asking."""

    def size(self, file: str) -> int:
        """The size of `file` in bytes."""

    def version(self, file: str) -> str | None:
        """What differs as soon as `file` holds other bytes, today and in a later run; None where nothing tells it.

        An extraction that was cut off is gone on with only where this is known and is what it was.
        """

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """The whole of a small file (config.json, an index, a licence); SourceError where it is over `max_bytes`."""

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; SourceError where the file is too short."""

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Exactly `length` bytes from `start`, in chunks of about `CHUNK_BYTES`; retries are made inside.

        A chunk is valid until the next one is asked for: its buffer may be used again.
        """
