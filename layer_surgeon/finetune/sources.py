"""Find and load the data that the user names. The result is its splits, with their columns unchanged."""

import functools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
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


# A data set in memory.
RawData: TypeAlias = DataSplits[Table]


@dataclass(frozen=True, kw_only=True)
class SplitReader(Generic[_Split]):
    """How the splits of a named data set are read.

    Attributes:
        from_files: Makes a split of files, from its name in messages and whether it is curated.
        from_hub: Makes a split of one of the datasets library, from its name in messages.
        streaming: Whether the datasets library should read no rows yet.
    """

    from_files: Callable[[list[Path], str, bool], _Split]
    from_hub: Callable[[Any, str], _Split]
    streaming: bool


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
        data = [data]
    if isinstance(data, Mapping):
        return _from_splits(data)
    if not isinstance(data, Sequence):
        raise DataError(
            f"The data has the type {type(data).__name__}. Expected a name, files, a datasets.Dataset, or rows."
        )
    if not data:
        raise DataError("The data is an empty list. Pass at least one row.")
    if all(isinstance(item, str | os.PathLike) for item in data):
        names = [os.fspath(item) for item in data]
        if names == [STDIN]:
            table = Table(columns=read_stream(sys.stdin.buffer), location="stdin")
            return RawData(name="stdin", spec=(), splits={"train": table})
        return find_by_name(names, _TABLES, progress or NullProgress(), task)
    return RawData(name="data", spec=(), splits={"train": _rows_table(data, "the given rows")})


def task_of_data(data: DataLike) -> str | None:
    """The task that the registry lists for a named data set; None for all other data."""
    names = [data] if isinstance(data, str) else data if isinstance(data, Sequence) else []
    if len(names) != 1 or not isinstance(names[0], str) or Path(names[0]).is_file():
        return None
    record = find_dataset(names[0])
    return record.trained_as if record is not None else None


def find_by_name(
    names: Sequence[str], reader: SplitReader[_Split], progress: Progress, task: str
) -> DataSplits[_Split]:
    """Find a data set by its name in the registry, its Hub id, its folder or its files.

    Args:
        names: One name, or several files.
        reader: How its splits are read.
        progress: Receives a notice about a data set on the Hub.
        task: The task to use the data for.

    Raises:
        DataError: It does not exist or can't be read, or the registry lists it for another task.
    """
    name, path = names[0], Path(expand_home(names[0]))
    if "" in names:
        raise DataError("The name of a data set or file is empty.")
    if len(names) > 1:
        return _from_files(names, reader)
    record = None if path.is_file() else find_dataset(name)
    if record is not None:
        record.check(task)
        packaged = record.packaged_path()
        if packaged is None:
            return _from_hub(record.hub_id or name, record, reader, progress)
        split = reader.from_files([packaged], record.name, True)
        return DataSplits(name=record.name, spec=(record.name,), splits={"train": split}, record=record)
    if path.is_dir():
        groups = _group_files(path).items()
        splits = {split: reader.from_files(files, " + ".join(map(str, files)), False) for split, files in groups}
        return DataSplits(name=short_name(path.resolve().name), spec=(str(path.resolve()),), splits=splits)
    if path.exists() or path.suffix.lower() in READERS:
        return _from_files(names, reader)
    if is_hub_id(name):
        return _from_hub(name, None, reader, progress)
    similar = similar_names(name)
    hint = f"Did you mean {' or '.join(similar)}? " if similar else f"The data sets are: {', '.join(DATASETS)}. "
    raise DataError(f"There is no data set or file {name!r}. {hint}A Hub id has the form owner/name.")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub id; call this only for names that are not files."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _from_files(names: Sequence[str], reader: SplitReader[_Split]) -> DataSplits[_Split]:
    paths = [Path(expand_home(name)) for name in names]
    spec = tuple(str(path.resolve()) for path in paths)
    splits = {"train": reader.from_files(paths, " + ".join(names), False)}
    return DataSplits(name=short_name(paths[0].with_suffix("").name), spec=spec, splits=splits)


def _from_hub(
    hub_id: str, record: DatasetRecord | None, reader: SplitReader[_Split], progress: Progress
) -> DataSplits[_Split]:
    loaded = _load_from_hub(hub_id, record, progress, streaming=reader.streaming)
    name = record.name if record else short_name(hub_id)
    splits = {str(split): reader.from_hub(part, f"{name} ({split})") for split, part in loaded.items()}
    return DataSplits(name=name, spec=(record.name if record else hub_id,), splits=splits, record=record)


def _group_files(folder: Path) -> dict[str, list[Path]]:
    """Group the files of a folder by split, from their names: train.csv, dev.jsonl, test-00000-of-00002.parquet, ...

    Raises:
        DataError: The folder has no readable file, or files of the datasets library.
    """
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        raise DataError(
            f"{folder} was written by save_to_disk of the datasets library. Save the data with to_parquet or to_json, "
            "or pass datasets.load_from_disk(...) in Python."
        )
    files = find_files(folder) or find_files(folder / "data")
    if not files:
        raise DataError(f"{folder} contains no data files. Supported formats: {', '.join(READERS)}.")
    groups: dict[str, list[Path]] = {}
    for path in files:
        stem = _SHARD.sub("", path.stem).lower()
        groups.setdefault("validation" if stem in _VALIDATION_NAMES else stem, []).append(path)
    return {"train": files} if len(groups) == 1 else groups


def _load_from_hub(hub_id: str, record: DatasetRecord | None, progress: Progress, *, streaming: bool) -> Any:
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


def _files_table(paths: list[Path], location: str, curated: bool) -> Table:
    return Table(columns=read_files(paths), location=location, curated=curated)


_TABLES = SplitReader(
    from_files=_files_table, from_hub=functools.partial(_datasets_table, curated=True), streaming=False
)


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
