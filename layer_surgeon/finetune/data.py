"""Load, check and split the data of a run, before any training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.columns import ColumnChoice, choose_columns
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.examples import ExampleSet, hold_out, is_empty, subsample
from layer_surgeon.finetune.labels import DEFAULT_NAME, LabelMap
from layer_surgeon.finetune.registry import DatasetRecord
from layer_surgeon.finetune.sources import DataLike, RawData, Role, Table, load_data
from layer_surgeon.finetune.tasks import FinetuneTask, finetune_task
from layer_surgeon.finetune.train_stream import TrainStream
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.tasks import DEFAULT_TASK

_DEFAULT = finetune_task(DEFAULT_TASK)


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """The checked data of a run.

    Attributes:
        name: A short name that can be part of a folder name.
        spec: How to name the training data again; empty if that is not possible, as for data in memory.
        validation_spec: The same for the validation data. Equal to `spec` if the data set's own split is used, or if
            rows were held out.
        test_spec: The same for the test data. Equal to `spec` if the data set's own split is used.
        columns: The columns in use.
        label_names: Class names, ordered by class id; empty for a task without classes.
        train: Training examples.
        validation: Validation examples.
        test: Test examples, or None.
        held_out: Whether the validation examples were taken from the training data.
        task: The task.
        stream: The training stream, if the data is streamed. `train` then contains only the first, checked rows.
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
        """The existing splits by name, `train` first."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in splits.items() if part is not None}

    def facts(self) -> dict[str, Any]:
        """Describe the data for results.json: columns, and counts, classes and fingerprint of each split."""
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
    task: FinetuneTask = _DEFAULT,
    model_names: Sequence[str] = (),
    progress: Progress | None = None,
) -> TaskData:
    """Load, check and split the data of one run.

    Args:
        train: Training data, in any form that `load_data` accepts.
        validation: Validation data. None: the validation split of `train`, else rows held out from the training data.
        test: Test data. None: the test split of `train`, if it has one.
        config: Columns, fractions and seed.
        task: The task.
        model_names: The model's current class names.
        progress: Receives notices about guessed columns and skipped rows.

    Raises:
        DataError: The data can't be used; the message names the location.
    """
    progress = progress or NullProgress()
    raw = load_data(train, progress, task=task.name)
    columns = settle_columns(raw.train, config, raw.record, task, progress)
    train_table = drop_unusable(raw.train, columns, raw.record, progress)
    label_map = task.label_map(train_table, columns, declared_names(raw, train_table, columns), model_names)
    reader = SplitReader(task=task, labels=label_map, columns=columns, config=config, progress=progress)
    train_examples = reader.examples(train_table, columns)
    raw_validation = load_data(validation, progress, task=task.name) if validation is not None else None
    raw_test = load_data(test, progress, task=task.name) if test is not None else None
    validation_examples = reader.other_split(raw, raw_validation, raw.validation, "validation")
    test_examples = reader.other_split(raw, raw_test, raw.test, "test")
    notice_same_rows(validation_examples, test_examples, progress)
    held_out = validation_examples is None
    if validation_examples is None:
        train_examples, validation_examples = hold_out(train_examples, config.validation_fraction, config.seed)
    num_train = min(round(config.train_fraction * len(train_examples)), config.max_train_samples or len(train_examples))
    return TaskData(
        name=raw.name,
        spec=raw.spec,
        validation_spec=(raw_validation or raw).spec,
        test_spec=() if test_examples is None else (raw_test or raw).spec,
        columns=columns,
        label_names=() if label_map is None else label_map.names,
        train=subsample(train_examples, num_train, config.seed),
        validation=subsample(validation_examples, config.max_eval_samples, config.seed),
        test=None if test_examples is None else subsample(test_examples, config.max_eval_samples, config.seed),
        held_out=held_out,
        task=task,
    )


def prepare_evaluation(
    data: DataLike,
    label_names: Sequence[str],
    config: FinetuneConfig,
    *,
    split: str | None = None,
    task: FinetuneTask = _DEFAULT,
    known_columns: Mapping[str, str | None] = MappingProxyType({}),
    progress: Progress | None = None,
) -> tuple[str, Any]:
    """Load and check the data to evaluate a trained model on.

    Args:
        data: Data in any form that `load_data` accepts.
        label_names: The model's class names, ordered by class id.
        config: Columns, number of examples and seed.
        split: The split to use. Default: the test split, else the only split.
        task: The model's task.
        known_columns: The columns that the model was trained on (text, text_pair, label). They are used if the data
            has all of them, unless `config` names others.
        progress: Receives notices about guessed columns and skipped rows.

    Returns:
        A name for the data, and its examples.

    Raises:
        DataError: The data can't be used, or it has labels that the model does not know.
    """
    progress = progress or NullProgress()
    raw = load_data(data, progress, task=task.name)
    table = raw.choose(split)
    if raw.record is None:
        config = with_known_columns(config, known_columns, table)
    columns = settle_columns(table, config, raw.record, task, progress)
    table = drop_unusable(table, columns, raw.record, progress)
    declared = declared_names(raw, table, columns)
    _notice_other_names(table, declared, label_names, progress)
    label_map = task.known_labels(table, columns, declared, label_names)
    reader = SplitReader(task=task, labels=label_map, columns=columns, config=config, progress=progress)
    examples = reader.examples(table, columns)
    return table.location, subsample(examples, config.max_eval_samples, config.seed)


def notice_same_rows(validation: ExampleSet | None, test: ExampleSet | None, progress: Progress) -> None:
    """Say if validation and test data are the same rows, since validation chooses the best epoch."""
    if validation is not None and validation == test:
        progress.notice(
            f"The validation and the test data are the same {len(validation)} examples. The best epoch is chosen on "
            "them, so the test scores are too good."
        )


def _notice_other_names(table: Table, declared: Sequence[str], names: Sequence[str], progress: Progress) -> None:
    """Say if class ids are matched by number, although both sides name their classes."""
    is_named = not any(DEFAULT_NAME.fullmatch(name) or name.isdecimal() for name in names)
    if declared and is_named and not set(declared) <= set(names):
        progress.notice(
            f"{table.location} has the classes {', '.join(declared)}, and the model {', '.join(names)}. Labels that "
            "are numbers are matched by number."
        )


def with_known_columns(
    config: FinetuneConfig, known: Mapping[str, str | None], table: Table, *, with_label: bool = True
) -> FinetuneConfig:
    """Fill in the columns that the model was trained on, if a table has them and the settings name no others."""
    roles = ("text", "text_pair", *(["label"] if with_label else []))
    if not known or not {known[role] for role in roles if known[role]} <= set(table.columns):
        return config
    columns: dict[str, Any] = {f"{role}_column": known[role] for role in roles}
    return replace(config, **{name: getattr(config, name) or column for name, column in columns.items()})


def settle_columns(
    table: Table,
    config: FinetuneConfig,
    record: DatasetRecord | None,
    task: FinetuneTask,
    progress: Progress,
    *,
    with_label: bool = True,
) -> ColumnChoice:
    """Choose the columns of a table, and report them if they are guessed.

    Raises:
        DataError: As `choose_columns`.
    """
    columns = choose_columns(table, config, record, with_label=with_label, roles=task.record.columns)
    if columns.guessed:
        progress.notice(f"Guessed columns of {table.location}: {columns}.")
    return columns


def declared_names(raw: RawData, table: Table, columns: ColumnChoice) -> tuple[str, ...]:
    """The class names from the registry or the source, ordered by class id; empty if neither declares any."""
    if raw.record is not None and columns.label == raw.record.label_column:
        return raw.record.label_names
    return table.label_names.get(str(columns.label), ())


@dataclass(frozen=True, kw_only=True)
class SplitReader:
    """Converts tables to examples, in the same way for every split."""

    task: FinetuneTask
    labels: LabelMap | None
    columns: ColumnChoice
    config: FinetuneConfig
    progress: Progress

    def examples(self, table: Table, columns: ColumnChoice, declared: Sequence[str] = ()) -> ExampleSet:
        """Check the rows of a table and convert them to examples; `declared` are its own class names, if it has any."""
        if len(table) == 0:
            raise DataError(f"{table.location} has no rows. Add at least one row.")
        labels = self.labels
        if labels is not None:
            _notice_other_names(table, declared, labels.names, self.progress)
        if labels is not None and declared and set(declared) <= set(labels.names):
            # Its class ids may be in another order than those of the training data.
            labels = self.task.known_labels(table, columns, declared, labels.names)
        return self.task.examples(table, columns, labels)

    def other_split(
        self,
        train_data: RawData,
        separate_data: RawData | None,
        own: Table | None,
        role: Role,
    ) -> ExampleSet | None:
        """Read validation or test examples from `separate_data`, else from the training data set's `own` split."""
        if separate_data is None:
            if own is None:
                return None
            if role == "test" and self._is_unlabelled(own):
                self.progress.notice(f"{own.location} has no labels, so it is not used.")
                return None
            own = drop_unusable(own, self.columns, train_data.record, self.progress)
            return self.examples(own, self.columns, declared_names(train_data, own, self.columns))
        table, columns = separate_data.choose(role=role), self.columns
        # Use the training columns if the table has them; another file may use other names.
        if separate_data.record is not None or not all(name in table.columns for name in columns.used):
            columns = choose_columns(table, self.config, separate_data.record, roles=self.task.record.columns)
        table = drop_unusable(table, columns, separate_data.record, self.progress)
        return self.examples(table, columns, declared_names(separate_data, table, columns))

    def _is_unlabelled(self, table: Table) -> bool:
        """Whether a split lacks the labels, as the test splits of competitions do: no column, or -1 everywhere."""
        if self.labels is None or self.columns.label is None:
            return False
        labels = table.columns.get(self.columns.label, [])
        return len(table) > 0 and all(label in (-1, "-1") for label in labels) and -1 not in self.labels.ids


