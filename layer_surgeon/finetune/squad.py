"""Exact match and F1 of answers, by the rules of SQuAD's two official evaluation scripts (v1.1 and v2.0).

https://rajpurkar.github.io/SQuAD-explorer/ ; both compare answers without case, punctuation (ASCII), the articles a, an
and the, and surplus blanks, take the best of several right answers, and average over all questions, in percent. They
differ in what is empty: v2.0 has questions without an answer, whose right answer is the empty one.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = set(string.punctuation)


@dataclass(frozen=True, kw_only=True)
class AnswerMetrics:
    """What was measured on one set of questions, by the official rules of SQuAD, in percent.

    Attributes:
        f1: Mean over questions of the shared words' F1.
        exact_match: Share of questions answered exactly.
        loss: Mean over pieces of text of half the cross-entropies of start and end, in nats, without label smoothing.
        examples: Questions.
        version_2: Whether the rules are those of SQuAD 2.0, since some question has no answer.
        with_answer: Exact match and F1 of the questions that have one; only in version 2.
        without_answer: Likewise of the others.
    """

    f1: float
    exact_match: float
    loss: float
    examples: int
    version_2: bool
    with_answer: dict[str, float] | None
    without_answer: dict[str, float] | None

    @property
    def scores(self) -> dict[str, float]:
        """F1 first."""
        return {"f1": self.f1, "exact_match": self.exact_match, "loss": self.loss}

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def measure_answers(predicted: Sequence[str], right: Sequence[Sequence[str]], loss: float = 0.0) -> AnswerMetrics:
    """Measure answers by the official rules: those of SQuAD 2.0 where some question has no answer, else 1.1's.

    Args:
        predicted: The answers; empty: none.
        right: All right answers of each question.
        loss: What to report as the loss.
    """
    version_2 = not all(right)
    pairs = list(zip(predicted, right, strict=True))
    exact = np.array([exact_match(said, answers, version_2=version_2) for said, answers in pairs])
    overlap = np.array([f1(said, answers, version_2=version_2) for said, answers in pairs])
    has = np.array([bool(answers) for answers in right])

    def part(rows: npt.NDArray[np.bool_]) -> dict[str, float] | None:
        if not version_2 or not rows.any():
            return None
        return {
            "f1": float(100 * overlap[rows].mean()),
            "exact_match": float(100 * exact[rows].mean()),
            "examples": int(rows.sum()),
        }

    return AnswerMetrics(
        f1=float(100 * overlap.mean()),
        exact_match=float(100 * exact.mean()),
        loss=loss,
        examples=len(pairs),
        version_2=version_2,
        with_answer=part(has),
        without_answer=part(~has),
    )


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks, in this order."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(predicted: str, right: Sequence[str], *, version_2: bool) -> float:
    """1 if the prediction is one of the right answers, else 0."""
    return max(float(normalize_answer(predicted) == normalize_answer(answer)) for answer in _gold(right, version_2))


def f1(predicted: str, right: Sequence[str], *, version_2: bool) -> float:
    """F1 over the words that prediction and answer share; the best over the right answers."""
    return max(_f1(predicted, answer, version_2) for answer in _gold(right, version_2))


def _gold(right: Sequence[str], version_2: bool) -> Sequence[str]:
    if not version_2:
        return right
    return [answer for answer in right if normalize_answer(answer)] or [""]


def _f1(predicted: str, answer: str, version_2: bool) -> float:
    said, wanted = normalize_answer(predicted).split(), normalize_answer(answer).split()
    if version_2 and not (said and wanted):
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)
