"""Find and load the data that the user names. The result is its splits, with their columns unchanged."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import datasets
import datasets.exceptions

from layer_surgeon._folders import expand_home
from layer_surgeon._loading import load_dataset
from layer_surgeon._table_files import READERS, Columns, find_files, read_files, read_stream, rows_to_columns
from layer_surgeon._text import first_line
from layer_surgeon.errors import DataError
from layer_surgeon.finetune.registry import DATASETS, DatasetRecord, find_dataset, similar_names
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.tasks import DEFAULT_TASK
from layer_surgeon.workspace import short_name

# A name, a file, several files, rows, a dict of splits, or an object of the datasets library (Any: untyped here).
DataLike: TypeAlias = str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any] | Any

# What the rows of a split are for.
Role = Literal["train", "validation", "test"]
_Split = TypeVar("_Split")

STDIN = "-"
_VALIDATION_NAMES = ("validation", "valid", "val", "dev")
_NAMES: Mapping[Role, tuple[str, ...]] = {"train": ("train",), "validation": _VALIDATION_NAMES, "test": ("test",)}
# Shard number in a file name: -00000-of-00002, -1, _2.
_SHARD = re.compile(r"[-_.]\d+([-_]of[-_]\d+)?$")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One split as loaded from its source.

    Attributes:
        columns: Values by column name. All columns have the same length.
        location: The name of the split in messages: a file, or a data set and its split.
        label_names: Class names by column, for columns whose class names the source declares.
        curated: Whether the data set is one that the user can't edit. Rows without text are then skipped; otherwise
            they are an error.
    """

    columns: Columns
    location: str
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    curated: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


@dataclass(frozen=True, kw_only=True)
class DataSplits(Generic[_Split]):
    """A data set whose columns and labels have not been examined yet.

    Attributes:
        name: A short name that can be part of a folder name.
        spec: How to name the data again: a name, a Hub id or absolute file paths. Empty for data in memory and stdin.
        splits: Rows by split name; at least one split.
        record: The data set's record in the registry, if it has one.
    """

    name: str
    spec: tuple[str, ...]
    splits: Mapping[str, _Split]
    record: DatasetRecord | None = None

    @property
    def train(self) -> _Split:
        """The training split: the one named in the registry, else `train`, else the only split.

        Raises:
            DataError: There are several splits, and none of them is the training split.
        """
        return self.choose(role="train")

    @property
    def validation(self) -> _Split | None:
        """The validation split; None if there is none, or if it is the only split, which is the training split."""
        return self._other("validation")

    @property
    def test(self) -> _Split | None:
        """The test split; None if there is none, or if it is the only split, which is the training split."""
        return self._other("test")

    def choose(self, split: str | None = None, *, role: Role = "test") -> _Split:
        """Choose a split: `split` if given, else that of the role, as in `split_name`.

        Raises:
            DataError: `split` does not exist, or there are several splits and none for the role.
        """
        if split is not None and split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}. Its splits are: {', '.join(self.splits)}.")
        return self.splits[split if split is not None else self.split_name(role)]

    def split_name(self, role: Role) -> str:
        """Return the name of the split for a role; for validation without one, of the test split; else of the only one.

        Raises:
            DataError: There are several splits, and none for the role.
        """
        name = self._own_name(role) or (self._own_name("test") if role == "validation" else "")
        if not name and len(self.splits) != 1:
            choice = "Choose one of its splits with --split (surgeon evaluate), or name" if role == "test" else "Name"
            raise DataError(
                f"{self.name} has no {role} split. Its splits are: {', '.join(self.splits)}. {choice} a file with "
                "these rows."
            )
        return name or next(iter(self.splits))

    def _other(self, role: Role) -> _Split | None:
        return self.splits.get(self._own_name(role)) if len(self.splits) > 1 else None

    def _own_name(self, role: Role) -> str:
        names = _NAMES[role] if self.record is None else (getattr(self.record, role) or "",)
        return next((name for name in names if name in self.splits), "")


class RawData(DataSplits[Table]):
    """A data set in memory."""


def load_data(data: DataLike, progress: Progress | None = None, *, task: str = DEFAULT_TASK) -> RawData:
    """Find a data set and load it into memory.

    Args:
        data: A name from the registry, a Hub id, one or more files, a folder of files, "-" for stdin, a
            `datasets.Dataset` or `DatasetDict`, a list of rows (dicts), or a dict of splits.
        progress: Receives a notice about a download from the Hub.
        task: The task to load the data for.

    Raises:
        DataError: The data set or file does not exist or can't be read, or the registry lists it for another task.
    """
    if isinstance(data, datasets.DatasetDict | datasets.Dataset):
        return _from_datasets(data)
    if isinstance(data, datasets.IterableDatasetDict | datasets.IterableDataset):
        raise DataError(
            f"A {type(data).__name__} can only be streamed. Set streaming=True; only training data can be streamed."
        )
    if isinstance(data, str | os.PathLike):
        return _from_name(os.fspath(data), progress or NullProgress(), task)
    if isinstance(data, Mapping):
        return _from_splits(data)
    if not isinstance(data, Sequence):
        raise DataError(
            f"The data has the type {type(data).__name__}. Expected a name, files, a datasets.Dataset, or rows."
        )
    if not data:
        raise DataError("The data is an empty list. Pass at least one row.")
    if all(isinstance(item, str | os.PathLike) for item in data):
        paths = [os.fspath(item) for item in data]
        return _from_name(paths[0], progress or NullProgress(), task) if len(paths) == 1 else _from_files(paths)
    return RawData(name="data", spec=(), splits={"train": _rows_table(data, "the given rows")})


