"""Training examples out of a stream: pass after pass, a buffer of rows in memory at a time."""

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset

from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.examples import ExampleSet, is_empty
from layer_surgeon.finetune.labels import LabelMap, check_label
from layer_surgeon.finetune.registry import DatasetRecord
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.streams import RowStream
from layer_surgeon.finetune.tasks import FinetuneTask, TaskContext
from layer_surgeon.finetune.tokenization import Features, TokenizedDataset
from layer_surgeon.finetune.trainer import EpochSampler, count_steps, examples_per_step

# More different labels than this are none, and would be many to hold.
_MOST_LABELS = 1000
_VALIDATIONS = 10

Numbered = tuple[int, Mapping[str, Any]]


def draw(*parts: Any) -> int:
    """A number below 2**63 that nothing but `parts` decides."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The rows that are not trained on, since they are the validation data.

    Attributes:
        rows: Their numbers.
        texts: What was drawn from the second texts that they have: every row with one of these is left out.
    """

    rows: frozenset[int] = frozenset()
    texts: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some rows that follow each other in a stream: their numbers, and the columns that are used."""

    numbers: tuple[int, ...]
    table: Table

    def __len__(self) -> int:
        return len(self.numbers)

    def row(self, index: int) -> Table:
        """One of them, with its number as its place."""
        columns = {name: [values[index]] for name, values in self.table.columns.items()}
        return Table(columns=columns, location=f"{self.table.location}, row {self.numbers[index]:,}")


@dataclass(frozen=True, kw_only=True)
class TrainStream:
    """The training part of a stream.

    Attributes:
        source: All rows.
        columns: The columns that are used.
        task: What they are for.
        record: The row of the registry that the data was found by.
        held_out: What is left out.
        most: The largest number of rows of a pass; None: all of them.
        labels: How labels lead to classes; None for a task without classes.
        num_rows: Rows of a pass, where that is known.
        per_class: How many labels of every class there are, where they were counted.
    """

    source: RowStream
    columns: ColumnChoice
    task: FinetuneTask
    record: DatasetRecord | None = None
    held_out: HeldOut = HeldOut()
    most: int | None = None
    labels: LabelMap | None = None
    num_rows: int | None = None
    per_class: Mapping[str, int] | None = None

    def usable_rows(self) -> Iterator[Numbered]:
        """All rows but those that `drop_unusable` would leave out.

        Raises:
            DataError: A row lacks a column.
        """
        unlabelled = self.record.unlabelled if self.record is not None else None
        for number, row in self.source.rows():
            if absent := [name for name in self.columns.used if name not in row]:
                raise DataError(
                    f"{self.source.location}, row {number:,} has no column {absent[0]!r}, but {', '.join(map(str, row))}."
                )
            if unlabelled is not None and row[str(self.columns.label)] == unlabelled:
                continue
            if not (self.source.curated and any(is_empty(row[name]) for name in self.columns.texts)):
                yield number, row

    def rows(self) -> Iterator[Numbered]:
        """The rows of one pass."""
        kept = ((number, row) for number, row in self.usable_rows() if not self._is_held_out(number, row))
        return itertools.islice(kept, self.most)

    def _is_held_out(self, number: int, row: Mapping[str, Any]) -> bool:
        if self.held_out.texts and draw(row[str(self.columns.text_pair)]) in self.held_out.texts:
            return True
        return number in self.held_out.rows

    def windows(self, size: int) -> Iterator[Window]:
        """The rows of one pass, `size` at a time."""
        rows = self.rows()
        while part := list(itertools.islice(rows, size)):
            table = self.table_of([row for _, row in part])
            yield Window(numbers=tuple(number for number, _ in part), table=table)

    def table_of(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        """The columns that are used of some rows."""
        return Table(
            columns={name: [row[name] for row in rows] for name in self.columns.used}, location=self.source.location
        )

    def examples(self, window: Window) -> ExampleSet:
        """The rows of a window, checked.

        Raises:
            DataError: A row can't be used; the message says its number.
        """
        try:
            return self.task.examples(window.table, self.columns, self.labels)
        except DataError:
            for index in range(len(window)):
                self.check(window.row(index))
            raise

    def check(self, row: Table) -> ExampleSet:
        """See that one row, as `Window.row` has it, is good.

        Raises:
            DataError: It is not.
        """
        for name in self.columns.texts:
            if is_empty(row.columns[name][0]):
                raise DataError(f"{row.location}, column {name!r}: the text is empty. Fill it in, or take the row out.")
        try:
            return self.task.examples(row, self.columns, self.labels)
        except DataError as error:
            raise DataError(str(error).replace(", row 1:", ":")) from error

    def count(self) -> tuple[int, Counter[Any]]:
        """Read one pass; returns the number of its rows, and how often each label occurs.

        Raises:
            DataError: A label is missing, or there are too many different ones.
        """
        rows, counts = 0, Counter[Any]()
        for number, row in self.rows():
            rows += 1
            if self.task.has_classes:
                self._note(row[str(self.columns.label)], number, counts)
            if len(counts) > _MOST_LABELS:
                raise DataError(
                    f"{self.source.location} has more than {_MOST_LABELS:,} different labels in {number:,} rows: that is "
                    "no class. Say which column is the label with --label-column."
                )
        return rows, counts

    def count_labels(self, window: Window) -> Counter[Any]:
        """How often each label occurs in a window.

        Raises:
            DataError: A label is missing.
        """
        counts = Counter[Any]()
        for number, value in zip(window.numbers, window.table.columns[str(self.columns.label)], strict=True):
            self._note(value, number, counts)
        return counts

    def _note(self, value: Any, number: int, counts: Counter[Any]) -> None:
        location = f"{self.source.location}, row {number:,}"
        try:
            labels = [None] if value is None else self.task.labels_in(value)
        except DataError as error:
            raise DataError(f"{location}, column {self.columns.label!r}: {error}") from error
        for label in labels:
            check_label(label, location)
            counts[label.strip() if isinstance(label, str) else label] += 1

    def facts(self) -> dict[str, Any]:
        """Plain facts for results.json; those of the training split are of the rows that were checked alone."""
        return {"rows": self.num_rows, "per_class": self.per_class}

    def steps(self, config: FinetuneConfig, num_processes: int = 1) -> tuple[int, int]:
        """Optimizer steps from one validation to the next, and of the whole run.

        Raises:
            DataError: The training part has no rows.
        """
        if self.num_rows == 0:
            raise DataError(f"{self.source.location} has no rows left to train on.")
        if self.num_rows is None and config.max_steps is None:
            raise ValueError("the number of rows was to be known")
        _, total = count_steps(config, self.num_rows or 0, num_processes)
        return min(config.eval_steps or math.ceil(total / _VALIDATIONS), total), total


class StreamedDataset(IterableDataset[Features]):
    """The features of a stream, without end; an epoch of the trainer is what lies between two validations.

    Rows are read `shuffle_buffer` at a time, put into tokens, and shuffled: an order that seed, pass and place in the
    stream decide, so that a run that was stopped finds its place again. Where the stream ends it begins anew.
    """

    def __init__(self, stream: TrainStream, context: TaskContext, num_processes: int = 1) -> None:
        super().__init__()
        self._stream, self._context = stream, context
        self._group = examples_per_step(context.config, num_processes)
        self._length = stream.steps(context.config, num_processes)[0] * self._group
        self._epoch = 0
        # How many features were taken from `_features`, which a new epoch goes on with.
        self._position = 0
        self._features: Iterator[Features] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Features]:
        start = self._epoch * self._length
        if self._features is None or self._position != start:
            self._features, self._position = self._from(start), start
        for _ in range(self._length):
            feature = next(self._features)
            self._position += 1
            yield feature

    def _from(self, start: int) -> Iterator[Features]:
        """All features behind the first `start`; of these as little as can be is computed."""
        task, config, left = self._stream.task, self._context.config, start
        for turn in itertools.count():
            found = 0
            for window_number, window in enumerate(self._stream.windows(config.shuffle_buffer)):
                if task.one_feature_each and left >= len(window):
                    left -= len(window)
                    found += len(window)
                    continue
                features = self._tokens(window)
                found += len(features)
                for index in self._order(features, turn, window_number):
                    if left:
                        left -= 1
                    else:
                        yield features[index]
            if not found:
                raise DataError(f"{self._stream.source.location} has no rows left to train on.")

    def _order(self, features: TokenizedDataset, turn: int, window_number: int) -> Sequence[int]:
        config = self._context.config
        # Of 40 bits, which the sampler still multiplies.
        seed = draw(config.seed, turn, window_number) >> 23
        sampler = EpochSampler(features, self._group, seed, by_length=config.group_by_length and len(features) > 0)
        return list(sampler)

    def _tokens(self, window: Window) -> TokenizedDataset:
        examples = self._stream.examples(window)
        try:
            return self._tokenize(examples)
        except ConfigError:
            # A question that leaves no room for its text; others would have been found before training.
            for index in range(len(window)):
                row = window.row(index)
                try:
                    self._tokenize(self._stream.check(row))
                except ConfigError as error:
                    raise DataError(f"{row.location}: {error}") from error
            raise
        except DataError:
            if self._stream.task.one_feature_each:
                raise
            # Nothing but a rest that is too short to learn from.
            return TokenizedDataset([], 0, 0)

    def _tokenize(self, examples: ExampleSet) -> TokenizedDataset:
        return self._stream.task.tokenize(examples, self._context, training=True)
