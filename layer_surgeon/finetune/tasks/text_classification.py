"""Classification of single texts and of text pairs (such as natural language inference)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from transformers import DataCollatorWithPadding

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.examples import Examples, ExampleSet, check_texts
from layer_surgeon.finetune.labels import LabelMap, labels_of_model, make_label_map
from layer_surgeon.finetune.metrics import ClassificationMetrics, measure
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext
from layer_surgeon.finetune.tokenization import TokenizedDataset, longest_input, tokenize

Text = str | tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted class of one text.

    Attributes:
        text: The text.
        text_pair: The second text of a pair; None for a single text.
        label: The most probable class.
        score: The probability of `label`.
        probabilities: Probability of every class, by name.
    """

    text: str
    text_pair: str | None
    label: str
    score: float
    probabilities: dict[str, float]

    @property
    def whole_text(self) -> str:
        """The text, or both texts of a pair."""
        return self.text if self.text_pair is None else f"{self.text} | {self.text_pair}"

    def as_row(self) -> dict[str, Any]:
        """Convert to plain JSON types, for a line of output."""
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        return {
            "text": self.text,
            **pair,
            "label": self.label,
            "score": round(self.score, 6),
            "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
        }


class TextClassification(FinetuneTask):
    """Predicts one class per text, or per pair of texts."""

    def label_map(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], model_names: Sequence[str]
    ) -> LabelMap:
        """Determine the classes from the values of the label column."""
        values = table.columns[str(columns.label)]
        return make_label_map(values, table.location, declared=declared, model_names=model_names)

    def known_labels(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], names: Sequence[str]
    ) -> LabelMap:
        """Match labels by name or by number, as in `labels_of_model`."""
        return labels_of_model(table.columns[str(columns.label)], table.location, names, declared=declared)

    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> Examples:
        """Check the texts, and convert the labels to class ids."""
        if labels is None:
            raise ValueError("classification needs a label map")
        return Examples(
            texts=check_texts(table.columns[columns.text], f"{table.location}, column {columns.text!r}"),
            pairs=None
            if columns.text_pair is None
            else check_texts(table.columns[columns.text_pair], f"{table.location}, column {columns.text_pair!r}"),
            labels=tuple(labels.encode(table.columns[str(columns.label)], table.location)),
        )

    def facts(self, part: ExampleSet, label_names: Sequence[str]) -> dict[str, Any]:
        """Count the examples of each class."""
        counts = np.bincount(np.asarray(part.strata), minlength=len(label_names)).tolist()
        return {"per_class": dict(zip(label_names, counts, strict=True))}

    def tokenize(self, examples: ExampleSet, context: TaskContext) -> TokenizedDataset:
        """Tokenize each text or pair, truncated to the maximum length."""
        if not isinstance(examples, Examples):
            raise TypeError(f"expected Examples, got {type(examples).__name__}")
        longest = longest_input(context.tokenizer, context.model, context.config.max_length)
        return tokenize(context.tokenizer, examples, longest)

    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Pad to the longest feature of the batch."""
        collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
        collate = DataCollatorWithPadding(context.tokenizer)
        return collate

    def prepare_model(self, model: Any) -> None:
        """Set the problem type: one class per text, not a number or several classes."""
        model.config.problem_type = "single_label_classification"

    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """Return the logits, [batch, classes]."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return (model(**inputs).logits.float(),)

    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> ClassificationMetrics:
        """Compute accuracy, macro F1, scores by class and the confusion matrix."""
        return measure(outputs[0], examples.strata, context.label_names)

    def inputs(self, items: Sequence[Any]) -> Examples:
        """Convert texts, or pairs as tuples, but not both."""
        pairs = [text for text in items if isinstance(text, tuple | list)]
        if pairs and len(pairs) != len(items):
            raise DataError("The inputs mix single texts and pairs. Pass either texts or pairs.")
        if any(len(pair) != 2 for pair in pairs):
            raise DataError("A pair must have two texts: (text, text).")
        first = check_texts([text[0] for text in pairs] if pairs else items, "The given texts")
        second = check_texts([text[1] for text in pairs], "The given pairs") if pairs else None
        return Examples(texts=first, pairs=second, labels=(0,) * len(items))

    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[Prediction]:
        """Return the most probable class of every text, with all probabilities."""
        if not isinstance(examples, Examples):
            raise TypeError(f"expected Examples, got {type(examples).__name__}")
        names, results = context.label_names, []
        for index, row in enumerate(log_softmax(outputs[0].astype(float), axis=-1)):
            probabilities = dict(zip(names, map(float, np.exp(row)), strict=True))
            best = names[int(row.argmax())]
            results.append(
                Prediction(
                    text=examples.texts[index],
                    text_pair=examples.pairs[index] if examples.pairs is not None else None,
                    label=best,
                    score=probabilities[best],
                    probabilities=probabilities,
                )
            )
        return results
