"""Read several files as one, without concatenating them on disk."""

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class JoinedFile(io.RawIOBase):
    """The concatenation of several files as one seekable file. Use it as a context manager.

    Args:
        parts: The files, in order.

    Raises:
        OSError: A file can't be opened.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        super().__init__()
        self._parts = tuple(parts)
        self._ends = tuple(accumulate(part.stat().st_size for part in parts))
        self._open: tuple[int, io.BufferedReader] | None = None
        self._position = 0

    @property
    def size(self) -> int:
        """The total size of all parts in bytes."""
        return self._ends[-1] if self._ends else 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another position and return it.

        Raises:
            ValueError: The position is before the beginning.
        """
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if origin + offset < 0:
            raise ValueError(f"The position {origin + offset} is before the beginning of the file. Seek to 0 or later.")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a buffer, at most up to the end of the current part, and return the number of bytes.

        Raises:
            ValueError: The file is closed.
        """
        if self.closed:
            raise ValueError("The file is closed.")
        part_index = bisect_right(self._ends, self._position)
        if part_index == len(self._parts):
            return 0
        part_start = self._ends[part_index - 1] if part_index else 0
        file = self._file(part_index)
        file.seek(self._position - part_start)
        with memoryview(buffer) as view:
            count = file.readinto(view[: self._ends[part_index] - self._position])
        self._position += count
        return count

    def close(self) -> None:
        """Close the open part."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
        super().close()

    def _file(self, part_index: int) -> io.BufferedReader:
        if self._open is None or self._open[0] != part_index:
            if self._open is not None:
                self._open[1].close()
            self._open = part_index, self._parts[part_index].open("rb")
        return self._open[1]
