"""How a family derives a setting of each layer from the layer's number: the rules in `assembly_families.json`.

A rule is one of:

    {"prefix": [A], "word": [B, C]}                 A, then B, C, B, C, ... by the layer's number
    {"when": [condition, ...], "then": A, "else": B} A for the layers that meet all conditions

Both may have `last`: the value of the last layer. A condition is a list:

    ["from", K]                    the layer's number is at least the setting K
    ["until", K]  ["before", K]    it is at most K, or less than K
    ["every", P, S, F]             the number plus F times the setting S is a multiple of the setting P
    ["in", K]  ["not_in", K]       the number is, or is not, one of the list K
    ["true", K]  ["set", K]        the setting K is true, or is not null, for all layers
    ["each", K]  ["not_each", K]   the list K, with one value per layer, is true, or false, for the layer
    ["last"]                       it is the last layer

Each setting may also be a number. `tools/generate_assembly_families.py` finds the rules by comparing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

SAVE_ADVICE = (
    "Save the config with transformers, which writes the list: "
    "AutoConfig.from_pretrained(SOURCE).save_pretrained(FOLDER)."
)
Rule = Mapping[str, Any]
Condition = Sequence[Any]
# Gives the value of a setting. One with a value per layer is given for the number of layers.
Settings = Callable[[str], Any]


def rule_values(rule: Rule, settings: Settings, num_layers: int) -> list[Any]:
    """Return the value of each layer.

    Raises:
        TypeError: A setting has a value of the wrong type.
    """
    if "word" in rule:
        prefix, word = rule.get("prefix", []), rule["word"]
        values = [prefix[index] if index < len(prefix) else word[index % len(word)] for index in range(num_layers)]
    else:
        met = [True] * num_layers
        for condition in rule["when"]:
            met = [before and now for before, now in zip(met, _met(condition, settings, num_layers), strict=True)]
        values = [rule["then"] if hit else rule["else"] for hit in met]
    if "last" in rule:
        values[-1] = rule["last"]
    return values


def rule_settings(rule: Rule) -> list[str]:
    """Return the names of the settings that a rule reads."""
    return [name for condition in rule.get("when", ()) for name in condition[1:] if isinstance(name, str)]


def solve_rule(rule: Rule, settings: Mapping[str, Any], wanted: Sequence[Any]) -> dict[str, Any] | None:
    """Find values of the rule's settings with which it gives the wanted values; None if there are none.

    Args:
        rule: A rule with conditions.
        settings: The current values of its settings.
        wanted: The value that each layer has to have.
    """
    hits = [index for index, value in enumerate(wanted) if value == rule["then"]]
    misses = [index for index, value in enumerate(wanted) if value != rule["then"]]
    solved: dict[str, Any] = {}
    periods: list[Condition] = []
    lists: list[Condition] = []
    for condition in rule["when"]:
        kind, names = condition[0], condition[1:]
        if kind == "from" and isinstance(names[0], str):
            solved[names[0]] = hits[0] if hits else len(wanted)
        elif kind in ("until", "before") and isinstance(names[0], str):
            solved[names[0]] = hits[-1] + (kind == "before") if hits else 0
        elif kind == "every" and isinstance(names[0], str):
            periods.append(condition)
        elif kind in ("in", "not_in"):
            lists.append(condition)
    for condition in lists:
        solved[condition[1]] = hits if condition[0] == "in" else misses
    for trial in _periods(periods, len(wanted), listed=bool(lists)):
        candidate = {**settings, **solved, **trial}
        if rule_values(rule, candidate.__getitem__, len(wanted)) == list(wanted):
            return {**solved, **trial}
    return None


def _periods(conditions: Sequence[Condition], num_layers: int, *, listed: bool) -> list[dict[str, int]]:
    """Return the periods and offsets to try. With a list of layers, a period of 1 leaves everything to the list."""
    trials: list[dict[str, int]] = [{}]
    for condition in conditions:
        period, offset = condition[1], condition[2]
        numbers = [1] if listed else range(1, num_layers + 2)
        trials = [
            {**trial, period: number, **({offset: shift} if isinstance(offset, str) else {})}
            for trial in trials
            for number in numbers
            for shift in (range(number) if isinstance(offset, str) else [0])
        ]
    return trials


def _met(condition: Condition, settings: Settings, num_layers: int) -> list[bool]:
    kind, arguments = condition[0], [_value(name, settings) for name in condition[1:]]
    numbers = range(num_layers)
    match kind:
        case "from":
            return [index >= _number(arguments[0]) for index in numbers]
        case "until":
            return [index <= _number(arguments[0]) for index in numbers]
        case "before":
            return [index < _number(arguments[0]) for index in numbers]
        case "every":
            period, shift = _number(arguments[0]), arguments[2] * _number(arguments[1])
            return [period != 0 and (index + shift) % period == 0 for index in numbers]
        case "in" | "not_in":
            listed = set(arguments[0] or ())
            return [(index in listed) == (kind == "in") for index in numbers]
        case "true":
            return [bool(arguments[0])] * num_layers
        case "set":
            return [arguments[0] is not None] * num_layers
        case "each" | "not_each":
            return [bool(value) == (kind == "each") for value in arguments[0]]
        case "last":
            return [index == num_layers - 1 for index in numbers]
    raise ValueError(f"assembly_families.json has an unknown condition {kind!r}. Generate it again.")


def _value(name: Any, settings: Settings) -> Any:
    return settings(name) if isinstance(name, str) else name


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def expand_list(stated: Any, form: str, num_layers: int) -> list[Any] | None:
    """Return a stated list with one value per layer; None if it has another form."""
    if isinstance(stated, str):
        return list(stated)
    if not isinstance(stated, list | tuple):
        return None
    if form == "cycle":
        return [stated[index % len(stated)] for index in range(num_layers)]
    if form == "groups":
        values: list[Any] = []
        for group in stated:
            if not isinstance(group, list | tuple) or len(group) != 2 or not isinstance(group[0], list | tuple):
                return None
            if type(group[1]) is not int or group[1] > num_layers:
                return None
            values += list(group[0]) * group[1]
        return values
    return list(stated)


def collapse_list(values: list[Any], form: str, stated: Any) -> Any:
    """Write one value per layer in the form of a stated list: as text, as groups, or as a list."""
    if isinstance(stated, str) and all(isinstance(value, str) and len(value) == 1 for value in values):
        return "".join(values)
    return [[values, 1]] if form == "groups" else values
