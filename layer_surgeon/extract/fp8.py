"""8-bit floats with scales beside them: which scale belongs to which weight, and the codec that multiplies them.

Three forms are in use: one scale per block of 128 x 128 (`weight_scale_inv`; DeepSeek-V3, Qwen3-FP8), one per row
(`weight_scale` [rows, 1]; Llama-3.1-405B-FP8 by fbgemm, compressed-tensors) and one per tensor (compressed-tensors,
modelopt). All multiply.
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

FP8_CODES = ("F8_E4M3", "F8_E5M2")
_SCALE_SUFFIXES = ("_scale_inv", "_scale")
# For activations, which are not quantised once the weights are plain.
_DROPPED = (".input_scale", ".output_scale", ".activation_scale", ".input_scale_ub", ".k_scale", ".v_scale")
# A scale per 128 x 128 block of the largest matrix in use (DeepSeek-V3's 7168 x 18432) takes 32 kB.
_MAX_SCALE_BYTES = 16_000_000


def pair_scales(infos: Iterable[TensorInfo]) -> list[tuple[TensorInfo, TensorInfo | None]]:
    """Each tensor that stays, with its scale where it has one; scales and what is for activations are left out.

    Raises:
        CheckpointError: A weight in 8 bits has no scale.
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
                f"The weight {name!r} is stored in 8 bits ({info.dtype}), but no scale lies beside it "
                f"({name}_scale_inv or {name}_scale). Take the model that it was made from."
            )
        pairs.append((info, scale_of.get(name)))
    return pairs


class Fp8Codec:
    """Multiplies 8-bit floats [rows, columns] by their scales, one row of the matrix as a block.

    Args:
        weight: The weight.
        scales: [block rows, block columns], the scale of each block.
        block: Rows and columns of a block.
        dtype: F32, BF16 or F16.
    """

    def __init__(self, weight: TensorInfo, scales: "Floats", block: tuple[int, int], dtype: str) -> None:
        columns = weight.shape[-1]
        self.dtype = dtype
        self.block_bytes = columns
        self.out_block_bytes = columns * DTYPE_BITS[dtype] // 8
        self._columns, self._rows_per_scale, self._columns_per_scale = columns, *block
        self._scales = scales
        self._table = _table(weight.dtype)

    def convert(self, blocks: Buffer, first: int = 0) -> Buffer:
        """The numbers of whole rows, the first of which is row `first`."""
        import numpy as np

        values = self._table[np.frombuffer(blocks, dtype=np.uint8)].reshape(-1, self._columns)
        rows = (first + np.arange(len(values))) // self._rows_per_scale
        scales = np.repeat(self._scales[rows], self._columns_per_scale, axis=1)[:, : self._columns]
        return encode_floats((values * scales).reshape(-1), self.dtype)


def fp8_codec(source: Source, config: Mapping[str, Any], weight: TensorInfo, scale: TensorInfo, dtype: str) -> Fp8Codec:
    """The codec of one weight; reads its scales, which are small, right away.

    Raises:
        CheckpointError: The scales' shape does not fit the weight's.
        SourceError: The scales can't be read.
    """
    if scale.num_bytes > _MAX_SCALE_BYTES or len(weight.shape) != 2:
        raise CheckpointError(
            f"{scale.name} of shape {list(scale.shape)} is no scale of {list(weight.shape)}: only matrices can be "
            "multiplied out. Take the model that it was made from."
        )
    raw = source.read_range(scale.file, scale.offset, scale.num_bytes)
    values = _powers(raw) if scale.dtype == "F8_E8M0" else decode_floats(raw, scale.dtype).astype("<f4")
    block = _block(config, weight, scale)
    shape = [-(-size // per) for size, per in zip(weight.shape, block, strict=True)]
    return Fp8Codec(weight, values.reshape(shape), block, dtype)


def _block(config: Mapping[str, Any], weight: TensorInfo, scale: TensorInfo) -> tuple[int, int]:
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
        f"{scale.name} has the shape {list(scale.shape)}, which fits neither the tensor, its rows, nor blocks of "
        f"{' or '.join(map(str, sizes)) or 'a size in the config'} of {weight.name} {list(weight.shape)}. "
        "Take the model that it was made from."
    )


def _is_pair(value: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(value, Sequence) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def _powers(raw: Buffer) -> "Floats":
    """What 8 bits of exponent stand for: powers of two, and 255 for no number."""
    import numpy as np

    codes = np.frombuffer(raw, dtype=np.uint8)
    return np.where(codes == 0xFF, np.nan, np.exp2(codes.astype(np.float64) - 127)).astype("<f4")


def _table(dtype: str) -> "Floats":
    """The number that each of the 256 bytes stands for."""
    import numpy as np

    codes = np.arange(256, dtype=np.uint8)
    if dtype == "F8_E5M2":
        # The upper half of a float16.
        return (codes.astype("<u2") << np.uint16(8)).view("<f2").astype("<f4")
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent, mantissa = (codes >> 3) & 0xF, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent.astype(int) - 10))
    # E4M3 has no infinity: only the last number of each sign is no number.
    return np.where((codes & 0x7F) == 0x7F, np.nan, sign * values).astype("<f4")
