"""Extractive question answering: the answer is a span of the text."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax
from transformers import DataCollatorWithPadding

from layer_surgeon._io import parse_json
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.examples import ExampleSet, check_texts
from layer_surgeon.finetune.labels import LabelMap
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.squad import AnswerMetrics, measure_answers
from layer_surgeon.finetune.tasks.base import FinetuneTask, LossFunction, Outputs, TaskContext
from layer_surgeon.finetune.tokenization import TokenizedDataset, longest_input, padding_right

# (start in characters, text) of every correct answer; empty if the question has no answer.
Answers = tuple[tuple[int, str], ...]
# Number of best starts and best ends to combine, as in SQuAD's baselines.
_CANDIDATES = 20


@dataclass(frozen=True, kw_only=True)
class Questions(ExampleSet):
    """Questions, the texts they are about, and their answers."""

    questions: tuple[str, ...]
    contexts: tuple[str, ...]
    answers: tuple[Answers, ...]

    @property
    def groups(self) -> Sequence[str]:
        """The texts. Questions on the same text stay together, or validation would use texts from training."""
        return self.contexts


class AskedQuestions(Questions):
    """Questions without known answers."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window of a text: its example, and the positions of its tokens.

    Attributes:
        example: Number of the example.
        offsets: Character span (start, end) in the text for each token; None for tokens outside the text.
        start: First token of the answer; 0 (the first token of the input) if the answer is not in this window.
        end: Last token of the answer, or 0.
    """

    example: int
    offsets: tuple[tuple[int, int] | None, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class AnswerPrediction:
    """The answer to one question.

    Attributes:
        question: The question.
        context: The text.
        answer: A span of the text; empty if the model gives no answer.
        start: Character position of the answer.
        score: Sum of the logits of start and end.
    """

    question: str
    context: str
    answer: str
    start: int
    score: float

    def as_row(self) -> dict[str, Any]:
        """Convert to plain JSON types without the text, for a line of output."""
        return {
            "question": self.question,
            "answer": self.answer,
            "start": self.start,
            "score": round(self.score, 6),
        }


class QuestionAnswering(FinetuneTask):
    """Predicts where in the text the answer starts and ends. Long texts are read in overlapping windows."""

    one_feature_each = False
    keeps_pairs_together = True

    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> Questions:
        """Check questions, texts, and that each answer is at its position in the text."""
        context_column, answer_column = str(columns.text_pair), str(columns.label)
        contexts = check_texts(table.columns[context_column], f"{table.location}, column {context_column!r}")
        return Questions(
            questions=check_texts(table.columns[columns.text], f"{table.location}, column {columns.text!r}"),
            contexts=contexts,
            answers=tuple(
                _read_answers(value, context, f"{table.location}, row {row}")
                for row, (value, context) in enumerate(zip(table.columns[answer_column], contexts, strict=True), 1)
            ),
        )

    def facts(self, part: ExampleSet, label_names: Sequence[str]) -> dict[str, Any]:
        """Count the questions without an answer, and the texts."""
        questions = _questions(part)
        num_unanswered = sum(not answers for answers in questions.answers)
        return {"without_answer": num_unanswered, "contexts": len(set(questions.contexts))}

    def resolve(self, config: FinetuneConfig, train: ExampleSet) -> FinetuneConfig:
        """Set `unanswerable`, if it is not set, to whether a training question has no answer."""
        if config.unanswerable is not None:
            return config
        return replace(config, unanswerable=not all(_questions(train).answers))

    def tokenize(self, examples: ExampleSet, context: TaskContext) -> TokenizedDataset:
        """Split each text into windows, each with the question; neighbours share `doc_stride` tokens. Nothing is lost.

        Raises:
            ConfigError: The tokenizer is not a fast one, or a question leaves too little room for the text.
        """
        tokenizer, config, questions = context.tokenizer, context.config, _questions(examples)
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{self.name} needs the character positions of tokens, which only fast tokenizers know. Pass a fast "
                "tokenizer."
            )
        longest = longest_input(tokenizer, context.model, config.max_length)
        stride = longest // 4 if config.doc_stride is None else config.doc_stride
        _check_room(tokenizer, questions, longest, stride)
        features, windows = [], []
        for index, question in enumerate(questions.questions):
            # Whitespace before a question, as in SQuAD, only wastes tokens.
            encoded = tokenizer(
                question.strip(),
                questions.contexts[index],
                truncation="only_second",
                max_length=longest,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            names = [name for name in encoded if name not in ("offset_mapping", "overflow_to_sample_mapping")]
            for number in range(len(encoded["input_ids"])):
                window = _make_window(encoded, number, index, questions.answers[index])
                windows.append(window)
                inputs = {name: encoded[name][number] for name in names}
                features.append(inputs | {"labels": [window.start, window.end]})
        return TokenizedDataset(features, 0, longest, windows)

    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Pad to the longest feature of the batch."""
        collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
        collate = DataCollatorWithPadding(padding_right(context.tokenizer))
        return collate

    def loss_function(self, config: FinetuneConfig) -> LossFunction:
        """Return the mean cross-entropy of start and end, with label smoothing over all tokens except padding."""

        def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            start, end = (
                _smoothed(outputs[name].float(), labels[:, column], config.label_smoothing)
                for column, name in enumerate(("start_logits", "end_logits"))
            )
            result: torch.Tensor = start + end
            return result / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

        return loss

    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """Return the logits of start and end, [batch, seq] each."""
        outputs = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        return outputs["start_logits"].float(), outputs["end_logits"].float()

    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> AnswerMetrics:
        """Compute exact match and F1 of the answers over the whole set."""
        predictions = self.predictions(outputs, dataset, examples, context)
        correct = [[text for _, text in answers] for answers in _questions(examples).answers]
        losses = [_window_loss(outputs, index, window) for index, window in enumerate(dataset.alignments)]
        return measure_answers([prediction.answer for prediction in predictions], correct, float(np.mean(losses)))

    def inputs(self, items: Sequence[Any]) -> AskedQuestions:
        """Convert pairs of question and text."""
        if any(not isinstance(item, tuple | list) or len(item) != 2 for item in items):
            raise DataError("Question answering needs pairs. Pass tuples of (question, text).")
        return AskedQuestions(
            questions=check_texts([item[0] for item in items], "The given questions"),
            contexts=check_texts([item[1] for item in items], "The given texts"),
            answers=((),) * len(items),
        )

    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[AnswerPrediction]:
        """Return the best answer over all windows of each text."""
        questions, config = _questions(examples), context.config
        may_be_empty = config.unanswerable
        if may_be_empty is None:  # Neither the user nor a run has set it: decide from the data.
            may_be_empty = not isinstance(questions, AskedQuestions) and not all(questions.answers)
        best: list[tuple[float, int, int] | None] = [None] * len(questions)
        no_answer_scores = [np.inf] * len(questions)
        for index, window in enumerate(dataset.alignments):
            starts, ends = (array[index, : len(window.offsets)] for array in outputs)
            no_answer_scores[window.example] = min(no_answer_scores[window.example], float(starts[0] + ends[0]))
            span = _best_span(starts, ends, window, config.max_answer_length)
            previous = best[window.example]
            if span is not None and (previous is None or span[0] > previous[0]):
                best[window.example] = span
        results = []
        for index, best_span in enumerate(best):
            no_answer_score = no_answer_scores[index]
            score, start, end = best_span if best_span is not None else (no_answer_score, 0, 0)
            if may_be_empty and no_answer_score >= score:
                score, start, end = no_answer_score, 0, 0
            results.append(
                AnswerPrediction(
                    question=questions.questions[index],
                    context=questions.contexts[index],
                    answer=questions.contexts[index][start:end],
                    start=start,
                    score=score,
                )
            )
        return results


