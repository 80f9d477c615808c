"""A data set, checked: texts and class ids of every split, before anything is trained."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.columns import ColumnChoice, choose_columns
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.labels import LabelMap, labels_of_model, make_label_map
from layer_surgeon.finetune.registry import DatasetRecord
from layer_surgeon.finetune.sources import DataLike, RawData, Table, load_data
from layer_surgeon.progress import NullProgress, Progress


@dataclass(frozen=True, kw_only=True)
class Examples:
    """One split: texts, their pairs (None: no pairs) and class ids, equally many."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Examples":
        """These rows, in this order."""
        return Examples(
            texts=tuple(self.texts[i] for i in indices),
            pairs=None if self.pairs is None else tuple(self.pairs[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
        )

    @property
    def sha256(self) -> str:
        """Over all texts and labels: equal only for equal rows in equal order."""
        digest = hashlib.sha256()
        for row in zip(self.texts, self.pairs or self.texts, map(str, self.labels), strict=True):
            digest.update("\x1f".join(row).encode() + b"\x1e")
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ClassificationData:
    """Everything a run needs to know of its data.

    Attributes:
        name: A short name that can be part of a folder's name.
        spec: What the user named as training data, if it can be named again.
        test_spec: The same for the test data; equal to `spec` where that has a test split.
        columns: The columns that were used.
        label_names: Class names, in the order of the ids.
        train: Training examples.
        validation: Validation examples.
        test: Test examples; None where there are none.
        held_out: Whether the validation examples were taken from the training data.
    """

    name: str
    spec: tuple[str, ...]
    test_spec: tuple[str, ...]
    columns: ColumnChoice
    label_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples | None
    held_out: bool

    def facts(self) -> dict[str, Any]:
        """Plain facts for results.json: counts, classes and fingerprints of each split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "name": self.name,
            "spec": list(self.spec),
            "test_spec": list(self.test_spec),
            "columns": {"text": self.columns.text, "text_pair": self.columns.text_pair, "label": self.columns.label},
            "validation_held_out_from_train": self.held_out,
            "splits": {name: self._split_facts(part) for name, part in splits.items() if part is not None},
        }

    def _split_facts(self, part: Examples) -> dict[str, Any]:
        counts = np.bincount(part.labels, minlength=len(self.label_names)).tolist()
        per_class = dict(zip(self.label_names, counts, strict=True))
        return {"examples": len(part), "per_class": per_class, "sha256": part.sha256}


def prepare_data(
    train: DataLike,
    validation: DataLike | None,
    test: DataLike | None,
    config: FinetuneConfig,
    *,
    model_names: Sequence[str] = (),
    progress: Progress | None = None,
) -> ClassificationData:
    """Load, check and split the data of one run.

    Args:
        train: Training data, in any of the forms that `load_data` knows.
        validation: Validation data; None: the split of `train`'s data set, else a part held out of the training rows.
        test: Test data; None: the split of `train`'s data set, if it has one.
        config: Columns, fractions and seed.
        model_names: Class names the model has already.
        progress: Told about guesses and about rows that were left out.

    Raises:
        DataError: Something in the data can't be used; the message says where.
    """
    progress = progress or NullProgress()
    raw = load_data(train, progress)
    columns = choose_columns(raw.train, config, raw.record)
    if columns.guessed:
        progress.notice(f"Columns of {raw.train.place}: {columns} (guessed).")
    train_table = _drop_unusable(raw.train, columns, raw.record, progress)
    label_map = make_label_map(
        train_table.columns[str(columns.label)],
        train_table.place,
        declared=_declared_names(raw, train_table, columns),
        model_names=model_names,
    )
    training = _examples(train_table, columns, label_map)
    raw_validation = load_data(validation, progress) if validation is not None else None
    raw_test = load_data(test, progress) if test is not None else None
    validating = _other_split(raw, raw_validation, raw.validation, label_map, columns, config, progress)
    testing = _other_split(raw, raw_test, raw.test, label_map, columns, config, progress)
    held_out = validating is None
    if validating is None:
        training, validating = hold_out(training, config.validation_fraction, config.seed)
    wanted = min(round(config.train_fraction * len(training)), config.max_train_samples or len(training))
    return ClassificationData(
        name=raw.name,
        spec=raw.spec,
        test_spec=raw_test.spec if raw_test is not None else raw.spec if raw.test is not None else (),
        columns=columns,
        label_names=label_map.names,
        train=subsample(training, wanted, config.seed),
        validation=subsample(validating, config.max_eval_samples or len(validating), config.seed),
        test=None if testing is None else subsample(testing, config.max_eval_samples or len(testing), config.seed),
        held_out=held_out,
    )


def prepare_evaluation(
    data: DataLike,
    label_names: Sequence[str],
    config: FinetuneConfig,
    *,
    split: str | None = None,
    known_columns: Mapping[str, str | None] = MappingProxyType({}),
    progress: Progress | None = None,
) -> tuple[str, Examples]:
    """Load and check data to measure a trained model on; returns what to call it, and its rows.

    Args:
        data: In any of the forms that `load_data` knows.
        label_names: The model's classes, in the order of their ids.
        config: Columns, number of examples and seed.
        split: Which split; default: test, else the only one.
        known_columns: The columns that the model was trained on (text, text_pair, label), used where the data has all
            of them and no others were said.
        progress: Told about guesses and about rows that were left out.

    Raises:
        DataError: Something in the data can't be used, or its labels are not the model's.
    """
    progress = progress or NullProgress()
    raw = load_data(data, progress)
    table = raw.choose(split)
    if known_columns and raw.record is None and {name for name in known_columns.values() if name} <= set(table.columns):
        config = replace(
            config,
            text_column=config.text_column or known_columns["text"],
            text_pair_column=config.text_pair_column or known_columns["text_pair"],
            label_column=config.label_column or known_columns["label"],
        )
    columns = choose_columns(table, config, raw.record)
    if columns.guessed:
        progress.notice(f"Columns of {table.place}: {columns} (guessed).")
    table = _drop_unusable(table, columns, raw.record, progress)
    values = table.columns[str(columns.label)]
    label_map = labels_of_model(values, table.place, label_names, declared=_declared_names(raw, table, columns))
    examples = _examples(table, columns, label_map)
    return table.place, subsample(examples, config.max_eval_samples or len(examples), config.seed)


def _declared_names(raw: RawData, table: Table, columns: ColumnChoice) -> tuple[str, ...]:
    if raw.record is not None and columns.label == raw.record.label_column:
        return raw.record.label_names
    return table.label_names.get(str(columns.label), ())


def _other_split(
    raw: RawData,
    given: RawData | None,
    own: Table | None,
    label_map: LabelMap,
    columns: ColumnChoice,
    config: FinetuneConfig,
    progress: Progress,
) -> Examples | None:
    if given is None:
        if own is None:
            return None
        return _examples(_drop_unusable(own, columns, raw.record, progress), columns, label_map)
    table = given.choose(None)
    # The same columns as in training where it has them; another file may name them differently.
    wanted = [columns.text, *([columns.text_pair] if columns.text_pair else []), str(columns.label)]
    if given.record is not None or not all(name in table.columns for name in wanted):
        columns = choose_columns(table, config, given.record)
    return _examples(_drop_unusable(table, columns, given.record, progress), columns, label_map)


def _drop_unusable(table: Table, columns: ColumnChoice, record: DatasetRecord | None, progress: Progress) -> Table:
    """Without the rows that carry no label by the registry's rule and, in data sets nobody here can edit, no text."""
    labels = table.columns[str(columns.label)]
    unlabelled = record.unlabelled if record is not None else None
    texts = [table.columns[name] for name in (columns.text, columns.text_pair) if name is not None]
    keep = [
        row
        for row in range(len(table))
        if (unlabelled is None or labels[row] != unlabelled)
        and not (table.curated and any(_is_empty(column[row]) for column in texts))
    ]
    if len(keep) == len(table):
        return table
    progress.notice(f"{table.place}: {len(table) - len(keep)} of {len(table)} rows have no text or label; left out.")
    return replace(table, columns={name: [values[row] for row in keep] for name, values in table.columns.items()})


def _examples(table: Table, columns: ColumnChoice, label_map: LabelMap) -> Examples:
    if len(table) == 0:
        raise DataError(f"{table.place} has no rows.")
    return Examples(
        texts=check_texts(table.columns[columns.text], f"{table.place}, column {columns.text!r}"),
        pairs=None
        if columns.text_pair is None
        else check_texts(table.columns[columns.text_pair], f"{table.place}, column {columns.text_pair!r}"),
        labels=tuple(label_map.encode(table.columns[str(columns.label)], table.place)),
    )


def check_texts(values: Sequence[Any], place: str) -> tuple[str, ...]:
    """The values as they are, if each is a text with something in it.

    Raises:
        DataError: A value is empty, or is no text; rows are counted from 1.
    """
    empty = [row for row, value in enumerate(values, start=1) if _is_empty(value)]
    if empty:
        rows = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise DataError(f"{place}: {len(empty)} empty texts (rows {rows}). Fill them in, or take those rows out.")
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise DataError(f"{place}, row {row}: {value!r} is a {type(value).__name__}, not a text.")
    return tuple(values)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Split off `fraction` of the rows, with the same share of every class; both parts keep the rows' order.

    Raises:
        DataError: There are too few rows to have both parts.
    """
    taken = set(_stratified(examples.labels, round(fraction * len(examples)), seed, leave_one=True))
    if not taken or len(taken) == len(examples):
        raise DataError(
            f"{len(examples)} training rows are too few to hold {fraction:.0%} out for validation. Add rows, or give "
            "validation data (--validation)."
        )
    rest = [row for row in range(len(examples)) if row not in taken]
    return examples.take(rest), examples.take(sorted(taken))


def subsample(examples: Examples, wanted: int, seed: int) -> Examples:
    """At most `wanted` rows (at least one), with the same share of every class, in the rows' order."""
    if wanted >= len(examples):
        return examples
    return examples.take(sorted(_stratified(examples.labels, max(wanted, 1), seed, leave_one=False)))


def _stratified(labels: Sequence[int], wanted: int, seed: int, *, leave_one: bool) -> list[int]:
    """`wanted` row numbers, shared out over the classes by largest remainder."""
    rng = np.random.default_rng(seed)
    ids = np.asarray(labels)
    classes = np.unique(ids)
    rows = [rng.permutation(np.flatnonzero(ids == label)) for label in classes]
    exact = np.array([wanted * len(members) / len(ids) for members in rows])
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: wanted - counts.sum()]:
        counts[index] += 1
    if leave_one:
        counts = np.minimum(counts, [len(members) - 1 for members in rows])
    return [int(row) for members, count in zip(rows, counts, strict=True) for row in members[:count]]
