"""What a run comes to: typed for Python, plain for results.json."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from layer_surgeon._version import __version__
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.metrics import ClassificationMetrics

RESULTS = "results.json"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy")


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What was measured at the end of one epoch.

    Attributes:
        epoch: Passes over the training data so far; a fraction where the run ended inside one.
        step: Optimizer steps so far.
        training_loss: Mean loss over the epoch's steps, with label smoothing.
        accuracy: On the validation examples.
        macro_f1: On the validation examples.
        loss: Mean cross-entropy on the validation examples, in nats, without label smoothing.
    """

    epoch: float
    step: int
    training_loss: float
    accuracy: float
    macro_f1: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """A finished run.

    Attributes:
        path: The run's folder: model, tokenizer, results.json, loss_curve.png, README.md.
        validation: Metrics of the kept model on the validation examples.
        test: The same on the test examples; None where there were none.
        history: One entry per epoch.
        best_epoch: Which of them was kept, counted from 1.
        label_names: Class names, in the order of their ids.
        config: The settings.
        data: Facts about the data: counts, columns, fingerprints.
        parameters: Numbers of parameters: total, trained, frozen.
        steps: Training losses along the run: (step, loss).
        seconds: Time for training, with its validations; of a resumed run only what came after.
        device: Where it was trained.
        model: The trained model, in evaluation mode.
    """

    path: Path
    validation: ClassificationMetrics
    test: ClassificationMetrics | None
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
        """Accuracy, macro F1 and loss by set: `validation_accuracy`, `test_macro_f1`, ..."""
        sets = {"validation": self.validation, "test": self.test}
        return {
            f"{name}_{metric}": float(getattr(measured, metric))
            for name, measured in sets.items()
            if measured is not None
            for metric in ("accuracy", "macro_f1", "loss")
        }

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
            "best_epoch": self.best_epoch,
            "validation": self.validation.as_dict(),
            "test": None if self.test is None else self.test.as_dict(),
            "history": [asdict(epoch) for epoch in self.history],
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
    history: list[EpochResult] = []
    for entry in log:
        if "eval_accuracy" not in entry:
            continue
        begin = history[-1].step if history else 0
        losses = [loss for step, loss in steps if begin < step <= entry["step"]]
        history.append(
            EpochResult(
                epoch=float(entry["epoch"]),
                step=int(entry["step"]),
                training_loss=sum(losses) / len(losses) if losses else float("nan"),
                accuracy=float(entry["eval_accuracy"]),
                macro_f1=float(entry["eval_macro_f1"]),
                loss=float(entry["eval_cross_entropy"]),
            )
        )
    return tuple(history), steps


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results.json of a run's folder; None where the folder is no run."""
    try:
        content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "best_epoch" in content else None
