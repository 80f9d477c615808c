"""What a run comes to: typed for Python, plain for results.json."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from layer_surgeon._io import read_json
from layer_surgeon._version import __version__
from layer_surgeon.finetune.config import FinetuneConfig, TaskName
from layer_surgeon.finetune.metrics import TITLES, Metrics

RESULTS = "results.json"
CONFUSION_MATRIX = "confusion_matrix.png"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy")


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What was measured at the end of one epoch.

    Attributes:
        epoch: Passes over the training data so far; a fraction where the run ended inside one.
        step: Optimizer steps so far.
        training_loss: Mean loss over the epoch's steps, with label smoothing.
        scores: On the validation examples, by name; their loss is without label smoothing.
    """

    epoch: float
    step: int
    training_loss: float
    scores: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """Of a classification: accuracy on the validation examples."""
        return self.scores["accuracy"]

    @property
    def macro_f1(self) -> float:
        """Of a classification: macro F1 on the validation examples."""
        return self.scores["macro_f1"]

    @property
    def loss(self) -> float:
        """Mean cross-entropy on the validation examples, in nats, without label smoothing."""
        return self.scores["loss"]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types, the scores beside the rest."""
        return {"epoch": self.epoch, "step": self.step, "training_loss": self.training_loss, **self.scores}


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """A finished run.

    Attributes:
        path: The run's folder: model, tokenizer, results.json, loss_curve.png, README.md; of a classification
            confusion_matrix.png too.
        task: What was learned.
        validation: The task's metrics (`ClassificationMetrics`, ...) of the kept model on the validation examples.
        test: The same on the test examples; None where there were none.
        history: One entry per epoch.
        best_epoch: Which of them was kept, counted from 1.
        label_names: Class names, in the order of their ids; empty for a task without classes.
        config: The settings, with those filled in that follow from task and data.
        data: Facts about the data: counts, columns, fingerprints.
        parameters: Numbers of parameters: total, trained, frozen.
        steps: Training losses along the run: (step, loss).
        seconds: Time for training, with its validations; of a resumed run only what came after.
        device: Where it was trained.
        model: The trained model, in evaluation mode.
    """

    path: Path
    task: TaskName
    validation: Any
    test: Any
    history: tuple[EpochResult, ...]
    best_epoch: int
    label_names: tuple[str, ...]
    config: FinetuneConfig
    data: Mapping[str, Any]
    parameters: Mapping[str, int]
    steps: tuple[tuple[int, float], ...] = field(repr=False)
    seconds: float
    device: str
    model: Any = field(repr=False, compare=False)

    @property
    def metrics(self) -> dict[str, float]:
        """The scores by set: `validation_accuracy`, `test_macro_f1`, ..."""
        return {
            f"{name}_{score}": float(value)
            for name, measured in self.measured.items()
            for score, value in measured.scores.items()
        }

    @property
    def measured(self) -> dict[str, Metrics]:
        """The metrics by set: of the validation examples and, where there are any, of the test examples."""
        return {"validation": self.validation, **({} if self.test is None else {"test": self.test})}

    @property
    def num_parameters(self) -> int:
        """All parameters of the model, the frozen donor's among them."""
        return self.parameters["total"]

    @property
    def num_trained_parameters(self) -> int:
        """The parameters that were trained."""
        return self.parameters["trained"]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types, in the order of results.json."""
        return {
            "layer_surgeon": __version__,
            "task": self.task,
            "best_epoch": self.best_epoch,
            "validation": self.validation.as_dict(),
            "test": None if self.test is None else self.test.as_dict(),
            "history": [epoch.as_dict() for epoch in self.history],
            "labels": list(self.label_names),
            "data": dict(self.data),
            "parameters": dict(self.parameters),
            "seconds": round(self.seconds, 3),
            "device": self.device,
            "config": asdict(self.config),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "training_loss": [[step, loss] for step, loss in self.steps],
        }


def read_history(log: Sequence[Mapping[str, Any]]) -> tuple[tuple[EpochResult, ...], tuple[tuple[int, float], ...]]:
    """The epochs, and the training losses by step, from the trainer's log."""
    steps = tuple((int(entry["step"]), float(entry["loss"])) for entry in log if "loss" in entry)
    logged = {name: f"eval_{name}" for name in TITLES} | {"loss": "eval_cross_entropy"}
    history: list[EpochResult] = []
    for entry in log:
        if "eval_cross_entropy" not in entry:
            continue
        begin = history[-1].step if history else 0
        losses = [loss for step, loss in steps if begin < step <= entry["step"]]
        history.append(
            EpochResult(
                epoch=float(entry["epoch"]),
                step=int(entry["step"]),
                training_loss=sum(losses) / len(losses) if losses else float("nan"),
                scores={name: float(entry[key]) for name, key in logged.items() if key in entry},
            )
        )
    return tuple(history), steps


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results.json of a run's folder; None where the folder is no run."""
    try:
        content = read_json(folder / RESULTS)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "best_epoch" in content else None
