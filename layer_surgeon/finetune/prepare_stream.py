"""Check a streamed data set before training: its first rows, its classes and its validation data."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.data import (
    SplitReader,
    TaskData,
    declared_names,
    drop_unusable,
    notice_same_rows,
    settle_columns,
)
from layer_surgeon.finetune.examples import ExampleSet, subsample
from layer_surgeon.finetune.labels import counted_label_map, declared_label_map
from layer_surgeon.finetune.row_stream import StreamedData, open_stream, opens_on_hub
from layer_surgeon.finetune.sources import DataLike, RawData, Role, Table, load_data
from layer_surgeon.finetune.tasks import FinetuneTask
from layer_surgeon.finetune.train_stream import HeldOut, TrainStream, Window, draw
from layer_surgeon.progress import Progress

# Number of rows to check before training.
CHECKED = 1000
# Default limit on held-out rows, which are in memory and evaluated often.
_HELD_OUT = 2000
_UNIT = 2**63


def begin_stream(data: DataLike, config: FinetuneConfig, task: FinetuneTask, progress: Progress) -> StreamedData:
    """Find the data, and check that the number of steps can be determined, before any rows are downloaded.

    Raises:
        ConfigError: The number of steps can't be determined without `max_steps`.
        DataError: The data does not exist.
    """
    if config.max_steps is None and not task.one_feature_each:
        raise ConfigError(
            f"Streaming for {task.name} needs max_steps: the number of steps per pass is unknown, because rows are "
            "joined or split. Set max_steps."
        )
    opened = open_stream(data, progress, task=task.name)
    source = opened.train
    if config.max_steps is None and source.num_rows is None and not source.is_near and config.max_train_samples is None:
        raise ConfigError(
            f"max_steps is not set, and the number of rows of {source.location} is unknown. Set max_steps, or set "
            "max_train_samples to limit the rows per pass."
        )
    return opened


def prepare_stream(
    opened: StreamedData,
    validation: DataLike | None,
    test: DataLike | None,
    config: FinetuneConfig,
    *,
    task: FinetuneTask,
    model_names: Sequence[str],
    progress: Progress,
) -> TaskData:
    """Check the first rows of a stream, determine its classes, and load its validation and test data into memory.

    Args:
        opened: The training data.
        validation: As in `prepare_data`. If rows are held out, they are the first ones that a seeded rule chooses.
        test: As in `prepare_data`.
        config: Columns, fractions and seed.
        task: The task.
        model_names: The model's current class names.
        progress: Receives notices about guessed columns, skipped rows, and reading all rows for their labels.

    Raises:
        DataError: The data can't be used; the message names the location.
    """
    first = opened.train.table(CHECKED)
    if len(first) == 0:
        raise DataError(f"{first.location} has no rows. Add at least one row.")
    columns = settle_columns(first, config, opened.record, task, progress)
    stream = TrainStream(source=opened.train, columns=columns, task=task, record=opened.record)
    raw_validation = None if validation is None else _load_whole(validation, "validation", config, task, progress)
    raw_test = None if test is None else _load_whole(test, "test", config, task, progress)
    own_splits = {
        name: None if separate_data is not None or split is None else split.table(config.max_eval_samples)
        for name, separate_data, split in (
            ("validation", raw_validation, opened.validation),
            ("test", raw_test, opened.test),
        )
    }
    held_out = None
    if raw_validation is None and own_splits["validation"] is None:
        stream, held_out = _hold_out(stream, config)
    stream = replace(stream, most=config.max_train_samples)
    raw = RawData(name=opened.name, spec=opened.spec, splits={"train": first}, record=opened.record)
    stream = _add_classes(stream, held_out, declared_names(raw, first, columns), model_names, config, progress)
    reader = SplitReader(task=task, labels=stream.labels, columns=columns, config=config, progress=progress)
    validation_examples = (
        stream.examples(held_out)
        if held_out is not None
        else reader.other_split(raw, raw_validation, own_splits["validation"], "validation")
    )
    if validation_examples is None:
        raise ValueError("no validation data")
    test_examples = reader.other_split(raw, raw_test, own_splits["test"], "test")
    notice_same_rows(validation_examples, test_examples, progress)
    return TaskData(
        name=opened.name,
        spec=opened.spec,
        validation_spec=(raw_validation or opened).spec,
        test_spec=() if test_examples is None else (raw_test or opened).spec,
        columns=columns,
        label_names=() if stream.labels is None else stream.labels.names,
        train=_first_examples(stream, first, progress),
        validation=subsample(validation_examples, config.max_eval_samples, config.seed),
        test=None if test_examples is None else subsample(test_examples, config.max_eval_samples, config.seed),
        held_out=held_out is not None,
        task=task,
        stream=stream,
    )


def _first_examples(stream: TrainStream, first: Table, progress: Progress) -> ExampleSet:
    """Check the first rows, and convert those among them that are used for training."""
    first_rows = replace(first, location=f"{first.location}, first {len(first):,} rows")
    drop_unusable(first_rows, stream.columns, stream.record, progress)
    numbers = [number for number, _ in itertools.takewhile(lambda numbered: numbered[0] <= len(first), stream.rows())]
    if not numbers:
        raise DataError(
            f"None of the first {len(first):,} rows of {first.location} can be used for training. Add rows."
        )
    rows = [{name: values[number - 1] for name, values in first.columns.items()} for number in numbers]
    table = stream.table_of(rows)
    return stream.examples(Window(numbers=tuple(numbers), table=table))


def _load_whole(data: DataLike, role: Role, config: FinetuneConfig, task: FinetuneTask, progress: Progress) -> RawData:
    """Load validation or test data that the user named separately; from the Hub, only the rows that are needed."""
    if not opens_on_hub(data):
        return load_data(data, progress, task=task.name)
    opened = open_stream(data, progress, task=task.name)
    table = opened.choose(role=role).table(config.max_eval_samples)
    return RawData(name=opened.name, spec=opened.spec, splits={"measured": table}, record=opened.record)


def _hold_out(stream: TrainStream, config: FinetuneConfig) -> tuple[TrainStream, Window]:
    """Hold out the first rows that a draw from seed and row number chooses; for questions, from seed and text."""
    num_held_out = config.max_eval_samples or _HELD_OUT
    total = stream.source.num_rows
    if total is not None:
        num_held_out = min(num_held_out, max(1, round(config.validation_fraction * total)))
    chosen: dict[int, Any] = {}
    texts: set[int] = set()
    num_read = 0
    for number, row in stream.usable_rows():
        num_read = number
        key: Any = number
        if stream.task.keeps_pairs_together:
            key = row[str(stream.columns.text_pair)]
        if draw(config.seed, "held out", key) >= config.validation_fraction * _UNIT:
            continue
        chosen[number] = row
        if stream.task.keeps_pairs_together:
            texts.add(draw(key))
        if len(chosen) == num_held_out:
            break
    if not chosen:
        raise DataError(
            f"{num_read:,} training rows are too few to hold out {config.validation_fraction:.0%} for validation. Add "
            "rows, or pass validation data (--validation)."
        )
    table = stream.table_of(list(chosen.values()))
    held_out = HeldOut(rows=frozenset(chosen), texts=frozenset(texts))
    return replace(stream, held_out=held_out), Window(numbers=tuple(chosen), table=table)


def _add_classes(
    stream: TrainStream,
    held_out: Window | None,
    declared: Sequence[str],
    model_names: Sequence[str],
    config: FinetuneConfig,
    progress: Progress,
) -> TrainStream:
    """Add the classes and the number of rows to a stream; if necessary, read all rows once to count them."""
    source, task = stream.source, stream.task
    bounds = [stream.most] if stream.most is not None else []
    if source.num_rows is not None:
        bounds.append(max(0, source.num_rows - len(stream.held_out.rows)))
    rows = min(bounds) if bounds else None
    labels = declared_label_map(declared, model_names) if task.record.labels and declared else None
    counts: Counter[Any] = Counter()
    # A limit may be above the number of rows, so it stands for it only where counting needs the network.
    is_unknown = source.num_rows is None and config.max_steps is None and (source.is_near or rows is None)
    if (task.record.labels and labels is None) or is_unknown:
        counted = (
            f"the classes in column {stream.columns.label!r}" if labels is None and task.record.labels else "its rows"
        )
        progress.notice(f"Reading {source.location} once to count {counted}.")
        rows, counts = stream.count()
        if rows == 0:
            raise DataError(f"{source.location} has no rows left for training. Add rows.")
    if task.record.labels and labels is None:
        # Count held-out rows too: a class may have no other rows.
        held_out_counts = Counter[Any]() if held_out is None else stream.count_labels(held_out)
        labels = counted_label_map(counts + held_out_counts, source.location, model_names)
    per_class = None
    if labels is not None and counts:
        per_class = dict.fromkeys(labels.names, 0)
        for value, count in counts.items():
            per_class[labels.names[labels.encode([value], source.location)[0]]] += count
    return replace(stream, labels=labels, num_rows=rows, per_class=per_class)
