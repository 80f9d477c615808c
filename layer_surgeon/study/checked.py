"""Type checks for the fields of records, when they are created: a study's files may come from strangers."""

import functools
import math
import types
from collections.abc import Hashable, Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from layer_surgeon.errors import ConfigError

# A prompt has a few hundred characters. Every training repeats the texts of its plan.
MAX_CHARACTERS = 10_000
# File systems allow 255 bytes, and a file name here combines several names.
MAX_NAME = 200
_MAX_NUMBER = 2**63


def check_types(record: Any) -> None:
    """Check that each field of a dataclass has its declared type.

    Raises:
        ConfigError: A field has another type, a text or number is too large, or a number is not finite.
    """
    for name, hint in _hints(cast("Hashable", type(record))).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            raise ConfigError(f"{name} is {shown(value)}; it must be {_describe(hint)}.")


def check(good: bool, key: str, value: Any, expected: str) -> None:
    """Reject the value of a key unless it is good.

    Args:
        good: Whether the value is accepted.
        key: The key in the plan, for the message.
        value: The value, for the message.
        expected: What the value must be, for the message.

    Raises:
        ConfigError: The value is not good.
    """
    if not good:
        raise ConfigError(f"{key} is {shown(value)}; it must be {expected}.")


def as_text(value: Any) -> str:
    """Return a name or title as text, which YAML may have read as a number or a date."""
    try:
        return str(value)
    except ValueError as error:  # a whole number with thousands of digits
        raise ConfigError(f"A name in the plan is {shown(value)}; it must be text.") from error


def shown(value: Any) -> str:
    """Return a value for a message. Python refuses to format whole numbers with too many digits."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to show"


@functools.cache
def _hints(record: Any) -> Mapping[str, Any]:
    return get_type_hints(record)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(k, str) and _fits(v, arguments[1]) for k, v in value.items())
    if hint is Any:
        return _is_plain(value)
    if hint in (int, float):
        return _is_number(value) and (hint is float or isinstance(value, int))
    if hint is str:
        return isinstance(value, str) and 0 < len(value) <= MAX_CHARACTERS
    return isinstance(value, hint)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _MAX_NUMBER if isinstance(value, int) else math.isfinite(value)


def _is_plain(value: Any) -> bool:
    """Return whether a value consists of JSON types, with finite numbers only."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(name, str | int) and _is_plain(item) for name, item in value.items())
    if isinstance(value, str):
        return len(value) <= MAX_CHARACTERS
    return value is None or isinstance(value, bool) or _is_number(value)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return f"a list, each item {_describe(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping of `name: value` lines, each value {_describe(arguments[1])}"
    if hint is Any:
        return f"made of numbers, texts of at most {MAX_CHARACTERS:,} characters, lists and mappings"
    return _WORDS.get(hint, f"a {hint.__name__}")


_WORDS = {
    int: "a whole number of at most 18 digits",
    float: "a number",
    bool: "true or false",
    str: f"a text of 1 to {MAX_CHARACTERS:,} characters",
    type(None): "left out",
}
