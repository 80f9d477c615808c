"""Codecs for plain numbers: bytes as they are, and float to float."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layer_surgeon.checkpoint.safetensors import DTYPE_BITS
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract.codec import Codec

if TYPE_CHECKING:
    import numpy as np

Buffer = bytes | bytearray | memoryview

# torch's names of what `--dtype` offers, and safetensors' codes for them.
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
    """The bytes as they are."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        # Elements below a byte (F4, F6) only occur in tensors of whole bytes, so a byte is a block there.
        self.block_bytes = self.out_block_bytes = max(1, DTYPE_BITS[dtype] // 8)

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """The same bytes."""
        return blocks


class Dropped:
    """Bytes that are read because they lie between two tensors, and go nowhere."""

    dtype = "U8"
    block_bytes = 1
    out_block_bytes = 0

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """Nothing."""
        return b""


class FloatCast:
    """From one float type to another, rounded to the nearest, ties to even, as torch does.

    Args:
        source: The safetensors code of what is read: F64, F32, BF16 or F16.
        target: The code of what is written: F32, BF16 or F16.
    """

    def __init__(self, source: str, target: str) -> None:
        self.dtype = target
        self.block_bytes, self.out_block_bytes = DTYPE_BITS[source] // 8, DTYPE_BITS[target] // 8
        self._decode, self._encode = _DECODERS[source], _ENCODERS[target]

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """The numbers in the other type."""
        return self._encode(self._decode(blocks)).view("u1").data


def plain_codec(source: str, target: str | None) -> Codec:
    """The codec from a safetensors dtype to `target`; None, and every dtype that is no plain float, stays as it is."""
    if target is None or source == target or source not in PLAIN_FLOATS:
        return ByteCopy(source)
    return FloatCast(source, target)


def decode_floats(content: Buffer, source: str) -> "np.ndarray[Any, Any]":
    """The numbers that F64, F32, BF16 or F16 bytes stand for.

    Raises:
        CheckpointError: The dtype is another one.
    """
    if source not in _DECODERS:
        raise CheckpointError(f"Numbers of the dtype {source} were expected to be one of {', '.join(_DECODERS)}.")
    return _DECODERS[source](content)


def encode_floats(values: "np.ndarray[Any, Any]", target: str) -> Buffer:
    """The bytes of float32 numbers as F32, BF16 or F16."""
    return _ENCODERS[target](values).view("u1").data


def _read(dtype: str) -> Callable[[Buffer], "np.ndarray[Any, Any]"]:
    def decode(blocks: Buffer) -> "np.ndarray[Any, Any]":
        import numpy as np  # a copy of bytes needs no numpy: 15 MB and 0.1 s

        return np.frombuffer(blocks, dtype=dtype)

    return decode


def _read_bfloat16(blocks: Buffer) -> "np.ndarray[Any, Any]":
    import numpy as np

    # A bfloat16 is the upper half of a float32.
    return (np.frombuffer(blocks, dtype="<u2").astype("<u4") << np.uint32(16)).view("<f4")


def _write(dtype: str) -> Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]:
    def encode(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        import numpy as np

        with np.errstate(over="ignore"):  # beyond the range is infinity, as in torch
            return np.ascontiguousarray(values).astype(dtype)

    return encode


def _write_bfloat16(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    import numpy as np

    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding would carry a NaN's payload into the exponent and make an infinity of it; torch writes this one NaN.
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")


_DECODERS: dict[str, Callable[[Buffer], "np.ndarray[Any, Any]"]] = {
    "F64": _read("<f8"),
    "F32": _read("<f4"),
    "F16": _read("<f2"),
    "BF16": _read_bfloat16,
}
_ENCODERS: dict[str, Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]] = {
    "F32": _write("<f4"),
    "F16": _write("<f2"),
    "BF16": _write_bfloat16,
}
