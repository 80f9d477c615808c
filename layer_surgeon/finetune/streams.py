"""Data that is read row by row and never held as a whole: local files, data sets of the Hub, those of `datasets`."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import datasets.exceptions
import pyarrow

from layer_surgeon.checkpoint.sources.hub_errors import CLIENT_ERROR
from layer_surgeon.errors import ConfigError, DataError, LayerSurgeonError
from layer_surgeon.finetune.config import TaskName
from layer_surgeon.finetune.files import READERS, Row, check_streamable, count_rows, iterate_file, rows_to_columns
from layer_surgeon.finetune.registry import DatasetRecord, find_dataset
from layer_surgeon.finetune.sources import (
    STDIN,
    DataLike,
    DataSplits,
    Table,
    class_names,
    first_sentence,
    group_files,
    is_hub_id,
    load_from_hub,
    no_such_data,
)
from layer_surgeon.progress import Progress
from layer_surgeon.workspace import short_name


@dataclass(frozen=True, kw_only=True)
class RowStream:
    """One split that is read from its beginning as often as it is wanted.

    Attributes:
        location: What to call it in a message.
        begin: Starts a new pass over the rows.
        num_rows: How many there are, where that is known without reading them.
        label_names: Column name -> names of its class ids, where the source itself says them.
        curated: It comes from a data set that the user can't edit: rows without text are left out, not refused.
        is_near: It lies on this machine, so that counting its rows costs no network.
    """

    location: str
    begin: Callable[[], Iterator[Mapping[str, Any]]]
    num_rows: int | None = None
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    curated: bool = False
    is_near: bool = True

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Every row with its number, from 1 on.

        Raises:
            DataError: A row can't be read; the message says which.
        """
        number = 0
        try:
            for number, row in enumerate(self.begin(), start=1):
                yield number, row
        except LayerSurgeonError:
            raise
        except (
            datasets.exceptions.DatasetsError,
            pyarrow.ArrowException,
            CLIENT_ERROR,
            OSError,
            ValueError,
            RuntimeError,
        ) as error:
            raise DataError(
                f"{self.location} can't be read on after row {number:,}: {first_sentence(error)}"
            ) from error

    def table(self, most: int | None = None) -> Table:
        """The first `most` rows, or all of them, in memory.

        Raises:
            DataError: A row can't be read, or has other columns than the first one.
        """
        rows = [dict(row) for _, row in itertools.islice(self.rows(), most)]
        columns = rows_to_columns(rows, self.location)
        return Table(columns=columns, location=self.location, label_names=self.label_names, curated=self.curated)


class StreamedData(DataSplits[RowStream]):
    """A data set of which nothing but its description was read."""


def open_stream(data: DataLike, progress: Progress, *, task: TaskName = "text-classification") -> StreamedData:
    """Find a data set, without reading its rows.

    Args:
        data: A name from the registry, a Hub id, one file or several, a folder of them, or a data set of `datasets`,
            be it an iterable one or one that lies in Arrow files.
        progress: Told what is opened on the Hub.
        task: What it is wanted for.

    Raises:
        ConfigError: It can be read only once (stdin), or is in memory anyway.
        DataError: There is no such data set or file, or it is known to be for another task.
    """
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        splits = {str(name): _of_datasets(part, f"the given data set ({name})") for name, part in data.items()}
        return StreamedData(name="data", spec=(), splits=splits)
    if isinstance(data, datasets.Dataset | datasets.IterableDataset):
        return StreamedData(name="data", spec=(), splits={"train": _of_datasets(data, "the given data set")})
    names = [data] if isinstance(data, str | os.PathLike) else data
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str | os.PathLike) for name in names):
        raise ConfigError(
            f"A {type(data).__name__} is in memory already: leave streaming out. Names, Hub ids, files, folders and "
            "data sets of the datasets library can be streamed."
        )
    paths = [os.fspath(name) for name in names]
    return _from_name(paths[0], progress, task) if len(paths) == 1 else _from_files(paths)


