"""A data set, checked: the examples of every split, before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.columns import ColumnChoice, choose_columns
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.examples import ExampleSet, hold_out, is_empty, subsample
from layer_surgeon.finetune.labels import LabelMap
from layer_surgeon.finetune.registry import DatasetRecord
from layer_surgeon.finetune.sources import DataLike, RawData, Table, load_data
from layer_surgeon.finetune.tasks import FINETUNE_TASKS, FinetuneTask
from layer_surgeon.finetune.train_stream import TrainStream
from layer_surgeon.progress import NullProgress, Progress


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Everything a run needs to know of its data.

    Attributes:
        name: A short name that can be part of a folder's name.
        spec: What the user named as training data, if it can be named again.
        validation_spec: The same for the validation data; equal to `spec` where that has one or it is held out.
        test_spec: The same for the test data; equal to `spec` where that has a test split.
        columns: The columns that were used.
        label_names: Class names, in the order of the ids; empty for a task without classes.
        train: Training examples.
        validation: Validation examples.
        test: Test examples; None where there are none.
        held_out: Whether the validation examples were taken from the training data.
        task: What it is for.
        stream: All training rows, where they are streamed; `train` is then what was checked of them, the first ones.
    """

    name: str
    spec: tuple[str, ...]
    validation_spec: tuple[str, ...]
    test_spec: tuple[str, ...]
    columns: ColumnChoice
    label_names: tuple[str, ...]
    train: ExampleSet
    validation: ExampleSet
    test: ExampleSet | None
    held_out: bool
    task: FinetuneTask
    stream: TrainStream | None = None

    @property
    def splits(self) -> dict[str, ExampleSet]:
        """The splits there are, by name, `train` first."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in splits.items() if part is not None}

    def facts(self) -> dict[str, Any]:
        """Plain facts for results.json: counts, classes and fingerprints of each split."""
        return {
            "name": self.name,
            "spec": list(self.spec),
            "validation_spec": list(self.validation_spec),
            "test_spec": list(self.test_spec),
            "columns": {"text": self.columns.text, "text_pair": self.columns.text_pair, "label": self.columns.label},
            "validation_held_out_from_train": self.held_out,
            "splits": {name: self._split_facts(part) for name, part in self.splits.items()},
            **({} if self.stream is None else {"stream": self.stream.facts()}),
        }

    def _split_facts(self, part: ExampleSet) -> dict[str, Any]:
        return {"examples": len(part), **self.task.facts(part, self.label_names), "sha256": part.sha256}


def prepare_data(
    train: DataLike,
    validation: DataLike | None,
    test: DataLike | None,
    config: FinetuneConfig,
    *,
    task: FinetuneTask = FINETUNE_TASKS["text-classification"],
    model_names: Sequence[str] = (),
    progress: Progress | None = None,
) -> TaskData:
    """Load, check and split the data of one run.

    Args:
        train: Training data, in any of the forms that `load_data` knows.
        validation: Validation data; None: the split of `train`'s data set, else a part held out of the training rows.
        test: Test data; None: the split of `train`'s data set, if it has one.
        config: Columns, fractions and seed.
        task: What it is for.
        model_names: Class names the model has already.
        progress: Told about guesses and about rows that were left out.

    Raises:
        DataError: Something in the data can't be used; the message says where.
    """
    progress = progress or NullProgress()
    raw = load_data(train, progress, task=task.name)
    columns = settle_columns(raw.train, config, raw.record, task, progress)
    train_table = drop_unusable(raw.train, columns, raw.record, progress)
    label_map = task.label_map(train_table, columns, declared_names(raw, train_table, columns), model_names)
    reader = SplitReader(task=task, labels=label_map, columns=columns, config=config, progress=progress)
    training = reader.examples(train_table, columns)
    raw_validation = load_data(validation, progress, task=task.name) if validation is not None else None
    raw_test = load_data(test, progress, task=task.name) if test is not None else None
    validating = reader.other_split(raw, raw_validation, raw.validation)
    testing = reader.other_split(raw, raw_test, raw.test)
    held_out = validating is None
    if validating is None:
        training, validating = hold_out(training, config.validation_fraction, config.seed)
    wanted = min(round(config.train_fraction * len(training)), config.max_train_samples or len(training))
    return TaskData(
        name=raw.name,
        spec=raw.spec,
        validation_spec=(raw_validation or raw).spec,
        test_spec=() if testing is None else (raw_test or raw).spec,
        columns=columns,
        label_names=() if label_map is None else label_map.names,
        train=subsample(training, wanted, config.seed),
        validation=subsample(validating, config.max_eval_samples, config.seed),
        test=None if testing is None else subsample(testing, config.max_eval_samples, config.seed),
        held_out=held_out,
        task=task,
    )


def prepare_evaluation(
    data: DataLike,
    label_names: Sequence[str],
    config: FinetuneConfig,
    *,
    split: str | None = None,
    task: FinetuneTask = FINETUNE_TASKS["text-classification"],
    known_columns: Mapping[str, str | None] = MappingProxyType({}),
    progress: Progress | None = None,
) -> tuple[str, Any]:
    """Load and check data to measure a trained model on; returns what to call it, and its rows.

    Args:
        data: In any of the forms that `load_data` knows.
        label_names: The model's classes, in the order of their ids.
        config: Columns, number of examples and seed.
        split: Which split; default: test, else the only one.
        task: What the model does.
        known_columns: The columns that the model was trained on (text, text_pair, label), used where the data has all
            of them and no others were said.
        progress: Told about guesses and about rows that were left out.

    Raises:
        DataError: Something in the data can't be used, or its labels are not the model's.
    """
    progress = progress or NullProgress()
    raw = load_data(data, progress, task=task.name)
    table = raw.choose(split)
    if known_columns and raw.record is None and {name for name in known_columns.values() if name} <= set(table.columns):
        config = replace(
            config,
            text_column=config.text_column or known_columns["text"],
            text_pair_column=config.text_pair_column or known_columns["text_pair"],
            label_column=config.label_column or known_columns["label"],
        )
    columns = settle_columns(table, config, raw.record, task, progress)
    table = drop_unusable(table, columns, raw.record, progress)
    label_map = task.known_labels(table, columns, declared_names(raw, table, columns), label_names)
    reader = SplitReader(task=task, labels=label_map, columns=columns, config=config, progress=progress)
    examples = reader.examples(table, columns)
    return table.place, subsample(examples, config.max_eval_samples, config.seed)


def settle_columns(
    table: Table, config: FinetuneConfig, record: DatasetRecord | None, task: FinetuneTask, progress: Progress
) -> ColumnChoice:
    """The columns of a table; the progress is told of those that were guessed.

    Raises:
        DataError: As `choose_columns`.
    """
    columns = choose_columns(table, config, record, roles=task.roles)
    if columns.guessed:
        progress.notice(f"Columns of {table.place}: {columns} (guessed).")
    return columns


def declared_names(raw: RawData, table: Table, columns: ColumnChoice) -> tuple[str, ...]:
    """The class names that the registry or the source itself says, in the order of their ids; empty: none."""
    if raw.record is not None and columns.label == raw.record.label_column:
        return raw.record.label_names
    return table.label_names.get(str(columns.label), ())


@dataclass(frozen=True, kw_only=True)
class SplitReader:
    """Makes the examples of several splits in the same way."""

    task: FinetuneTask
    labels: LabelMap | None
    columns: ColumnChoice
    config: FinetuneConfig
    progress: Progress

    def examples(self, table: Table, columns: ColumnChoice) -> ExampleSet:
        """The rows of a table, checked."""
        if len(table) == 0:
            raise DataError(f"{table.place} has no rows.")
        return self.task.examples(table, columns, self.labels)

    def other_split(self, raw: RawData, given: RawData | None, own: Table | None) -> ExampleSet | None:
        """Of other data than the training split: the given one, else the data set's own, else None."""
        if given is None:
            if own is None:
                return None
            return self.examples(drop_unusable(own, self.columns, raw.record, self.progress), self.columns)
        table, columns = given.choose(), self.columns
        # The same columns as in training where it has them; another file may name them differently.
        if given.record is not None or not all(name in table.columns for name in columns.used):
            columns = choose_columns(table, self.config, given.record, roles=self.task.roles)
        return self.examples(drop_unusable(table, columns, given.record, self.progress), columns)


def drop_unusable(table: Table, columns: ColumnChoice, record: DatasetRecord | None, progress: Progress) -> Table:
    """Without the rows that carry no label by the registry's rule and, in data sets nobody here can edit, no text.

    Raises:
        DataError: There are no rows, or a column is missing that the training split has.
    """
    if len(table) == 0:
        raise DataError(f"{table.place} has no rows.")
    for name in columns.used:
        if name not in table.columns:
            raise DataError(
                f"{table.place} has no column {name!r}, which the training data has. Its columns are: "
                f"{', '.join(table.columns)}. Rename them, or take that split out."
            )
    labels = table.columns[str(columns.label)] if columns.label is not None else [None] * len(table)
    unlabelled = record.unlabelled if record is not None else None
    texts = [table.columns[name] for name in columns.texts]
    keep = [
        row
        for row in range(len(table))
        if (unlabelled is None or labels[row] != unlabelled)
        and not (table.curated and any(is_empty(column[row]) for column in texts))
    ]
    if len(keep) == len(table):
        return table
    progress.notice(f"{table.place}: {len(table) - len(keep)} of {len(table)} rows have no text or label; left out.")
    return replace(table, columns={name: [values[row] for row in keep] for name, values in table.columns.items()})
