"""A table of tokens for another vocabulary: one row per token of a host, made of the donor's rows.

A `VocabularyMap` says which rows; `layer_surgeon._vocabulary` makes it from two tokenizers. Only the rows that it needs
are read from the donor, into a file next to the weights. The table has no file: `TableSource` computes its bytes as the
copy asks for them, so it is written, hashed and resumed like every other tensor.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_surgeon.checkpoint import TensorInfo
from layer_surgeon.checkpoint.safetensors import DTYPE_BITS
from layer_surgeon.checkpoint.sources import CHUNK_BYTES, Chunk
from layer_surgeon.extract.copy import Ranges
from layer_surgeon.extract.dtypes import Buffer, decode_floats, encode_floats
from layer_surgeon.extract.plan import CopyPlan

if TYPE_CHECKING:
    import numpy as np

    from layer_surgeon._vocabulary import VocabularyMap

# The name of the table among the files of a `TableSource`. No file of a checkpoint is called so: names have no slash
# at the end.
TABLE_FILE = "vocabulary/"


class RowBytes:
    """The codec of a computed table: copies whole rows."""

    def __init__(self, dtype: str, width: int) -> None:
        self.dtype = dtype
        self.block_bytes = self.out_block_bytes = width * DTYPE_BITS[dtype] // 8

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """Return the same bytes."""
        return blocks


class TableSource:
    """A source with one more file: the table, whose bytes are computed as they are read.

    Args:
        source: The source of all other files.
        rows_file: The file of weights that holds the donor's rows.
        rows: The plan of that file.
        vocabulary: Which rows each row of the table is made of.
        dtype: Safetensors code of the table.

    Attributes:
        connections: How many ranges to read in parallel.
    """

    def __init__(
        self, source: Ranges, rows_file: Path, rows: CopyPlan, vocabulary: "VocabularyMap", dtype: str
    ) -> None:
        self.connections = source.connections
        self._source, self._rows_file, self._rows = source, rows_file, rows
        self._vocabulary, self._dtype = vocabulary, dtype

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Yield exactly `length` bytes from `start`, in chunks. Of the table, only whole rows can be read.

        Raises:
            SourceError: The source can't be read.
        """
        return self._table(start, length) if file == TABLE_FILE else self._source.stream_range(file, start, length)

    def _table(self, start: int, length: int) -> Iterator[Chunk]:
        import numpy as np  # not needed to copy plain bytes

        width = self._stored.shape[1]
        row_bytes = width * DTYPE_BITS[self._dtype] // 8
        first, num_rows = start // row_bytes, length // row_bytes
        step = max(1, CHUNK_BYTES // row_bytes)
        for begin in range(first, first + num_rows, step):
            wanted = self._vocabulary.tokens[begin : min(begin + step, first + num_rows)]
            values = np.empty((len(wanted), width), "<f4")
            for index, tokens in enumerate(wanted):
                values[index] = self._neutral if tokens is None else self._decode(self._positions(tokens)).mean(axis=0)
            yield encode_floats(values.reshape(-1), self._dtype)

    @cached_property
    def _stored(self) -> "np.ndarray[Any, Any]":
        """The rows in the file, as bytes: [rows, width, bytes per number]."""
        import numpy as np

        info = self._rows.planned[0].source
        item_bytes = DTYPE_BITS[self._rows.planned[0].codec.dtype] // 8
        file = np.memmap(self._rows_file, dtype="u1", mode="r", offset=len(self._rows.header))
        stored: np.ndarray[Any, Any] = file.reshape(-1, info.shape[1], item_bytes)
        return stored

    @cached_property
    def _index(self) -> dict[int, int] | None:
        """The position of each row of the donor's table in the file; None if the file has the whole table."""
        rows = self._vocabulary.donor_rows
        return {row: position for position, row in enumerate(rows)} if len(rows) == len(self._stored) else None

    @cached_property
    def _neutral(self) -> "np.ndarray[Any, Any]":
        """The mean of all rows that are needed."""
        import numpy as np

        rows = self._vocabulary.donor_rows
        total = np.zeros(self._stored.shape[1], "<f8")
        for begin in range(0, len(rows), 1024):
            total += self._decode(self._positions(rows[begin : begin + 1024])).sum(axis=0, dtype="<f8")
        return (total / len(rows)).astype("<f4")

    def _positions(self, rows: tuple[int, ...]) -> list[int]:
        return list(rows) if self._index is None else [self._index[row] for row in rows]

    def _decode(self, positions: list[int]) -> "np.ndarray[Any, Any]":
        chosen = self._stored[positions]
        numbers = decode_floats(chosen.tobytes(), self._rows.planned[0].codec.dtype)
        return numbers.astype("<f4", copy=False).reshape(len(positions), -1)


def table_info(name: str, vocabulary: "VocabularyMap", width: int, dtype: str) -> TensorInfo:
    """Describe the table as a tensor of a `TableSource`."""
    num_bytes = len(vocabulary.tokens) * width * DTYPE_BITS[dtype] // 8
    shape = (len(vocabulary.tokens), width)
    return TensorInfo(name=name, dtype=dtype, shape=shape, file=TABLE_FILE, offset=0, num_bytes=num_bytes)
