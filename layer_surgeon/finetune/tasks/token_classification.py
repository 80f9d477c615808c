"""Token classification: a label for every word (names, parts of speech, ...)."""

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

from layer_surgeon._io import parse_json
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.columns import ColumnChoice, ColumnRoles
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
    """Texts as words, and a class id for each word."""

    words: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TaggingMetrics:
    """What was measured on one set of tagged texts.

    Attributes:
        f1: Micro-averaged over entities, as seqeval and the CoNLL script count them: right in type and both ends. For
            labels that name no entities (none starts with B- or I-): macro-averaged over the labels of words.
        precision: Likewise.
        recall: Likewise.
        accuracy: Share of words with the right label.
        loss: Mean cross-entropy over words in nats, without label smoothing.
        examples: Texts.
        words: Words that were measured; those cut off are counted as labelled O, and have no loss.
        per_class: Scores by type of entity, or by label.
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
        """F1 first."""
        names = ("f1", "precision", "recall", "accuracy", "loss")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TagPrediction:
    """What a model says of one text.

    Attributes:
        words: Its words.
        labels: A label for each; None for words beyond the maximum length.
        scores: Its probability; 0 likewise.
    """

    words: tuple[str, ...]
    labels: tuple[str | None, ...]
    scores: tuple[float, ...]

    def as_row(self) -> dict[str, Any]:
        """Convert to plain JSON types, for a line of output."""
        return {
            "words": list(self.words),
            "labels": list(self.labels),
            "scores": [round(score, 6) for score in self.scores],
        }


class TokenClassification(FinetuneTask):
    """One class per word, read off at the word's first token."""

    name = "token-classification"
    selections = ("f1", "accuracy", "loss")
    roles = ColumnRoles(
        titles=("words", "text_pair", "tags"),
        text=("tokens", "words", "token", "word", "text", "sentence"),
        label=("nertags", "tags", "ner", "labels", "postags", "pos", "chunktags", "label"),
    )
    has_classes = True

    def label_map(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], model_names: Sequence[str]
    ) -> LabelMap:
        """The classes, over all words."""
        tags = [tag for row in _tag_rows(table, columns) for tag in row]
        return make_label_map(tags, table.location, declared=declared, model_names=model_names)

    def known_labels(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], names: Sequence[str]
    ) -> LabelMap:
        """By name; by number where the labels are numbers."""
        tags = [tag for row in _tag_rows(table, columns) for tag in row]
        return labels_of_model(tags, table.location, names, declared=declared)

    def labels_in(self, value: Any) -> Sequence[Any]:
        """One for each word."""
        tags = _as_list(value)
        if tags is None:
            raise DataError(f"{value!r} is no list of labels.")
        return tags

    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> TaggedTexts:
        """Words and class ids, equally many in every row."""
        if labels is None:
            raise ValueError("token classification has labels")
        location = f"{table.location}, column {columns.text!r}"
        words = _check_words(table.columns[columns.text], location)
        tags = _tag_rows(table, columns)
        for row, (some, their) in enumerate(zip(words, tags, strict=True), start=1):
            if len(some) != len(their):
                raise DataError(
                    f"{table.location}, row {row}: {len(some)} words ({columns.text!r}) and {len(their)} labels "
                    f"({columns.label!r}). Every word needs one label."
                )
        flat = iter(labels.encode([tag for row in tags for tag in row], table.location))
        return TaggedTexts(words=words, tags=tuple(tuple(next(flat) for _ in row) for row in tags))

    def facts(self, part: ExampleSet, label_names: Sequence[str]) -> dict[str, Any]:
        """How many words each class has."""
        tags = [tag for row in _tagged(part).tags for tag in row]
        counts = np.bincount(np.asarray(tags, dtype=int), minlength=len(label_names)).tolist()
        return {"words": len(tags), "per_class": dict(zip(label_names, counts, strict=True))}

    def tokenize(self, examples: ExampleSet, context: TaskContext, *, training: bool) -> TokenizedDataset:
        """Each text, cut at the maximum length; the label lies at each word's first token."""
        tokenizer = context.tokenizer
        if not tokenizer.is_fast:
            raise ConfigError(f"{self.name} needs a fast tokenizer, which knows the words of its tokens. This is none.")
        longest = longest_input(tokenizer, context.model, context.config.max_length)
        features, alignments, cut = [], [], 0
        tagged = _tagged(examples)
        for words, tags in zip(tagged.words, tagged.tags, strict=True):
            encoded = tokenizer(list(words), is_split_into_words=True, verbose=False)
            if len(encoded["input_ids"]) > longest:
                cut += 1
                encoded = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=longest)
            firsts: dict[int, int] = {}
            for position, word in enumerate(encoded.word_ids()):
                if word is not None:
                    firsts.setdefault(word, position)
            labels = [_IGNORED] * len(encoded["input_ids"])
            for word, position in firsts.items():
                labels[position] = tags[word]
            alignments.append(firsts)
            features.append({**encoded, "labels": labels})
        return TokenizedDataset(features, cut, longest, alignments)

    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Padding to the longest of the batch, of labels too."""
        collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
        collate = DataCollatorForTokenClassification(padding_right(context.tokenizer))
        return collate

    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """Class and probability at every token, [batch, seq], and the summed loss of the labels, [batch]."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float()
        losses = cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=_IGNORED, reduction="none")
        scores, classes = logits.softmax(-1).max(-1)
        return classes, scores, losses.double().sum(-1)

    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> TaggingMetrics:
        """Seqeval's scores over the whole set."""
        names, tagged = context.label_names, _tagged(examples)
        outside = names.index("O") if "O" in names else None
        true, predicted = [], []
        for index, tags in enumerate(tagged.tags):
            firsts = dataset.alignments[index]
            # A word that was cut off: O, where there is that label; else the wrong one of two.
            guesses = [
                int(outputs[0][index, firsts[word]]) if word in firsts else _unseen(tag, outside, len(names))
                for word, tag in enumerate(tags)
            ]
            true.append([names[tag] for tag in tags])
            predicted.append([names[guess] for guess in guesses])
        counted = sum(map(len, dataset.alignments))
        return measure_tags(true, predicted, float(outputs[2].sum()), counted, names)

    def inputs(self, items: Sequence[Any]) -> TaggedTexts:
        """Texts, split at blanks, or lists of words."""
        words = _check_words([item.split() if isinstance(item, str) else item for item in items], "The given texts")
        return TaggedTexts(words=words, tags=tuple((0,) * len(row) for row in words))

    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[TagPrediction]:
        """A label for every word."""
        results = []
        for index, words in enumerate(_tagged(examples).words):
            at = [dataset.alignments[index].get(word) for word in range(len(words))]
            results.append(
                TagPrediction(
                    words=words,
                    labels=tuple(None if p is None else context.label_names[int(outputs[0][index, p])] for p in at),
                    scores=tuple(0.0 if p is None else float(outputs[1][index, p]) for p in at),
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
    """Measure labels of words against the truth, by seqeval (entities) or scikit-learn (labels without B- and I-).

    Args:
        true: Labels, by text and word.
        predicted: Likewise, equally many.
        summed_loss: Cross-entropy, summed over words.
        counted: Over how many words.
        label_names: All labels there are; by default those that occur.
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
        # It wonders about labels such as X, which CoNLL-like sets have beside their entities.
        warnings.filterwarnings("ignore", category=UserWarning, module="seqeval")
        if not get_entities(true) and not get_entities(predicted):
            # Its report fails where there is nothing to report; its single scores are 0 then.
            return {"micro avg": {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0}}
        report: dict[str, Any] = entity_report(true, predicted, output_dict=True, zero_division=0)
    return report


def _tagged(examples: ExampleSet) -> TaggedTexts:
    if not isinstance(examples, TaggedTexts):
        raise TypeError(f"{type(examples).__name__} are no tagged texts")
    return examples


def _unseen(tag: int, outside: int | None, count: int) -> int:
    return outside if outside is not None else (tag + 1) % count


def _tag_rows(table: Table, columns: ColumnChoice) -> list[list[Any]]:
    rows = [_as_list(value) for value in table.columns[str(columns.label)]]
    odd = [row for row, value in enumerate(rows, start=1) if value is None]
    if odd:
        raise DataError(
            f"{table.location}, column {columns.label!r}: {len(odd)} rows have no list of labels (rows {listed(odd)}). "
            'Every word needs one: ["O", "B-PER"], or O B-PER with blanks between.'
        )
    return [row for row in rows if row is not None]


def _check_words(values: Sequence[Any], location: str) -> tuple[tuple[str, ...], ...]:
    rows = [_as_list(value) for value in values]
    check_filled(rows, location)
    for row, words in enumerate(rows, start=1):
        for word in words or ():
            if not isinstance(word, str) or is_empty(word):
                raise DataError(f"{location}, row {row}: {word!r} is no word.")
    return tuple(tuple(words or ()) for words in rows)


def _as_list(value: Any) -> list[Any] | None:
    """A list as it is; text as JSON, where it is a list in JSON (as in a CSV), else split at blanks."""
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.lstrip().startswith("[") else value.split()
        except ValueError:  # a text that begins with a bracket
            value = value.split()
    return [*value] if isinstance(value, list | tuple) else None
