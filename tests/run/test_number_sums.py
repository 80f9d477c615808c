"""The sums of a comparison equal those of numpy in float64, for all dtypes, lengths and sizes of numbers."""

import math

import numpy as np
import pytest

from layer_surgeon.run.number_sums import BLOCK_NUMBERS, COMPARABLE, Comparison
from tests.support.numbered_weights import encoded


def compare(a, b, dtype_a="F32", dtype_b="F32"):
    """Compare two arrays block by block, as they come from two files."""
    comparison = Comparison(dtype_a, dtype_b)
    for start in range(0, a.size, BLOCK_NUMBERS):
        part = slice(start, start + BLOCK_NUMBERS)
        comparison.add(memoryview(encoded(a[part], dtype_a)), memoryview(encoded(b[part], dtype_b)))
    return comparison.sums


def expected(a, b):
    """Relative L2, cosine and largest difference in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norm_a, norm_b = np.sqrt(a @ a), np.sqrt(b @ b)
    return np.sqrt((a - b) @ (a - b)) / norm_a, a @ b / norm_a / norm_b, np.abs(a - b).max()


def bfloat16(numbers):
    return (numbers.astype("f4").view("u4") & np.uint32(0xFFFF0000)).view("f4")


@pytest.mark.parametrize("size", [1, 7, 1000, 2 * BLOCK_NUMBERS + 1])
@pytest.mark.parametrize(
    ("dtype_a", "dtype_b"),
    [("F32", "F32"), ("BF16", "BF16"), ("F16", "F16"), ("F64", "F64"), ("BF16", "F32"), ("F64", "BF16"), ("I64", "U8")],
)
def test_sums_equal_numpy(size, dtype_a, dtype_b):
    generator = np.random.default_rng(size)
    if dtype_a == "I64":
        a, b = generator.integers(1, 200, size), generator.integers(0, 200, size)
    else:
        a = bfloat16(generator.standard_normal(size))
        b = bfloat16(a + 0.01 * generator.standard_normal(size))
        if "F16" in (dtype_a, dtype_b):
            a, b = a.astype("f2").astype("f4"), b.astype("f2").astype("f4")
    sums = compare(a, b, dtype_a, dtype_b)
    relative_l2, cosine, max_abs = expected(a, b)
    assert sums.relative_l2 == pytest.approx(relative_l2, rel=1e-6)
    assert sums.cosine == pytest.approx(cosine, abs=1e-6)
    assert sums.max_difference == pytest.approx(max_abs, rel=1e-6)
    assert sums.equal == np.array_equal(a, b)


def test_equal_numbers_need_no_sums_of_differences():
    a = np.random.default_rng(0).standard_normal(BLOCK_NUMBERS + 3).astype("f4")
    sums = compare(a, a)
    assert sums.equal
    assert (sums.relative_l2, sums.cosine, sums.max_difference) == (0.0, 1.0, 0.0)
    assert sums.squares_a == pytest.approx(float(a.astype("f8") @ a), rel=1e-6)


def test_one_changed_number_in_the_last_block_is_found():
    a = np.ones(3 * BLOCK_NUMBERS, dtype="f4")
    b = a.copy()
    b[-1] = 1.5
    sums = compare(a, b)
    assert not sums.equal
    assert sums.max_difference == 0.5
    assert sums.relative_l2 == pytest.approx(0.5 / math.sqrt(a.size), rel=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-25])
def test_squares_outside_of_float32_are_still_right(scale):
    a = np.array([1.0, 2.0, 3.0], dtype="f4") * np.float32(scale)
    b = np.array([1.0, 2.5, 3.0], dtype="f4") * np.float32(scale)
    sums = compare(a, b)
    assert sums.relative_l2 == pytest.approx(expected(a, b)[0], rel=1e-6)
    assert sums.cosine == pytest.approx(expected(a, b)[1], rel=1e-6)


def test_numbers_that_are_not_finite_have_no_distance():
    a = np.array([1.0, np.nan, 3.0], dtype="f4")
    b = np.array([1.0, 2.0, np.inf], dtype="f4")
    sums = compare(a, b)
    assert not sums.equal
    assert (sums.relative_l2, sums.cosine, sums.max_difference) == (None, None, None)
    # The same bytes are equal, also those of NaN.
    assert compare(a, a).equal


def test_zeros_have_no_direction():
    zeros, ones = np.zeros(4, dtype="f4"), np.ones(4, dtype="f4")
    assert compare(zeros, ones).relative_l2 is None
    assert compare(ones, zeros).relative_l2 == 1.0
    assert compare(ones, zeros).cosine is None


def test_equal_numbers_in_different_dtypes_are_equal():
    a = bfloat16(np.random.default_rng(0).standard_normal(1000))
    assert compare(a, a, "BF16", "F32").equal
    assert not compare(a, a + np.float32(1e-6), "BF16", "F32").equal


@pytest.mark.parametrize("dtype", COMPARABLE)
def test_all_dtypes_can_be_read(dtype):
    comparison = Comparison(dtype, dtype)
    comparison.add(bytes(16), bytes(15) + b"\1")
    assert not comparison.sums.equal