def task_of_data(data: DataLike) -> str | None:
    """The task that the registry lists for a named data set; None for all other data."""
    names = [data] if isinstance(data, str) else data if isinstance(data, Sequence) else []
    if len(names) != 1 or not isinstance(names[0], str) or Path(names[0]).is_file():
        return None
    record = find_dataset(names[0])
    return record.trained_as if record is not None else None


def _from_name(name: str, progress: Progress, task: str) -> RawData:
    record = find_dataset(name) if not Path(name).is_file() else None
    if record is not None:
        record.check(task)
        packaged = record.packaged_path()
        if packaged is None:
            return _from_hub(record.hub_id or name, record, progress)
        table = Table(columns=read_files([packaged]), location=record.name, curated=True)
        return RawData(name=record.name, spec=(record.name,), splits={"train": table}, record=record)
    if name == STDIN:
        table = Table(columns=read_stream(sys.stdin.buffer, "stdin"), location="stdin")
        return RawData(name="stdin", spec=(), splits={"train": table})
    if Path(expand_home(name)).is_dir():
        return _from_folder(Path(expand_home(name)))
    if Path(name).exists() or Path(name).suffix.lower() in READERS:
        return _from_files([name])
    if is_hub_id(name):
        return _from_hub(name, None, progress)
    raise no_such_data(name)


def no_such_data(name: str) -> DataError:
    """Make the error for a name that is neither a data set nor a file."""
    similar = similar_names(name)
    hint = f"Did you mean {' or '.join(similar)}? " if similar else f"The data sets are: {', '.join(DATASETS)}. "
    return DataError(f"There is no data set or file {name!r}. {hint}A Hub id has the form owner/name.")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub id; call this only for names that are not files."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _from_files(names: Sequence[str]) -> RawData:
    paths = [Path(expand_home(name)) for name in names]
    table = Table(columns=read_files(paths), location=" + ".join(names))
    spec = tuple(str(path.resolve()) for path in paths)
    return RawData(name=short_name(paths[0].with_suffix("").name), spec=spec, splits={"train": table})


def _from_folder(folder: Path) -> RawData:
    splits = {
        name: Table(columns=read_files(paths), location=" + ".join(map(str, paths)))
        for name, paths in group_files(folder).items()
    }
    return RawData(name=short_name(folder.resolve().name), spec=(str(folder.resolve()),), splits=splits)


def group_files(folder: Path) -> dict[str, list[Path]]:
    """Group the files of a folder by split, from their names: train.csv, dev.jsonl, test-00000-of-00002.parquet, ...

    Raises:
        DataError: The folder has no readable file.
    """
    files = find_files(folder) or find_files(folder / "data")
    if not files:
        raise DataError(f"{folder} contains no data files. Supported formats: {', '.join(READERS)}.")
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
    """Load a Hub data set with the datasets library, as a dict of splits. With `streaming`, no rows are loaded yet.

    Raises:
        DataError: The data set can't be loaded.
    """
    subset, revision = (record.subset, record.revision) if record else (None, None)
    progress.notice(f"Loading {hub_id}{f' ({subset})' if subset else ''} from the Hub.")
    try:
        return load_dataset(hub_id, subset, revision=revision, **({"streaming": True} if streaming else {}))
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The data set {hub_id} can't be loaded from the Hub: {first_sentence(error)} Check the id and your "
            "network. If the data set is gated, request access on its page and log in with `hf auth login`."
        ) from error


def first_sentence(error: Exception) -> str:
    """The first line of an error message, with a final period."""
    line = first_line(error)
    return line if line.endswith((".", "!", "?")) else line + "."


def _from_datasets(data: datasets.Dataset | datasets.DatasetDict) -> RawData:
    splits = data if isinstance(data, datasets.DatasetDict) else {"train": data}
    tables = {str(name): _datasets_table(table, f"the given data set ({name})") for name, table in splits.items()}
    return RawData(name="data", spec=(), splits=tables)


def _datasets_table(table: datasets.Dataset, location: str, *, curated: bool = False) -> Table:
    columns: Columns = table.with_format("python").to_dict()
    return Table(columns=columns, location=location, label_names=class_names(table), curated=curated)


def class_names(data: datasets.Dataset | datasets.IterableDataset) -> dict[str, tuple[str, ...]]:
    """Class names by column, for the columns that the data set declares as class labels or lists of them."""
    labels = {column: getattr(feature, "feature", feature) for column, feature in (data.features or {}).items()}
    return {column: tuple(label.names) for column, label in labels.items() if isinstance(label, datasets.ClassLabel)}


def _from_splits(data: Mapping[str, Any]) -> RawData:
    splits: dict[str, Table] = {}
    for name, part in data.items():
        if isinstance(part, datasets.Dataset):
            splits[str(name)] = _datasets_table(part, f"the given data set ({name})")
        elif isinstance(part, Sequence) and not isinstance(part, str):
            splits[str(name)] = _rows_table(part, f"the given rows ({name})")
        else:
            raise DataError(
                f"Split {name!r} has the type {type(part).__name__}; it must be a datasets.Dataset or a list of rows."
            )
    if not splits:
        raise DataError("The data is an empty dict. Pass at least one split.")
    return RawData(name="data", spec=(), splits=splits)


def _rows_table(rows: Sequence[Any], location: str) -> Table:
    if not all(isinstance(row, Mapping) for row in rows):
        wrong_type = next(type(row).__name__ for row in rows if not isinstance(row, Mapping))
        raise DataError(
            f"{location} contain a row of the type {wrong_type}. Rows must be dicts, such as "
            '{"text": "...", "label": 0}.'
        )
    return Table(columns=rows_to_columns([dict(row) for row in rows], location), location=location)
