"""Map label values, which are strings or numbers, to class ids."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from layer_surgeon.errors import DataError

# What transformers calls a class without a name.
DEFAULT_NAME = re.compile(r"LABEL_\d+")
# With more classes than this, or more than one class per two rows, the column is probably a text or an id.
_MOST_CLASSES = 1000
_FEWEST_ROWS_PER_CLASS = 2

Label = int | str


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Class names ordered by class id, and the class id of each label value in the data."""

    names: tuple[str, ...]
    ids: dict[Label, int]

    def encode(self, values: Sequence[Any], location: str) -> list[int]:
        """Convert label values to class ids.

        Raises:
            DataError: A value is not one of the classes.
        """
        # A part of the data may have only those classes whose names are numbers.
        labels = [
            name if label not in self.ids and (name := _name(value, label)) in self.ids else label
            for value, label in zip(values, normalize(values, location), strict=True)
        ]
        unknown = Counter(label for label in labels if label not in self.ids)
        if unknown:
            raise DataError(_unknown_message(unknown, self, location))
        return [self.ids[label] for label in labels]


def _unknown_message(unknown: "Counter[Label]", known: LabelMap, location: str) -> str:
    shown = ", ".join(f"{label!r} ({count} rows)" for label, count in unknown.most_common(5))
    similar = get_close_matches(str(next(iter(unknown))), [str(label) for label in known.ids], n=1)
    if set(unknown) == {-1}:
        hint = "A label of -1 usually marks a split whose labels are hidden; use another split."
    elif similar:
        hint = f"Did you mean {similar[0]!r}?"
    else:
        hint = "Correct these labels, or remove these rows."
    classes = ", ".join(repr(label) for label in list(known.ids)[:20])
    return f"{location} has labels that were not seen in training: {shown}. The classes are: {classes}. {hint}"


def normalize(values: Sequence[Any], location: str) -> list[Label]:
    """Convert label values to integers if all are integers (`"1"`, `1.0`, `True`), else to stripped strings.

    Raises:
        DataError: A value is missing, or is a fraction.
    """
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    for row, value in enumerate(values, start=1):
        check_label(value, f"{location}, row {row}")
    numbers = [_as_int(value) for value in values]
    if all(number is not None for number in numbers):
        return [number for number in numbers if number is not None]
    if fraction := next((value for value in values if isinstance(value, float) and not value.is_integer()), None):
        raise DataError(
            f"{location} has the label {fraction}, which is not a class. Classification needs class names or whole "
            "numbers. To predict numbers, see docs/trainer.md."
        )
    return [str(value).strip() for value in values]


