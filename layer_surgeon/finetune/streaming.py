"""A streamed data set, checked: its first rows, its classes and its validation data, before anything is trained."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.data import SplitReader, TaskData, declared_names, drop_unusable, settle_columns
from layer_surgeon.finetune.examples import ExampleSet, subsample
from layer_surgeon.finetune.labels import counted_label_map, declared_label_map
from layer_surgeon.finetune.sources import DataLike, RawData, Table, load_data
from layer_surgeon.finetune.streams import StreamedData, open_stream, opens_on_hub
from layer_surgeon.finetune.tasks import FinetuneTask
from layer_surgeon.finetune.train_stream import HeldOut, TrainStream, Window, draw
from layer_surgeon.progress import Progress

# Rows that are looked at before training.
CHECKED = 1000
# Rows that are held out at most where `max_eval_samples` says nothing: they are in memory, and measured often.
_HELD_OUT = 2000
_UNIT = 2**63


def begin_stream(data: DataLike, config: FinetuneConfig, task: FinetuneTask, progress: Progress) -> StreamedData:
    """Find the data, and see that the number of steps can be told, before anything is downloaded.

    Raises:
        ConfigError: It can't: `max_steps` is wanted.
        DataError: There is no such data.
    """
    if config.max_steps is None and not task.one_feature_each:
        raise ConfigError(
            f"max_steps is None: of a streamed {task.name} it is not known how many steps a pass has, since rows are "
            "put together or cut into pieces. Give max_steps."
        )
    opened = open_stream(data, progress, task=task.name)
    source = opened.train
    if config.max_steps is None and source.num_rows is None and not source.is_near and config.max_train_samples is None:
        raise ConfigError(
            f"max_steps is None, and {source.location} doesn't say how many rows it has. Give max_steps, or "
            "max_train_samples: the number of rows of a pass."
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
    """Check the first rows of a stream, learn its classes, and bring its validation and test data into memory.

    Args:
        opened: The training data.
        validation: As in `prepare_data`; what is held out here are the first rows that a seeded rule chooses.
        test: As in `prepare_data`.
        config: Columns, fractions and seed.
        task: What it is for.
        model_names: Class names the model has already.
        progress: Told about guesses, about rows that were left out, and when all rows are read for their labels.

    Raises:
        DataError: Something in the data can't be used; the message says where.
    """
    first = opened.train.table(CHECKED)
    if len(first) == 0:
        raise DataError(f"{first.location} has no rows.")
    columns = settle_columns(first, config, opened.record, task, progress)
    stream = TrainStream(source=opened.train, columns=columns, task=task, record=opened.record)
    raw_validation, raw_test = (
        None if data is None else _load_whole(data, config, task, progress) for data in (validation, test)
    )
    own = {
        name: None if given is not None or split is None else split.table(config.max_eval_samples)
        for name, given, split in (
            ("validation", raw_validation, opened.validation),
            ("test", raw_test, opened.test),
        )
    }
    held_out = None
    if raw_validation is None and own["validation"] is None:
        stream, held_out = _hold_out(stream, config)
    stream = replace(stream, most=config.max_train_samples)
    raw = RawData(name=opened.name, spec=opened.spec, splits={"train": first}, record=opened.record)
    stream = _know(stream, held_out, declared_names(raw, first, columns), model_names, config, progress)
    reader = SplitReader(task=task, labels=stream.labels, columns=columns, config=config, progress=progress)
    validating = (
        stream.examples(held_out)
        if held_out is not None
        else reader.other_split(raw, raw_validation, own["validation"])
    )
    if validating is None:
        raise ValueError("there is validation data")
    testing = reader.other_split(raw, raw_test, own["test"])
    return TaskData(
        name=opened.name,
        spec=opened.spec,
        validation_spec=(raw_validation or opened).spec,
        test_spec=() if testing is None else (raw_test or opened).spec,
        columns=columns,
        label_names=() if stream.labels is None else stream.labels.names,
        train=_first_examples(stream, first, progress),
        validation=subsample(validating, config.max_eval_samples, config.seed),
        test=None if testing is None else subsample(testing, config.max_eval_samples, config.seed),
        held_out=held_out is not None,
        task=task,
        stream=stream,
    )


def _first_examples(stream: TrainStream, first: Table, progress: Progress) -> ExampleSet:
    """Of the rows that are looked at, those that are trained on."""
    shown = replace(first, location=f"{first.location}, first {len(first):,} rows")
    drop_unusable(shown, stream.columns, stream.record, progress)
    numbers = [number for number, _ in itertools.takewhile(lambda one: one[0] <= len(first), stream.rows())]
    if not numbers:
        raise DataError(f"The first {len(first):,} rows of {first.location} leave none to train on. Add rows.")
    rows = [{name: values[number - 1] for name, values in first.columns.items()} for number in numbers]
    table = stream.table_of(rows)
    return stream.examples(Window(numbers=tuple(numbers), table=table))


def _load_whole(data: DataLike, config: FinetuneConfig, task: FinetuneTask, progress: Progress) -> RawData:
    """Validation or test data that was named for itself; of the Hub the one split only, and no more than is used."""
    if not opens_on_hub(data):
        return load_data(data, progress, task=task.name)
    opened = open_stream(data, progress, task=task.name)
    table = opened.choose().table(config.max_eval_samples)
    return RawData(name=opened.name, spec=opened.spec, splits={"measured": table}, record=opened.record)


def _hold_out(stream: TrainStream, config: FinetuneConfig) -> tuple[TrainStream, Window]:
    """The first rows that are chosen by seed and number; of questions all those on texts that are chosen likewise."""
    wanted = config.max_eval_samples or _HELD_OUT
    total = stream.source.num_rows
    if total is not None:
        wanted = min(wanted, max(1, round(config.validation_fraction * total)))
    chosen: dict[int, Any] = {}
    texts: set[int] = set()
    seen = 0
    for number, row in stream.usable_rows():
        seen = number
        key: Any = number
        if stream.task.keeps_pairs_together:
            key = row[str(stream.columns.text_pair)]
        if draw(config.seed, "held out", key) >= config.validation_fraction * _UNIT:
            continue
        chosen[number] = row
        if stream.task.keeps_pairs_together:
            texts.add(draw(key))
        if len(chosen) == wanted:
            break
    if not chosen:
        raise DataError(
            f"{seen:,} training rows are too few to hold {config.validation_fraction:.0%} out for validation. Add "
            "rows, or give validation data (--validation)."
        )
    table = stream.table_of(list(chosen.values()))
    held_out = HeldOut(rows=frozenset(chosen), texts=frozenset(texts))
    return replace(stream, held_out=held_out), Window(numbers=tuple(chosen), table=table)


def _know(
    stream: TrainStream,
    held_out: Window | None,
    declared: Sequence[str],
    model_names: Sequence[str],
    config: FinetuneConfig,
    progress: Progress,
) -> TrainStream:
    """The stream with its classes and the number of its rows; all rows are read once where that is the only way."""
    source, task = stream.source, stream.task
    bounds = [stream.most] if stream.most is not None else []
    if source.num_rows is not None:
        bounds.append(max(0, source.num_rows - len(stream.held_out.rows)))
    rows = min(bounds) if bounds else None
    labels = declared_label_map(declared) if task.has_classes and declared else None
    counts: Counter[Any] = Counter()
    if (task.has_classes and labels is None) or (rows is None and config.max_steps is None):
        why = f"the classes in column {stream.columns.label!r}" if labels is None and task.has_classes else "its rows"
        progress.notice(f"Reading {source.location} once, to count {why}.")
        rows, counts = stream.count()
        if rows == 0:
            raise DataError(f"{source.location} has no rows left to train on. Add rows.")
    if task.has_classes and labels is None:
        # A class of which all rows are held out, or lie behind `max_train_samples`, is a class too.
        others = Counter[Any]() if held_out is None else stream.count_labels(held_out)
        labels = counted_label_map(counts + others, source.location, model_names)
    per_class = None
    if labels is not None and counts:
        per_class = dict.fromkeys(labels.names, 0)
        for value, count in counts.items():
            per_class[labels.names[labels.encode([value], source.location)[0]]] += count
    return replace(stream, labels=labels, num_rows=rows, per_class=per_class)
