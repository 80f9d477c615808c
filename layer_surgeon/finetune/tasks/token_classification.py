"""Token classification: one label per word (named entities, parts of speech, ...)."""

import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from seqeval.metrics import classification_report as entity_report
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import classification_report as word_report
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForTokenClassification

from layer_surgeon._devices import as_float64
from layer_surgeon._io import parse_json
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.examples import ExampleSet, check_filled, is_empty, listed
from layer_surgeon.finetune.labels import LabelMap, labels_of_model, make_label_map
from layer_surgeon.finetune.metrics import ClassScores
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext
from layer_surgeon.finetune.tokenization import TokenizedDataset, longest_input, padding_right

_IGNORED = -100
_ENTITY = re.compile(r"[BIELSU]-.")


@dataclass(frozen=True, kw_only=True)
class TaggedTexts(ExampleSet):
    """Texts as words, with a class id per word."""

    words: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TaggingMetrics:
    """Metrics of one set of tagged texts.

    Attributes:
        f1: Micro average over entities, counted as in seqeval and the CoNLL script: type and both ends must be correct.
            If the labels are not entities (none starts with B- or I-): macro average over the labels of words.
        precision: Averaged in the same way.
        recall: Averaged in the same way.
        accuracy: Share of words with the correct label.
        loss: Mean cross-entropy over words in nats, without label smoothing.
        examples: Number of texts.
        words: Number of words. Truncated words count as predicted O, and have no loss.
        per_class: Scores by entity type, or by label.
    """

    f1: float
    precision: float
    recall: float
    accuracy: float
    loss: float
    examples: int
    words: int
    per_class: dict[str, ClassScores]

    @property
    def scores(self) -> dict[str, float]:
        """The scores by name, F1 first."""
        names = ("f1", "precision", "recall", "accuracy", "loss")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TagPrediction:
    """The predicted labels of one text.

    Attributes:
        words: The words.
        labels: One label per word; None for words beyond the maximum length.
        scores: Probability of each label; 0 for words beyond the maximum length.
    """

    words: tuple[str, ...]
    labels: tuple[str | None, ...]
    scores: tuple[float, ...]

    @property
    def labelled_text(self) -> str:
        """The words, each with its label."""
        return " ".join(f"{word}/{label or '-'}" for word, label in zip(self.words, self.labels, strict=True))

    def as_row(self) -> dict[str, Any]:
        """Convert to plain JSON types, for a line of output."""
        return {
            "words": list(self.words),
            "labels": list(self.labels),
            "scores": [round(score, 6) for score in self.scores],
        }


