"""Tensors that a checkpoint holds with their dimensions in another order, as torch saves the transpose `weight.t()`."""

from math import prod

from layer_surgeon.checkpoint.torch_records import PermutedTensorInfo
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import Buffer

# Such a tensor is in memory as it is stored and as it comes out. The largest matrix of Llama-3.1-70B has 470 MB.
MAX_BYTES = 1 << 30
_OUT_BYTES = 1 << 20


class Permuted:
    """Puts the elements of a tensor into the order of its indices, then does to them what another codec does.

    The first row that comes out may need the last byte that is stored, so the whole tensor is one block.

    Args:
        info: The tensor.
        inner: What becomes of the elements once they are in order.

    Raises:
        CheckpointError: The tensor is too large to be held in memory.
    """

    def __init__(self, info: PermutedTensorInfo, inner: Codec) -> None:
        if info.num_bytes > MAX_BYTES:
            raise CheckpointError(
                f"In {info.file} the tensor {info.name!r} is stored transposed and has {info.num_bytes:,} bytes; up to "
                f"{MAX_BYTES:,} are put in order here. Load it once with torch.load and save it with save_pretrained "
                "of transformers, which writes safetensors files."
            )
        self.dtype = inner.dtype
        self.block_bytes = info.num_bytes
        self.out_block_bytes = info.num_bytes // inner.block_bytes * inner.out_block_bytes
        self._info, self._inner = info, inner

    def convert(self, blocks: Buffer, first: int = 0) -> bytearray:
        """The whole tensor in the order of its indices."""
        import numpy as np  # a copy of plain bytes needs no numpy

        shape, order = self._info.shape, self._info.order
        item = len(blocks) // prod(shape)
        stored = np.frombuffer(blocks, dtype=f"u{item}").reshape([shape[axis] for axis in order])
        values = stored.transpose([order.index(axis) for axis in range(len(order))])
        out = bytearray(self.out_block_bytes)
        position = 0
        # A few rows at a time: casts would hold several copies of all of it.
        rows = max(1, _OUT_BYTES * shape[0] // len(blocks))
        for begin in range(0, shape[0], rows):
            result = self._inner.convert(values[begin : begin + rows].tobytes())
            out[position : position + len(result)] = result
            position += len(result)
        return out
