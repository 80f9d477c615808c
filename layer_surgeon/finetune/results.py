"""The results of a run, as Python objects and as results.json."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from layer_surgeon._io import read_object
from layer_surgeon._version import __version__
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.metrics import Metrics
from layer_surgeon.tasks import all_scores

RESULTS = "results.json"
CONFUSION_MATRIX = "confusion_matrix.png"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy")


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The scores at the end of one epoch.

    Attributes:
        epoch: Passes over the training data so far; a fraction if the run ended inside an epoch.
        step: Optimizer steps so far.
        training_loss: Mean loss over the epoch's steps, with label smoothing.
        scores: Validation scores by name. Their loss is without label smoothing.
    """

    epoch: float
    step: int
    training_loss: float
    scores: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """Validation accuracy; only for classification."""
        return self.scores["accuracy"]

    @property
    def loss(self) -> float:
        """Mean cross-entropy on the validation examples, in nats, without label smoothing."""
        return self.scores["loss"]

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types, with the scores on the same level as the other fields."""
        return {"epoch": self.epoch, "step": self.step, "training_loss": self.training_loss, **self.scores}


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """A finished run.

    Attributes:
        path: The run folder: model, tokenizer, results.json, loss_curve.png, README.md and, for classification,
            confusion_matrix.png.
        task: The task.
        validation: The task's metrics (`ClassificationMetrics`, ...) of the kept model on the validation examples.
        test: The same on the test examples, or None.
        history: One result per epoch.
        best_epoch: The epoch that was kept, counted from 1.
        label_names: Class names, ordered by class id; empty for a task without classes.
        config: The settings, with all defaults resolved.
        data: Facts about the data: counts, columns, fingerprints.
        parameters: Number of total, trained and frozen parameters.
        steps: Training losses as (step, loss).
        seconds: Duration of the training and its validations, without what an interruption lost.
        device: The device the model was trained on.
        model: The trained model, in evaluation mode.
    """

    path: Path
    task: str
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
        """All scores by set and name: `validation_accuracy`, `test_macro_f1`, ..."""
        return {
            f"{name}_{score}": float(value)
            for name, measured in self.measured.items()
            for score, value in measured.scores.items()
        }

    @property
    def measured(self) -> dict[str, Metrics]:
        """The metrics by set: `validation` and, if there are test examples, `test`."""
        return {"validation": self.validation, **({} if self.test is None else {"test": self.test})}

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model, including the frozen donor layer."""
        return self.parameters["total"]

    @property
    def num_trained_parameters(self) -> int:
        """Number of trained parameters."""
        return self.parameters["trained"]

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types, in the order of results.json."""
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
    """Read the epochs, and the training losses by step, from the trainer's log."""
    steps = tuple((int(record["step"]), float(record["loss"])) for record in log if "loss" in record)
    log_keys = {name: f"eval_{name}" for name in all_scores()} | {"loss": "eval_cross_entropy"}
    history: list[EpochResult] = []
    for record in log:
        if "eval_cross_entropy" not in record:
            continue
        previous_step = history[-1].step if history else 0
        losses = [loss for step, loss in steps if previous_step < step <= record["step"]]
        history.append(
            EpochResult(
                epoch=float(record["epoch"]),
                step=int(record["step"]),
                training_loss=sum(losses) / len(losses) if losses else float("nan"),
                scores={name: float(record[key]) for name, key in log_keys.items() if key in record},
            )
        )
    return tuple(history), steps


def read_results(folder: Path) -> dict[str, Any] | None:
    """Read results.json from a run folder; None if the folder is not a run folder."""
    content = read_object(folder / RESULTS)
    config, data = content.get("config"), content.get("data")
    has_columns = isinstance(data, dict) and isinstance(data.get("columns"), dict)
    return content if "best_epoch" in content and isinstance(config, dict) and has_columns else None
