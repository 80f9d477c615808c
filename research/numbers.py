"""Numbers as the pages show them; p-values and counts are formatted as in a study's report."""

import math

from layer_surgeon.study.verdict import say_p

# Versions of numpy differ in the last bits of a mean; a tie is therefore always rounded away from zero.
_TIE = 1e-9
Interval = tuple[float, float]


def fixed(value: float, digits: int = 1, *, sign: bool = False) -> str:
    """A number with that many decimals; zero has no sign."""
    text = f"{value + math.copysign(_TIE, value):{'+' if sign else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def three_digits(value: float) -> str:
    """A number with three significant digits: `0.0653`, `1,620`."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"


def percent(share: float) -> str:
    """A share in per cent: `84.5`."""
    return fixed(100 * share)


def points(difference: float) -> str:
    """A difference of shares in percentage points: `+1.2`."""
    return fixed(100 * difference, sign=True)


def interval_points(interval: Interval | None) -> str:
    """`-6.0 to -2.2`; None means that there was one run."""
    return "one run" if interval is None else " to ".join(points(end) for end in interval)


def p_value(p: float | None) -> str:
    """A p-value for a sentence: `p = 0.003`; None means that there was no test."""
    if p is None:
        return "no test"
    return f"p {say_p(p)}" if p < 0.001 else f"p = {say_p(p)}"


def p_values(raw: float | None, corrected: float | None) -> str:
    """Both p-values for a sentence: `p = 0.003, corrected 0.040`; only the one there is, if there was no correction."""
    if raw is None or corrected is None:
        return p_value(corrected)
    return f"{p_value(raw)}, corrected {say_p(corrected)}"