def check_label(value: Any, location: str) -> None:
    """Check that a cell contains exactly one label.

    Raises:
        DataError: The label is missing, or there are several.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{location}: the label is missing. Fill it in, or remove the row.")
    if isinstance(value, list | dict | bytes):
        raise DataError(f"{location}: the label is {value!r}, but one class per row is expected.")


def classes_of(values: Sequence[Any], location: str) -> tuple[str, ...]:
    """Return the names of the classes in a column of labels, sorted.

    Raises:
        DataError: As `normalize`.
    """
    return tuple(sorted(set(_names(values, normalize(values, location)))))


def _names(values: Sequence[Any], labels: Sequence[Label]) -> list[str]:
    return [_name(value, label) for value, label in zip(values, labels, strict=True)]


def _name(value: Any, label: Label) -> str:
    """Return a label as the name of a class: text as it is, and numbers without a fraction."""
    return value.strip() if isinstance(value, str) else str(label)


def _as_int(value: Any) -> int | None:
    if isinstance(value, str):
        # Not "07": it may be another class than "7".
        return int(value) if re.fullmatch(r"\s*(0|[+-]?[1-9]\d*)\s*", value) else None
    return int(value) if isinstance(value, int) or (isinstance(value, float) and value.is_integer()) else None


def make_label_map(
    values: Sequence[Any], location: str, *, declared: Sequence[str] = (), model_names: Sequence[str] = ()
) -> LabelMap:
    """Determine the classes of a training set.

    Args:
        values: The label of every row.
        location: The name of the data in messages.
        declared: Class names ordered by class id, if the data set declares them.
        model_names: The model's class names. They and their order are kept if the data has the same classes.

    Raises:
        DataError: There is only one class, or the values do not look like classes.
    """
    labels = normalize(values, location)
    distinct = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    if len(distinct) == 1:
        raise DataError(f"{location} has only one class, {distinct[0]!r}. Classification needs at least two.")
    if declared:
        return _with_declared(distinct, tuple(declared), location, model_names)
    if len(distinct) > _MOST_CLASSES or (len(labels) >= 20 and len(distinct) * _FEWEST_ROWS_PER_CLASS > len(labels)):
        raise DataError(
            f"{location} has {len(distinct)} different labels in {len(labels)} rows, so they are probably not classes. "
            "If these are not the labels, choose the column with --label-column. To predict numbers, see "
            "docs/trainer.md."
        )
    named = tuple(name for name in model_names if not DEFAULT_NAME.fullmatch(name))
    if named and set(named) == {str(label) for label in distinct}:
        by_name = {str(label): label for label in distinct}
        return LabelMap(names=named, ids={by_name[name]: index for index, name in enumerate(named)})
    if distinct == list(range(len(distinct))) and len(named) == len(distinct):
        return LabelMap(names=named, ids={index: index for index in range(len(named))})
    return LabelMap(names=tuple(map(str, distinct)), ids={label: index for index, label in enumerate(distinct)})


def declared_label_map(declared: Sequence[str], model_names: Sequence[str] = ()) -> LabelMap:
    """Make the label map of declared class names, for labels that are class ids or class names.

    If the model has the same classes, their order is the model's, whose head was trained with it.
    """
    names = tuple(model_names) if set(model_names) == set(declared) else tuple(declared)
    ids: dict[Label, int] = {name: names.index(name) for name in declared}
    return LabelMap(names=names, ids={**ids, **{index: ids[name] for index, name in enumerate(declared)}})


def counted_label_map(counts: "Counter[Any]", location: str, model_names: Sequence[str] = ()) -> LabelMap:
    """Determine the classes of a training set from the number of rows with each label.

    A window of the set may contain only integer labels while the whole set also has names, so integers that are
    written as strings get ids as integers too.

    Raises:
        DataError: As `make_label_map`.
    """
    # Make just enough rows for the checks of `make_label_map`.
    values = [value for value in counts for _ in range(min(counts[value], _FEWEST_ROWS_PER_CLASS))]
    most_common = max(counts, key=lambda value: counts[value])
    num_rows = min(sum(counts.values()), max(20, _FEWEST_ROWS_PER_CLASS * len(counts)))
    values += [most_common] * (num_rows - len(values))
    label_map = make_label_map(values, location, model_names=model_names)
    integer_ids: dict[Label, int] = {}
    for label, index in label_map.ids.items():
        if (number := _as_int(label)) is not None:
            integer_ids[number] = index
    return LabelMap(names=label_map.names, ids=integer_ids | label_map.ids)


def _with_declared(
    distinct: Sequence[Label], declared: tuple[str, ...], location: str, model_names: Sequence[str]
) -> LabelMap:
    labels = declared_label_map(declared, model_names)
    # Numbers are class ids if all labels are numbers, and else names; never both.
    by_id = all(isinstance(label, int) for label in distinct)
    ids = labels.ids.items()
    kept = {label: index for label, index in ids if _as_int(label) is None or isinstance(label, int) == by_id}
    labels = replace(labels, ids=kept)
    undeclared = [label for label in distinct if label not in labels.ids]
    if undeclared:
        raise DataError(
            f"{location} has the label {undeclared[0]!r}; the data set's classes are "
            f"{', '.join(f'{index} ({name})' for index, name in enumerate(declared))}."
        )
    return labels


def labels_of_model(
    values: Sequence[Any], location: str, names: Sequence[str], *, declared: Sequence[str] = ()
) -> LabelMap:
    """Map the labels of a data set to the classes of a trained model.

    Labels are matched by name if the data set's class names are the model's, and by number if they are numbers and the
    model's classes have names that are not numbers.

    Raises:
        DataError: A label is not one of the model's classes.
    """
    labels = normalize(values, location)
    ids: dict[Label, int] = {name: index for index, name in enumerate(names)}
    if all(isinstance(label, int) for label in labels):
        if declared and set(declared) <= set(names):
            ids = {index: names.index(name) for index, name in enumerate(declared)}
        elif any(_as_int(name) is None for name in names) and not set(_names(values, labels)) <= set(names):
            ids = {index: index for index in range(len(names))}
    result = LabelMap(names=tuple(names), ids=ids)
    result.encode(values, location)
    return result
