"""Format numbers, sizes and lists of names for people."""

from collections.abc import Iterator, Sequence
from decimal import Decimal


def format_bytes(num_bytes: float) -> str:
    """Format a size, such as `436.2 MB`. Units are powers of 1000, as in file systems and on the Hub."""
    return f"{num_bytes:.0f} B" if abs(num_bytes) < 999.5 else format_count(num_bytes, units=("kB", "MB", "GB", "TB"))


def format_count(count: float, spec: str = ".1f", units: Sequence[str] = ("k", "M", "B")) -> str:
    """Format a number of parameters or operations, such as `218.1 M`.

    Args:
        count: The number.
        spec: Format of the digits before a unit.
        units: The units for 1000, 1000**2 and so on.
    """
    if abs(count) < 1000:
        return f"{count:g}"
    # The first unit with fewer than four digits after rounding: 999,960 is 1.0 M, not 1000.0 k.
    rounded = [Decimal(f"{count / 1000**power:{spec}}") for power in range(1, len(units) + 1)]
    index = next((index for index, value in enumerate(rounded) if abs(value) < 1000), -1)
    return f"{rounded[index]:f} {units[index]}"


def format_score(score: float, spec: str = ".4g") -> str:
    """Format a score, a loss or a difference without an exponent: 2e-16 is a rounding error, and shown as zero."""
    text = f"{score:{spec}}"
    if "e" not in text:
        return text
    return f"{score:{'+' * spec.startswith('+')}{',.0f' if abs(score) > 1 else 'z.4f'}}"


def format_amount(count: int, noun: str) -> str:
    """Format a number of things, such as `1 seed` or `2,000 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Format a duration, such as `4.2 us`, `12 ms`, `0.8 s`, `42 s` or `3 min 05 s`."""
    rounded = float(f"{seconds:.2g}")
    if 0 < rounded < 0.1:
        return f"{rounded * 1e3:g} ms" if rounded >= 1e-3 else f"{rounded * 1e6:g} us"
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole_seconds:02d} s"


def format_value(name: str, value: float) -> str:
    """Format a value of `Progress.metrics` by its name."""
    if name in ("memory", "read"):
        return format_bytes(value)
    if name == "layer":
        return f"{value:.0f}"
    if name.endswith("/s"):
        return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"
    return f"{value:.3g}" if name == "learning rate" else format_score(value)


def format_runs(numbers: Sequence[int], *, to: str = "-", between: str = ", ") -> str:
    """Format numbers in their order as runs: `0-15, 8-23`."""
    return between.join(f"{first}{to}{last}" if last > first else f"{first}" for first, last in find_runs(numbers))


def find_runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last number of each run of neighbours, in their order."""
    begin = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[begin], numbers[index - 1]
            begin = index


def list_names(names: Sequence[str], most: int = 3) -> str:
    """Format names for a message: the first ones, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
