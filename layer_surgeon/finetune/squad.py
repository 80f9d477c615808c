"""Exact match and F1 of answers, by the rules of SQuAD's two official evaluation scripts (v1.1 and v2.0).

https://rajpurkar.github.io/SQuAD-explorer/

Both scripts ignore case, ASCII punctuation, the articles a, an and the, and extra whitespace. They use the best of
several correct answers, and average over all questions, in percent. They differ for empty answers: v2.0 has questions
without an answer, for which the empty answer is correct.
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
    """Metrics of one set of questions, by the official rules of SQuAD, in percent.

    Attributes:
        f1: Mean word F1 over the questions.
        exact_match: Share of questions with an exact answer.
        loss: Mean over windows of the mean cross-entropy of start and end, in nats, without label smoothing.
        examples: Number of questions.
        version_2: Whether the rules of SQuAD 2.0 were used, because a question has no answer.
        with_answer: Exact match and F1 of the questions that have an answer; only with version 2.
        without_answer: Exact match and F1 of the questions without an answer; only with version 2.
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
        """The scores by name, F1 first."""
        return {"f1": self.f1, "exact_match": self.exact_match, "loss": self.loss}

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)


def measure_answers(predicted: Sequence[str], right: Sequence[Sequence[str]], loss: float = 0.0) -> AnswerMetrics:
    """Compute the metrics by the official rules: those of SQuAD 2.0 if a question has no answer, else those of 1.1.

    Args:
        predicted: The predicted answers; an empty string means no answer.
        right: All correct answers of each question.
        loss: The loss to report.
    """
    version_2 = not all(right)
    pairs = list(zip(predicted, right, strict=True))
    exact = np.array([exact_match(prediction, answers, version_2=version_2) for prediction, answers in pairs])
    overlap = np.array([f1(prediction, answers, version_2=version_2) for prediction, answers in pairs])
    has_answer = np.array([bool(answers) for answers in right])

    def subset_scores(rows: npt.NDArray[np.bool_]) -> dict[str, float] | None:
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
        with_answer=subset_scores(has_answer),
        without_answer=subset_scores(~has_answer),
    )


def normalize_answer(text: str) -> str:
    """Convert to lower case, then remove punctuation, articles and extra whitespace, in this order."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(predicted: str, right: Sequence[str], *, version_2: bool) -> float:
    """Return 1 if the prediction is one of the correct answers, else 0."""
    return max(float(normalize_answer(predicted) == normalize_answer(answer)) for answer in _gold(right, version_2))


def f1(predicted: str, right: Sequence[str], *, version_2: bool) -> float:
    """Compute the word F1 of the prediction against the correct answers; return the best."""
    return max(_f1(predicted, answer, version_2) for answer in _gold(right, version_2))


def _gold(right: Sequence[str], version_2: bool) -> Sequence[str]:
    if not version_2:
        return right
    return [answer for answer in right if normalize_answer(answer)] or [""]


def _f1(predicted: str, answer: str, version_2: bool) -> float:
    predicted_words, answer_words = normalize_answer(predicted).split(), normalize_answer(answer).split()
    if version_2 and not (predicted_words and answer_words):
        return float(predicted_words == answer_words)
    shared = sum((Counter(predicted_words) & Counter(answer_words)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted_words), shared / len(answer_words)
    return 2 * precision * recall / (precision + recall)
