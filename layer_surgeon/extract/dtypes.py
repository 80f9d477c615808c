"""Codecs for plain numbers: copy the bytes unchanged, or cast one float type to another."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layer_surgeon.checkpoint.safetensors import DTYPE_BITS
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract.codec import Codec

if TYPE_CHECKING:
    import numpy as np

Buffer = bytes | bytearray | memoryview

# The torch names that `--dtype` accepts, and their safetensors codes.
CODE_OF_NAME = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
NAME_OF_CODE = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
PLAIN_FLOATS = ("F64", "F32", "BF16", "F16")


class ByteCopy:
    """Copies the bytes unchanged."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        # Elements smaller than a byte (F4, F6) only occur in tensors of whole bytes, so their block is one byte.
        self.block_bytes = self.out_block_bytes = max(1, DTYPE_BITS[dtype] // 8)

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """Return the same bytes."""
        return blocks


class Dropped:
    """Discards bytes that are only read because they are between two wanted tensors."""

    dtype = "U8"
    block_bytes = 1
    out_block_bytes = 0

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """Return no bytes."""
        return b""


class FloatCast:
    """Casts one float type to another. Rounds to nearest, ties to even, as torch does.

    Args:
        source: The safetensors code to read: F64, F32, BF16 or F16.
        target: The safetensors code to write: F32, BF16 or F16.
    """

    def __init__(self, source: str, target: str) -> None:
        self.dtype = target
        self.block_bytes, self.out_block_bytes = DTYPE_BITS[source] // 8, DTYPE_BITS[target] // 8
        self._decode, self._encode = _DECODERS[source], _ENCODERS[target]

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """Cast the numbers to the target type."""
        return self._encode(self._decode(blocks)).view("u1").data


def plain_codec(source: str, target: str | None) -> Codec:
    """Choose the codec from a safetensors dtype to `target`.

    The bytes are copied unchanged if `target` is None, and for dtypes that are not plain floats.
    """
    if target is None or source == target or source not in PLAIN_FLOATS:
        return ByteCopy(source)
    return FloatCast(source, target)


def decode_floats(content: Buffer, source: str) -> "np.ndarray[Any, Any]":
    """Decode F64, F32, BF16 or F16 bytes to an array of numbers.

    Raises:
        CheckpointError: The dtype is none of these.
    """
    if source not in _DECODERS:
        raise CheckpointError(
            f"Scales have the dtype {source}, but must have one of {', '.join(_DECODERS)}. "
            "Extract from the unquantised model instead."
        )
    return _DECODERS[source](content)


def encode_floats(values: "np.ndarray[Any, Any]", target: str) -> Buffer:
    """Encode float32 numbers as F32, BF16 or F16 bytes."""
    return _ENCODERS[target](values).view("u1").data


def _decoder(dtype: str) -> Callable[[Buffer], "np.ndarray[Any, Any]"]:
    def decode(blocks: Buffer) -> "np.ndarray[Any, Any]":
        import numpy as np  # costs 15 MB and 0.1 s, and ByteCopy doesn't need it

        return np.frombuffer(blocks, dtype=dtype)

    return decode


def _decode_bfloat16(blocks: Buffer) -> "np.ndarray[Any, Any]":
    import numpy as np

    # A bfloat16 is the upper half of a float32.
    return (np.frombuffer(blocks, dtype="<u2").astype("<u4") << np.uint32(16)).view("<f4")


def _encoder(dtype: str) -> Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]:
    def encode(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        import numpy as np

        with np.errstate(over="ignore"):  # numbers out of range become infinity, as in torch
            return np.ascontiguousarray(values).astype(dtype)

    return encode


def _encode_bfloat16(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    import numpy as np

    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding can carry a NaN's payload into the exponent and turn it into infinity. torch writes 0x7FC0 for every NaN.
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")


_DECODERS: dict[str, Callable[[Buffer], "np.ndarray[Any, Any]"]] = {
    "F64": _decoder("<f8"),
    "F32": _decoder("<f4"),
    "F16": _decoder("<f2"),
    "BF16": _decode_bfloat16,
}
_ENCODERS: dict[str, Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]] = {
    "F32": _encoder("<f4"),
    "F16": lambda values: _encoder("<f2")(_encoder("<f4")(values)),  # torch rounds a float64 twice, too
    "BF16": _encode_bfloat16,
}
