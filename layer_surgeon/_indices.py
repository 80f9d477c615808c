"""Read a selection of layers or depths: a number such as 31 or -1, or a slice such as 30:32."""

import operator
import re
from collections.abc import Callable
from typing import SupportsIndex

_NUMBER = re.compile(r"-?\d{1,9}")
_SLICE = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?")


def select_indices(part: object, count: int, check: Callable[[int], int]) -> list[int] | None:
    """Return the indices that a number or slice selects, counted from 0.

    Args:
        part: A number, or a string with a number or a slice; negative numbers count from the end.
        count: How many there are to select from.
        check: Returns a number from `part` counted from 0. Its error for a number out of range is not caught.

    Returns:
        The indices in order; None if `part` is neither a number nor a slice.
    """
    if isinstance(part, SupportsIndex) and not isinstance(part, bool):
        return [check(operator.index(part))]
    text = str(part).strip()
    if _NUMBER.fullmatch(text):
        return [check(int(text))]
    match = _SLICE.fullmatch(text)
    if match is None:
        return None
    begin, end = (None if bound is None else int(bound) for bound in match.groups())
    # Python's slices accept bounds out of range; here they are most likely a mistake.
    if begin is not None:
        check(begin)
    if end is not None and end != count:
        check(end)
    return list(range(count))[begin:end]
