"""Extractive question answering: the answer is a piece of the text."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DataCollatorWithPadding

from layer_surgeon._io import parse_json
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.columns import ColumnChoice, ColumnRoles
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.examples import ExampleSet, check_texts
from layer_surgeon.finetune.labels import LabelMap
from layer_surgeon.finetune.metrics import log_softmax
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.squad import AnswerMetrics, measure_answers
from layer_surgeon.finetune.tasks.base import FinetuneTask, LossFunction, Outputs, TaskContext
from layer_surgeon.finetune.tokenization import TokenizedDataset, longest_input, padding_right

# (start in characters, text) of every right answer; none: the question has no answer.
Answers = tuple[tuple[int, str], ...]
# So many best starts, and ends, are combined, as in SQuAD's baselines.
_CANDIDATES = 20


@dataclass(frozen=True, kw_only=True)
class Questions(ExampleSet):
    """Questions, the texts they are about, and their answers."""

    questions: tuple[str, ...]
    contexts: tuple[str, ...]
    answers: tuple[Answers, ...]

    @property
    def groups(self) -> Sequence[str]:
        """The texts: questions on one of them are not torn apart, for their answers lie in what was learned."""
        return self.contexts


@dataclass(frozen=True, kw_only=True)
class Window:
    """One piece of a text: which example it is of, and where its tokens lie.

    Attributes:
        example: Number of the example.
        offsets: Per token its characters (start, end) in the text; None for tokens that are not of the text.
        start: The answer's first token in this piece; 0, the first token of all, where it is not in it.
        end: Likewise its last.
    """

    example: int
    offsets: tuple[tuple[int, int] | None, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class AnswerPrediction:
    """What a model answers.

    Attributes:
        question: The question.
        context: The text.
        answer: A piece of it; empty: the text has no answer.
        start: Its first character.
        score: Sum of the logits of start and end.
    """

    question: str
    context: str
    answer: str
    start: int
    score: float

    def as_row(self) -> dict[str, Any]:
        """As plain JSON types, for a line of output; the text is left out."""
        return {
            "question": self.question,
            "answer": self.answer,
            "start": self.start,
            "score": round(self.score, 6),
        }


class QuestionAnswering(FinetuneTask):
    """Where in the text the answer starts and ends; long texts are read in pieces that overlap."""

    name = "question-answering"
    selections = ("f1", "exact_match", "loss")
    roles = ColumnRoles(
        titles=("question", "context", "answers"),
        text=("question", "query"),
        pair=("context", "passage", "paragraph", "document", "text"),
        label=("answers", "answer", "answertext"),
    )
    unit = "questions"
    one_feature_each = False
    keeps_pairs_together = True

    def label_map(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], model_names: Sequence[str]
    ) -> None:
        """No classes."""
        return

    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> Questions:
        """Questions, texts, and answers that are found where they are said to be."""
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
        """How many questions have no answer, and how many texts there are."""
        asked = _asked(part)
        return {"without_answer": sum(not a for a in asked.answers), "contexts": len(set(asked.contexts))}

    def resolve(self, config: FinetuneConfig, train: ExampleSet) -> FinetuneConfig:
        """Whether no answer is an answer, from the training data."""
        if config.unanswerable is not None:
            return config
        return replace(config, unanswerable=not all(_asked(train).answers))

    def tokenize(self, examples: ExampleSet, context: TaskContext, *, training: bool) -> TokenizedDataset:
        """Each text in pieces: question, piece, with `doc_stride` tokens shared by neighbours. Nothing is cut off.

        Raises:
            ConfigError: The tokenizer is no fast one, or a question leaves too little room for the text.
        """
        tokenizer, config, asked = context.tokenizer, context.config, _asked(examples)
        if not tokenizer.is_fast:
            raise ConfigError(f"{self.name} needs a fast tokenizer, which knows where its tokens lie. This is none.")
        longest = longest_input(tokenizer, context.model, config.max_length)
        stride = longest // 4 if config.doc_stride is None else config.doc_stride
        _check_room(tokenizer, asked, longest, stride)
        features, windows = [], []
        for index, question in enumerate(asked.questions):
            # Blanks before a question only cost room (SQuAD has such).
            encoded = tokenizer(
                question.strip(),
                asked.contexts[index],
                truncation="only_second",
                max_length=longest,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for piece in range(len(encoded["input_ids"])):
                window = _window(encoded, piece, index, asked.answers[index])
                windows.append(window)
                names = [n for n in encoded if n not in ("offset_mapping", "overflow_to_sample_mapping")]
                features.append({n: encoded[n][piece] for n in names} | {"labels": [window.start, window.end]})
        return TokenizedDataset(features, 0, longest, windows)

    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Padding to the longest of the batch."""
        collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
        collate = DataCollatorWithPadding(padding_right(context.tokenizer))
        return collate

    def loss_function(self, config: FinetuneConfig) -> LossFunction:
        """The mean of the cross-entropies of start and end, smoothed over the tokens that are no padding."""

        def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            start, end = (
                _smoothed(outputs[name].float(), labels[:, column], config.label_smoothing)
                for column, name in enumerate(("start_logits", "end_logits"))
            )
            result: torch.Tensor = start + end
            return result / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

        return loss

    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """The logits of start and end, [batch, seq] each."""
        outputs = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        return outputs["start_logits"].float(), outputs["end_logits"].float()

    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> AnswerMetrics:
        """Exact match and F1 of the answers, over the whole set."""
        predictions = self.predictions(outputs, dataset, examples, context)
        right = [[text for _, text in answers] for answers in _asked(examples).answers]
        losses = [_window_loss(outputs, index, window) for index, window in enumerate(dataset.alignments)]
        return measure_answers([p.answer for p in predictions], right, float(np.mean(losses)))

    def inputs(self, items: Sequence[Any]) -> Questions:
        """Pairs of question and text."""
        if any(not isinstance(item, tuple | list) or len(item) != 2 for item in items):
            raise DataError("Question answering takes pairs: (question, text).")
        return Questions(
            questions=check_texts([item[0] for item in items], "The given questions"),
            contexts=check_texts([item[1] for item in items], "The given texts"),
            answers=((),) * len(items),
        )

    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[AnswerPrediction]:
        """The best answer over all pieces of each text."""
        asked, config = _asked(examples), context.config
        # Without a run that says so: as the data has it.
        may_be_empty = not all(asked.answers) if config.unanswerable is None else config.unanswerable
        best: list[tuple[float, int, int] | None] = [None] * len(asked)
        empty = [np.inf] * len(asked)
        for index, window in enumerate(dataset.alignments):
            starts, ends = (array[index, : len(window.offsets)] for array in outputs)
            empty[window.example] = min(empty[window.example], float(starts[0] + ends[0]))
            found = _best_span(starts, ends, window, config.max_answer_length)
            known = best[window.example]
            if found is not None and (known is None or found[0] > known[0]):
                best[window.example] = found
        results = []
        for index, span in enumerate(best):
            score, start, end = span if span is not None else (empty[index], 0, 0)
            if may_be_empty and empty[index] >= score:
                score, start, end = empty[index], 0, 0
            results.append(
                AnswerPrediction(
                    question=asked.questions[index],
                    context=asked.contexts[index],
                    answer=asked.contexts[index][start:end],
                    start=start,
                    score=score,
                )
            )
        return results


