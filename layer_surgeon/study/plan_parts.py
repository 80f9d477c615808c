"""The parts of a study's plan, read from YAML, with every default filled in."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from layer_surgeon._limits import MAX_TRAININGS, check_size
from layer_surgeon._settings import check
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.arms import Arm, DonorSpec, inherit, parse_arm
from layer_surgeon.study.data import DataSpec
from layer_surgeon.tasks import finetuned_tasks, get_task

_KEYS = (
    *("name", "title", "task", "host", "hosts", "donor", "donors", "arms", "data", "tests", "fractions", "seeds"),
    *("finetune", "graft", "reference", "focus", "metric", "equivalence", "test_fraction", "keep_models", "layers"),
)
# Settings of a training that a study has keys for.
_FINETUNE_KEYS = MappingProxyType({"seed": "seeds", "train_fraction": "fractions", "task": "task"})
_NONE: list[DonorSpec | None] = [None]


def read_arms(content: Mapping[str, Any]) -> tuple[Arm, ...]:
    """Combine every arm of the plan with every host and, if the arm has a donor, with every donor.

    With several donors or hosts, the names of the arms include them: `graft+Llama-3.1-8B-L-1@roberta-base`.

    Raises:
        ConfigError: An arm, a host or a donor is invalid, or there are too many.
    """
    hosts = listed(content, "hosts", [content.get("host", "bert-base-uncased")])
    donors = [DonorSpec.parse(spec) for spec in listed(content, "donors", [content.get("donor")]) if spec is not None]
    if "layers" in content:
        layers = listed(content, "layers", [])
        check_size(len(donors) * len(layers), MAX_TRAININGS, "layers of donors", ConfigError)
        donors = [replace(donor, layers=tuple(v if isinstance(v, list) else [v])) for donor in donors for v in layers]
    arm_specs = listed(content, "arms", ["host", "graft"])
    check_size(len(hosts) * len(arm_specs) * max(1, len(donors)), MAX_TRAININGS, "arms", ConfigError)
    graft = mapping(content, "graft")
    by_name = _by_name(arm_specs)
    # Keyed by the whole arm, because an arm without a donor is made once per donor.
    arms: dict[str, Arm] = {}
    for host in hosts:
        check(_is_text(host), "host", host, "a model's folder or repo id")
        for arm_spec in arm_specs:
            for donor in donors or _NONE:
                try:
                    arm = parse_arm(arm_spec, host=host, donor=donor, graft=graft, others=by_name)
                except RecursionError as error:
                    raise ConfigError(
                        "Too many arms of the plan refer to each other by `like`. Write the settings out in one arm."
                    ) from error
                name = arm.name
                # An arm may have a donor of its own, or take these layers as a stack or a model.
                if arm.donor and len(donors) > 1 and replace(arm.donor, form="layers", vocabulary=None) == donor:
                    name += f"+{arm.donor.name}"
                if len(hosts) > 1:
                    name += f"@{arm.host_name}"
                arms.setdefault(repr(named := replace(arm, name=name)), named)
    return tuple(arms.values())


def _by_name(entries: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
    """The arms or data sets of a plan that have settings of their own."""
    return {entry["name"]: entry for entry in entries if isinstance(entry, Mapping) and _is_text(entry.get("name"))}


def choose(content: Mapping[str, Any], key: str, names: Sequence[str]) -> list[Any]:
    """Choose arms or data sets by name: those of the plan with their settings, and others as plain names.

    Args:
        content: The plan.
        key: `arms` or `data`.
        names: What is wanted.

    Raises:
        ConfigError: An arm is `like` one that does not exist.
    """
    entries = _by_name(listed(content, key, [None]))
    chosen: list[Any] = []
    for name in names:
        entry = entries.get(name)
        if entry is not None and key == "arms":
            # The arm that it is `like` may not be among those chosen.
            kind, settings = inherit(entry, entries)
            entry = {**settings, "name": name, "like": kind}
        chosen.append(name if entry is None else entry)
    return chosen


def read_tests(value: Any, data: Sequence[DataSpec]) -> dict[str, tuple[str, ...]]:
    """Map each training set to the names of its test sets.

    Args:
        value: `own`, `all`, or names of data sets.
        data: The data sets of the plan.

    Raises:
        ConfigError: A name is unknown, or there are too many pairs.
    """
    names = tuple(spec.name for spec in data)
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
    """Return the plan's reference, focus, metric and margin of equivalence."""
    # Names without @host: with several hosts, each arm is compared with the reference on its own host.
    names = [arm.name.partition("@")[0] for arm in arms]
    host_arms = (name for name, arm in zip(names, arms, strict=True) if arm.kind == "host")
    reference = content.get("reference") or next(host_arms, names[0])
    focus = content.get("focus", next((name for name in ("graft", "matched") if name in names), None))
    margin = content.get("equivalence")
    return {
        "reference": reference,
        "focus": focus,
        "metric": content.get("metric", get_task(task).score_names[0]),
        "equivalence": None if margin is None else as_number(margin),
    }


def value_of(content: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return the value of a key; the default if the key is missing or left empty."""
    value = content.get(key)
    return default if value is None else value


def listed(content: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    """Return the values of a key that takes one value or a list."""
    value = content.get(key, default)
    value = list(value) if isinstance(value, list | tuple) else [value]
    check(bool(value), key, value, "one or several")
    return value


def check_keys(content: Mapping[str, Any]) -> None:
    """Reject unknown keys of a plan.

    Raises:
        ConfigError: A key is unknown.
    """
    for name in content:
        if name not in _KEYS:
            close_names = get_close_matches(str(name), _KEYS, n=1)
            hint = f"Did you mean {close_names[0]}?" if close_names else f"The keys are: {', '.join(_KEYS)}."
            raise ConfigError(f"The plan of the study has the unknown key {name!r}. {hint}")


def check_task(task: Any) -> None:
    """Reject a task that can't be learned.

    Raises:
        ConfigError: There is no such task, or it can't be fine-tuned.
    """
    tasks = finetuned_tasks()
    check(task in tasks, "task", task, f"one of {', '.join(tasks)}")


def check_finetune(settings: Mapping[str, Any], section: str) -> None:
    """Reject settings of a training that must be the same for all arms, or that the study chooses.

    Args:
        settings: Fields of `FinetuneConfig`.
        section: The part of the plan, for the message.

    Raises:
        ConfigError: The seed, the share of the training data or the task is set.
    """
    for name, key in _FINETUNE_KEYS.items():
        if name in settings:
            raise ConfigError(f"{name} is set under {section}. In a study, use the key {key} of the plan instead.")


def mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the mapping under a key; {} if the key is missing."""
    value = content.get(key) or {}
    check(isinstance(value, Mapping), key, value, "a mapping of `name: value` lines")
    return dict(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def as_number(value: Any) -> Any:
    """Return a value as float if it is a number. `StudyPlan` rejects other values."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value


def check_unique(names: Sequence[str], kind: str) -> None:
    """Reject duplicate names.

    Args:
        names: The names.
        kind: What is named, for the message.

    Raises:
        ConfigError: A name occurs twice.
    """
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise ConfigError(f"The plan has the {kind} {name} twice. Remove one, or give it another value.")