def drop_unusable(table: Table, columns: ColumnChoice, record: DatasetRecord | None, progress: Progress) -> Table:
    """Remove the rows that the registry marks as unlabelled and, in curated data sets, the rows without text.

    Raises:
        DataError: The table has no rows, or lacks a column of the training split.
    """
    if len(table) == 0:
        raise DataError(f"{table.location} has no rows. Add at least one row.")
    for name in columns.used:
        if name not in table.columns:
            raise DataError(
                f"{table.location} has no column {name!r}, which the training data has. Its columns are: "
                f"{', '.join(table.columns)}. Rename the columns, or remove this split."
            )
    labels = table.columns[str(columns.label)] if columns.label is not None else [None] * len(table)
    unlabelled = record.unlabelled if record is not None else None
    texts = [table.columns[name] for name in columns.texts]
    kept_rows = [
        row
        for row in range(len(table))
        if (unlabelled is None or labels[row] != unlabelled)
        and not (table.curated and any(is_empty(column[row]) for column in texts))
    ]
    if len(kept_rows) == len(table):
        return table
    num_dropped = len(table) - len(kept_rows)
    progress.notice(f"{table.location}: skipped {num_dropped} of {len(table)} rows, which have no text or label.")
    return replace(table, columns={name: [values[row] for row in kept_rows] for name, values in table.columns.items()})
