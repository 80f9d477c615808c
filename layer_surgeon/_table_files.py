"""Read rows from local CSV, TSV, JSON Lines, Parquet and CoNLL files.

Files are read directly and not through `datasets`, whose cache can return old rows of an edited file. This also leaves
nothing in a cache folder, and errors can name the bad line by its number.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from layer_surgeon._conll import SUFFIXES, conll_rows
from layer_surgeon._io import write_bytes
from layer_surgeon.errors import DataError

Columns = dict[str, list[Any]]
Row = dict[str, Any]

# The csv module rejects cells above 128 KiB by default, which is too small for long documents.
_LARGEST_CELL = 1 << 26
# Number of rows of a streamed Parquet file to hold in memory at a time.
_PARQUET_ROWS = 1000


def read_file(path: Path) -> Columns:
    """Read the columns of a file. The suffix decides the format, as in `READERS`.

    Raises:
        DataError: The file is missing, empty, unreadable, has no rows, or has an unknown suffix.
    """
    check_file(path)
    with _reading(path):
        columns = READERS[path.suffix.lower()](path)
    if not columns or not len(next(iter(columns.values()))):
        raise DataError(f"{path} has no rows{' below its header' if columns else ''}. Add at least one row.")
    return columns


def check_file(path: Path) -> None:
    """Check that a file can be read, without reading it.

    Raises:
        DataError: The file is missing or empty, or has an unknown suffix.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name its files instead, such as {path / 'train.csv'}.")
    if not path.exists():
        raise DataError(f"There is no file {path}. {_neighbours(path)}")
    if suffix not in READERS:
        found = f"has the unknown suffix {suffix!r}" if suffix else "has no suffix"
        raise DataError(f"{path} {found}. Supported formats: {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). It must have a text column, a label column and rows.")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start} can't be decoded). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error


def check_streamable(path: Path) -> None:
    """Check that a file can be read row by row, without reading it.

    Raises:
        DataError: `check_file` rejects the file, or its format can only be read as a whole.
    """
    check_file(path)
    if path.suffix.lower() not in ITERATORS:
        raise DataError(
            f"{path} can't be streamed: a {path.suffix} file can only be read as a whole. If each line is an object, "
            f"rename the file to .jsonl; otherwise omit --streaming. Formats for streaming: {', '.join(ITERATORS)}."
        )


def iterate_file(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV, TSV, JSONL or Parquet file, with the same values as `read_file`.

    Raises:
        DataError: `check_streamable` rejects the file, or a bad row is reached.
    """
    check_streamable(path)
    with _reading(path):
        yield from ITERATORS[path.suffix.lower()](path)


def count_rows(path: Path) -> int | None:
    """Read the number of rows from the metadata of a Parquet file; None for other formats.

    Raises:
        DataError: The file has the suffix .parquet but is not a Parquet file.
    """
    if path.suffix.lower() != ".parquet":
        return None
    with _reading(path), _parquet_errors(path) as parquet:
        return int(parquet.read_metadata(path).num_rows)


def find_files(folder: Path) -> list[Path]:
    """List the readable files of a folder, sorted by name, without hidden ones; empty if it does not exist."""
    if not folder.is_dir():
        return []
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in names if path.suffix.lower() in READERS and path.is_file()]


def read_stream(stream: BinaryIO) -> Columns:
    """Read the columns of a stream. Its first bytes decide the format: JSON Lines, JSON, Parquet, TSV or CSV.

    Raises:
        DataError: As `read_file`; the message calls the stream "stdin".
    """
    content = stream.read()
    stripped = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line = stripped.split(b"\n", 1)[0]
    suffix = ".tsv" if b"\t" in first_line else ".csv"
    if stripped.startswith(b"PAR1"):
        suffix = ".parquet"
    elif stripped[:1] in (b"{", b"["):
        suffix = ".json"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdin{suffix}"
        write_bytes(path, content)
        try:
            return read_file(path)
        except DataError as error:
            raise DataError(str(error).replace(str(path), "stdin")) from error


def read_files(paths: list[Path]) -> Columns:
    """Read several files and concatenate their rows.

    Raises:
        DataError: A file can't be read, or does not have the columns of the first file.
    """
    tables = [read_file(path) for path in paths]
    first = tables[0]
    for path, table in zip(paths[1:], tables[1:], strict=True):
        if set(table) != set(first):
            raise DataError(
                f"{path} has the columns {', '.join(table)}, but {paths[0]} has {', '.join(first)}. "
                "Files that are read together need the same columns."
            )
    return {name: [value for table in tables for value in table[name]] for name in first}


def _read_csv(path: Path, delimiter: str = ",") -> Columns:
    rows = _cells(path, delimiter)
    header, cells = next(rows), list(rows)
    return {name: [row[index] for row in cells] for index, name in enumerate(header)}


def _cells(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Yield the header, then every row."""
    csv.field_size_limit(_LARGEST_CELL)
    # newline="": line breaks inside quotes belong to the cell. utf-8-sig: spreadsheets write a BOM before the header.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            _check_header(path, header)
            yield header
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)} "
                        f"({', '.join(header)}). Put double quotes around cells that contain {delimiter!r}."
                    )
                if delimiter == "\t" and any(_holds_rows(cell, len(header)) for cell in row):
                    raise DataError(
                        f"{path}, line {reader.line_num}: a cell that begins with a double quote goes on over several "
                        'rows. Put such cells in double quotes and write "" for each quote in them, or save the data '
                        "as JSON Lines."
                    )
                yield row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error