def _asked(examples: ExampleSet) -> Questions:
    if not isinstance(examples, Questions):
        raise TypeError(f"{type(examples).__name__} are no questions")
    return examples


def _read_answers(value: Any, context: str, location: str) -> Answers:
    """Answers in the forms that data sets have: SQuAD's dict of lists, a list of dicts, JSON of these, plain text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):  # an answer that begins with a bracket
            value = parse_json(value)
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = [{"text": value, "answer_start": context.find(value)}]
    if isinstance(value, Mapping):
        value = _rows_of(value, location)
    found = []
    for answer in value:
        if not isinstance(answer, Mapping) or not isinstance(answer.get("text"), str):
            raise DataError(
                f"{location}: {answer!r} is no answer. Expected: "
                '{"text": ["..."], "answer_start": [0]}, as in SQuAD, or the answer\'s text.'
            )
        text = answer["text"]
        start = answer.get("answer_start", context.find(text))
        if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text or not text:
            there = context.find(text) if text else -1
            hint = f"it begins at {there}" if there >= 0 else "it is nowhere in the text"
            raise DataError(
                f"{location}: the answer {text!r} is not at character {start} of the text; {hint}. Correct it, or take "
                "the row out."
            )
        found.append((start, text))
    return tuple(found)


def _rows_of(value: Mapping[str, Any], location: str) -> list[dict[str, Any]]:
    texts, starts = value.get("text"), value.get("answer_start")
    if isinstance(texts, str):
        return [dict(value)]
    fitting = starts is None or (isinstance(starts, list) and isinstance(texts, list) and len(starts) == len(texts))
    if not isinstance(texts, list) or not fitting:
        raise DataError(
            f"{location}: {dict(value)!r} are no answers: text and answer_start must be lists, equally long."
        )
    if starts is None:
        return [{"text": text} for text in texts]
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _check_room(tokenizer: Any, asked: Questions, longest: int, stride: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=True)
    lengths = tokenizer([q.strip() for q in asked.questions], add_special_tokens=False, verbose=False)["input_ids"]
    row = max(range(len(lengths)), key=lambda index: len(lengths[index]))
    room = longest - special - len(lengths[row])
    if room <= stride:
        raise ConfigError(
            f"max_length is {longest}: question {row + 1} has {len(lengths[row])} tokens, which leaves {max(room, 0)} "
            f"for a piece of the text, and two pieces share {stride} (doc_stride). Take a larger max_length (384 is "
            "usual) or a smaller doc_stride."
        )


def _window(encoded: Any, piece: int, example: int, answers: Answers) -> Window:
    """Where the first right answer lies in a piece; at the first token of all where it is not wholly in it."""
    of_text = [sequence == 1 for sequence in encoded.sequence_ids(piece)]
    offsets = tuple(
        (int(offset[0]), int(offset[1])) if inside else None
        for offset, inside in zip(encoded["offset_mapping"][piece], of_text, strict=True)
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
    """Cross-entropy, summed over the batch; what is masked (padding) takes no part in the smoothing."""
    losses = -logits.log_softmax(-1)
    loss = losses.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if smoothing:
        real = logits > torch.finfo(torch.float16).min
        mean = losses.masked_fill(~real, 0.0).sum(-1) / real.sum(-1)
        loss = (1 - smoothing) * loss + smoothing * mean
    return loss.sum()


def _window_loss(outputs: Outputs, index: int, window: Window) -> float:
    losses = [
        -log_softmax(array[index, : len(window.offsets)])[at]
        for array, at in zip(outputs, (window.start, window.end), strict=True)
    ]
    return float(np.mean(losses))


def _best_span(
    starts: npt.NDArray[Any], ends: npt.NDArray[Any], window: Window, longest: int
) -> tuple[float, int, int] | None:
    """Score, first and last character of the best span of the text; None where there is no token of it."""
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
