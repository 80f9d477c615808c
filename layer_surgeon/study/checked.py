"""The types of a record's fields, checked where it is made: a study's files may come from anyone."""

import functools
import math
import types
from collections.abc import Hashable, Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from layer_surgeon.errors import ConfigError

# A prompt has some hundred characters. The text of a plan is repeated for each of its trainings.
MAX_CHARACTERS = 10_000
# File systems allow 255 bytes, and names of files are made of several names.
MAX_NAME = 200
_MAX_NUMBER = 2**63


def check_types(record: Any) -> None:
    """Check that each field of a dataclass has the type that it is declared with.

    Raises:
        ConfigError: One has another; or it is a text or a number that is too large, or not finite.
    """
    for name, hint in _hints(cast("Hashable", type(record))).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            raise ConfigError(f"{name} is {shown(value)}; it must be {_words(hint)}.")


def check(good: bool, key: str, value: Any, expected: str) -> None:
    """Refuse the value of a key that is not good.

    Raises:
        ConfigError: Says what it is, and what was expected.
    """
    if not good:
        raise ConfigError(f"{key} is {shown(value)}; it must be {expected}.")


def as_text(value: Any) -> str:
    """A name or title, which YAML may take for a number or a date."""
    try:
        return str(value)
    except ValueError as error:  # a whole number of many thousand digits
        raise ConfigError(f"A name in the plan is {shown(value)}; it must be text.") from error


def shown(value: Any) -> str:
    """A value in a message. Python refuses to write whole numbers of many digits."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to show"


@functools.cache
def _hints(record: Any) -> Mapping[str, Any]:
    return get_type_hints(record)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(entry, inner[0]) for entry in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(k, str) and _fits(v, inner[1]) for k, v in value.items())
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
    """Whether it is what JSON can say, numbers that are not finite apart."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(name, str | int) and _is_plain(entry) for name, entry in value.items())
    if isinstance(value, str):
        return len(value) <= MAX_CHARACTERS
    return value is None or isinstance(value, bool) or _is_number(value)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(kind) for kind in inner)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is tuple:
        return f"a list, each {_words(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"`name: value` lines, each value {_words(inner[1])}"
    if hint is Any:
        return f"plain: numbers, texts of at most {MAX_CHARACTERS:,} characters, lists and mappings"
    return _WORDS.get(hint, f"a {hint.__name__}")


_WORDS = {
    int: "a whole number of at most 18 digits",
    float: "a number",
    bool: "true or false",
    str: f"a text of 1 to {MAX_CHARACTERS:,} characters",
    type(None): "left out",
}
