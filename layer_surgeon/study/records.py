"""Reads and writes the JSON files of a study as typed values: cells/*.json, summary.json and selection.json.

A file has the field `format`, followed by the fields of its dataclass in the same order. If a field is missing, an
error names it.
"""

import dataclasses
import shlex
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from layer_surgeon.errors import WorkspaceError
from layer_surgeon.study.layout import FORMAT, SELECTION, StudyFolder, read_json
from layer_surgeon.study.selection_result import Selection
from layer_surgeon.study.tables import FailedCell, Summary

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TestScores:
    """The scores of a training on one test set.

    Attributes:
        examples: Number of test examples.
        scores: Metric -> score.
        correct: One digit per example: 1 if the prediction is right. None for tasks other than classification.
    """

    __test__ = False  # Tells pytest that this is not a test class.

    examples: int
    scores: Mapping[str, float]
    correct: str | None = None


@dataclass(frozen=True, kw_only=True)
class CellParameters:
    """The numbers of parameters of a cell's model."""

    total: int
    trained: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class CellSeconds:
    """The duration of a cell: for training, for testing on all of its test sets, and in total."""

    training: float
    testing: float
    all: float


@dataclass(frozen=True, kw_only=True)
class ValidationScores:
    """The scores of a training on the validation part."""

    examples: int
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A finished training: one file in cells/. `layout` describes the fields."""

    id: str
    arm: str
    data: str
    fraction: float
    seed: int
    host: str
    donor: str | None
    tests: Mapping[str, TestScores]
    validation: ValidationScores
    history: tuple[Mapping[str, float], ...]
    best_epoch: int
    parameters: CellParameters
    train_examples: int
    seconds: CellSeconds
    device: str
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    finished: str


def read_cell(path: Path) -> CellResult:
    """Read a finished training.

    Raises:
        WorkspaceError: The file can't be read, or lacks a field.
    """
    return _read(CellResult, path, "which trains it again")


def read_failures(folder: StudyFolder) -> tuple[FailedCell, ...]:
    """Read all trainings of a folder that failed and have not succeeded since.

    Raises:
        WorkspaceError: A file can't be read, or lacks a field.
    """
    names = sorted(path.name for path in (folder.root / "cells").glob("*.failed.json"))
    unfinished = [name for name in names if not folder.result(name.removesuffix(".failed.json")).exists()]
    return tuple(_read(FailedCell, folder.path("cells", name), "which runs it again") for name in unfinished)


def read_summary(path: Path) -> Summary:
    """Read summary.json.

    Raises:
        WorkspaceError: The file can't be read, or lacks a field.
    """
    return _read(Summary, path, "which writes it again")


def read_selection(folder: StudyFolder) -> Selection | None:
    """Read selection.json in a study's folder; None if the file does not exist.

    Raises:
        WorkspaceError: The file can't be read, or lacks a field.
    """
    path = folder.path(SELECTION)
    return _read(Selection, path, "which writes it again") if path.exists() else None


def as_json(value: Any) -> dict[str, Any]:
    """Return a typed value as the content of its file: plain JSON types, with tuples as lists."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(value))
    return {"format": FORMAT, **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _read(kind: type[T], path: Path, effect: str) -> T:
    try:
        typed: T = _convert(kind, read_json(path), "")
    except _FieldError as error:
        folder = shlex.quote(str(path.parent.parent if path.parent.name == "cells" else path.parent))
        raise WorkspaceError(
            f"{path} {error}. Delete it and continue the study, {effect}: surgeon compare --output {folder}"
        ) from error
    return typed


class _FieldError(Exception):
    """A field of a file is missing, or has another type."""


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Convert a JSON value to the type `kind`; `name` is the name of the field, for messages."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        if value is None and len(options) < len(arguments):
            return None
        plain = [option for option in options if option in _PLAIN_TYPES]
        kind = next((option for option in plain if isinstance(value, _PLAIN_TYPES[option])), options[0])
        return _convert(kind, value, name)
    if dataclasses.is_dataclass(kind):
        return _convert_fields(kind, _check_type(Mapping, value, name), name)
    if origin is tuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        items = _check_type(Sequence, value, name)
        if origin is tuple and arguments[-1] is ...:
            return tuple(_convert(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(items))
        hints = list(get_type_hints(kind).values()) or list(arguments)
        if len(items) != len(hints):
            raise _FieldError(f"has {len(items)} values in {name}, but {len(hints)} are expected")
        typed = [_convert(hint, item, name) for hint, item in zip(hints, items, strict=True)]
        return tuple(typed) if origin is tuple else kind(*typed)
    if origin is Mapping or origin is dict:
        items = _check_type(Mapping, value, name)
        return {key: _convert(arguments[1], item, f"{name}.{key}") for key, item in items.items()}
    return _check_type(_PLAIN_TYPES.get(kind, object), value, name)


_PLAIN_TYPES: Mapping[Any, Any] = {str: str, bool: bool, int: int, float: (int, float)}


def _convert_fields(kind: Any, content: Mapping[str, Any], name: str) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        path = f"{name}.{field.name}" if name else field.name
        if field.name in content:
            values[field.name] = _convert(hints[field.name], content[field.name], path)
        elif field.default is dataclasses.MISSING:
            raise _FieldError(f"lacks {path}")
    if kind is TestScores and set(values.get("correct") or "") - set("01"):
        raise _FieldError(f"has a {name}.correct with other characters than 0 and 1")
    return kind(**values)


def _check_type(kind: Any, value: Any, name: str) -> Any:
    is_bool_for_number = isinstance(value, bool) and kind in (int, (int, float))
    if not isinstance(value, kind) or is_bool_for_number or (kind is Sequence and isinstance(value, str)):
        raise _FieldError(f"has {value!r:.60} as {name}, which has the wrong type")
    return value
