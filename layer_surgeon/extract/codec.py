"""How the bytes of one tensor in a checkpoint become its bytes in the artifact, block by block."""

from typing import Protocol


class Codec(Protocol):
    """Turns a tensor's source bytes into artifact bytes, a whole number of blocks at a time.

    Blocks are independent of each other and keep their order, so ranges can be cut between any two of them, fetched in
    parallel and written straight to their place. A codec is shared by threads and keeps no state between calls.
    """

    dtype: str
    """The safetensors code of what comes out, such as `BF16`."""

    block_bytes: int
    """Source bytes per block: one element, one quantisation block, the rows of one head, ... A tensor is a whole
    number of blocks."""

    out_block_bytes: int
    """What a block becomes."""

    def convert(self, blocks: bytes | bytearray | memoryview, first: int = 0) -> bytes | bytearray | memoryview:
        """The artifact's bytes for a whole number of consecutive blocks, of which the tensor's block `first` is first.

        Only what belongs to a place in the tensor, such as the scale of a row, depends on `first`.
        """
