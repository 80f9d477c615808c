"""FP8 weights: match each weight with its scale, and multiply the two.

Three layouts of scales are in use: one per 128 x 128 block (`weight_scale_inv`; DeepSeek-V3, Qwen3-FP8), one per row
(`weight_scale` [rows, 1]; Llama-3.1-405B-FP8 by fbgemm, compressed-tensors) and one per tensor (compressed-tensors,
modelopt). In all of them, the number is the 8-bit float times its scale, even if the name ends in `_inv`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from layer_surgeon.checkpoint import TensorInfo
from layer_surgeon.checkpoint.quantization import block_sizes
from layer_surgeon.checkpoint.safetensors import DTYPE_BITS
from layer_surgeon.checkpoint.sources import Source
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract.dtypes import Buffer, decode_floats, encode_floats

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

# The bits of the mantissa, and the bias of the exponent. The variants FNUZ have no infinity and no negative zero.
_FORMATS = {"F8_E4M3": (3, 7), "F8_E4M3FNUZ": (3, 8), "F8_E5M2FNUZ": (2, 16)}
FP8_CODES = ("F8_E5M2", *_FORMATS)
_SCALE_SUFFIXES = ("_scale_inv", "_scale")
# Scales of activations and of the cache. With unquantised weights, activations are not quantised either.
_DROPPED = (".input_scale", ".output_scale", ".activation_scale", ".input_scale_ub", ".k_scale", ".v_scale")
# One scale per 128 x 128 block of the largest matrix in use (DeepSeek-V3, 7168 x 18432) takes 32 kB.
_MAX_SCALE_BYTES = 16_000_000


def pair_scales(infos: Iterable[TensorInfo]) -> list[tuple[TensorInfo, TensorInfo | None]]:
    """Pair each tensor with its scale, or None. Scales, of weights and of activations, are left out of the list.

    Raises:
        CheckpointError: An FP8 weight has no scale.
    """
    by_name = {info.name: info for info in infos}
    scale_of: dict[str, TensorInfo] = {}
    for name, info in by_name.items():
        for suffix in _SCALE_SUFFIXES:
            base = name.removesuffix(suffix)
            if base != name and base in by_name and by_name[base].dtype in FP8_CODES:
                scale_of[base] = info
    scales = {info.name for info in scale_of.values()}
    pairs = []
    for name, info in by_name.items():
        if name in scales or name.endswith(_DROPPED):
            continue
        if info.dtype in FP8_CODES and name not in scale_of:
            raise CheckpointError(
                f"The weight {name!r} is an 8-bit float ({info.dtype}), but the checkpoint has no scale for it "
                f"({name}_scale_inv or {name}_scale). Extract from the unquantised model instead."
            )
        pairs.append((info, scale_of.get(name)))
    return pairs


class Fp8Codec:
    """Multiplies an FP8 matrix [rows, columns] by its scales. One row of the matrix is one block of the codec.

    Args:
        weight: The weight.
        scales: The scale of each scale block, [block rows, block columns].
        scale_block: Rows and columns that share one scale.
        dtype: The safetensors code to write: F32, BF16 or F16.
    """

    def __init__(self, weight: TensorInfo, scales: "Floats", scale_block: tuple[int, int], dtype: str) -> None:
        columns = weight.shape[-1]
        self.dtype = dtype
        self.block_bytes = columns
        self.out_block_bytes = columns * DTYPE_BITS[dtype] // 8
        self._columns, self._rows_per_scale, self._columns_per_scale = columns, *scale_block
        self._scales = scales
        self._value_of_byte = _value_of_byte(weight.dtype)

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """Convert whole rows; the first is row `first` of the matrix."""
        import numpy as np

        values = self._value_of_byte[np.frombuffer(blocks, dtype=np.uint8)].reshape(-1, self._columns)
        block_rows = (first + np.arange(len(values))) // self._rows_per_scale
        scales = np.repeat(self._scales[block_rows], self._columns_per_scale, axis=1)[:, : self._columns]
        return encode_floats((values * scales).reshape(-1), self.dtype)


def fp8_codec(source: Source, config: Mapping[str, Any], weight: TensorInfo, scale: TensorInfo, dtype: str) -> Fp8Codec:
    """Make the codec of one weight. Reads its scales, which are small, right away.

    Raises:
        CheckpointError: The shape of the scales does not fit the weight.
        SourceError: The scales can't be read.
    """
    if scale.num_bytes > _MAX_SCALE_BYTES or len(weight.shape) != 2 or not weight.num_elements:
        raise CheckpointError(
            f"{scale.name} {list(scale.shape)} can't be used as the scale of {weight.name} {list(weight.shape)}: "
            f"expected a matrix that is not empty, with at most {_MAX_SCALE_BYTES:,} bytes of scales. Extract from the "
            "unquantised model instead."
        )
    raw = source.read_range(scale.file, scale.offset, scale.num_bytes)
    values = _decode_powers_of_two(raw) if scale.dtype == "F8_E8M0" else decode_floats(raw, scale.dtype).astype("<f4")
    block = scale_block(config, weight, scale)
    shape = [-(-size // block_size) for size, block_size in zip(weight.shape, block, strict=True)]
    return Fp8Codec(weight, values.reshape(shape), block, dtype)


def scale_block(config: Mapping[str, Any], weight: TensorInfo, scale: TensorInfo) -> tuple[int, int]:
    """Rows and columns that share one scale."""
    rows, columns = weight.shape
    if scale.num_elements == 1:
        return rows, columns
    if tuple(scale.shape) in ((rows, 1), (rows,)):
        return 1, columns
    sizes = [size for size in block_sizes(config) if _is_pair(size)]
    for size in sizes:
        if tuple(scale.shape) == (-(-rows // size[0]), -(-columns // size[1])):
            return int(size[0]), int(size[1])
    raise CheckpointError(
        f"{scale.name} has the shape {list(scale.shape)}, which does not fit {weight.name} {list(weight.shape)}: "
        f"expected one scale per tensor, per row, or per block of "
        f"{' or '.join(map(str, sizes)) or 'a size in the config (which has none)'}. "
        "Extract from the unquantised model instead."
    )


def _is_pair(value: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(value, Sequence) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def _decode_powers_of_two(raw: Buffer) -> "Floats":
    """Decode F8_E8M0, which has only an exponent: each byte is a power of two, and 255 is NaN."""
    import numpy as np

    codes = np.frombuffer(raw, dtype=np.uint8)
    return np.where(codes == 0xFF, np.nan, np.exp2(codes.astype(np.float64) - 127)).astype("<f4")


def _value_of_byte(dtype: str) -> "Floats":
    """A table of 256 entries: the number that each byte represents."""
    import numpy as np

    codes = np.arange(256, dtype=np.uint8)
    if dtype == "F8_E5M2":
        # E5M2 is the upper byte of a float16.
        return (codes.astype("<u2") << np.uint16(8)).view("<f2").astype("<f4")
    mantissa_bits, bias = _FORMATS[dtype]
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent, mantissa = ((codes & 0x7F) >> mantissa_bits).astype(int), codes & (2**mantissa_bits - 1)
    significand = np.where(exponent == 0, mantissa, 2.0**mantissa_bits + mantissa)
    values = sign * significand * 2.0 ** (np.maximum(exponent, 1) - bias - mantissa_bits)
    # E4M3 has no infinity; only the largest code of each sign is NaN. FNUZ has one NaN, in the place of -0.
    is_nan = codes == 0x80 if dtype.endswith("FNUZ") else (codes & 0x7F) == 0x7F
    return np.where(is_nan, np.nan, values).astype("<f4")