def _holds_rows(cell: str, num_columns: int) -> bool:
    """Whether a quoted cell of a TSV file looks like several rows, because the file doesn't use quotes as CSV does."""
    num_breaks = cell.count("\n")
    return num_columns > 1 and num_breaks > 0 and cell.count("\t") == num_breaks * (num_columns - 1)


def _check_header(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"{path} has a duplicate column in its header: {', '.join(names)}.")


def _csv_rows(path: Path, delimiter: str = ",") -> Iterator[Row]:
    rows = _cells(path, delimiter)
    header = next(rows)
    return (dict(zip(header, row, strict=True)) for row in rows)


def _tsv_rows(path: Path) -> Iterator[Row]:
    return _csv_rows(path, delimiter="\t")


def _read_tsv(path: Path) -> Columns:
    return _read_csv(path, delimiter="\t")


def _read_jsonl(path: Path) -> Columns:
    return rows_to_columns(list(_jsonl_rows(path)), str(path))


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse_row(path, number, line)


def _parse_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: the JSON can't be read ({error}).") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number}: found a {type(row).__name__}; every line must be an object that maps columns to "
            "values."
        )
    return row


def _read_conll(path: Path) -> Columns:
    return rows_to_columns(list(conll_rows(path)), str(path))


def _read_json(path: Path) -> Columns:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("{"):
        squad = _squad_rows(text)
        return rows_to_columns(squad, str(path)) if squad else _read_jsonl(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the JSON can't be read ({error}).") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must contain a list of objects, or one object per line.")
    return rows_to_columns(rows, str(path))


def _squad_rows(text: str) -> list[dict[str, Any]]:
    """Read the questions of a file in SQuAD's published format; empty if the file has another format."""
    try:
        content = json.loads(text)
        return [
            {
                "id": question["id"],
                "title": article.get("title", ""),
                "context": paragraph["context"],
                "question": question["question"],
                "answers": [] if question.get("is_impossible") else question["answers"],
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []


def rows_to_columns(rows: list[dict[str, Any]], location: str) -> Columns:
    """Convert a list of rows with equal keys to columns.

    Raises:
        DataError: A row does not have the same keys as the first row.
    """
    names = list(rows[0]) if rows else []
    for number, row in enumerate(rows, start=1):
        if row.keys() != set(names):
            differing = ", ".join(map(str, sorted(row.keys() ^ set(names), key=str)))
            raise DataError(f"{location}, row {number}: the columns differ from those of row 1 ({differing}).")
    return {str(name): [row[name] for row in rows] for name in names}


def _read_parquet(path: Path) -> Columns:
    with _parquet_errors(path) as parquet:
        _check_header(path, parquet.read_schema(path).names)
        table = parquet.read_table(path)
    columns: Columns = table.to_pydict()
    return columns


def _parquet_rows(path: Path) -> Iterator[Row]:
    with _parquet_errors(path) as parquet, parquet.ParquetFile(path) as file:
        _check_header(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            yield from batch.to_pylist()


@contextmanager
def _parquet_errors(path: Path) -> Iterator[Any]:
    """Yield `pyarrow.parquet`, whose errors become ours. Importing it takes 30 MB, which other formats don't need."""
    import pyarrow
    import pyarrow.parquet

    try:
        yield pyarrow.parquet
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _neighbours(path: Path) -> str:
    """Describe the folder of a missing file, for an error message."""
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either."
    names = [file.name for file in find_files(path.parent)]
    similar = get_close_matches(path.name, names, n=1)
    if similar:
        return f"Did you mean {similar[0]}?"
    names = names[:8]
    contents = f"contains {', '.join(names)}" if names else "contains no data files"
    return f"The folder {path.parent} {contents}."


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    **dict.fromkeys(SUFFIXES, _read_conll),
}

# Formats that can be read row by row.
ITERATORS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".parquet": _parquet_rows,
    **dict.fromkeys(SUFFIXES, conll_rows),
}
