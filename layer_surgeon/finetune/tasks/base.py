"""The interface of a task: read its data, tokenize it, run the model, compute metrics, and predict."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LabelSmoother

from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.examples import ExampleSet
from layer_surgeon.finetune.labels import LabelMap
from layer_surgeon.finetune.metrics import Metrics
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.tokenization import TokenizedDataset
from layer_surgeon.progress import Progress
from layer_surgeon.tasks import Task

# The outputs of a model for a set, in the set's order: [features, ...]. Short rows are padded with -100.
Outputs: TypeAlias = tuple[npt.NDArray[Any], ...]
LossFunction: TypeAlias = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a task needs to tokenize, run and evaluate a set.

    Attributes:
        tokenizer: The tokenizer.
        model: The model.
        config: The settings.
        label_names: Class names, ordered by class id; empty for a task without classes.
    """

    tokenizer: PreTrainedTokenizerBase
    model: Any
    config: FinetuneConfig
    label_names: tuple[str, ...] = ()


class FinetuneTask(ABC):
    """What a task does. Instances are stateless, so all runs share one instance of each task.

    Attributes:
        record: What other packages need to know about the task.
        name: The name of the task.
    """

    # Whether every row becomes exactly one feature. The number of rows then determines the steps per pass.
    one_feature_each: ClassVar[bool] = True
    # Whether rows with the same second text must be held out together.
    keeps_pairs_together: ClassVar[bool] = False

    def __init__(self, record: Task) -> None:
        self.record = record
        self.name = record.name

    # ---- data

    def label_map(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], model_names: Sequence[str]
    ) -> LabelMap | None:
        """Determine the classes of a training set; None for a task without classes.

        Raises:
            DataError: The label column can't be used.
        """
        return None

    def known_labels(
        self, table: Table, columns: ColumnChoice, declared: Sequence[str], names: Sequence[str]
    ) -> LabelMap | None:
        """Map the labels of a data set to the classes of a trained model; None for a task without classes.

        Raises:
            DataError: A label is not one of the model's classes.
        """
        return None

    def labels_in(self, value: Any) -> Sequence[Any]:
        """Get the labels in one cell of the label column.

        Raises:
            DataError: The cell does not contain labels.
        """
        return [value]

    @abstractmethod
    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> ExampleSet:
        """Check the rows of a table and convert them to examples.

        Raises:
            DataError: A row can't be used; the message says which one and why.
        """

    def facts(self, part: ExampleSet, label_names: Sequence[str]) -> dict[str, Any]:
        """Describe a split for results.json, in addition to its size."""
        return {}

    def resolve(self, config: FinetuneConfig, train: ExampleSet) -> FinetuneConfig:
        """Resolve the settings that depend on the training data."""
        return config

    # ---- tokens

    @abstractmethod
    def tokenize(self, examples: ExampleSet, context: TaskContext) -> TokenizedDataset:
        """Tokenize examples without padding. The features include the labels, where there are any, for the loss.

        Raises:
            ConfigError: The maximum length leaves no room for the text.
        """

    @abstractmethod
    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Return a function that makes a padded batch from features."""

    # ---- the model

    def prepare_model(self, model: Any) -> None:
        """Set task-specific options in the model's config."""
        return

    def loss_function(self, config: FinetuneConfig) -> LossFunction:
        """Return the training loss as a function of (outputs, labels, num_items_in_batch).

        It is the label-smoothed cross-entropy, averaged over the labels of all accumulated batches.
        """
        smoother: LossFunction = LabelSmoother(epsilon=config.label_smoothing)
        return smoother

    @abstractmethod
    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """Run the model on one batch, and reduce its outputs to what the metrics need: [batch, ...] each."""

    # ---- results

    @abstractmethod
    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> Metrics:
        """Compute the metrics of a whole set."""

    def add_scores(
        self, metrics: Any, outputs: Outputs, examples: ExampleSet, context: TaskContext, progress: Progress
    ) -> Metrics:
        """Add metrics that the settings ask for but that are too slow for every epoch."""
        unchanged: Metrics = metrics
        return unchanged

    @abstractmethod
    def inputs(self, items: Sequence[Any]) -> ExampleSet:
        """Convert the user's inputs for prediction to examples without labels.

        Raises:
            DataError: An input is empty or has the wrong type.
        """

    @abstractmethod
    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[Any]:
        """Make one prediction per example."""


def in_order(outputs: Outputs, index: npt.NDArray[np.integer[Any]]) -> Outputs:
    """Put outputs into the set's order; `index` has the feature number of each row."""
    order = np.argsort(index, kind="stable")
    return tuple(array[order] for array in outputs)
