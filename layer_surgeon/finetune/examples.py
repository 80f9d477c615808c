"""Examples of any task: rows that can be counted, chosen from, told apart by a fingerprint, and split."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import numpy as np

from layer_surgeon.errors import DataError

_E = TypeVar("_E", bound="ExampleSet")


@dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """One split of a data set, checked. Each field of a subclass is one column (a tuple; None: it is not there)."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, indices: Sequence[int]) -> Self:
        """These rows, in this order."""
        columns = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        chosen = {
            name: None if values is None else tuple(values[i] for i in indices) for name, values in columns.items()
        }
        return replace(self, **chosen)

    @property
    def sha256(self) -> str:
        """Over all rows: equal only for equal rows in equal order."""
        digest = hashlib.sha256()
        columns = [getattr(self, entry.name) for entry in fields(self)]
        for row in zip(*(values for values in columns if values is not None), strict=True):
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\x1e")
        return digest.hexdigest()

    @property
    def strata(self) -> Sequence[int]:
        """A class id for every row; parts of the set keep their shares."""
        return (0,) * len(self)

    @property
    def groups(self) -> Sequence[Any] | None:
        """What each row shares with others that must not be torn apart by a hold-out; None: nothing."""
        return None


@dataclass(frozen=True, kw_only=True)
class Examples(ExampleSet):
    """Texts, their pairs (None: no pairs) and class ids, equally many."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[int, ...]

    @property
    def sha256(self) -> str:
        """Over all texts and labels: equal only for equal rows in equal order."""
        digest = hashlib.sha256()
        for row in zip(self.texts, self.pairs or self.texts, map(str, self.labels), strict=True):
            digest.update("\x1f".join(row).encode() + b"\x1e")
        return digest.hexdigest()

    @property
    def strata(self) -> Sequence[int]:
        """The class ids."""
        return self.labels


def check_texts(values: Sequence[Any], place: str) -> tuple[str, ...]:
    """The values as they are, if each is a text with something in it.

    Raises:
        DataError: A value is empty, or is no text; rows are counted from 1.
    """
    check_filled(values, place)
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise DataError(f"{place}, row {row}: {value!r} is a {type(value).__name__}, not a text.")
    return tuple(values)


def check_filled(values: Sequence[Any], place: str) -> None:
    """See that no text, or list of words, is empty.

    Raises:
        DataError: One is; rows are counted from 1.
    """
    empty = [row for row, value in enumerate(values, start=1) if is_empty(value)]
    if empty:
        raise DataError(
            f"{place}: {len(empty)} empty texts (rows {listed(empty)}). Fill them in, or take those rows out."
        )


def listed(rows: Sequence[int]) -> str:
    """The first five of many row numbers."""
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


def is_empty(value: Any) -> bool:
    """Whether there is no text: nothing, blanks only, or no words."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


def hold_out(examples: _E, fraction: float, seed: int) -> tuple[_E, _E]:
    """Split off `fraction` of the rows, with the same share of every class; both parts keep the rows' order.

    Rows of one group (the questions on one text) stay together; then the part is only about as large.

    Raises:
        DataError: There are too few rows to have both parts.
    """
    wanted = round(fraction * len(examples))
    if examples.groups is None:
        taken = set(_stratified(examples.strata, wanted, seed, leave_one=True))
    else:
        taken = _whole_groups(examples.groups, wanted, seed)
    if not taken or len(taken) == len(examples):
        raise DataError(
            f"{len(examples)} training rows are too few to hold {fraction:.0%} out for validation. Add rows, or give "
            "validation data (--validation)."
        )
    rest = [row for row in range(len(examples)) if row not in taken]
    return examples.take(rest), examples.take(sorted(taken))


def subsample(examples: _E, wanted: int | None, seed: int) -> _E:
    """At most `wanted` rows (at least one; None: all), with the same share of every class, in the rows' order."""
    if wanted is None or wanted >= len(examples):
        return examples
    return examples.take(sorted(_stratified(examples.strata, max(wanted, 1), seed, leave_one=False)))


def _whole_groups(groups: Sequence[Any], wanted: int, seed: int) -> set[int]:
    names = list(dict.fromkeys(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    members: dict[Any, list[int]] = {name: [] for name in names}
    for row, name in enumerate(groups):
        members[name].append(row)
    taken: set[int] = set()
    for index in order:
        if len(taken) >= wanted:
            break
        taken.update(members[names[index]])
    return taken


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
