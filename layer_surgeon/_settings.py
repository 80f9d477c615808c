"""Settings as dataclasses: fields with a help text, copies with other values, and checks when they are created.

The fields of other records are checked in the same way: a study's files may come from strangers.
"""

import functools
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import field, fields, replace
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from layer_surgeon.errors import ConfigError

# A prompt has a few hundred characters. Every training repeats the texts of its plan.
MAX_CHARACTERS = 10_000
# File systems allow 255 bytes, and a file name here combines several names.
MAX_NAME = 200
_MAX_NUMBER = 2**63
_T = TypeVar("_T")


def option(default: _T, help_text: str, choices: Callable[[], tuple[str, ...]] | None = None) -> _T:
    """Make a field with its help text and choices, which the command line and docs/configuration.md show."""
    value: _T = field(default=default, metadata={"help": help_text, "choices": choices})
    return value


class Settings:
    """Base class of dataclasses with settings."""

    @classmethod
    def from_settings(cls, config: Self | None = None, settings: Mapping[str, Any] | None = None) -> Self:
        """Return `config`, or the defaults, with some values replaced.

        Args:
            config: The settings to begin with; None for the defaults.
            settings: The values to replace, by name.

        Raises:
            ConfigError: A setting has an unknown name or an invalid value.
        """
        names = sorted(item.name for item in fields(cls))  # type: ignore[arg-type]  # subclasses are dataclasses
        if unknown := sorted(set(settings or {}) - set(names)):
            raise ConfigError(f"There is no setting {unknown[0]!r}. The settings are: {', '.join(names)}.")
        return replace(config or cls(), **(settings or {}))  # type: ignore[type-var]  # as above

    def check(self, name: str, good: bool, expected: str) -> None:
        """Check the value of a field, as the function `check`."""
        check(good, name, getattr(self, name), expected)


def check_types(record: Any, skip: Collection[str] = ()) -> None:
    """Check that each field of a dataclass has its declared type, or is one of its choices.

    Args:
        record: The dataclass.
        skip: Fields that are checked elsewhere.

    Raises:
        ConfigError: A field has another type, a text or number is too large, or a number is not finite.
    """
    hints = type_hints(type(record))
    for item in fields(record):
        if item.name in skip:
            continue
        value, choices = getattr(record, item.name), item.metadata.get("choices")
        check(_fits(value, hints[item.name]), item.name, value, _describe(hints[item.name]))
        if choices is not None and value is not None:
            check(value in choices(), item.name, value, f"one of {', '.join(choices())}")


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


def type_hints(kind: Any) -> Mapping[str, Any]:
    """Return the declared types of a dataclass's fields, by name."""
    return _type_hints(kind)


_type_hints = functools.cache(get_type_hints)


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
