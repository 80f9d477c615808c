"""Read training examples from a stream, with one buffer of rows in memory at a time."""

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
from layer_surgeon.finetune.row_stream import RowStream
from layer_surgeon.finetune.sampling import EpochSampler, count_steps, examples_per_step
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.tasks import FinetuneTask, TaskContext
from layer_surgeon.finetune.tokenization import Features, TokenizedDataset

# With more distinct labels than this, the column does not contain classes. This also limits memory.
_MOST_LABELS = 1000
_VALIDATIONS = 10

Numbered = tuple[int, Mapping[str, Any]]


def draw(*parts: Any) -> int:
    """Draw a pseudo-random number below 2**63 that depends only on `parts`."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The rows that are excluded from training because they are validation data.

    Attributes:
        rows: Row numbers.
        texts: Hashes of second texts; every row with one of these texts is excluded.
    """

    rows: frozenset[int] = frozenset()
    texts: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive rows of a stream: their numbers, and the columns in use."""

    numbers: tuple[int, ...]
    table: Table

    def __len__(self) -> int:
        return len(self.numbers)

    def row(self, index: int) -> Table:
        """Get one row, with its row number as the location."""
        columns = {name: [values[index]] for name, values in self.table.columns.items()}
        return Table(columns=columns, location=f"{self.table.location}, row {self.numbers[index]:,}")


@dataclass(frozen=True, kw_only=True)
class TrainStream:
    """The training part of a stream.

    Attributes:
        source: All rows.
        columns: The columns in use.
        task: The task.
        record: The data set's record in the registry, if it has one.
        held_out: The excluded rows.
        most: Maximum number of rows per pass; None for all rows.
        labels: The label map; None for a task without classes.
        num_rows: Rows per pass, if known.
        per_class: Number of labels per class, if they were counted.
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
        """Yield all rows except those that `drop_unusable` would remove.

        Raises:
            DataError: A row lacks a column.
        """
        unlabelled = self.record.unlabelled if self.record is not None else None
        for number, row in self.source.rows():
            if absent := [name for name in self.columns.used if name not in row]:
                raise DataError(
                    f"{self.source.location}, row {number:,}: there is no column {absent[0]!r}. The columns are: "
                    f"{', '.join(map(str, row))}."
                )
            if unlabelled is not None and row[str(self.columns.label)] == unlabelled:
                continue
            if not (self.source.curated and any(is_empty(row[name]) for name in self.columns.texts)):
                yield number, row

    def rows(self) -> Iterator[Numbered]:
        """Yield the rows of one pass."""
        kept = ((number, row) for number, row in self.usable_rows() if not self._is_held_out(number, row))
        return itertools.islice(kept, self.most)

    def _is_held_out(self, number: int, row: Mapping[str, Any]) -> bool:
        if self.held_out.texts and draw(row[str(self.columns.text_pair)]) in self.held_out.texts:
            return True
        return number in self.held_out.rows

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the rows of one pass, `size` rows at a time."""
        rows = self.rows()
        while part := list(itertools.islice(rows, size)):
            table = self.table_of([row for _, row in part])
            yield Window(numbers=tuple(number for number, _ in part), table=table)

    def table_of(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        """Convert rows to a table with the columns in use."""
        return Table(
            columns={name: [row[name] for row in rows] for name in self.columns.used}, location=self.source.location
        )

    def examples(self, window: Window) -> ExampleSet:
        """Check the rows of a window and convert them to examples.

        Raises:
            DataError: A row can't be used; the message has its number.
        """
        try:
            return self.task.examples(window.table, self.columns, self.labels)
        except DataError:
            for index in range(len(window)):
                self.check(window.row(index))
            raise

    def check(self, row: Table) -> ExampleSet:
        """Check a single row, as returned by `Window.row`, and convert it to an example.

        Raises:
            DataError: The row can't be used.
        """
        for name in self.columns.texts:
            if is_empty(row.columns[name][0]):
                raise DataError(f"{row.location}, column {name!r}: the text is empty. Fill it in, or remove the row.")
        try:
            return self.task.examples(row, self.columns, self.labels)
        except DataError as error:
            raise DataError(str(error).replace(", row 1:", ":")) from error

    def count(self) -> tuple[int, Counter[Any]]:
        """Read one pass, and count its rows and labels.

        Raises:
            DataError: A label is missing, or there are too many different labels.
        """
        rows, counts = 0, Counter[Any]()
        for number, row in self.rows():
            rows += 1
            if self.task.record.labels:
                self._count_cell(row[str(self.columns.label)], number, counts)
            if len(counts) > _MOST_LABELS:
                raise DataError(
                    f"{self.source.location} has more than {_MOST_LABELS:,} different labels in {number:,} rows, so "
                    "they are probably not classes. Choose the label column with --label-column."
                )
        return rows, counts

    def count_labels(self, window: Window) -> Counter[Any]:
        """Count the labels in a window.

        Raises:
            DataError: A label is missing.
        """
        counts = Counter[Any]()
        for number, value in zip(window.numbers, window.table.columns[str(self.columns.label)], strict=True):
            self._count_cell(value, number, counts)
        return counts

    def _count_cell(self, value: Any, number: int, counts: Counter[Any]) -> None:
        location = f"{self.source.location}, row {number:,}"
        try:
            labels = [None] if value is None else self.task.labels_in(value)
        except DataError as error:
            raise DataError(f"{location}, column {self.columns.label!r}: {error}") from error
        for label in labels:
            check_label(label, location)
            counts[label.strip() if isinstance(label, str) else label] += 1

    def facts(self) -> dict[str, Any]:
        """Describe the stream for results.json; the facts of the training split cover only the checked rows."""
        return {"rows": self.num_rows, "per_class": self.per_class}

    def steps(self, config: FinetuneConfig, num_processes: int = 1) -> tuple[int, int]:
        """Number of optimizer steps between two validations and in the whole run.

        Raises:
            DataError: The training part has no rows.
        """
        if self.num_rows == 0:
            raise DataError(f"{self.source.location} has no rows left for training. Add rows.")
        if self.num_rows is None and config.max_steps is None:
            raise ValueError("either max_steps or the number of rows must be known")
        _, total = count_steps(config, self.num_rows or 0, num_processes)
        return min(config.eval_steps or math.ceil(total / _VALIDATIONS), total), total


class StreamedDataset(IterableDataset[Features]):
    """Yields the features of a stream, which starts over when it ends. Each validation ends an epoch of the trainer.

    `shuffle_buffer` rows at a time are read, tokenized and shuffled. The order depends only on the seed, the pass and
    the position in the stream, so a resumed run can find its position.
    """

    def __init__(self, stream: TrainStream, context: TaskContext, num_processes: int = 1) -> None:
        super().__init__()
        self._stream, self._context = stream, context
        self._examples_per_step = examples_per_step(context.config, num_processes)
        self._length = stream.steps(context.config, num_processes)[0] * self._examples_per_step
        self._epoch = 0
        # Number of features already taken from `_features`, which a new epoch continues to use.
        self._position = 0
        self._features: Iterator[Features] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate's data loader calls this when an epoch begins."""
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
        """Yield all features after the first `start`, and skip whole windows without tokenizing if possible."""
        task, config, num_to_skip = self._stream.task, self._context.config, start
        for pass_number in itertools.count():
            num_features = 0
            for window_number, window in enumerate(self._stream.windows(config.shuffle_buffer)):
                if task.one_feature_each and num_to_skip >= len(window):
                    num_to_skip -= len(window)
                    num_features += len(window)
                    continue
                features = self._tokens(window)
                num_features += len(features)
                for index in self._order(features, pass_number, window_number):
                    if num_to_skip:
                        num_to_skip -= 1
                    else:
                        yield features[index]
            if not num_features:
                raise DataError(f"{self._stream.source.location} has no rows left for training. Add rows.")

    def _order(self, features: TokenizedDataset, pass_number: int, window_number: int) -> Sequence[int]:
        config = self._context.config
        # Reduced to 40 bits, because the sampler multiplies the seed.
        seed = draw(config.seed, pass_number, window_number) >> 23
        by_length = config.group_by_length and len(features) > 0
        return list(EpochSampler(features, self._examples_per_step, seed, by_length=by_length))

    def _tokens(self, window: Window) -> TokenizedDataset:
        examples = self._stream.examples(window)
        try:
            return self._tokenize(examples)
        except ConfigError:
            # A question leaves no room for its text. All other causes are found before training.
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
            # The last rows are too short to learn from.
            return TokenizedDataset([], 0, 0)

    def _tokenize(self, examples: ExampleSet) -> TokenizedDataset:
        return self._stream.task.tokenize(examples, self._context)
