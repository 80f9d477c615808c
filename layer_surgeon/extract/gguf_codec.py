"""Convert a tensor of a GGUF file to the numbers that transformers would load, a few blocks at a time."""

from collections.abc import Callable
from math import prod

import gguf
import numpy as np
import numpy.typing as npt

from layer_surgeon.checkpoint.gguf import GgufTensorInfo
from layer_surgeon.checkpoint.gguf_families import Layout
from layer_surgeon.checkpoint.safetensors import DTYPE_BITS
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import CheckpointError, ConfigError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import CODE_OF_NAME, encode_floats

_Floats = npt.NDArray[np.float32]

# Dequantising needs several float32 arrays: for 1 MiB of Q4_K, they take 30 MB.
_PIECE_BYTES = 1 << 20


def gguf_codec(info: TensorInfo, dtype: str | None) -> Codec:
    """Make the codec for one tensor of a GGUF file.

    Most tensors are only dequantised, and each quantisation block can be converted separately. Rotary rows are put back
    in order for one attention head at a time, other layouts that move numbers for the whole tensor.

    Args:
        info: The tensor, from a `GgufTable`.
        dtype: `F32`, `BF16` or `F16` (or their torch names). None means `F32`.

    Raises:
        ConfigError: `dtype` is none of these.
        CheckpointError: `gguf` can't dequantise the tensor's type.
    """
    if not isinstance(info, GgufTensorInfo):
        raise TypeError(f"Expected a tensor from a GgufTable, got {info!r}.")
    code = _safetensors_code(dtype)
    quantization = _quantization(info)
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    shape, layout, heads = info.shape, info.layout, info.heads
    if layout is Layout.SAME:
        return _GgufCodec(quantization, block_elements, block_bytes, code, None)
    if layout is Layout.ROTARY:
        # The rows of different heads are never mixed. For an 8192 x 8192 matrix with 64 heads, this holds only
        # 128 x 8192 numbers in memory.
        shape, heads = (shape[0] // heads, *shape[1:]), 1

    def restore(values: _Floats) -> _Floats:
        return restore_layout(values, shape, layout, heads)

    elements = prod(shape)
    return _GgufCodec(quantization, elements, elements // block_elements * block_bytes, code, restore)


def restore_layout(values: _Floats, shape: tuple[int, ...], layout: Layout, heads: int) -> _Floats:
    """Put the numbers of a whole tensor back into the form of transformers.

    Args:
        values: The numbers as stored, in one dimension.
        shape: The tensor's shape in transformers.
        layout: How it is stored.
        heads: The number of attention heads, if the layout depends on it.

    Returns:
        The numbers of transformers, in the order of `shape` but not necessarily with this shape.
    """
    match layout:
        case Layout.SAME:
            return values
        case Layout.PLUS_ONE:
            return values - 1
        case Layout.EXPONENT:
            return np.log(-values)
        case Layout.TRANSPOSED:
            return values.reshape(shape[::-1]).T
        case Layout.ROTARY:
            return values.reshape(heads, -1, 2, prod(shape[1:])).swapaxes(1, 2)
        case Layout.SPLIT_HEADS:
            return values.reshape(3, heads, -1).swapaxes(0, 1)


class _GgufCodec:
    """Dequantises blocks of `block_elements` numbers, passes each to `restore`, and encodes them as `dtype`."""

    def __init__(
        self,
        quantization: gguf.GGMLQuantizationType,
        block_elements: int,
        block_bytes: int,
        dtype: str,
        restore: Callable[[_Floats], _Floats] | None,
    ) -> None:
        self.dtype = dtype
        self.block_bytes = block_bytes
        self.out_block_bytes = block_elements * DTYPE_BITS[dtype] // 8
        self._quantization = quantization
        self._restore = restore

    def convert(self, blocks: bytes | bytearray | memoryview, first: int = 0) -> bytearray:
        """Convert a whole number of blocks."""
        source = np.frombuffer(blocks, dtype=np.uint8)
        count, excess_bytes = divmod(source.size, self.block_bytes)
        if excess_bytes:
            raise ValueError(f"{source.size} bytes are not a whole number of blocks of {self.block_bytes} bytes")
        out = bytearray(count * self.out_block_bytes)
        step = 1 if self._restore is not None else max(1, _PIECE_BYTES // self.block_bytes)
        for begin in range(0, count, step):
            end = min(begin + step, count)
            piece = source[begin * self.block_bytes : end * self.block_bytes]
            # Pass all blocks as one row: `gguf` loops over rows in Python, which is slow for many short rows.
            values = gguf.quants.dequantize(piece.reshape(1, -1), self._quantization).reshape(-1)
            if self._restore is not None:
                values = self._restore(values)
            encoded = encode_floats(values, self.dtype)
            out[begin * self.out_block_bytes : end * self.out_block_bytes] = encoded
        return out


def _quantization(info: GgufTensorInfo) -> gguf.GGMLQuantizationType:
    """Return gguf's type of the tensor, after a check that it can be dequantised."""
    try:
        quantization = gguf.GGMLQuantizationType[info.dtype]
        _, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
        gguf.quants.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), quantization)
    except (KeyError, NotImplementedError) as error:
        raise CheckpointError(
            f"{info.file}: {info.name} has the type {info.dtype}, which the installed gguf package can't dequantise. "
            "Update it (`pip install -U gguf`), or use a file with another quantisation."
        ) from error
    return quantization


def _safetensors_code(dtype: str | None) -> str:
    code = "F32" if dtype is None else CODE_OF_NAME.get(dtype, dtype)
    if code not in CODE_OF_NAME.values():
        raise ConfigError(
            f"dtype is {dtype!r}, but weights of a GGUF file can only be written as {', '.join(CODE_OF_NAME)}."
        )
    return code