def _questions(examples: ExampleSet) -> Questions:
    if not isinstance(examples, Questions):
        raise TypeError(f"expected Questions, got {type(examples).__name__}")
    return examples


def _read_answers(value: Any, context: str, location: str) -> Answers:
    """Read answers in any common format: SQuAD's dict of lists, a list of dicts, JSON of either, or a string."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):  # A plain answer may begin with a bracket.
            value = parse_json(value)
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = [{"text": value, "answer_start": context.find(value)}]
    if isinstance(value, Mapping):
        value = _to_rows(value, location)
    answers = []
    for answer in value if isinstance(value, Iterable) else (value,):
        if not isinstance(answer, Mapping) or not isinstance(answer.get("text"), str):
            raise DataError(
                f"{location}: {answer!r} is not an answer. Expected "
                '{"text": ["..."], "answer_start": [0]}, as in SQuAD, or the text of the answer.'
            )
        text = answer["text"]
        start = answer.get("answer_start", context.find(text))
        if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text or not text:
            position = context.find(text) if text else -1
            hint = f"it begins at {position}" if position >= 0 else "the text does not contain it"
            raise DataError(
                f"{location}: the answer {text!r} is not at character {start} of the text; {hint}. Correct the answer, "
                "or remove the row."
            )
        answers.append((start, text))
    return tuple(answers)


def _to_rows(value: Mapping[str, Any], location: str) -> list[dict[str, Any]]:
    texts, starts = value.get("text"), value.get("answer_start")
    if isinstance(texts, str):
        return [dict(value)]
    is_valid = starts is None or (isinstance(starts, list) and isinstance(texts, list) and len(starts) == len(texts))
    if not isinstance(texts, list) or not is_valid:
        raise DataError(f"{location}: in {dict(value)!r}, text and answer_start must be lists of the same length.")
    if starts is None:
        return [{"text": text} for text in texts]
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _check_room(tokenizer: Any, questions: Questions, longest: int, stride: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=True)
    stripped = [question.strip() for question in questions.questions]
    token_ids = tokenizer(stripped, add_special_tokens=False, verbose=False)["input_ids"]
    row = max(range(len(token_ids)), key=lambda index: len(token_ids[index]))
    room = longest - special - len(token_ids[row])
    if room <= stride:
        raise ConfigError(
            f"max_length is {longest}: question {row + 1} has {len(token_ids[row])} tokens, which leaves "
            f"{max(room, 0)} for a window of the text, but consecutive windows share {stride} (doc_stride). Use a "
            "larger max_length (384 is usual) or a smaller doc_stride."
        )


def _make_window(encoded: Any, number: int, example: int, answers: Answers) -> Window:
    """Locate the first correct answer in a window; if it is not completely inside, use the first token of the input."""
    is_text = [sequence == 1 for sequence in encoded.sequence_ids(number)]
    offsets = tuple(
        (int(offset[0]), int(offset[1])) if inside else None
        for offset, inside in zip(encoded["offset_mapping"][number], is_text, strict=True)
    )
    start = end = 0
    if answers:
        first, text = answers[0]
        last = first + len(text)
        tokens = [
            (index, offset) for index, offset in enumerate(offsets) if offset is not None and offset[0] < offset[1]
        ]
        covered = [index for index, (begin, stop) in tokens if begin < last and stop > first]
        if covered and tokens[0][1][0] <= first and tokens[-1][1][1] >= last:
            start, end = covered[0], covered[-1]
    return Window(example=example, offsets=offsets, start=start, end=end)


def _smoothed(logits: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Compute the cross-entropy, summed over the batch; masked tokens (padding) take no part in the smoothing."""
    losses = -logits.log_softmax(-1)
    loss = losses.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if smoothing:
        real = logits > torch.finfo(torch.float16).min
        mean = losses.masked_fill(~real, 0.0).sum(-1) / real.sum(-1)
        loss = (1 - smoothing) * loss + smoothing * mean
    return loss.sum()


def _window_loss(outputs: Outputs, index: int, window: Window) -> float:
    losses = [
        -log_softmax(array[index, : len(window.offsets)].astype(float))[position]
        for array, position in zip(outputs, (window.start, window.end), strict=True)
    ]
    return float(np.mean(losses))


def _best_span(
    starts: npt.NDArray[Any], ends: npt.NDArray[Any], window: Window, longest: int
) -> tuple[float, int, int] | None:
    """Find the best span of the text: its score and its character range; None if the window has no text tokens."""
    inside = np.array([o is not None and o[0] < o[1] for o in window.offsets])
    best: tuple[float, int, int] | None = None
    first, last = (
        np.argsort(-np.where(inside, scores, -np.inf), kind="stable")[:_CANDIDATES] for scores in (starts, ends)
    )
    for start in first:
        for end in last:
            if not (inside[start] and inside[end]) or end < start or end - start + 1 > longest:
                continue
            score = float(starts[start] + ends[end])
            begin, stop = window.offsets[start], window.offsets[end]
            if begin is not None and stop is not None and (best is None or score > best[0]):
                best = score, begin[0], stop[1]
    return best