def opens_on_hub(data: DataLike) -> bool:
    """Whether it is a name that leads to the Hub, where a split can be had without the others."""
    names = [data] if isinstance(data, str) else data
    if not isinstance(names, list | tuple) or len(names) != 1 or not isinstance(names[0], str):
        return False
    name = names[0]
    if Path(name).expanduser().exists() or Path(name).suffix.lower() in READERS:
        return False
    record = find_dataset(name)
    return is_hub_id(name) if record is None else record.hub_id is not None


def _from_name(name: str, progress: Progress, task: TaskName) -> StreamedData:
    path = Path(name).expanduser()
    record = find_dataset(name) if not path.is_file() else None
    if record is not None:
        record.check(task)
        packaged = record.packaged_path()
        if packaged is None:
            return _from_hub(record.hub_id or name, record, progress)
        stream = _of_files([packaged], record.name, curated=True)
        return StreamedData(name=record.name, spec=(record.name,), splits={"train": stream}, record=record)
    if name == STDIN:
        raise ConfigError(
            "stdin can be read only once, and streamed data is read again for every pass. Write it into a file, or "
            "leave --streaming out."
        )
    if path.is_dir():
        splits = {split: _of_files(files) for split, files in group_files(path).items()}
        return StreamedData(name=short_name(path.resolve().name), spec=(str(path.resolve()),), splits=splits)
    if path.exists() or path.suffix.lower() in READERS:
        return _from_files([name])
    if is_hub_id(name):
        return _from_hub(name, None, progress)
    raise no_such_data(name)


def _from_files(names: Sequence[str]) -> StreamedData:
    paths = [Path(name).expanduser() for name in names]
    stream = _of_files(paths, " + ".join(names))
    spec = tuple(str(path.resolve()) for path in paths)
    return StreamedData(name=short_name(paths[0].with_suffix("").name), spec=spec, splits={"train": stream})


def _of_files(paths: Sequence[Path], location: str = "", *, curated: bool = False) -> RowStream:
    for path in paths:
        check_streamable(path)
    counts = [count_rows(path) for path in paths]
    return RowStream(
        location=location or " + ".join(map(str, paths)),
        begin=functools.partial(_file_rows, tuple(paths)),
        num_rows=None if None in counts else sum(filter(None, counts)),
        curated=curated,
    )


def _file_rows(paths: Sequence[Path]) -> Iterator[Row]:
    first: set[str] | None = None
    for path in paths:
        begun = False
        for row in iterate_file(path):
            if not begun and first is not None and set(row) != first:
                raise DataError(
                    f"{path} has the columns {', '.join(row)}, and {paths[0]} has {', '.join(sorted(first))}. "
                    "Files that are read together need the same columns."
                )
            first, begun = set(row) if first is None else first, True
            yield row
        if not begun:
            raise DataError(f"{path} has no rows. Add some.")


def _from_hub(hub_id: str, record: DatasetRecord | None, progress: Progress) -> StreamedData:
    loaded = load_from_hub(hub_id, record, progress, streaming=True)
    name = record.name if record else short_name(hub_id)
    splits = {
        str(split): _of_datasets(part, f"{name} ({split})", curated=True, is_near=False)
        for split, part in loaded.items()
    }
    return StreamedData(name=name, spec=(record.name if record else hub_id,), splits=splits, record=record)


def _of_datasets(
    data: datasets.Dataset | datasets.IterableDataset,
    location: str,
    *,
    curated: bool = False,
    is_near: bool | None = None,
) -> RowStream:
    count: int | None = None
    names, known = class_names(data), isinstance(data, datasets.Dataset)
    if known:
        count = len(data)
        data = data.with_format("python").to_iterable_dataset()
    else:
        info = (data.info.splits or {}).get(str(data.split))
        count = getattr(info, "num_examples", None) or None
        data = data.with_format(None)
    return RowStream(
        location=location,
        begin=functools.partial(iter, data),
        num_rows=count,
        label_names=names,
        curated=curated,
        # Where a stream of somebody else's comes from is not known.
        is_near=known if is_near is None else is_near,
    )
