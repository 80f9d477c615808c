"""The protocol that converts a tensor's bytes in the checkpoint to its bytes in the artifact, block by block."""

from typing import Protocol


class Codec(Protocol):
    """Converts a tensor's source bytes to artifact bytes, a whole number of blocks at a time.

    Blocks are independent of each other and keep their order. A tensor can therefore be split between any two blocks,
    fetched in parallel and written straight to its final position. Threads share a codec, so it keeps no state between
    calls.
    """

    dtype: str
    """The safetensors code of the converted tensor, such as `BF16`."""

    block_bytes: int
    """Source bytes per block: one element, one quantisation block, the rows of one head, ... A tensor consists of a
    whole number of blocks."""

    out_block_bytes: int
    """Artifact bytes per block."""

    def convert(self, blocks: bytes | bytearray | memoryview, first: int = 0) -> bytes | bytearray | memoryview:
        """Convert a whole number of consecutive blocks.

        Args:
            blocks: The source bytes of the blocks.
            first: Index of the first block in the tensor. Only codecs whose result depends on the position in the
                tensor need it, for example to look up the scale of a row.
        """


class Shifted:
    """A codec for a part of a tensor, whose first block is block `shift` of the tensor."""

    def __init__(self, inner: Codec, shift: int) -> None:
        self.dtype, self.block_bytes, self.out_block_bytes = inner.dtype, inner.block_bytes, inner.out_block_bytes
        self._inner, self._shift = inner, shift

    def convert(self, blocks: bytes | bytearray | memoryview, first: int = 0) -> bytes | bytearray | memoryview:
        """Convert a whole number of consecutive blocks."""
        return self._inner.convert(blocks, self._shift + first)