class TokenClassification(FinetuneTask):
    """Predicts one class per word, at the word's first token."""

    def label_map(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], model_names: Sequence[str]
    ) -> LabelMap:
        """Determine the classes from the labels of all words."""
        tags = [tag for row in _tag_rows(table, columns) for tag in row]
        return make_label_map(tags, table.location, declared=declared, model_names=model_names)

    def known_labels(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], names: Sequence[str]
    ) -> LabelMap:
        """Match labels by name, or by number if the labels are numbers."""
        tags = [tag for row in _tag_rows(table, columns) for tag in row]
        return labels_of_model(tags, table.location, names, declared=declared)

    def labels_in(self, value: Any) -> Sequence[Any]:
        """Get one label per word."""
        tags = _as_list(value)
        if tags is None:
            raise DataError(f"{value!r} is not a list of labels.")
        return tags

    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> TaggedTexts:
        """Check that every word has a label, and convert the labels to class ids."""
        if labels is None:
            raise ValueError("token classification needs a label map")
        location = f"{table.location}, column {columns.text!r}"
        words = _check_words(table.columns[columns.text], location)
        tags = _tag_rows(table, columns)
        for row, (row_words, row_tags) in enumerate(zip(words, tags, strict=True), start=1):
            if len(row_words) != len(row_tags):
                raise DataError(
                    f"{table.location}, row {row}: {len(row_words)} words ({columns.text!r}), but {len(row_tags)} "
                    f"labels ({columns.label!r}). Every word needs one label."
                )
        ids = iter(labels.encode([tag for row in tags for tag in row], table.location))
        return TaggedTexts(words=words, tags=tuple(tuple(next(ids) for _ in row) for row in tags))

    def facts(self, part: ExampleSet, label_names: Sequence[str]) -> dict[str, Any]:
        """Count the words of each class."""
        tags = [tag for row in _tagged(part).tags for tag in row]
        counts = np.bincount(np.asarray(tags, dtype=int), minlength=len(label_names)).tolist()
        return {"words": len(tags), "per_class": dict(zip(label_names, counts, strict=True))}

    def tokenize(self, examples: ExampleSet, context: TaskContext) -> TokenizedDataset:
        """Tokenize each text, truncated to the maximum length; each label is at its word's first token."""
        tokenizer = context.tokenizer
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{self.name} needs the place of each token, which only fast tokenizers know. Pass a fast tokenizer."
            )
        longest = longest_input(tokenizer, context.model, context.config.max_length)
        features, alignments, cut = [], [], 0
        tagged = _tagged(examples)
        for words, tags in zip(tagged.words, tagged.tags, strict=True):
            # As one text, which is what a pipeline gets: many tokenizers have other tokens for words without a space.
            text = " ".join(words)
            encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
            if len(encoded["input_ids"]) > longest:
                cut += 1
                encoded = tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=longest)
            firsts = _first_tokens(words, encoded.pop("offset_mapping"))
            labels = [_IGNORED] * len(encoded["input_ids"])
            for word, position in firsts.items():
                labels[position] = tags[word]
            alignments.append(firsts)
            features.append({**encoded, "labels": labels})
        return TokenizedDataset(features, cut, longest, alignments)

    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Pad features and labels to the longest feature of the batch."""
        collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
        collate = DataCollatorForTokenClassification(padding_right(context.tokenizer))
        return collate

    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """Return class and probability at every token, [batch, seq], and the summed loss of the labels, [batch]."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float()
        losses = cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=_IGNORED, reduction="none")
        scores, classes = logits.softmax(-1).max(-1)
        return classes, scores, as_float64(losses).sum(-1)

    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> TaggingMetrics:
        """Compute the scores over the whole set, as in `measure_tags`."""
        names, tagged = context.label_names, _tagged(examples)
        outside = names.index("O") if "O" in names else None
        true, predicted = [], []
        for index, tags in enumerate(tagged.tags):
            firsts = dataset.alignments[index]
            # A truncated word counts as O; if there is no such label, as a wrong label.
            guesses = [
                int(outputs[0][index, firsts[word]]) if word in firsts else _unseen(tag, outside, len(names))
                for word, tag in enumerate(tags)
            ]
            true.append([names[tag] for tag in tags])
            predicted.append([names[guess] for guess in guesses])
        counted = sum(map(len, dataset.alignments))
        return measure_tags(true, predicted, float(outputs[2].sum()), counted, names)

    def inputs(self, items: Sequence[Any]) -> TaggedTexts:
        """Convert texts, which are split at whitespace, or lists of words."""
        words = _check_words([item.split() if isinstance(item, str) else item for item in items], "The given texts")
        return TaggedTexts(words=words, tags=tuple((0,) * len(row) for row in words))

    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[TagPrediction]:
        """Return a label for every word."""
        results = []
        for index, words in enumerate(_tagged(examples).words):
            classes, scores = outputs[0][index], outputs[1][index]
            positions = [dataset.alignments[index].get(word) for word in range(len(words))]
            results.append(
                TagPrediction(
                    words=words,
                    labels=tuple(None if at is None else context.label_names[int(classes[at])] for at in positions),
                    scores=tuple(0.0 if at is None else float(scores[at]) for at in positions),
                )
            )
        return results


