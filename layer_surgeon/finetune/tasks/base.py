"""What a task is to the rest of fine-tuning: how its data is read, put into tokens, run, measured and told."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from layer_surgeon.finetune.columns import CLASSIFICATION, ColumnChoice, ColumnRoles
from layer_surgeon.finetune.config import FinetuneConfig, TaskName
from layer_surgeon.finetune.examples import ExampleSet
from layer_surgeon.finetune.labels import LabelMap
from layer_surgeon.finetune.metrics import Metrics
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.tokenization import TokenizedDataset
from layer_surgeon.progress import Progress

# What a model said of a set, one row for each feature, in the set's order: [features, ...]; -100 fills up short rows.
Outputs: TypeAlias = tuple[npt.NDArray[Any], ...]
LossFunction: TypeAlias = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What is known when a set is tokenized, run and measured.

    Attributes:
        tokenizer: The tokenizer.
        model: The model.
        config: The settings.
        label_names: Class names, in the order of the ids; empty where the task has no classes.
    """

    tokenizer: PreTrainedTokenizerBase
    model: Any
    config: FinetuneConfig
    label_names: tuple[str, ...] = ()


class FinetuneTask(ABC):
    """One task. The instances have no state: one of each serves all runs."""

    name: ClassVar[TaskName]
    # The scores by which the best epoch can be chosen; the first is the default.
    selections: ClassVar[tuple[str, ...]]
    roles: ClassVar[ColumnRoles] = CLASSIFICATION
    # Whether the data's classes become the model's.
    has_classes: ClassVar[bool] = False
    # What one row of the data is called.
    unit: ClassVar[str] = "texts"
    # Whether every row becomes one feature, so that the number of rows says how many steps a pass has.
    one_feature_each: ClassVar[bool] = True
    # Whether rows with the same second text belong together, and are held out together.
    keeps_pairs_together: ClassVar[bool] = False

    # ---- data

    @abstractmethod
    def label_map(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], model_names: Sequence[str]
    ) -> LabelMap | None:
        """The classes of a training set; None for a task without classes.

        Raises:
            DataError: The label column can't be used.
        """

    def known_labels(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], names: Sequence[str]
    ) -> LabelMap | None:
        """How the labels of other data lead to the classes of a model that is trained already; None likewise.

        Raises:
            DataError: A label is none of the model's classes.
        """
        return None

    def labels_in(self, value: Any) -> Sequence[Any]:
        """The labels that one cell of the label column holds.

        Raises:
            DataError: It can't hold any.
        """
        return [value]

    @abstractmethod
    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> ExampleSet:
        """The rows of a table, checked.

        Raises:
            DataError: A row can't be used; the message says which and why.
        """

    def facts(self, part: ExampleSet, label_names: Sequence[str]) -> dict[str, Any]:
        """Facts about one split beside its size, for results.json."""
        return {}

    def resolve(self, config: FinetuneConfig, train: ExampleSet) -> FinetuneConfig:
        """The settings with those filled in that follow from the training data."""
        return config

    # ---- tokens

    @abstractmethod
    def tokenize(self, examples: ExampleSet, context: TaskContext, *, training: bool) -> TokenizedDataset:
        """Examples -> features, not padded. `training`: labels are there to compute the training loss from.

        Raises:
            ConfigError: The maximum length leaves no room.
        """

    @abstractmethod
    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Makes a padded batch of features."""

    # ---- the model

    def prepare_model(self, model: Any) -> None:
        """Set what the model has to know of the task."""
        return

    def loss_function(self, config: FinetuneConfig) -> LossFunction | None:
        """(outputs, labels, num_items_in_batch) -> the training loss; None: the trainer's own, with label smoothing."""
        return None

    @abstractmethod
    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """One batch through the model, reduced to what the metrics need: [batch, ...] each, without gradients."""

    # ---- what came out

    @abstractmethod
    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> Metrics:
        """Measure the outputs for a whole set."""

    def add_scores(
        self, metrics: Any, outputs: Outputs, examples: ExampleSet, context: TaskContext, progress: Progress
    ) -> Metrics:
        """The metrics with those added that are asked for in the settings, and take too long for every epoch."""
        kept: Metrics = metrics
        return kept

    @abstractmethod
    def inputs(self, items: Sequence[Any]) -> ExampleSet:
        """What a person gave to predict on, as examples without truth.

        Raises:
            DataError: An item is empty or of the wrong kind.
        """

    @abstractmethod
    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[Any]:
        """One prediction for every example."""


def in_order(outputs: Outputs, index: npt.NDArray[np.integer[Any]]) -> Outputs:
    """Outputs that came in the order `index`, in the set's order again."""
    places = np.argsort(index, kind="stable")
    return tuple(array[places] for array in outputs)
