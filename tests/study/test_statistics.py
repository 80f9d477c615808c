"""The intervals match the literature."""

import numpy as np
import pytest

from layer_surgeon.study.statistics import difference, wilson


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes, count, low, high):
    assert wilson(successes / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((48, 80), (56, 70), 0.0524, 0.3339),  # Newcombe 1998, "Interval estimation for the difference", table II
    ],
)
def test_difference(first, second, low, high):
    # The published example has groups of different sizes: both ends from the definition, to four digits.
    a, b = first[0] / first[1], second[0] / second[1]
    (la, ha), (lb, hb) = wilson(a, first[1]), wilson(b, second[1])
    assert (b - a - np.hypot(b - lb, ha - a), b - a + np.hypot(hb - b, a - la)) == pytest.approx((low, high), abs=5e-5)


def test_difference_follows_its_definition():
    (la, ha), (lb, hb) = wilson(0.8, 200), wilson(0.9, 200)
    assert difference(0.8, 0.9, 200) == pytest.approx(
        (0.1 - np.hypot(0.9 - lb, ha - 0.8), 0.1 + np.hypot(hb - 0.9, 0.8 - la))
    )


def test_difference_is_antisymmetric():
    there, back = difference(0.6, 0.9, 50), difference(0.9, 0.6, 50)
    assert there == pytest.approx((-back.high, -back.low))
    assert not there.holds_zero
    assert difference(0.6, 0.62, 50).holds_zero


def test_wilson_has_the_right_coverage():
    rng = np.random.default_rng(0)
    for share in (0.5, 0.9):
        drawn = rng.binomial(100, share, size=4000) / 100
        covered = np.mean([low <= share <= high for low, high in (wilson(value, 100) for value in drawn)])
        assert 0.93 < covered < 0.97


@pytest.mark.parametrize(("share", "count"), [(1.1, 10), (-0.1, 10), (0.5, 0)])
def test_invalid_shares_are_refused(share, count):
    with pytest.raises(ValueError, match="a share is from 0 to 1"):
        wilson(share, count)
