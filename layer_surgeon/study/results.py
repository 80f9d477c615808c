"""The typed result of the demo, with the verdict on each test set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layer_surgeon._version import __version__
from layer_surgeon.finetune import EpochResult, FinetuneConfig
from layer_surgeon.finetune.metrics import ClassificationMetrics
from layer_surgeon.study.statistics import Interval, difference, wilson
from layer_surgeon.study.verdict import say_all

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm, trained with one seed.

    Attributes:
        arm: "host alone" or "grafted".
        seed: Seed of the new weights, the held-out validation part, the order of the examples, and dropout.
        path: The run's folder.
        parameters: Part of the model -> (all, trained).
        history: One entry per epoch.
        best_epoch: The epoch that was kept, counted from 1.
        scores: Test set -> metrics.
        training_seconds: Duration of the training, including validation.
        testing_seconds: Duration of the tests on all test sets.
        device: The device that the arm ran on.
    """

    arm: str
    seed: int
    path: Path
    parameters: Mapping[str, tuple[int, int]]
    history: tuple[EpochResult, ...]
    best_epoch: int
    scores: Mapping[str, ClassificationMetrics]
    training_seconds: float
    testing_seconds: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The scores of one arm on one test set, over the seeds.

    Attributes:
        accuracy: Mean over the seeds.
        macro_f1: Mean over the seeds.
        interval: Wilson's 95 % interval of the mean accuracy, for the number of examples.
        by_seed: Accuracy for each seed.
        examples: Size of the test set.
    """

    accuracy: float
    macro_f1: float
    interval: Interval
    by_seed: tuple[float, ...]
    examples: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference in accuracy, grafted minus host alone, on one test set, with its 95 % interval."""

    delta: float
    interval: Interval

    @property
    def verdict(self) -> str:
        """The difference in words."""
        if self.interval.holds_zero:
            return "within noise"
        return "grafted is better" if self.delta > 0 else "host alone is better"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        host_name: Name of the small model.
        donor_name: Name of the model that the layer was extracted from.
        layer_indices: The indices of the extracted layers.
        layer_bytes: Size of the layer's tensors in bytes, as extracted.
        layer_reused: Whether the layer was reused from an earlier run.
        train_name: Name of the training data set.
        num_train: Number of training examples, including those that are held out for validation.
        arms: All runs.
        config: The settings.
        changed: The settings that differ from the paper's.
        extraction_seconds: Duration of the extraction.
        seconds: Duration of the whole demo.
        folder: The folder with all files of the demo.
    """

    host_name: str
    donor_name: str
    layer_indices: tuple[int, ...]
    layer_bytes: int
    layer_reused: bool
    train_name: str
    num_train: int
    arms: tuple[ArmResult, ...]
    config: FinetuneConfig
    changed: Mapping[str, Any]
    extraction_seconds: float
    seconds: float
    folder: Path

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.folder / PAGE

    @property
    def arm_names(self) -> tuple[str, ...]:
        """The names of the arms, with the control first."""
        return tuple(dict.fromkeys(run.arm for run in self.arms))

    @property
    def test_names(self) -> tuple[str, ...]:
        """The names of the test sets, with the held-out part of the training data first."""
        return tuple(self.arms[0].scores)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(dict.fromkeys(run.seed for run in self.arms))

    def runs(self, arm: str) -> tuple[ArmResult, ...]:
        """Return all runs of an arm."""
        return tuple(run for run in self.arms if run.arm == arm)

    def cell(self, arm: str, test: str) -> Cell:
        """Return the scores of one arm on one test set."""
        scores = [run.scores[test] for run in self.runs(arm)]
        accuracies = tuple(score.accuracy for score in scores)
        mean = sum(accuracies) / len(accuracies)
        return Cell(
            accuracy=mean,
            macro_f1=sum(score.macro_f1 for score in scores) / len(scores),
            interval=wilson(mean, scores[0].examples),
            by_seed=accuracies,
            examples=scores[0].examples,
        )

    def comparison(self, test: str) -> Comparison:
        """Compare the second arm with the first on one test set."""
        control, grafted = (self.cell(arm, test) for arm in self.arm_names)
        return Comparison(
            delta=grafted.accuracy - control.accuracy,
            interval=difference(control.accuracy, grafted.accuracy, control.examples),
        )

    def conclusion(self) -> str:
        """Return the result in one or two sentences."""
        verdicts = {test: self.comparison(test).verdict for test in self.test_names}
        if set(verdicts.values()) == {"within noise"}:
            return (
                "On none of the test sets can the two arms be told apart: every 95 % interval of the difference "
                "contains zero."
            )
        names = {
            verdict: say_all([test for test, v in verdicts.items() if v == verdict]) for verdict in verdicts.values()
        }
        clear_verdicts = "; ".join(
            f"{verdict} on {tests}" for verdict, tests in names.items() if verdict != "within noise"
        )
        unclear_tests = names.get("within noise")
        return f"At 95 %: {clear_verdicts}." + (
            f" On {unclear_tests} the difference is within noise." if unclear_tests else ""
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "layer_surgeon": __version__,
            "host": self.host_name,
            "donor": self.donor_name,
            "layer_indices": list(self.layer_indices),
            "layer_bytes": self.layer_bytes,
            "layer_reused": self.layer_reused,
            "train": {"name": self.train_name, "examples": self.num_train},
            "seeds": list(self.seeds),
            "results": {
                test: {arm: asdict(self.cell(arm, test)) for arm in self.arm_names}
                | {"difference": asdict(self.comparison(test)) | {"verdict": self.comparison(test).verdict}}
                for test in self.test_names
            },
            "conclusion": self.conclusion(),
            "parameters": {arm: dict(self.runs(arm)[0].parameters) for arm in self.arm_names},
            "runs": [asdict(run) | {"path": str(run.path)} for run in self.arms],
            "config": asdict(self.config),
            "not_the_papers": dict(self.changed),
            "seconds": {"extraction": round(self.extraction_seconds, 1), "all": round(self.seconds, 1)},
            "page": str(self.page),
        }
