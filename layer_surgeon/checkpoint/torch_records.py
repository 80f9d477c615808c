"""What a PyTorch checkpoint is described with: storages, tensors, and the names that a state dict's pickle may use."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from layer_surgeon.checkpoint.safetensors import DTYPE_BITS
from layer_surgeon.checkpoint.types import TensorInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """A row of numbers that tensors are views of: one entry of the zip file.

    Attributes:
        key: The entry's name below `data/`.
        dtype: The safetensors code of its elements; None where only the tensors know (torch's UntypedStorage).
        num_elements: How many there are; bytes where the dtype is None.
    """

    key: str
    dtype: str | None
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all elements."""
        return self.num_elements * (1 if self.dtype is None else DTYPE_BITS[self.dtype] // 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it; its numbers lie inside of its storage.

    Attributes:
        dtype: The safetensors code of its elements.
        shape: Its sizes, outermost first.
        stride: How many elements lie from one index to the next, for each of the sizes.
        storage: Where its numbers are.
        first: The element of the storage that it begins with.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: Storage
    first: int

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPE_BITS[self.dtype] // 8

    @property
    def num_bytes(self) -> int:
        """Bytes of all elements, without what lies between them."""
        return prod(self.shape) * self.item_bytes

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie side by side in the order of their indices."""
        if 0 in self.shape:
            return True
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    @property
    def order(self) -> tuple[int, ...] | None:
        """Its dimensions as they lie in the storage, outermost first; None where elements lie apart, or are shared."""
        order = sorted(range(len(self.shape)), key=lambda axis: (self.shape[axis] == 1, self.stride[axis]))
        expected = 1
        for axis in order:
            if self.shape[axis] != 1 and self.stride[axis] != expected:
                return None
            expected *= self.shape[axis]
        return tuple(reversed(order))


@dataclass(frozen=True, kw_only=True)
class PermutedTensorInfo(TensorInfo):
    """A tensor whose bytes lie side by side, but in another order of its dimensions, as those of a transpose do.

    Attributes:
        order: Its dimensions as they lie in the file, outermost first: (1, 0) for a transposed matrix.
    """

    order: tuple[int, ...]


ORDERED_DICT = ("collections", "OrderedDict")
REBUILD = ("torch._utils", "_rebuild_tensor_v2")
REBUILD_WITH_DTYPE = ("torch._utils", "_rebuild_tensor_v3")
PARAMETER = ("torch._utils", "_rebuild_parameter")
# safetensors' codes for torch's types of storages, and None for the one without a dtype.
STORAGES: Mapping[tuple[str, str], str | None] = {
    ("torch", "DoubleStorage"): "F64",
    ("torch", "FloatStorage"): "F32",
    ("torch", "HalfStorage"): "F16",
    ("torch", "BFloat16Storage"): "BF16",
    ("torch", "LongStorage"): "I64",
    ("torch", "IntStorage"): "I32",
    ("torch", "ShortStorage"): "I16",
    ("torch", "CharStorage"): "I8",
    ("torch", "ByteStorage"): "U8",
    ("torch", "BoolStorage"): "BOOL",
    ("torch", "ComplexFloatStorage"): "C64",
    ("torch", "UntypedStorage"): None,
    ("torch.storage", "UntypedStorage"): None,
}
DTYPES: Mapping[tuple[str, str], str] = {
    ("torch", name): code
    for name, code in {
        "float64": "F64",
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
        "int64": "I64",
        "int32": "I32",
        "int16": "I16",
        "int8": "I8",
        "uint64": "U64",
        "uint32": "U32",
        "uint16": "U16",
        "uint8": "U8",
        "bool": "BOOL",
        "complex64": "C64",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e5m2": "F8_E5M2",
        "float8_e4m3fnuz": "F8_E4M3FNUZ",
        "float8_e5m2fnuz": "F8_E5M2FNUZ",
        "float8_e8m0fnu": "F8_E8M0",
    }.items()
}
KNOWN = {ORDERED_DICT, REBUILD, REBUILD_WITH_DTYPE, PARAMETER, *STORAGES, *DTYPES}
