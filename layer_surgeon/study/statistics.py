"""Confidence intervals for a share, such as accuracy, and for the difference of two shares."""

import math
from typing import NamedTuple

# Two-sided 95 % of the standard normal distribution.
_Z = 1.959963984540054


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval contains zero. An interval of a difference is then inconclusive."""
        return self.low <= 0 <= self.high


def wilson(share: float, count: int) -> Interval:
    """Return Wilson's interval for a share (here: accuracy), measured on `count` independent examples.

    Unlike mean +- 1.96 standard errors, this interval stays inside [0, 1], and its coverage is right near both ends too
    (Wilson 1927; Brown, Cai and DasGupta 2001).

    Raises:
        ValueError: `share` is not between 0 and 1, or `count` is not positive.
    """
    if not 0 <= share <= 1 or count < 1:
        raise ValueError(f"share {share} of {count} examples: a share is from 0 to 1, over at least one example")
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half_width = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    return Interval(max(0.0, middle - half_width), min(1.0, middle + half_width))


def difference(first: float, second: float, count: int) -> Interval:
    """Return the interval for `second - first`, two shares that are measured on `count` examples each.

    This is Newcombe's hybrid score interval (1998, method 10) for independent samples. Both models see the same
    examples, so the true interval is narrower: this one is conservative, and calls more differences inconclusive.
    """
    low_first, high_first = wilson(first, count)
    low_second, high_second = wilson(second, count)
    delta = second - first
    return Interval(
        delta - math.hypot(second - low_second, high_first - first),
        delta + math.hypot(high_second - second, first - low_first),
    )
