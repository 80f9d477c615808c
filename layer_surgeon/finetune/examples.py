"""Checked examples of any task: subsets, hold-out, and a fingerprint."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import numpy as np

from layer_surgeon._text import is_unicode
from layer_surgeon.errors import DataError

_E = TypeVar("_E", bound="ExampleSet")


@dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """One checked split of a data set. Each field of a subclass is a column: a tuple, or None if there is none."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, indices: Sequence[int]) -> Self:
        """Select rows, in the given order."""
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        chosen = {
            name: None if values is None else tuple(values[i] for i in indices) for name, values in columns.items()
        }
        return replace(self, **chosen)

    @property
    def sha256(self) -> str:
        """Fingerprint of all rows and their order."""
        digest = hashlib.sha256()
        columns = [getattr(self, column.name) for column in fields(self)]
        for row in zip(*(values for values in columns if values is not None), strict=True):
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\x1e")
        return digest.hexdigest()

    @property
    def strata(self) -> Sequence[int]:
        """A class id for every row. Subsets keep the share of each class."""
        return (0,) * len(self)

    @property
    def groups(self) -> Sequence[Any] | None:
        """A group for every row, or None. A hold-out does not split groups."""
        return None


@dataclass(frozen=True, kw_only=True)
class Examples(ExampleSet):
    """Texts, their second texts (None for single texts) and class ids, all of the same length."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[int, ...]

    @property
    def sha256(self) -> str:
        """Fingerprint of all texts and labels and their order."""
        digest = hashlib.sha256()
        for row in zip(self.texts, self.pairs or self.texts, map(str, self.labels), strict=True):
            digest.update("\x1f".join(row).encode() + b"\x1e")
        return digest.hexdigest()

    @property
    def strata(self) -> Sequence[int]:
        """The class ids."""
        return self.labels


def check_texts(values: Sequence[Any], location: str) -> tuple[str, ...]:
    """Check that every value is a non-empty string, and return them as a tuple.

    Raises:
        DataError: A value is empty or not a string. Rows are counted from 1.
    """
    check_filled(values, location)
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise DataError(
                f"{location}, row {row}: found {value!r} of the type {type(value).__name__}, but expected a text."
            )
        if not is_unicode(value):
            raise DataError(f"{location}, row {row}: the text has half a character (a lone surrogate). Correct it.")
    return tuple(values)


def check_filled(values: Sequence[Any], location: str) -> None:
    """Check that no text or list of words is empty.

    Raises:
        DataError: A value is empty. Rows are counted from 1.
    """
    empty = [row for row, value in enumerate(values, start=1) if is_empty(value)]
    if empty:
        raise DataError(
            f"{location}: {len(empty)} empty texts (rows {listed(empty)}). Fill them in, or remove these rows."
        )


def listed(rows: Sequence[int]) -> str:
    """List the first five row numbers, for a message."""
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


def is_empty(value: Any) -> bool:
    """Whether a value has no text: it is None, blank, or an empty list of words."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


def hold_out(examples: _E, fraction: float, seed: int) -> tuple[_E, _E]:
    """Split off a fraction of the rows, stratified by class. Both parts keep the order of the rows.

    Rows of one group, such as the questions on one text, stay together. The fraction is then approximate.

    Returns:
        The remaining rows, and the held-out rows.

    Raises:
        DataError: There are too few rows for two parts.
    """
    num_held_out = round(fraction * len(examples))
    if examples.groups is None:
        held_out = set(_stratified(examples.strata, num_held_out, seed, leave_one=True))
    else:
        held_out = _whole_groups(examples.groups, num_held_out, seed)
    if not held_out or len(held_out) == len(examples):
        raise DataError(
            f"{len(examples)} training rows are too few to hold out {fraction:.0%} for validation. Add rows, or pass "
            "validation data (--validation)."
        )
    remaining = [row for row in range(len(examples)) if row not in held_out]
    return examples.take(remaining), examples.take(sorted(held_out))


def subsample(examples: _E, wanted: int | None, seed: int) -> _E:
    """Take at most `wanted` rows (at least one; None for all), stratified by class, in their original order."""
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
    """Choose `wanted` row numbers, allocated to the classes by largest remainder."""
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
