"""The settings that layers of two sources must have in common, in one form for older and newer configs.

Versions of transformers write the same settings differently: under other names, in other sections, or not at all if
they have their usual values. `assembly_families.json` has what each family reads: `spellings` are the older names and
where newer configs have the values, `unstated` are values that follow from other settings, `sections` the defaults of
everything else. What the table doesn't explain stays as it is, so it counts as a difference.
"""

from collections.abc import Mapping
from typing import Any

from layer_surgeon.assemble.ignored_settings import NOT_COMPARED

_ROPE, _OLD_ROPE = "rope_parameters", "rope_scaling"
_ORIGINAL = "original_max_position_embeddings"
_FROM_FAMILY = ("rope_theta", "partial_rotary_factor")
# The kinds of rotary embeddings that compute with the number of positions in training.
_WITH_ORIGINAL = ("llama3", "yarn", "longrope")


def comparable(text: Mapping[str, Any], family: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a language model, including those that it leaves to its family.

    Args:
        text: The config of the language model.
        family: What `assembly_families.json` says about the family.
    """
    values = {name: _plain(value) for name, value in text.items() if value is not None}
    _respell(values, family)
    _complete_rope(values, text, family)
    for name, default in _plain(family.get("sections", {})).items():
        if name != _ROPE and isinstance(default, Mapping) and isinstance(values.get(name, {}), Mapping):
            values[name] = {**default, **values.get(name, {})}
        elif name != _ROPE:
            values.setdefault(name, default)
    unstated, defaults = family.get("unstated", {}), family.get("defaults", {})
    for name in {**defaults, **unstated}:
        if name not in values and (value := _usual(name, values, unstated, defaults)) is not None:
            values[name] = value
    return _compared(values)


def _plain(value: Any) -> Any:
    """Return a value as older configs have it: transformers 5 writes infinity as {"__float__": "Infinity"}."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value == {"__float__": "Infinity"}:
        return float("inf")
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, Mapping) else value


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out, in all sections, what is not stated and what need not be equal."""
    return {
        name: _compared(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value is not None and name not in NOT_COMPARED and not name.startswith("unsloth_")
    }


def _respell(values: dict[str, Any], family: Mapping[str, Any]) -> None:
    """Move values with an older name to where newer configs have them, unless these have another value there."""
    spellings = {_OLD_ROPE: [_ROPE], **family.get("spellings", {})}
    if isinstance(rope := values.get(_OLD_ROPE), Mapping) and _ROPE not in values:
        del values[_OLD_ROPE]
        for path in spellings[_OLD_ROPE]:
            _set(values, path, dict(rope))
    for name, paths in spellings.items():
        if name in values and all(_get(values, path) in (None, values[name]) for path in paths):
            value = values.pop(name)
            for path in paths:
                _set(values, path, value)


def _complete_rope(values: dict[str, Any], text: Mapping[str, Any], family: Mapping[str, Any]) -> None:
    """Add what the family adds to incomplete settings of the rotary embeddings."""
    default = family.get("sections", {}).get(_ROPE, {})
    rope = values.setdefault(_ROPE, {})
    if not isinstance(rope, dict):
        return
    kinds = sorted(name for name, part in {**default, **rope}.items() if isinstance(part, Mapping))
    parts = [(rope.setdefault(kind, {}), default.get(kind) or {}) for kind in kinds] or [(rope, default)]
    for part, usual in parts:
        if not isinstance(part, dict):  # None: these layers have no rotary embeddings.
            continue
        if not set(part) - set(_FROM_FAMILY):
            part |= {**usual, **part}
        else:
            usual = family.get("added_rope", usual)
        kind = part.pop("type", "default")
        kind = part.setdefault("rope_type", kind)
        for name in _FROM_FAMILY:
            if name in usual:
                part.setdefault(name, usual[name])
        original = text.get(_ORIGINAL) or text.get("max_position_embeddings")
        if kind in _WITH_ORIGINAL and original is not None:
            part.setdefault(_ORIGINAL, original)
    if not default and rope == {"rope_type": "default"}:
        del values[_ROPE]


def _usual(name: str, values: Mapping[str, Any], unstated: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Return the value of a setting that a config may leave out; None if it is not known."""
    if name in values:
        return values[name]
    if name not in unstated:
        return defaults.get(name)
    if unstated[name] is None:
        return None
    first, *others = unstated[name].split()
    numbers = [
        int(word) if word.isdecimal() else _usual(word, values, unstated, defaults) for word in (first, *others[1:])
    ]
    if not all(isinstance(number, int | float) and number for number in numbers):
        return None
    if not others:
        return numbers[0]
    left, right = numbers
    return {"+": left + right, "*": left * right, "//": left // right}[others[0]]


def _get(values: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path, None if there is none yet, or the path if there can't be one."""
    value: Any = values
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return path
        if name not in value:
            return None
        value = value[name]
    return value


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value
