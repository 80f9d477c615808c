"""Several files read as one, without being copied together first."""

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class JoinedFile(io.RawIOBase):
    """The parts one after the other, as one file that can be read anywhere; to be used with `with`.

    Args:
        parts: Files, in order.

    Raises:
        OSError: One can't be opened.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        super().__init__()
        self._parts = tuple(parts)
        self._ends = tuple(accumulate(part.stat().st_size for part in parts))
        self._open: tuple[int, io.BufferedReader] | None = None
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self._ends[-1] if self._ends else 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place.

        Raises:
            ValueError: It lies before the beginning.
        """
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"There is no byte {start + offset}.")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a buffer as far as the part at this place reaches.

        Raises:
            ValueError: The file is closed.
        """
        if self.closed:
            raise ValueError("The file is closed.")
        number = bisect_right(self._ends, self._position)
        if number == len(self._parts):
            return 0
        begin = self._ends[number - 1] if number else 0
        file = self._file(number)
        file.seek(self._position - begin)
        with memoryview(buffer) as view:
            count = file.readinto(view[: self._ends[number] - self._position])
        self._position += count
        return count

    def close(self) -> None:
        """Close the part that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
        super().close()

    def _file(self, number: int) -> io.BufferedReader:
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                self._open[1].close()
            self._open = number, self._parts[number].open("rb")
        return self._open[1]
