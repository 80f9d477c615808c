"""Open data that is read row by row: local files, Hub data sets, and objects of `datasets`."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import datasets.exceptions
import pyarrow

from layer_surgeon._folders import expand_home
from layer_surgeon._table_files import READERS, Row, check_streamable, count_rows, iterate_file, rows_to_columns
from layer_surgeon.checkpoint.sources.hub_errors import CLIENT_ERROR
from layer_surgeon.errors import ConfigError, DataError, LayerSurgeonError
from layer_surgeon.finetune.registry import find_dataset
from layer_surgeon.finetune.sources import (
    STDIN,
    DataLike,
    DataSplits,
    SplitReader,
    Table,
    class_names,
    find_by_name,
    first_sentence,
    is_hub_id,
)
from layer_surgeon.progress import Progress
from layer_surgeon.tasks import DEFAULT_TASK


@dataclass(frozen=True, kw_only=True)
class RowStream:
    """One split, which can be read several times from the beginning.

    Attributes:
        location: The name of the split in messages.
        begin: Starts a new pass over the rows.
        num_rows: Number of rows, if known without reading them.
        label_names: Class names by column, for columns whose class names the source declares.
        curated: Whether the data set is one that the user can't edit. Rows without text are then skipped; otherwise
            they are an error.
        is_near: Whether the data is on this machine, so counting its rows needs no network.
    """

    location: str
    begin: Callable[[], Iterator[Mapping[str, Any]]]
    num_rows: int | None = None
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    curated: bool = False
    is_near: bool = True

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield every row with its number, from 1.

        Raises:
            DataError: A row can't be read; the message has its number.
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
            raise DataError(f"{self.location} can't be read beyond row {number:,}: {first_sentence(error)}") from error

    def table(self, most: int | None = None) -> Table:
        """Load the first `most` rows, or all rows, into memory.

        Raises:
            DataError: A row can't be read, or does not have the columns of the first row.
        """
        rows = [dict(row) for _, row in itertools.islice(self.rows(), most)]
        columns = rows_to_columns(rows, self.location)
        return Table(columns=columns, location=self.location, label_names=self.label_names, curated=self.curated)


# A data set whose rows have not been read yet.
StreamedData: TypeAlias = DataSplits[RowStream]


def open_stream(data: DataLike, progress: Progress, *, task: str = DEFAULT_TASK) -> StreamedData:
    """Find a data set without reading its rows.

    Args:
        data: A name from the registry, a Hub id, one or more files, a folder of files, or a data set of `datasets`
            (iterable or not).
        progress: Receives a notice about a data set on the Hub.
        task: The task to use the data for.

    Raises:
        ConfigError: The data can be read only once (stdin), or is already in memory.
        DataError: The data set or file does not exist, or the registry lists it for another task.
    """
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        splits = {str(name): _stream_dataset(part, f"the given data set ({name})") for name, part in data.items()}
        return StreamedData(name="data", spec=(), splits=splits)
    if isinstance(data, datasets.Dataset | datasets.IterableDataset):
        return StreamedData(name="data", spec=(), splits={"train": _stream_dataset(data, "the given data set")})
    names = [data] if isinstance(data, str | os.PathLike) else data
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str | os.PathLike) for name in names):
        raise ConfigError(
            f"A {type(data).__name__} is already in memory. Turn streaming off, or pass a name, a Hub id, files, a "
            "folder, or a data set of the datasets library."
        )
    paths = [os.fspath(name) for name in names]
    if paths == [STDIN]:
        raise ConfigError(
            "stdin can be read only once, but streamed data is read again for every pass. Write the data to a file, or "
            "omit --streaming."
        )
    return find_by_name(paths, _STREAMS, progress, task)


def opens_on_hub(data: DataLike) -> bool:
    """Whether the data is on the Hub, where a split can be read without the others."""
    names = [data] if isinstance(data, str) else data
    if not isinstance(names, list | tuple) or len(names) != 1 or not isinstance(names[0], str):
        return False
    name = names[0]
    if Path(expand_home(name)).exists() or Path(name).suffix.lower() in READERS:
        return False
    record = find_dataset(name)
    return is_hub_id(name) if record is None else record.hub_id is not None


def _stream_files(paths: Sequence[Path], location: str, curated: bool) -> RowStream:
    for path in paths:
        check_streamable(path)
    counts = [count_rows(path) for path in paths]
    return RowStream(
        location=location,
        begin=functools.partial(_file_rows, tuple(paths)),
        num_rows=None if None in counts else sum(filter(None, counts)),
        curated=curated,
    )


def _file_rows(paths: Sequence[Path]) -> Iterator[Row]:
    expected_columns: set[str] | None = None
    for path in paths:
        has_rows = False
        for row in iterate_file(path):
            if not has_rows and expected_columns is not None and set(row) != expected_columns:
                raise DataError(
                    f"{path} has the columns {', '.join(row)}, but {paths[0]} has "
                    f"{', '.join(sorted(expected_columns))}. Files that are read together need the same columns."
                )
            expected_columns, has_rows = set(row) if expected_columns is None else expected_columns, True
            yield row
        if not has_rows:
            raise DataError(f"{path} has no rows. Add at least one row.")


def _stream_dataset(
    data: datasets.Dataset | datasets.IterableDataset,
    location: str,
    *,
    curated: bool = False,
    is_near: bool | None = None,
) -> RowStream:
    num_rows: int | None = None
    label_names, is_on_disk = class_names(data), isinstance(data, datasets.Dataset)
    if is_on_disk:
        num_rows = len(data)
        data = data.with_format("python").to_iterable_dataset()
    else:
        if curated:  # A stream of the caller may be a part of the split: take and filter keep the info of the whole.
            info = (data.info.splits or {}).get(str(data.split))
            num_rows = getattr(info, "num_examples", None) or None
        data = data.with_format(None)
    return RowStream(
        location=location,
        begin=functools.partial(iter, data),
        num_rows=num_rows,
        label_names=label_names,
        curated=curated,
        # An IterableDataset of the caller may read from anywhere.
        is_near=is_on_disk if is_near is None else is_near,
    )


_STREAMS = SplitReader(
    from_files=_stream_files, from_hub=functools.partial(_stream_dataset, curated=True, is_near=False), streaming=True
)