def measure_tags(
    true: list[list[str]],
    predicted: list[list[str]],
    summed_loss: float = 0.0,
    counted: int = 0,
    label_names: Sequence[str] = (),
) -> TaggingMetrics:
    """Compute the metrics of word labels, with seqeval (entities) or scikit-learn (labels without B- and I-).

    Args:
        true: True labels, by text and word.
        predicted: Predicted labels, in the same shape.
        summed_loss: Cross-entropy, summed over words.
        counted: Number of words in `summed_loss`.
        label_names: All labels. Default: the labels that occur.
    """
    flat_true = [tag for row in true for tag in row]
    flat_predicted = [tag for row in predicted for tag in row]
    if any(_ENTITY.match(tag) for tag in label_names or (*flat_true, *flat_predicted)):
        report = _entity_report(true, predicted)
        mean = report["micro avg"]
    else:
        report = word_report(flat_true, flat_predicted, output_dict=True, zero_division=0)
        mean = report["macro avg"]
    return TaggingMetrics(
        f1=float(mean["f1-score"]),
        precision=float(mean["precision"]),
        recall=float(mean["recall"]),
        accuracy=sum(map(operator.eq, flat_true, flat_predicted)) / len(flat_true),
        loss=summed_loss / counted if counted else 0.0,
        examples=len(true),
        words=len(flat_true),
        per_class={
            name: ClassScores(
                precision=float(values["precision"]),
                recall=float(values["recall"]),
                f1=float(values["f1-score"]),
                support=int(values["support"]),
            )
            for name, values in report.items()
            if isinstance(values, dict) and not name.endswith(" avg")
        },
    )


def _entity_report(true: list[list[str]], predicted: list[list[str]]) -> dict[str, Any]:
    with warnings.catch_warnings():
        # seqeval warns about other labels than entities, such as X in data sets like CoNLL.
        warnings.filterwarnings("ignore", category=UserWarning, module="seqeval")
        if not get_entities(true) and not get_entities(predicted):
            # seqeval's report fails without entities; its single scores are 0 then.
            return {"micro avg": {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0}}
        report: dict[str, Any] = entity_report(true, predicted, output_dict=True, zero_division=0)
    return report


def _first_tokens(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Get the position of each word's first token, from the span of each token in the words joined by spaces."""
    word_at = [None if char.isspace() else index for index, word in enumerate(words) for char in f"{word} "]
    firsts: dict[int, int] = {}
    for position, (start, end) in enumerate(spans):
        for word in word_at[start:end]:
            if word is not None:
                firsts.setdefault(word, position)
    return firsts


def _tagged(examples: ExampleSet) -> TaggedTexts:
    if not isinstance(examples, TaggedTexts):
        raise TypeError(f"expected TaggedTexts, got {type(examples).__name__}")
    return examples


def _unseen(tag: int, outside: int | None, count: int) -> int:
    return outside if outside is not None else (tag + 1) % count


def _tag_rows(table: Table, columns: ColumnChoice) -> list[list[Any]]:
    rows = [_as_list(value) for value in table.columns[str(columns.label)]]
    invalid = [row for row, value in enumerate(rows, start=1) if value is None]
    if invalid:
        raise DataError(
            f"{table.location}, column {columns.label!r}: {len(invalid)} rows have no list of labels (rows "
            f'{listed(invalid)}). Every word needs a label: ["O", "B-PER"], or O B-PER separated by spaces.'
        )
    return [row for row in rows if row is not None]


def _check_words(values: Sequence[Any], location: str) -> tuple[tuple[str, ...], ...]:
    rows = [_as_list(value) for value in values]
    check_filled(rows, location)
    for row, words in enumerate(rows, start=1):
        for word in words or ():
            if not isinstance(word, str) or is_empty(word):
                raise DataError(f"{location}, row {row}: {word!r} is not a word. Correct it, or remove the row.")
    return tuple(tuple(words or ()) for words in rows)


def _as_list(value: Any) -> list[Any] | None:
    """Convert a cell to a list: parse a string as a JSON list if possible, else split it at whitespace."""
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.lstrip().startswith("[") else value.split()
        except ValueError:  # A plain text may begin with a bracket.
            value = value.split()
    return [*value] if isinstance(value, list | tuple) else None
