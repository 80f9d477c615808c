"""Multiply a tensor by a factor while it is copied."""

from layer_surgeon.checkpoint import TensorInfo
from layer_surgeon.errors import AssemblyError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import CODE_OF_NAME, Buffer, decode_floats, encode_floats


class Scaled:
    """Converts a tensor with another codec, then multiplies it in float32 and rounds to the same dtype again.

    Args:
        info: The tensor.
        inner: The codec.
        factor: The factor.

    Raises:
        AssemblyError: The result of the codec is not a plain float type. `convert` raises it if a number overflows.
    """

    def __init__(self, info: TensorInfo, inner: Codec, factor: float) -> None:
        if inner.dtype not in CODE_OF_NAME.values():
            raise AssemblyError(
                f"{info.name} has the dtype {inner.dtype}, which can't be scaled. Choose a dtype to convert it to, "
                "such as --dtype bfloat16 (in Python: dtype='bfloat16')."
            )
        self.dtype = inner.dtype
        self.block_bytes, self.out_block_bytes = inner.block_bytes, inner.out_block_bytes
        self._inner, self._factor, self._name = inner, factor, info.name

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """Convert and multiply."""
        import numpy as np  # not needed to copy plain bytes

        values = decode_floats(self._inner.convert(blocks, first), self.dtype).astype(np.float32)
        with np.errstate(over="ignore"):
            scaled = encode_floats(values * np.float32(self._factor), self.dtype)
        if np.isinf(decode_floats(scaled, self.dtype)).any() and not np.isinf(values).any():
            raise AssemblyError(
                f"Times {self._factor:g}, numbers of {self._name} are too large for its dtype. Choose a smaller factor."
            )
        return scaled
