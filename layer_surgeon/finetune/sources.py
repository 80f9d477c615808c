"""What a person names as data -> the splits it has, with their columns as they are."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import datasets
import datasets.exceptions

from layer_surgeon._loading import load_dataset
from layer_surgeon.errors import DataError
from layer_surgeon.finetune.config import TaskName
from layer_surgeon.finetune.files import READERS, Columns, find_files, read_files, read_stream, rows_to_columns
from layer_surgeon.finetune.registry import DATASETS, DatasetRecord, find_dataset, similar_names
from layer_surgeon.graft.translate import first_line
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import short_name

# A name or file, several files or rows, splits; or what the datasets library makes (Any: it is untyped here).
DataLike: TypeAlias = str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any] | Any

_Split = TypeVar("_Split")

STDIN = "-"
_VALIDATION_NAMES = ("validation", "valid", "val", "dev")
# The number of a file of several: -00000-of-00002, -1, _2.
_SHARD = re.compile(r"[-_.]\d+([-_]of[-_]\d+)?$")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One split as it was found.

    Attributes:
        columns: Column name -> values, all equally many.
        place: What to call it in a message: a file, or a data set and its split.
        label_names: Column name -> names of its class ids, where the source itself says them.
        curated: It comes from a data set that the user can't edit: rows without text are left out, not refused.
    """

    columns: Columns
    place: str
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    curated: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


@dataclass(frozen=True, kw_only=True)
class DataSplits(Generic[_Split]):
    """A data set before its columns and labels were looked at.

    Attributes:
        name: A short name that can be part of a folder's name.
        spec: What the user named, if it can be named again (a name, a Hub id, absolute file paths); else empty.
        splits: Split name -> its rows; at least one.
        record: The row of the registry it was found by.
    """

    name: str
    spec: tuple[str, ...]
    splits: Mapping[str, _Split]
    record: DatasetRecord | None = None

    @property
    def train(self) -> _Split:
        """The training split: by the registry, by name, or the only one.

        Raises:
            DataError: There are several splits, and none is it.
        """
        wanted = self.record.train if self.record is not None else "train"
        if wanted not in self.splits and len(self.splits) != 1:
            raise DataError(f"{self.name} has no split called {wanted}, but {', '.join(self.splits)}.")
        return self.splits[wanted] if wanted in self.splits else next(iter(self.splits.values()))

    @property
    def validation(self) -> _Split | None:
        """The validation split, if there is one."""
        names = (self.record.validation or "",) if self.record is not None else _VALIDATION_NAMES
        return next((self.splits[name] for name in names if name in self.splits), None)

    @property
    def test(self) -> _Split | None:
        """The test split, if there is one."""
        wanted = self.record.test if self.record is not None else "test"
        return self.splits.get(wanted or "")

    def choose(self, split: str | None = None) -> _Split:
        """The split to measure on: the named one; else test; else the only one.

        Raises:
            DataError: There is no such split, or several and none is the test.
        """
        if split is not None and split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}, but {', '.join(self.splits)}.")
        found = self.splits[split] if split is not None else self.test
        if found is None and len(self.splits) != 1:
            raise DataError(f"{self.name} has no test split, but {', '.join(self.splits)}. Say which with --split.")
        return next(iter(self.splits.values())) if found is None else found


class RawData(DataSplits[Table]):
    """A data set in memory."""


def load_data(data: DataLike, progress: Progress | None = None, *, task: TaskName = "text-classification") -> RawData:
    """Find and read a data set.

    Args:
        data: A name from the registry, a Hub id, one file or several, a folder of them, "-" for stdin, a
            `datasets.Dataset` or `DatasetDict`, a list of rows (dicts), or a dict of splits.
        progress: Told what is loaded from the Hub.
        task: What it is wanted for.

    Raises:
        DataError: There is no such data set or file, it can't be read, or it is known to be for another task.
    """
    if isinstance(data, datasets.DatasetDict | datasets.Dataset):
        return _from_datasets(data)
    if isinstance(data, datasets.IterableDatasetDict | datasets.IterableDataset):
        raise DataError(f"A {type(data).__name__} is read row by row: say so (streaming=True). Only training data can.")
    if isinstance(data, str | os.PathLike):
        return _from_name(os.fspath(data), progress or NullProgress(), task)
    if isinstance(data, Mapping):
        return _from_splits(data)
    if not isinstance(data, Sequence):
        raise DataError(f"A {type(data).__name__} is no data set: give a name, files, a datasets.Dataset, or rows.")
    if not data:
        raise DataError("The data is an empty list: it has no rows.")
    if all(isinstance(entry, str | os.PathLike) for entry in data):
        paths = [os.fspath(entry) for entry in data]
        return _from_name(paths[0], progress or NullProgress(), task) if len(paths) == 1 else _from_files(paths)
    return RawData(name="data", spec=(), splits={"train": _rows_table(data, "the given rows")})


def task_of_data(data: DataLike) -> TaskName | None:
    """The task that a named data set is for; None for data that can be for any."""
    names = [data] if isinstance(data, str) else data if isinstance(data, Sequence) else []
    if len(names) != 1 or not isinstance(names[0], str) or Path(names[0]).is_file():
        return None
    record = find_dataset(names[0])
    return record.trained_as if record is not None else None


