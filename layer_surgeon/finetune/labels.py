"""Label values, text or numbers, to class ids and back."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from layer_surgeon.errors import DataError

# transformers' own names for classes that nobody named.
_UNNAMED = re.compile(r"LABEL_\d+")
# More classes than this, or a class for every second row, is a text or an id column taken for the label.
_MOST_CLASSES = 1000
_FEWEST_ROWS_PER_CLASS = 2

Label = int | str


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Class names in the order of their ids, and how the data's own label values lead to them."""

    names: tuple[str, ...]
    ids: dict[Label, int]

    def encode(self, values: Sequence[Any], place: str) -> list[int]:
        """Label values -> class ids.

        Raises:
            DataError: A value is none of the classes.
        """
        labels = normalize(values, place)
        unknown = Counter(label for label in labels if label not in self.ids)
        if unknown:
            raise DataError(_unknown_message(unknown, self, place))
        return [self.ids[label] for label in labels]


def _unknown_message(unknown: "Counter[Label]", known: LabelMap, place: str) -> str:
    shown = ", ".join(f"{label!r} ({count} rows)" for label, count in unknown.most_common(5))
    near = get_close_matches(str(next(iter(unknown))), [str(label) for label in known.ids], n=1)
    if set(unknown) == {-1}:
        hint = "A label of -1 usually marks a split whose labels are hidden; use another split."
    elif near:
        hint = f"Did you mean {near[0]!r}?"
    else:
        hint = "Correct them, or take those rows out."
    classes = ", ".join(repr(label) for label in list(known.ids)[:20])
    return f"{place} has labels that were not seen in training: {shown}. The classes are: {classes}. {hint}"


def normalize(values: Sequence[Any], place: str) -> list[Label]:
    """Label values as whole numbers where all are whole numbers (`"1"`, `1.0`, `True`), as stripped text otherwise.

    Raises:
        DataError: A value is missing, or is a fraction.
    """
    for row, value in enumerate(values, start=1):
        check_label(value, f"{place}, row {row}")
    numbers = [_as_int(value) for value in values]
    if all(number is not None for number in numbers):
        return [number for number in numbers if number is not None]
    if fraction := next((value for value in values if isinstance(value, float) and not value.is_integer()), None):
        raise DataError(
            f"{place} has the label {fraction}: a number, not a class. Classification needs class names or whole "
            "numbers."
        )
    return [str(value).strip() for value in values]


def check_label(value: Any, place: str) -> None:
    """See that a cell holds one label.

    Raises:
        DataError: It is missing, or there are several.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place}: the label is missing. Fill it in, or take the row out.")
    if isinstance(value, list | dict):
        raise DataError(f"{place}: the label is {value!r}; one class per row is expected.")


def _as_int(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?\d+\s*", value) else None
    return int(value) if isinstance(value, int) or (isinstance(value, float) and value.is_integer()) else None


def make_label_map(
    values: Sequence[Any], place: str, *, declared: Sequence[str] = (), model_names: Sequence[str] = ()
) -> LabelMap:
    """The classes of a training set.

    Args:
        values: The label of every row.
        place: What to call the data in a message.
        declared: Class names in the order of their ids, where the data set says them.
        model_names: The model's own class names: kept, with their order, when the data means the same classes.

    Raises:
        DataError: There is one class only, or the column is no label column.
    """
    labels = normalize(values, place)
    found = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    if len(found) == 1:
        raise DataError(f"{place} has one class only, {found[0]!r}. Classification needs at least two.")
    if declared:
        return _with_declared(found, tuple(declared), place)
    if len(found) > _MOST_CLASSES or (len(labels) >= 20 and len(found) * _FEWEST_ROWS_PER_CLASS > len(labels)):
        raise DataError(
            f"{place} has {len(found)} different labels in {len(labels)} rows: that is no class. "
            "Say which column is the label with --label-column."
        )
    named = tuple(name for name in model_names if not _UNNAMED.fullmatch(name))
    if named and set(named) == {str(label) for label in found}:
        by_name = {str(label): label for label in found}
        return LabelMap(names=named, ids={by_name[name]: index for index, name in enumerate(named)})
    if found == list(range(len(found))) and len(named) == len(found):
        return LabelMap(names=named, ids={index: index for index in range(len(named))})
    return LabelMap(names=tuple(map(str, found)), ids={label: index for index, label in enumerate(found)})


def declared_label_map(names: Sequence[str]) -> LabelMap:
    """The classes that a data set declares, for labels that come as their ids or as their names."""
    ids: dict[Label, int] = {name: index for index, name in enumerate(names)}
    return LabelMap(names=tuple(names), ids={**ids, **{index: index for index in range(len(names))}})


def counted_label_map(counts: "Counter[Any]", place: str, model_names: Sequence[str] = ()) -> LabelMap:
    """The classes of a training set of which only the numbers of its labels are kept.

    A part of such a set may hold nothing but whole numbers where the whole has names too, and is read alike.

    Raises:
        DataError: As `make_label_map`.
    """
    # As many rows as `make_label_map` needs to see that these are classes, and no more.
    values = [value for value in counts for _ in range(min(counts[value], _FEWEST_ROWS_PER_CLASS))]
    commonest = max(counts, key=lambda value: counts[value])
    wanted = min(sum(counts.values()), max(20, _FEWEST_ROWS_PER_CLASS * len(counts)))
    values += [commonest] * (wanted - len(values))
    known = make_label_map(values, place, model_names=model_names)
    ids: dict[Label, int] = {}
    for label, index in known.ids.items():
        if (number := _as_int(label)) is not None:
            ids[number] = index
    return LabelMap(names=known.names, ids=ids | known.ids)


def _with_declared(found: Sequence[Label], names: tuple[str, ...], place: str) -> LabelMap:
    by_id = all(isinstance(label, int) for label in found)
    ids: dict[Label, int] = {index if by_id else name: index for index, name in enumerate(names)}
    strange = [label for label in found if label not in ids]
    if strange:
        raise DataError(
            f"{place} has the label {strange[0]!r}; the data set's classes are "
            f"{', '.join(f'{index} ({name})' for index, name in enumerate(names))}."
        )
    return LabelMap(names=names, ids=ids)


def labels_of_model(
    values: Sequence[Any], place: str, names: Sequence[str], *, declared: Sequence[str] = ()
) -> LabelMap:
    """How a data set's labels lead to the classes of a model that is trained already.

    By name where the data set's class names are the model's; else by number, where the labels are numbers.

    Raises:
        DataError: A label is none of the model's classes.
    """
    labels = normalize(values, place)
    ids: dict[Label, int] = {name: index for index, name in enumerate(names)}
    if all(isinstance(label, int) for label in labels):
        if declared and set(declared) <= set(names):
            ids = {index: names.index(name) for index, name in enumerate(declared)}
        elif {str(label) for label in labels} <= set(names):
            ids = {int(name): index for index, name in enumerate(names) if _as_int(name) is not None}
        else:
            ids = {index: index for index in range(len(names))}
    result = LabelMap(names=tuple(names), ids=ids)
    result.encode(values, place)
    return result
