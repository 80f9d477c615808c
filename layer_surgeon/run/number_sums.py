"""Compare two streams of numbers in bounded memory: their squared norms, inner product and largest difference."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layer_surgeon.extract.dtypes import PLAIN_FLOATS, Buffer, decode_floats

_Numbers = npt.NDArray[Any]

# With 65,536 numbers, all arrays of one block stay in the cache: 16,384 take 1.7 times as long, 262,144 are no faster.
BLOCK_NUMBERS = 1 << 16
# A float32 dot product of 65,536 numbers is off by up to 1e-6, which is much for a cosine near 1. A sum of dot products
# of 2,048 numbers is off by 1e-9, and takes 3 us more.
_DOT_NUMBERS = 1 << 11
_INTEGERS = {
    "BOOL": "u1",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
}
# The dtypes (safetensors codes) that can be compared as numbers.
COMPARABLE = (*PLAIN_FLOATS, *_INTEGERS)


@dataclass(kw_only=True)
class Sums:
    """Sums over the numbers of A and B at the same positions.

    Attributes:
        squares_a: Sum of a * a.
        squares_b: Sum of b * b.
        products: Sum of a * b.
        squared_differences: Sum of (a - b) ** 2.
        max_abs: The largest |a - b|.
        equal: Whether all numbers are equal: the same bytes, or the same values if the dtypes differ.
    """

    squares_a: float = 0.0
    squares_b: float = 0.0
    products: float = 0.0
    squared_differences: float = 0.0
    max_abs: float = 0.0
    equal: bool = True

    def add(self, other: "Sums") -> None:
        """Add the sums over other positions."""
        self.squares_a += other.squares_a
        self.squares_b += other.squares_b
        self.products += other.products
        self.squared_differences += other.squared_differences
        # NaN stays NaN: max(0.0, nan) would be 0.0.
        self.max_abs = other.max_abs if other.max_abs > self.max_abs or math.isnan(other.max_abs) else self.max_abs
        self.equal = self.equal and other.equal

    @property
    def relative_l2(self) -> float | None:
        """|A - B| / |A|; None if it isn't finite."""
        if self.equal:
            return 0.0
        return _finite(lambda: math.sqrt(self.squared_differences / self.squares_a))

    @property
    def cosine(self) -> float | None:
        """The cosine between A and B; None if one of them is zero, or a number isn't finite."""
        if self.equal:
            return 1.0
        return _finite(lambda: self.products / math.sqrt(self.squares_a) / math.sqrt(self.squares_b))

    @property
    def max_difference(self) -> float | None:
        """The largest |a - b|; None if it isn't finite."""
        return 0.0 if self.equal else _finite(lambda: self.max_abs)


def _finite(compute: Callable[[], float]) -> float | None:
    try:
        value = compute()
    except ZeroDivisionError:
        return None
    return value if math.isfinite(value) else None


