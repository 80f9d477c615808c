"""The JSON files of a study as typed values: cells/*.json, summary.json and selection.json are read and written here.

A file's fields are the fields of its dataclass, in the same order, after `format`. A file that lacks one is refused
with a message that names it.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from layer_surgeon._io import write_json
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.study.layout import FORMAT, SELECTION, StudyFolder, read_json
from layer_surgeon.study.selection import Selection
from layer_surgeon.study.tables import FailedCell, Summary

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TestScores:
    """What was measured on one test set.

    Attributes:
        examples: How many.
        scores: By metric.
        correct: One digit per example: 1 if it was right. None for tasks that don't classify.
    """

    __test__ = False  # Not a test class, whatever pytest thinks of its name.

    examples: int
    scores: Mapping[str, float]
    correct: str | None = None


@dataclass(frozen=True, kw_only=True)
class CellParameters:
    """Parameters of a cell's model."""

    total: int
    trained: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class CellSeconds:
    """How long a cell took: to train, to test on all of its test sets, and in all."""

    training: float
    testing: float
    all: float


@dataclass(frozen=True, kw_only=True)
class ValidationScores:
    """What was measured on the validation part."""

    examples: int
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A finished training: one file of cells/. `layout` says what each field holds."""

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
    """A finished training.

    Raises:
        WorkspaceError: The file can't be read, or lacks a field.
    """
    return _read(CellResult, path, "which trains it again")


def write_cell(path: Path, result: CellResult) -> None:
    """Write a finished training, whole or not at all.

    Raises:
        WorkspaceError: The folder can't be written.
    """
    write_json(path, as_json(result))


def read_cells(folder: StudyFolder) -> tuple[CellResult, ...]:
    """All finished trainings of a folder, in the order of their ids."""
    names = sorted(path.name for path in (folder.root / "cells").glob("*.json"))
    return tuple(read_cell(folder.path("cells", name)) for name in names if not name.endswith(".failed.json"))


def read_failures(folder: StudyFolder) -> tuple[FailedCell, ...]:
    """All trainings of a folder that failed and were not finished since."""
    names = sorted(path.name for path in (folder.root / "cells").glob("*.failed.json"))
    open_names = [name for name in names if not folder.result(name.removesuffix(".failed.json")).exists()]
    return tuple(_read(FailedCell, folder.path("cells", name), "which runs it again") for name in open_names)


def write_failure(path: Path, failure: FailedCell, finished: str) -> None:
    """Write why a training failed."""
    write_json(path, {**as_json(failure), "finished": finished})


def read_summary(path: Path) -> Summary:
    """summary.json.

    Raises:
        WorkspaceError: The file can't be read, or lacks a field.
    """
    return _read(Summary, path, "which writes it again")


def write_summary(path: Path, summary: Summary) -> None:
    """Write summary.json, whole or not at all.

    Raises:
        WorkspaceError: The folder can't be written.
    """
    write_json(path, as_json(summary))


def read_selection(folder: StudyFolder) -> Selection | None:
    """selection.json of a study's folder; None if there is none.

    Raises:
        WorkspaceError: The file can't be read, or lacks a field.
    """
    path = folder.path(SELECTION)
    return _read(Selection, path, "which writes it again") if path.exists() else None


def write_selection(folder: StudyFolder, selection: Selection) -> None:
    """Write selection.json, whole or not at all.

    Raises:
        WorkspaceError: The folder can't be written.
    """
    write_json(folder.path(SELECTION), as_json(selection))


def as_json(value: Any) -> dict[str, Any]:
    """A typed value as its file has it: plain JSON types, with tuples as lists."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(value))
    return {"format": FORMAT, **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def _read(kind: type[T], path: Path, how: str) -> T:
    try:
        typed: T = _typed(kind, read_json(path), "")
    except _FieldError as error:
        raise WorkspaceError(
            f"{path} {error}. Delete it and continue the study, {how}: surgeon compare --output "
            f"{path.parent.parent if path.parent.name == 'cells' else path.parent}"
        ) from error
    return typed


class _FieldError(Exception):
    """A field of a file is missing or of another type."""


def _typed(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as a value of the type `kind`; `name` is the field, for messages."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        if value is None and len(options) < len(arguments):
            return None
        plain = [option for option in options if option in _PLAIN_TYPES]
        kind = next((option for option in plain if isinstance(value, _PLAIN_TYPES[option])), options[0])
        return _typed(kind, value, name)
    if dataclasses.is_dataclass(kind):
        return _typed_fields(kind, _checked(Mapping, value, name), name)
    if origin is tuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        entries = _checked(Sequence, value, name)
        if origin is tuple and arguments[-1] is ...:
            return tuple(_typed(arguments[0], entry, f"{name}[{index}]") for index, entry in enumerate(entries))
        hints = list(get_type_hints(kind).values()) or list(arguments)
        if len(entries) != len(hints):
            raise _FieldError(f"has {len(entries)} values in {name}, where {len(hints)} are expected")
        typed = [_typed(hint, entry, name) for hint, entry in zip(hints, entries, strict=True)]
        return tuple(typed) if origin is tuple else kind(*typed)
    if origin is Mapping or origin is dict:
        entries = _checked(Mapping, value, name)
        return {key: _typed(arguments[1], entry, f"{name}.{key}") for key, entry in entries.items()}
    return _checked(_PLAIN_TYPES.get(kind, object), value, name)


_PLAIN_TYPES: Mapping[Any, Any] = {str: str, bool: bool, int: int, float: (int, float)}


def _typed_fields(kind: Any, content: Mapping[str, Any], name: str) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        path = f"{name}.{field.name}" if name else field.name
        if field.name in content:
            values[field.name] = _typed(hints[field.name], content[field.name], path)
        elif field.default is dataclasses.MISSING:
            raise _FieldError(f"lacks {path}")
    return kind(**values)


def _checked(kind: Any, value: Any, name: str) -> Any:
    is_bool_for_number = isinstance(value, bool) and kind in (int, (int, float))
    if not isinstance(value, kind) or is_bool_for_number or (kind is Sequence and isinstance(value, str)):
        raise _FieldError(f"has {value!r:.60} as {name}, which is of another type")
    return value
