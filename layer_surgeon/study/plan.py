"""The plan of a study: YAML -> arms x seeds x data sets x shares of the training data, every default filled in.

name: my-study
host: bert-base-uncased          # or hosts: [...]
donor: {source: meta-llama/Llama-3.1-8B, layer: -1}     # or donors: [...]
arms: [host, graft, random, wide-head]
data: [sst2, imdb]
tests: own                       # or all (every data set's test: domain shift), or names of data sets
fractions: [1.0, 0.1]
seeds: [2023, 2024, 2025]
finetune: {num_epochs: 3}
graft: {}
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, get_args

import yaml

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import FinetuneConfig, TaskName
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.study.arms import Arm, DonorSpec, parse_arm
from layer_surgeon.study.data import DataSpec, parse_data, spec_key
from layer_surgeon.study.layout import write_text
from layer_surgeon.workspace import short_name

SEEDS = (2023, 2024, 2025, 2026, 2027)
_KEYS = (
    *("name", "title", "task", "host", "hosts", "donor", "donors", "arms", "data", "tests", "fractions", "seeds"),
    *("finetune", "graft", "reference", "focus", "metric", "test_fraction", "keep_models", "layers"),
)
_LOWER_IS_BETTER = ("loss", "perplexity")
_POWER = re.compile(r"\d+(\.\d*)?[eE][-+]?\d{1,2}")
_NONE: list[DonorSpec | None] = [None]
_METRICS: Mapping[str, str] = {
    "text-classification": "accuracy",
    "token-classification": "f1",
    "question-answering": "f1",
    "seq2seq": "bleu",
    "causal-lm": "perplexity",
}


def digest_of(content: Any) -> str:
    """A short hash of what JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training.

    Attributes:
        arm: What is trained.
        data: On what.
        data_key: What the data sets are made of, as a hash.
        fraction: Share of the training data.
        seed: Of the fresh weights, the held-out part, the order of the examples and dropout.
        tests: Names of the data sets on whose test parts it is measured.
        finetune: Fields of `FinetuneConfig`, seed and share included.
        task: What is learned.
        keep_model: Leave the trained model in `runs/`.
    """

    arm: Arm
    data: str
    data_key: str
    fraction: float
    seed: int
    tests: tuple[str, ...]
    finetune: Mapping[str, Any]
    task: TaskName
    keep_model: bool

    @property
    def id(self) -> str:
        """For people, and at its end a hash of all that decides what comes out."""
        arm = self.arm.as_dict() | {"name": ""}
        decides = [arm, self.data, self.data_key, self.tests, dict(self.finetune), self.task]
        return f"{short_name(self.arm.name)}.{self.data}.{self.fraction:g}.s{self.seed}.{digest_of(decides)}"

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return content | {"arm": self.arm.as_dict(), "tests": list(self.tests), "finetune": dict(self.finetune)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What `as_dict` gave."""
        return cls(**{**content, "arm": Arm.from_dict(content["arm"]), "tests": tuple(content["tests"])})


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study with nothing left open.

    Attributes:
        name: Short, for the folder.
        title: One line, for the report.
        task: What is learned.
        arms: What is compared.
        data: On what is trained, and where the test parts come from.
        tests: By training set: the names of the data sets tested on.
        fractions: Shares of the training data.
        seeds: Every arm is trained with each.
        finetune: Fields of `FinetuneConfig`.
        reference: The arm that every other one is compared with.
        focus: The arm that is compared with every other one too; None: there is none.
        metric: The score that is compared.
        test_fraction: Share that is held out as test part of a data set that has none.
        keep_models: Leave the trained models in the folder.
    """

    name: str
    title: str
    task: TaskName
    arms: tuple[Arm, ...]
    data: tuple[DataSpec, ...]
    tests: Mapping[str, tuple[str, ...]]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    finetune: Mapping[str, Any] = field(default_factory=dict)
    reference: str = "host"
    focus: str | None = None
    metric: str = "accuracy"
    test_fraction: float = 0.2
    keep_models: bool = False

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """From what YAML says.

        Raises:
            ConfigError: A key is unknown, or a value can't be used.
        """
        _check_keys(content)
        task = content.get("task", "text-classification")
        _check(task in get_args(TaskName), "task", task, f"one of {', '.join(get_args(TaskName))}")
        arms = _arms(content)
        data = tuple(parse_data(entry) for entry in _listed(content, "data", ["sst2"]))
        _unique([entry.name for entry in data], "data set")
        finetune = dict(content.get("finetune") or {})
        for name in ("seed", "train_fraction"):
            if name in finetune:
                raise ConfigError(f"{name} stands under finetune; in a study it is said by seeds, or by fractions.")
        plan = cls(
            name=short_name(str(content.get("name", "study"))),
            title=str(content.get("title", content.get("name", "A study"))),
            task=task,
            arms=arms,
            data=data,
            tests=_tests(content.get("tests", "own"), data),
            fractions=tuple(float(value) for value in _listed(content, "fractions", [1.0])),
            seeds=tuple(_listed(content, "seeds", list(SEEDS))),
            finetune=finetune,
            **_comparison(content, arms, task),
            test_fraction=float(content.get("test_fraction", 0.2)),
            keep_models=bool(content.get("keep_models", False)),
        )
        plan._check_values()
        return plan

    def _check_values(self) -> None:
        for seed in self.seeds:
            _check(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0, "seeds", seed, "whole numbers")
        _unique([str(seed) for seed in self.seeds], "seed")
        for value in (*self.fractions, self.test_fraction):
            _check(math.isfinite(value) and 0 < value <= 1, "fractions", value, "above 0 and at most 1")
        for arm in self.arms:
            GraftConfig.from_settings(None, {"task": self.task, **arm.graft})
            FinetuneConfig.from_settings(None, {**self.finetune, **arm.finetune})
            if arm.synthetic is not None and self.task != "text-classification":
                raise ConfigError(
                    f"The arm {arm.name} trains on texts that are written for each label, which {self.task} does not "
                    "have. Leave it out."
                )
            if self.keep_models and (arm.control or arm.lora):
                raise ConfigError(
                    f"keep_models is true, but what the arm {arm.name} trains is made for the comparison and can't be "
                    "loaded by itself. Leave the arm out, or set keep_models to false."
                )

    def cells(self) -> tuple[Cell, ...]:
        """Every training, seed by seed: a study that is stopped early then has whole seeds to compare."""
        specs = {entry.name: spec_key(entry, self.test_fraction) for entry in self.data}
        keys = {
            data: digest_of([specs[name] for name in dict.fromkeys((data, *tests))])
            for data, tests in self.tests.items()
        }
        return tuple(
            Cell(
                arm=arm,
                data=data.name,
                data_key=keys[data.name],
                fraction=fraction,
                seed=seed,
                tests=self.tests[data.name],
                finetune={**self.finetune, **arm.finetune, "seed": seed, "train_fraction": fraction},
                task=self.task,
                keep_model=self.keep_models,
            )
            for seed in self.seeds
            for fraction in self.fractions
            for data in self.data
            if data.train
            for arm in self.arms
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types, for study.yaml and for people."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return content | {
            "arms": [arm.as_dict() for arm in self.arms],
            "data": [entry.as_dict() for entry in self.data],
            "tests": {name: list(tests) for name, tests in self.tests.items()},
            "fractions": list(self.fractions),
            "seeds": list(self.seeds),
            "finetune": dict(self.finetune),
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """The plan that a study's folder holds.

        Raises:
            ConfigError: It can't be read.
        """
        content = read_yaml(path)
        try:
            return cls(
                **{
                    **content,
                    "arms": tuple(Arm.from_dict(arm) for arm in content["arms"]),
                    "data": tuple(DataSpec.from_dict(entry) for entry in content["data"]),
                    "tests": {name: tuple(tests) for name, tests in content["tests"].items()},
                    "fractions": tuple(content["fractions"]),
                    "seeds": tuple(content["seeds"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no plan of a study ({error}). Choose another folder.") from error

    def write(self, path: Path) -> None:
        """Write what `read` reads, whole or not at all.

        Raises:
            WorkspaceError: The folder can't be written.
        """
        write_text(path, yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True))

    @property
    def higher_is_better(self) -> bool:
        """Of the score that is compared."""
        return self.metric not in _LOWER_IS_BETTER


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        ConfigError: It can't be read, or is none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `name: value` lines, such as `arms: [host, graft]`.")
    return _numbers(content)  # type: ignore[no-any-return]  # a mapping stays one


def _numbers(value: Any) -> Any:
    """YAML takes 5e-5 for text, since it has no point; a person means the number. Text such as "2024" stays text."""
    if isinstance(value, dict):
        return {name: _numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value


def _arms(content: Mapping[str, Any]) -> tuple[Arm, ...]:
    """Every said arm with every host and, where it has one, every donor; where there are several, names say which."""
    hosts = _listed(content, "hosts", [content.get("host", "bert-base-uncased")])
    donors = [
        DonorSpec.parse(entry) for entry in _listed(content, "donors", [content.get("donor")]) if entry is not None
    ]
    if "layers" in content:
        layers = _listed(content, "layers", [])
        donors = [replace(donor, layers=tuple(v if isinstance(v, list) else [v])) for donor in donors for v in layers]
    said = _listed(content, "arms", ["host", "graft"])
    graft = dict(content.get("graft") or {})
    by_name = {entry["name"]: entry for entry in said if isinstance(entry, Mapping) and "name" in entry}
    arms: list[Arm] = []
    for host in hosts:
        _check(isinstance(host, str), "host", host, "a model's folder or repo id")
        for entry in said:
            for donor in donors or _NONE:
                arm = parse_arm(entry, host=host, donor=donor, graft=graft, others=by_name)
                name = arm.name
                if donor is not None and len(donors) > 1 and arm.donor == donor:
                    name += f"+{donor.name}"
                if len(hosts) > 1:
                    name += f"@{arm.host_name}"
                if (named := replace(arm, name=name)) not in arms:
                    arms.append(named)
    _unique([arm.name for arm in arms], "arm")
    return tuple(arms)


def _tests(value: Any, data: Sequence[DataSpec]) -> dict[str, tuple[str, ...]]:
    names = tuple(entry.name for entry in data)
    if value == "own":
        return {name: (name,) for name in names}
    if value == "all":
        return {name: (name, *(other for other in names if other != name)) for name in names}
    chosen = tuple(value) if isinstance(value, list | tuple) else (value,)
    for name in chosen:
        _check(name in names, "tests", name, f"own, all, or names out of: {', '.join(names)}")
    return dict.fromkeys(names, chosen)


def _comparison(content: Mapping[str, Any], arms: Sequence[Arm], task: str) -> dict[str, Any]:
    # Where there are several hosts, the names before the @: each arm is compared with that of its own host.
    names = [arm.name.partition("@")[0] for arm in arms]
    controls = (name for name, arm in zip(names, arms, strict=True) if arm.kind == "host")
    reference = content.get("reference") or next(controls, names[0])
    focus = content.get("focus", "graft" if "graft" in names else None)
    known = {arm.name for arm in arms} | set(names)
    for key, name in (("reference", reference), ("focus", focus)):
        _check(name is None or name in known, key, name, f"an arm of the study: {', '.join(names)}")
    return {"reference": reference, "focus": focus, "metric": content.get("metric", _METRICS[task])}


def _listed(content: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    value = content.get(key, default)
    value = list(value) if isinstance(value, list | tuple) else [value]
    _check(bool(value), key, value, "one or several")
    return value


def _check_keys(content: Mapping[str, Any]) -> None:
    for name in content:
        if name not in _KEYS:
            near = get_close_matches(str(name), _KEYS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(_KEYS)}."
            raise ConfigError(f"The plan of the study has the key {name!r}. {hint}")


def _unique(names: Sequence[str], what: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"The {what} {twice} is there twice. Give one of them another name.")


def _check(good: bool, key: str, value: Any, expected: str) -> None:
    if not good:
        raise ConfigError(f"{key} is {value!r}; it must be {expected}.")
