"""The protocol of all metrics, and classification metrics computed with scikit-learn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax


class Metrics(Protocol):
    """The metrics of one set, for any task."""

    @property
    def examples(self) -> int:
        """Number of examples in the set."""

    @property
    def scores(self) -> Mapping[str, float]:
        """The scores by name, the most important one first. The task's record has all names."""

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Precision, recall and F1 of one class, and its number of examples (`support`)."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics:
    """Classification metrics of one set.

    Attributes:
        accuracy: Share of correctly classified examples.
        macro_f1: Mean F1 over the classes. As in scikit-learn, a class that has no examples and is never predicted is
            left out.
        loss: Mean cross-entropy in nats, without label smoothing.
        examples: Number of examples in the set.
        per_class: Scores by class name.
        confusion: Counts [true class, predicted class], ordered by class id.
    """

    accuracy: float
    macro_f1: float
    loss: float
    examples: int
    per_class: dict[str, ClassScores]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy, macro F1 and loss."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "loss": self.loss}

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)


def measure(
    logits: npt.NDArray[np.floating[Any]], labels: Sequence[int], label_names: Sequence[str]
) -> ClassificationMetrics:
    """Compute classification metrics.

    Args:
        logits: [examples, classes].
        labels: True class ids.
        label_names: Class names, ordered by class id.
    """
    # Takes 0.6 s, and predictions need no metrics.
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    true, predicted = np.asarray(labels), logits.argmax(axis=-1)
    ids = list(range(len(label_names)))
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=ids, average=None, zero_division=0.0
    )
    log_probabilities = log_softmax(logits.astype(float), axis=-1)
    return ClassificationMetrics(
        accuracy=float(accuracy_score(true, predicted)),
        macro_f1=float(f1_score(true, predicted, average="macro", zero_division=0.0)),
        loss=float(-log_probabilities[np.arange(len(true)), true].mean()),
        examples=len(true),
        per_class={
            name: ClassScores(
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                support=int(support[index]),
            )
            for index, name in enumerate(label_names)
        },
        confusion=tuple(tuple(int(count) for count in row) for row in confusion_matrix(true, predicted, labels=ids)),
    )
