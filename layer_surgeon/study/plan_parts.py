"""The parts of a study's plan, from what YAML says, every default filled in."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from layer_surgeon import _yaml
from layer_surgeon._limits import MAX_TRAININGS, check_size
from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import EXTRA_METRICS
from layer_surgeon.study.arms import Arm, DonorSpec, parse_arm
from layer_surgeon.study.checked import check
from layer_surgeon.study.data import DataSpec

_KEYS = (
    *("name", "title", "task", "host", "hosts", "donor", "donors", "arms", "data", "tests", "fractions", "seeds"),
    *("finetune", "graft", "reference", "focus", "metric", "test_fraction", "keep_models", "layers"),
)
_POWER = re.compile(r"\d+(\.\d*)?[eE][-+]?\d{1,2}")
_NONE: list[DonorSpec | None] = [None]
# The scores of each task's test parts; the first is what is compared where nothing else is said.
METRICS: Mapping[str, tuple[str, ...]] = {
    "text-classification": ("accuracy", "macro_f1", "loss"),
    "token-classification": ("f1", "precision", "recall", "accuracy", "loss"),
    "question-answering": ("f1", "exact_match", "loss"),
    "seq2seq": ("bleu", "rouge_1", "rouge_2", "rouge_l", "rouge_l_sum", "meteor", "loss", *EXTRA_METRICS),
    "causal-lm": ("perplexity", "loss"),
}


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        ConfigError: It can't be read, or is none.
    """
    return _numbers(_yaml.read_yaml(path))  # type: ignore[no-any-return]  # a mapping stays one


def parse_value(text: str) -> Any:
    """Read the text of a value as a plan's file does.

    Raises:
        ValueError: It is not YAML.
    """
    return _numbers(_yaml.parse_yaml(text))


def _numbers(value: Any) -> Any:
    """YAML takes 5e-5 for text, since it has no point; a person means the number. Text such as "2024" stays text."""
    if isinstance(value, dict):
        return {name: _numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value


def read_arms(content: Mapping[str, Any]) -> tuple[Arm, ...]:
    """Every said arm with every host and, where it has one, every donor; where there are several, names say which."""
    hosts = listed(content, "hosts", [content.get("host", "bert-base-uncased")])
    donors = [
        DonorSpec.parse(entry) for entry in listed(content, "donors", [content.get("donor")]) if entry is not None
    ]
    if "layers" in content:
        layers = listed(content, "layers", [])
        check_size(len(donors) * len(layers), MAX_TRAININGS, "layers of donors", ConfigError)
        donors = [replace(donor, layers=tuple(v if isinstance(v, list) else [v])) for donor in donors for v in layers]
    said = listed(content, "arms", ["host", "graft"])
    check_size(len(hosts) * len(said) * max(1, len(donors)), MAX_TRAININGS, "arms", ConfigError)
    graft = mapping(content, "graft")
    by_name = {entry["name"]: entry for entry in said if isinstance(entry, Mapping) and _is_text(entry.get("name"))}
    # By all that they say, for arms without a donor come once for each donor.
    arms: dict[str, Arm] = {}
    for host in hosts:
        check(_is_text(host), "host", host, "a model's folder or repo id")
        for entry in said:
            for donor in donors or _NONE:
                try:
                    arm = parse_arm(entry, host=host, donor=donor, graft=graft, others=by_name)
                except RecursionError as error:
                    raise ConfigError("The arms of the plan are like each other, too many in a row.") from error
                name = arm.name
                if donor is not None and len(donors) > 1 and arm.donor == donor:
                    name += f"+{donor.name}"
                if len(hosts) > 1:
                    name += f"@{arm.host_name}"
                arms.setdefault(repr(named := replace(arm, name=name)), named)
    return tuple(arms.values())


def read_tests(value: Any, data: Sequence[DataSpec]) -> dict[str, tuple[str, ...]]:
    """By training set, the names of the sets tested on, from own, all, or names."""
    names = tuple(entry.name for entry in data)
    check_size(len(names) ** 2 if value == "all" else len(names), MAX_TRAININGS, "pairs of data sets", ConfigError)
    if value == "own":
        return {name: (name,) for name in names}
    if value == "all":
        return {name: (name, *(other for other in names if other != name)) for name in names}
    chosen = tuple(value) if isinstance(value, list | tuple) else (value,)
    for name in chosen:
        check(name in names, "tests", name, f"own, all, or names out of: {', '.join(names)}")
    return dict.fromkeys(names, chosen)


def read_comparison(content: Mapping[str, Any], arms: Sequence[Arm], task: str) -> dict[str, Any]:
    """The plan's reference, focus and metric."""
    # Where there are several hosts, the names before the @: each arm is compared with that of its own host.
    names = [arm.name.partition("@")[0] for arm in arms]
    controls = (name for name, arm in zip(names, arms, strict=True) if arm.kind == "host")
    reference = content.get("reference") or next(controls, names[0])
    focus = content.get("focus", "graft" if "graft" in names else None)
    return {"reference": reference, "focus": focus, "metric": content.get("metric", METRICS[task][0])}


def listed(content: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    """The values of a key that takes one or several."""
    value = content.get(key, default)
    value = list(value) if isinstance(value, list | tuple) else [value]
    check(bool(value), key, value, "one or several")
    return value


def check_keys(content: Mapping[str, Any]) -> None:
    """Refuse keys that no plan has."""
    for name in content:
        if name not in _KEYS:
            near = get_close_matches(str(name), _KEYS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(_KEYS)}."
            raise ConfigError(f"The plan of the study has the key {name!r}. {hint}")


def mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The `name: value` lines of a key; {} where it is left out."""
    value = content.get(key) or {}
    check(isinstance(value, Mapping), key, value, "`name: value` lines")
    return dict(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def as_number(value: Any) -> Any:
    """As float; what is no number stays, and is refused where the plan is made."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value


def check_unique(names: Sequence[str], what: str) -> None:
    """Refuse two of one name."""
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise ConfigError(f"The {what} {name} is there twice. Give one of them another name.")