def _from_name(name: str, progress: Progress, task: TaskName) -> RawData:
    record = find_dataset(name) if not Path(name).is_file() else None
    if record is not None:
        record.check(task)
        packaged = record.packaged_path()
        if packaged is None:
            return _from_hub(record.hub_id or name, record, progress)
        table = Table(columns=read_files([packaged]), place=record.name, curated=True)
        return RawData(name=record.name, spec=(record.name,), splits={"train": table}, record=record)
    if name == STDIN:
        table = Table(columns=read_stream(sys.stdin.buffer, "stdin"), place="stdin")
        return RawData(name="stdin", spec=(), splits={"train": table})
    if Path(name).expanduser().is_dir():
        return _from_folder(Path(name).expanduser())
    if Path(name).exists() or Path(name).suffix.lower() in READERS:
        return _from_files([name])
    if is_hub_id(name):
        return _from_hub(name, None, progress)
    raise no_such_data(name)


def no_such_data(name: str) -> DataError:
    """What to say of a name that is nothing."""
    similar = similar_names(name)
    hint = f"Did you mean {' or '.join(similar)}? " if similar else f"Names: {', '.join(DATASETS)}. "
    return DataError(f"There is no data set called {name!r}, and no such file. {hint}A Hub id has the form owner/name.")


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file has the form of a Hub id."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _from_files(names: Sequence[str]) -> RawData:
    paths = [Path(name).expanduser() for name in names]
    table = Table(columns=read_files(paths), place=" + ".join(names))
    spec = tuple(str(path.resolve()) for path in paths)
    return RawData(name=short_name(paths[0].with_suffix("").name), spec=spec, splits={"train": table})


def _from_folder(folder: Path) -> RawData:
    splits = {
        name: Table(columns=read_files(paths), place=" + ".join(map(str, paths)))
        for name, paths in group_files(folder).items()
    }
    return RawData(name=short_name(folder.resolve().name), spec=(str(folder.resolve()),), splits=splits)


def group_files(folder: Path) -> dict[str, list[Path]]:
    """Files whose names say which split they are: train.csv, dev.jsonl, test-00000-of-00002.parquet, ...

    Raises:
        DataError: The folder has no file that can be read.
    """
    files = find_files(folder) or find_files(folder / "data")
    if not files:
        raise DataError(f"{folder} has no data: none of its files ends in {', '.join(READERS)}.")
    groups: dict[str, list[Path]] = {}
    for path in files:
        stem = _SHARD.sub("", path.stem).lower()
        groups.setdefault("validation" if stem in _VALIDATION_NAMES else stem, []).append(path)
    return {"train": files} if len(groups) == 1 else groups


def _from_hub(hub_id: str, record: DatasetRecord | None, progress: Progress) -> RawData:
    loaded = load_from_hub(hub_id, record, progress)
    name = record.name if record else short_name(hub_id)
    splits = {str(split): _datasets_table(table, f"{name} ({split})", curated=True) for split, table in loaded.items()}
    return RawData(name=name, spec=(record.name if record else hub_id,), splits=splits, record=record)


def load_from_hub(hub_id: str, record: DatasetRecord | None, progress: Progress, *, streaming: bool = False) -> Any:
    """What the datasets library makes of a Hub id: a dict of splits. `streaming`: nothing of the rows is loaded yet.

    Raises:
        DataError: It can't be had.
    """
    subset, revision = (record.subset, record.revision) if record else (None, None)
    progress.notice(f"Loading {hub_id}{f' ({subset})' if subset else ''} from the Hub.")
    try:
        return load_dataset(hub_id, subset, revision=revision, **({"streaming": True} if streaming else {}))
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The data set {hub_id} can't be loaded from the Hub: {first_sentence(error)} Check the id and the "
            "network; for a gated one, ask for access on its page and log in with `hf auth login`."
        ) from error


def first_sentence(error: Exception) -> str:
    """The first line of a library's message, as a sentence."""
    line = first_line(error)
    return line if line.endswith((".", "!", "?")) else line + "."


def _from_datasets(data: datasets.Dataset | datasets.DatasetDict) -> RawData:
    splits = data if isinstance(data, datasets.DatasetDict) else {"train": data}
    tables = {str(name): _datasets_table(table, f"the given data set ({name})") for name, table in splits.items()}
    return RawData(name="data", spec=(), splits=tables)


def _datasets_table(table: datasets.Dataset, place: str, *, curated: bool = False) -> Table:
    columns: Columns = table.with_format("python").to_dict()
    return Table(columns=columns, place=place, label_names=class_names(table), curated=curated)


def class_names(data: datasets.Dataset | datasets.IterableDataset) -> dict[str, tuple[str, ...]]:
    """Column name -> names of its class ids, where the data set says them."""
    return {
        column: tuple(feature.names)
        for column, feature in (data.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }


def _from_splits(data: Mapping[str, Any]) -> RawData:
    splits: dict[str, Table] = {}
    for name, part in data.items():
        if isinstance(part, datasets.Dataset):
            splits[str(name)] = _datasets_table(part, f"the given data set ({name})")
        elif isinstance(part, Sequence) and not isinstance(part, str):
            splits[str(name)] = _rows_table(part, f"the given rows ({name})")
        else:
            raise DataError(f"Split {name!r} is a {type(part).__name__}; it must be a datasets.Dataset or rows.")
    if not splits:
        raise DataError("The data is an empty dict: it has no splits.")
    return RawData(name="data", spec=(), splits=splits)


def _rows_table(rows: Sequence[Any], place: str) -> Table:
    if not all(isinstance(row, Mapping) for row in rows):
        odd = next(type(row).__name__ for row in rows if not isinstance(row, Mapping))
        raise DataError(f'In {place}: a row is a {odd}; rows are dicts such as {{"text": "...", "label": 0}}.')
    return Table(columns=rows_to_columns([dict(row) for row in rows], place), place=place)