class Comparison:
    """Adds up the sums of one part of a tensor, block by block. Not for several threads.

    Args:
        dtype_a: The safetensors code of A's numbers, one of `COMPARABLE`.
        dtype_b: The same for B.
    """

    def __init__(self, dtype_a: str, dtype_b: str) -> None:
        self.sums = Sums()
        self._dtype_a, self._dtype_b = dtype_a, dtype_b
        self._buffers = [np.empty(BLOCK_NUMBERS, dtype="<f4") for _ in range(2)]

    def add(self, block_a: Buffer, block_b: Buffer) -> None:
        """Add at most `BLOCK_NUMBERS` numbers, the same number of each side."""
        # Once a difference was seen, more are likely, and looking for equal blocks costs more than it saves.
        if self.sums.equal and self._dtype_a == self._dtype_b:
            if _same_bytes(block_a, block_b):
                self.add_alone(block_a)
                return
            self.sums.equal = False
        numbers_a, numbers_b = self._decode(block_a, block_b)
        with np.errstate(invalid="ignore", over="ignore"):
            block_sums = _block_sums(numbers_a, numbers_b)
            if not _is_accurate(block_sums):
                block_sums = _block_sums(numbers_a.astype(np.float64), numbers_b.astype(np.float64))
        if self._dtype_a == self._dtype_b:
            block_sums.equal = False
        self.sums.add(block_sums)

    def add_alone(self, block_a: Buffer) -> None:
        """Add numbers of A that are known to equal B's."""
        numbers, _ = self._decode(block_a, None)
        with np.errstate(invalid="ignore", over="ignore"):
            squares = _dot(numbers, numbers)
            if not math.isfinite(squares):
                wide = numbers.astype(np.float64)
                squares = _dot(wide, wide)
        self.sums.add(Sums(squares_a=squares, squares_b=squares, products=squares))

    def _decode(self, block_a: Buffer, block_b: Buffer | None) -> tuple[_Numbers, _Numbers]:
        dtype_b = self._dtype_a if block_b is None else self._dtype_b
        if self._dtype_a == dtype_b == "BF16" and len(block_a) % 4 == 0:
            numbers_a = _decode_pairs(block_a, self._buffers[0])
            return numbers_a, numbers_a if block_b is None else _decode_pairs(block_b, self._buffers[1])
        numbers_a = _decode(block_a, self._dtype_a)
        numbers_b = numbers_a if block_b is None else _decode(block_b, dtype_b)
        if numbers_a.dtype != numbers_b.dtype:
            return numbers_a.astype(np.float64), numbers_b.astype(np.float64)
        return numbers_a, numbers_b


def _same_bytes(block_a: Buffer, block_b: Buffer) -> bool:
    dtype = "u4" if len(block_a) % 4 == 0 else "u1"
    return bool(np.array_equal(np.frombuffer(block_a, dtype), np.frombuffer(block_b, dtype)))


def _decode_pairs(block: Buffer, out: _Numbers) -> _Numbers:
    """Decode an even number of bfloat16 numbers: first those with even positions, then those with odd ones.

    Sums don't depend on the order, and this takes half as long as widening each number by itself.
    """
    pairs = np.frombuffer(block, dtype="<u4")
    bits = out.view("<u4")[: 2 * len(pairs)]
    np.left_shift(pairs, np.uint32(16), out=bits[: len(pairs)])
    np.bitwise_and(pairs, np.uint32(0xFFFF0000), out=bits[len(pairs) :])
    return out[: 2 * len(pairs)]


def _decode(block: Buffer, dtype: str) -> _Numbers:
    """Decode numbers: as float32 if it holds them exactly, otherwise as float64."""
    if dtype in _INTEGERS:
        return np.frombuffer(block, dtype=_INTEGERS[dtype]).astype(np.float64)
    numbers = decode_floats(block, dtype)
    return numbers if dtype == "F64" else numbers.astype(np.float32, copy=False)


def _block_sums(numbers_a: _Numbers, numbers_b: _Numbers) -> Sums:
    difference = numbers_a - numbers_b
    # Two reductions are faster than one of np.abs, which makes an array. Both return NaN if there is one.
    max_abs = np.maximum(difference.max(), -difference.min())
    return Sums(
        squares_a=_dot(numbers_a, numbers_a),
        squares_b=_dot(numbers_b, numbers_b),
        products=_dot(numbers_a, numbers_b),
        squared_differences=_dot(difference, difference),
        max_abs=float(max_abs),
        equal=bool(max_abs == 0),
    )


def _dot(numbers_a: _Numbers, numbers_b: _Numbers) -> float:
    whole = len(numbers_a) // _DOT_NUMBERS * _DOT_NUMBERS
    rows, columns = numbers_a[:whole].reshape(-1, 1, _DOT_NUMBERS), numbers_b[:whole].reshape(-1, _DOT_NUMBERS, 1)
    return float((rows @ columns).sum(dtype=np.float64)) + float(numbers_a[whole:] @ numbers_b[whole:])


def _is_accurate(sums: Sums) -> bool:
    """Whether float32 was enough: squares of large numbers overflow, those of tiny ones become zero."""
    values = (sums.squares_a, sums.squares_b, sums.products, sums.squared_differences)
    return all(map(math.isfinite, values)) and (sums.squared_differences > 1e-30 or sums.max_abs == 0)
