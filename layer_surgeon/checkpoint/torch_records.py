"""Plain records of a PyTorch checkpoint: storages, tensors, and the names that the pickle of a state dict may use."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from layer_surgeon.checkpoint.safetensors import DTYPE_BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """A flat array that tensors are views of, stored as one entry of the zip file.

    Attributes:
        key: The entry's name below `data/`.
        dtype: The safetensors code of its elements; None if only the tensors have a dtype (torch's UntypedStorage).
        num_elements: The number of elements, or of bytes if the dtype is None.
    """

    key: str
    dtype: str | None
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """The size of all elements in bytes."""
        return self.num_elements * (1 if self.dtype is None else DTYPE_BITS[self.dtype] // 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it: a view of its storage.

    Attributes:
        dtype: The safetensors code of its elements.
        shape: Its sizes, outermost first.
        stride: The step in elements from one index to the next, for each dimension.
        storage: The storage with its elements.
        first: The index of its first element in the storage.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: Storage
    first: int

    @property
    def item_bytes(self) -> int:
        """The size of one element in bytes."""
        return DTYPE_BITS[self.dtype] // 8

    @property
    def num_bytes(self) -> int:
        """The size of all elements in bytes, without gaps between them."""
        return prod(self.shape) * self.item_bytes

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements are adjacent and in the order of their indices."""
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
        """Its dimensions in storage order, outermost first; None if there are gaps or shared elements."""
        order = sorted(range(len(self.shape)), key=lambda axis: (self.shape[axis] == 1, self.stride[axis]))
        expected = 1
        for axis in order:
            if self.shape[axis] != 1 and self.stride[axis] != expected:
                return None
            expected *= self.shape[axis]
        return tuple(reversed(order))


ORDERED_DICT = ("collections", "OrderedDict")
REBUILD = ("torch._utils", "_rebuild_tensor_v2")
REBUILD_WITH_DTYPE = ("torch._utils", "_rebuild_tensor_v3")
PARAMETER = ("torch._utils", "_rebuild_parameter")
# The safetensors code of each torch storage type; None for the storage without a dtype.
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
KNOWN_NAMES = {ORDERED_DICT, REBUILD, REBUILD_WITH_DTYPE, PARAMETER, *STORAGES, *DTYPES}
