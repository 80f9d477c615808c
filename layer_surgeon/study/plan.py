"""The plan of a study: YAML -> arms x seeds x data sets x shares of the training data, with every default filled in.

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
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from layer_surgeon import _yaml
from layer_surgeon._io import write_text
from layer_surgeon._limits import MAX_SEED, MAX_TRAININGS, check_size
from layer_surgeon._settings import MAX_NAME, as_text, check, check_types
from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import EXTRA_METRICS, FinetuneConfig
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.study.arms import Arm, is_called
from layer_surgeon.study.data import DataSpec, check_name, parse_data, spec_key
from layer_surgeon.study.plan_parts import (
    as_number,
    check_finetune,
    check_keys,
    check_task,
    check_unique,
    listed,
    mapping,
    read_arms,
    read_comparison,
    read_tests,
    value_of,
)
from layer_surgeon.tasks import DEFAULT_TASK, get_task
from layer_surgeon.workspace import short_name

SEEDS = (2023, 2024, 2025, 2026, 2027)


def digest_of(content: Any) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training.

    Attributes:
        arm: The arm that is trained.
        data: The name of the training data set.
        data_key: A hash of everything that decides the content of the data sets.
        fraction: Share of the training data.
        seed: Seed for the new weights, the held-out part, the order of the examples, and dropout.
        tests: Names of the data sets whose test parts measure the model.
        finetune: Fields of `FinetuneConfig`, including the seed and the share.
        task: The task that is learned.
        keep_model: Keep the trained model in `runs/`.
    """

    arm: Arm
    data: str
    data_key: str
    fraction: float
    seed: int
    tests: tuple[str, ...]
    finetune: Mapping[str, Any]
    task: str
    keep_model: bool

    def __post_init__(self) -> None:
        check_types(self)
        check_task(self.task)
        for name in (self.data, *self.tests):
            check_name(name, "data set")
        if len(self.id) > MAX_NAME:
            raise ConfigError(
                f"A training's files would be called {self.id}; at most {MAX_NAME} characters are possible. "
                "Give its arm or its data set a shorter name."
            )

    @property
    def id(self) -> str:
        """A readable name that ends with a hash of everything that decides the result."""
        arm = self.arm.as_dict() | {"name": ""}
        settings = [arm, self.data, self.data_key, self.tests, dict(self.finetune), self.task]
        return f"{short_name(self.arm.name)}.{self.data}.{self.fraction:g}.s{self.seed}.{digest_of(settings)}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        return content | {"arm": self.arm.as_dict(), "tests": list(self.tests), "finetune": dict(self.finetune)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the result of `as_dict`."""
        return cls(**{**content, "arm": Arm.from_dict(content["arm"]), "tests": tuple(content["tests"])})


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The plan of a study, with every default filled in.

    Attributes:
        name: A short name, for the folder.
        title: One line, for the report.
        task: The task that all arms learn.
        arms: The arms that are compared.
        data: The data sets for training and testing.
        tests: Name of a training set -> names of the data sets that its models are tested on.
        fractions: Shares of the training data.
        seeds: The seeds; every arm is trained with each of them.
        finetune: Fields of `FinetuneConfig`.
        reference: The arm that every other arm is compared with.
        focus: A second arm that every other arm is compared with; None for no second arm.
        metric: The score that is compared.
        equivalence: Margin within which two arms count as equivalent: points if the metric is a share, else in units of
            the metric. None: equivalence is not tested.
        test_fraction: Share that is held out as the test part if a data set has none.
        keep_models: Keep the trained models in the folder.
    """

    name: str
    title: str
    task: str
    arms: tuple[Arm, ...]
    data: tuple[DataSpec, ...]
    tests: Mapping[str, tuple[str, ...]]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    finetune: Mapping[str, Any] = field(default_factory=dict)
    reference: str = "host"
    focus: str | None = None
    metric: str = "accuracy"
    equivalence: float | None = None
    test_fraction: float = 0.2
    keep_models: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_task(self.task)
        check_name(self.name, "study")
        self._check_data()
        self._check_numbers()
        check_unique([arm.name for arm in self.arms], "arm")
        for key, name in (("reference", self.reference), ("focus", self.focus)):
            known = name is None or any(is_called(name, arm.name) for arm in self.arms)
            check(known, key, name, f"an arm of the study: {', '.join(arm.name for arm in self.arms)}")
        metrics = get_task(self.task).score_names
        check(self.metric in metrics, "metric", self.metric, f"one of {', '.join(metrics)}")
        for arm in self.arms:
            self._check_arm(arm)

    def _check_data(self) -> None:
        names = [spec.name for spec in self.data]
        check_unique(names, "data set")
        tested = {name for tests in self.tests.values() for name in tests}
        trained = {spec.name for spec in self.data if spec.train}
        check(bool(trained) or not self.data, "data", names, "at least one data set with a training part (train)")
        good = trained <= set(self.tests) and {*self.tests, *tested} <= set(names) and all(self.tests.values())
        check(good, "tests", dict(self.tests), f"a mapping of each data set to names out of: {', '.join(names)}")

    def _check_numbers(self) -> None:
        for key in ("arms", "data", "fractions", "seeds"):
            check(bool(getattr(self, key)), key, getattr(self, key), "one or several")
        trained = sum(bool(spec.train) for spec in self.data)
        count = len(self.arms) * trained * len(self.fractions) * len(self.seeds)
        check_size(count, MAX_TRAININGS, "trainings", ConfigError)
        check_size(sum(map(len, self.tests.values())), MAX_TRAININGS, "pairs of a training and a test set", ConfigError)
        for seed in self.seeds:
            check(0 <= seed <= MAX_SEED, "seeds", seed, f"whole numbers from 0 to {MAX_SEED}")
        check_unique([str(seed) for seed in self.seeds], "seed")
        if self.equivalence is not None:
            check(0 < self.equivalence < math.inf, "equivalence", self.equivalence, "a positive number")
        for key, values in (("fractions", self.fractions), ("test_fraction", (self.test_fraction,))):
            for value in values:
                check(0 < value <= 1, key, value, "above 0 and at most 1")
        # As they are in the names of trainings.
        check_unique([f"{fraction:g}" for fraction in self.fractions], "fraction")

    def _check_arm(self, arm: Arm) -> None:
        try:
            graft = GraftConfig.from_settings(None, {"task": self.task, **arm.graft})
        except ConfigError as error:  # An arm can have settings that the plan's author has not written.
            raise ConfigError(f"The arm {arm.name} is not possible here: {error}") from error
        if arm.control == "shuffled" and not graft.joins_vectors:
            raise ConfigError(
                f"The arm {arm.name} gives each text the donor's state of another text, but here the donor has a state "
                f"for each token (task {self.task}, site {graft.site}, donor_reads {graft.donor_reads}). It needs "
                "donor_reads text, a task that pools, and site encoder_output. Leave the arm out."
            )
        finetune = FinetuneConfig.from_settings(None, {**self.finetune, **arm.finetune})
        if self.metric in EXTRA_METRICS and self.metric not in finetune.wanted_extra_metrics:
            raise ConfigError(
                f"metric is {self.metric}, but the arm {arm.name} does not compute it. Add it to the plan: finetune: "
                f"{{extra_metrics: {self.metric}}}."
            )
        if arm.synthetic is not None and not get_task(self.task).one_label_per_text:
            raise ConfigError(
                f"The arm {arm.name} trains on texts that a model writes for each label, but {self.task} has no "
                "labels. Leave the arm out."
            )
        if self.keep_models and (arm.control or arm.lora):
            raise ConfigError(
                f"keep_models is true, but the model of the arm {arm.name} exists only for the comparison and can't be "
                "loaded on its own. Leave the arm out, or set keep_models to false."
            )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read a plan from the content of a YAML file, and fill in the defaults.

        Raises:
            ConfigError: A key is unknown, or a value is invalid.
        """
        check_keys(content)
        task = content.get("task", DEFAULT_TASK)
        check_task(task)
        arms = read_arms(content)
        data = tuple(parse_data(value) for value in listed(content, "data", ["sst2"]))
        finetune = mapping(content, "finetune")
        check_finetune(finetune, "finetune")
        for arm in arms:
            check_finetune(arm.finetune, f"finetune of the arm {arm.name}")
            _check_donor_settings(arm, task)
        return cls(
            name=short_name(as_text(value_of(content, "name", "study"))),
            title=as_text(value_of(content, "title", value_of(content, "name", "A study"))),
            task=task,
            arms=arms,
            data=data,
            tests=read_tests(content.get("tests", "own"), data),
            fractions=tuple(as_number(value) for value in listed(content, "fractions", [1.0])),
            seeds=tuple(listed(content, "seeds", list(SEEDS))),
            finetune=finetune,
            **read_comparison(content, arms, task),
            test_fraction=as_number(content.get("test_fraction", 0.2)),
            keep_models=content.get("keep_models", False),
        )

    def cells(self) -> tuple[Cell, ...]:
        """Return every training, seed by seed. A study that is stopped early then has complete seeds to compare."""
        specs = {spec.name: spec_key(spec, self.test_fraction) for spec in self.data}
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
        """Return plain JSON types, for study.yaml."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        return content | {
            "arms": [arm.as_dict() for arm in self.arms],
            "data": [spec.as_dict() for spec in self.data],
            "tests": {name: list(tests) for name, tests in self.tests.items()},
            "fractions": list(self.fractions),
            "seeds": list(self.seeds),
            "finetune": dict(self.finetune),
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the plan in a study's folder.

        Raises:
            ConfigError: The file can't be read, or is not a valid plan.
        """
        content = _yaml.read_yaml(path)
        try:
            return cls(
                **{
                    **content,
                    "arms": tuple(Arm.from_dict(arm) for arm in content["arms"]),
                    "data": tuple(DataSpec.from_dict(spec) for spec in content["data"]),
                    "tests": {name: tuple(tests) for name, tests in content["tests"].items()},
                    "fractions": tuple(content["fractions"]),
                    "seeds": tuple(content["seeds"]),
                }
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"{path} is not the plan of a study ({error}). Choose another folder.") from error

    def write(self, path: Path) -> None:
        """Write the plan for `read`, atomically.

        Raises:
            WorkspaceError: The folder can't be written.
        """
        write_text(path, _yaml.dump_yaml(self.as_dict()))

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of the compared score is better."""
        return not get_task(self.task).score(self.metric).lower_is_better

    @property
    def is_share(self) -> bool:
        """Whether the compared score goes from 0 to 1 and is shown as per cent."""
        return get_task(self.task).score(self.metric).is_share


def _check_donor_settings(arm: Arm, task: str) -> None:
    """Refuse settings of a donor for an arm without a graft. Plans that were stored before this check can be read."""
    graft = GraftConfig.from_settings(None, {"task": task, **arm.graft})
    if arm.grafts_nothing and (name := graft.first_donor_setting) is not None:
        raise ConfigError(
            f"The arm {arm.name} grafts nothing, but {name} is {getattr(graft, name)!r}. Set it in the arms that have "
            "a donor, not for the whole study."
        )
