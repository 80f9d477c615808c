"""Convert tensors that are stored with permuted dimensions, as torch saves the transpose `weight.t()`."""

from math import prod

from layer_surgeon.checkpoint.types import PermutedTensorInfo
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import Buffer

# The stored and the permuted tensor are in memory at the same time. Llama-3.1-70B's largest matrix has 470 MB.
MAX_BYTES = 1 << 30
_OUT_BYTES = 1 << 20


class Permuted:
    """Puts the elements of a tensor into row-major order, then passes them to another codec.

    The first row of the result may need the last stored byte, so the whole tensor is one block.

    Args:
        info: The tensor.
        inner: The codec for the elements in row-major order.

    Raises:
        CheckpointError: The tensor is too large to hold in memory.
    """

    def __init__(self, info: PermutedTensorInfo, inner: Codec) -> None:
        if info.num_bytes > MAX_BYTES:
            raise CheckpointError(
                f"{info.file} stores the tensor {info.name!r} transposed, with {info.num_bytes:,} bytes. Transposed "
                f"tensors can have at most {MAX_BYTES:,} bytes. Load the model with transformers and save it again "
                "with save_pretrained, which writes safetensors files."
            )
        self.dtype = inner.dtype
        self.block_bytes = info.num_bytes
        self.out_block_bytes = info.num_bytes // inner.block_bytes * inner.out_block_bytes
        self._info, self._inner = info, inner

    def convert(self, blocks: Buffer, first: int = 0) -> bytearray:
        """Convert the whole tensor."""
        import numpy as np  # not needed to copy plain bytes

        shape, order = self._info.shape, self._info.order
        item_bytes = len(blocks) // prod(shape)
        stored = np.frombuffer(blocks, dtype=f"u{item_bytes}").reshape([shape[axis] for axis in order])
        values = stored.transpose([order.index(axis) for axis in range(len(order))])
        out = bytearray(self.out_block_bytes)
        position = 0
        # Convert a few rows at a time, because casts hold several copies of their input.
        num_rows = max(1, _OUT_BYTES * shape[0] // len(blocks))
        for begin in range(0, shape[0], num_rows):
            result = self._inner.convert(values[begin : begin + num_rows].tobytes())
            out[position : position + len(result)] = result
            position += len(result)
        return out
