"""Convert a tensor of a GGUF file to the numbers that transformers would load, a few blocks at a time."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from layer_surgeon.checkpoint.gguf import GgufTensorInfo
from layer_surgeon.checkpoint.gguf_names import tensor_processor, try_processor
from layer_surgeon.checkpoint.safetensors import DTYPE_BITS
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import CheckpointError, ConfigError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import CODE_OF_NAME, encode_floats

_Floats = npt.NDArray[np.float32]

# Dequantising needs several float32 arrays: for 1 MiB of Q4_K, they take 30 MB.
_PIECE_BYTES = 1 << 20


def gguf_codec(config: Mapping[str, Any], info: TensorInfo, dtype: str | None) -> Codec:
    """Make the codec for one tensor of a GGUF file.

    Most tensors are only dequantised, and each quantisation block can be converted separately. If transformers does
    more when it loads the tensor, its own processor runs here too. For Llama's rotary permutation, it runs on the rows
    of one attention head at a time; otherwise (norms, GPT-2's transposed matrices), on the whole tensor.

    Args:
        config: The config from the file's `GgufTable`.
        info: The tensor, from the same table.
        dtype: `F32`, `BF16` or `F16` (or their torch names). None means `F32`.

    Raises:
        ConfigError: `dtype` is none of these.
        CheckpointError: `gguf` can't dequantise the tensor's type, or the tensor's shape does not fit the config.
        UnsupportedArchitectureError: transformers merges this tensor with others or leaves it out.
    """
    if not isinstance(info, GgufTensorInfo):
        raise TypeError(f"Expected a tensor from a GgufTable, got {info!r}.")
    code = _safetensors_code(dtype)
    quantization = gguf.GGMLQuantizationType[info.dtype]
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    _check_can_dequantize(info, quantization, block_bytes)
    processor = tensor_processor(info.architecture, config)
    unchanged, _ = try_processor(processor, info.gguf_name, info.gguf_shape)
    if unchanged:
        return _GgufCodec(quantization, block_elements, block_bytes, code, None)
    shape = info.gguf_shape
    if isinstance(processor, LlamaTensorProcessor):
        # The permutation never mixes the rows of two heads, so treat each head as a model with a single head. For an
        # 8192 x 8192 matrix, that holds only 128 x 8192 numbers in memory.
        heads = config["num_attention_heads" if ".attn_q." in info.gguf_name else "num_key_value_heads"]
        shape = (shape[0] // heads, *shape[1:])
        processor = type(processor)(config={"num_attention_heads": 1, "num_key_value_heads": 1})

    def process(values: _Floats) -> _Floats:
        processed: _Floats = processor.process(weights=values.reshape(shape), name=info.gguf_name).weights
        return processed

    elements = prod(shape)
    return _GgufCodec(quantization, elements, elements // block_elements * block_bytes, code, process)


class _GgufCodec:
    """Dequantises blocks of `block_elements` numbers, passes each to `process`, and encodes them as `dtype`."""

    def __init__(
        self,
        quantization: gguf.GGMLQuantizationType,
        block_elements: int,
        block_bytes: int,
        dtype: str,
        process: Callable[[_Floats], _Floats] | None,
    ) -> None:
        self.dtype = dtype
        self.block_bytes = block_bytes
        self.out_block_bytes = block_elements * DTYPE_BITS[dtype] // 8
        self._quantization = quantization
        self._process = process

    def convert(self, blocks: bytes | bytearray | memoryview, first: int = 0) -> bytearray:
        """Convert a whole number of blocks."""
        source = np.frombuffer(blocks, dtype=np.uint8)
        count, excess_bytes = divmod(source.size, self.block_bytes)
        if excess_bytes:
            raise ValueError(f"{source.size} bytes are not a whole number of blocks of {self.block_bytes} bytes")
        out = bytearray(count * self.out_block_bytes)
        step = 1 if self._process is not None else max(1, _PIECE_BYTES // self.block_bytes)
        for begin in range(0, count, step):
            end = min(begin + step, count)
            piece = source[begin * self.block_bytes : end * self.block_bytes]
            # Pass all blocks as one row: `gguf` loops over rows in Python, which is slow for many short rows.
            values = gguf.quants.dequantize(piece.reshape(1, -1), self._quantization).reshape(-1)
            if self._process is not None:
                values = self._process(values)
            encoded = encode_floats(values, self.dtype)
            out[begin * self.out_block_bytes : end * self.out_block_bytes] = encoded
        return out


def _check_can_dequantize(info: TensorInfo, quantization: gguf.GGMLQuantizationType, block_bytes: int) -> None:
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), quantization)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{info.file}: {info.name} has the type {info.dtype}, which the installed gguf package can't dequantise. "
            "Update it (`pip install -U gguf`), or use a file with another quantisation."
        ) from error


def _safetensors_code(dtype: str | None) -> str:
    code = "F32" if dtype is None else CODE_OF_NAME.get(dtype, dtype)
    if code not in CODE_OF_NAME.values():
        raise ConfigError(
            f"dtype is {dtype!r}, but weights of a GGUF file can only be written as {', '.join(CODE_OF_NAME)}."
        )
    return code
