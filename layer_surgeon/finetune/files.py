"""Rows from local CSV, TSV, JSON Lines and Parquet files.

Read directly and not through the cache of `datasets`: a file that was edited is then never answered with its old rows,
nothing is left in a cache folder, and a bad line is named by its number.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from layer_surgeon.errors import DataError

Columns = dict[str, list[Any]]

# The csv module refuses cells above 128 KiB, and a long document may well be one.
_LARGEST_CELL = 1 << 26


def read_file(path: Path) -> Columns:
    """The columns of one file, told apart by its suffix: .csv, .tsv, .jsonl, .ndjson, .json, .parquet.

    Raises:
        DataError: The file is missing, empty, unreadable, has no rows, or has a suffix that is not known.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name the files in it: train.csv, or several of them.")
    if not path.exists():
        raise DataError(f"There is no file {path}. {_neighbours(path)}")
    if suffix not in READERS:
        raise DataError(f"{path} has the suffix {suffix or 'of nothing'!r}; these can be read: {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). It needs a text column, a label column and rows.")
    try:
        columns = READERS[suffix](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start} can't be decoded). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    if not columns or not len(next(iter(columns.values()))):
        raise DataError(f"{path} has no rows{' below its header' if columns else ''}. Add some.")
    return columns


def find_files(folder: Path) -> list[Path]:
    """The readable files of a folder, by name; none where there is no folder."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in READERS and path.is_file()]


def read_stream(stream: BinaryIO, place: str) -> Columns:
    """What comes in a stream: JSON lines, Parquet, tab-separated or CSV, told apart by how it begins.

    Raises:
        DataError: As `read_file`.
    """
    content = stream.read()
    begin = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    first_line = begin.split(b"\n", 1)[0]
    suffix = ".tsv" if b"\t" in first_line else ".csv"
    if begin.startswith(b"PAR1"):
        suffix = ".parquet"
    elif begin[:1] in (b"{", b"["):
        suffix = ".json"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdin{suffix}"
        path.write_bytes(content)
        try:
            return read_file(path)
        except DataError as error:
            raise DataError(str(error).replace(str(path), place)) from error


def read_files(paths: list[Path]) -> Columns:
    """Several files, one after the other.

    Raises:
        DataError: A file can't be read, or has other columns than the first.
    """
    tables = [read_file(path) for path in paths]
    first = tables[0]
    for path, table in zip(paths[1:], tables[1:], strict=True):
        if set(table) != set(first):
            raise DataError(
                f"{path} has the columns {', '.join(table)}, and {paths[0]} has {', '.join(first)}. "
                "Files that are read together need the same columns."
            )
    return {name: [value for table in tables for value in table[name]] for name in first}


def _read_csv(path: Path, delimiter: str = ",") -> Columns:
    csv.field_size_limit(_LARGEST_CELL)
    # newline="": line ends inside quotes belong to the cell. utf-8-sig: spreadsheets write a mark before the header.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError(f"{path} names a column twice in its header: {', '.join(header)}.")
            cells: list[list[str]] = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)} "
                        f"({', '.join(header)}). Put cells that hold a {delimiter!r} into double quotes."
                    )
                cells.append(row)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error
    return {name: [row[index] for row in cells] for index, name in enumerate(header)}


def _read_tsv(path: Path) -> Columns:
    return _read_csv(path, delimiter="\t")


def _read_jsonl(path: Path) -> Columns:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_parse_row(path, number, line))
    return rows_to_columns(rows, str(path))


def _parse_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}).") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: a {type(row).__name__}; every line must be an object with columns.")
    return row


def _read_json(path: Path) -> Columns:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("{"):
        squad = _squad_rows(text)
        return rows_to_columns(squad, str(path)) if squad else _read_jsonl(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}).") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must be a list of objects, or one object per line.")
    return rows_to_columns(rows, str(path))


def _squad_rows(text: str) -> list[dict[str, Any]]:
    """The questions of a file in the form in which SQuAD is published; none for any other file."""
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
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def rows_to_columns(rows: list[dict[str, Any]], place: str) -> Columns:
    """Columns of a list of rows that all have the same keys.

    Raises:
        DataError: A row lacks a key, or has one more.
    """
    names = list(rows[0]) if rows else []
    for number, row in enumerate(rows, start=1):
        if row.keys() != set(names):
            odd = sorted(row.keys() ^ set(names), key=str)
            raise DataError(f"{place}, row {number}: other columns than in row 1 ({', '.join(map(str, odd))}).")
    return {str(name): [row[name] for row in rows] for name in names}


def _read_parquet(path: Path) -> Columns:
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    columns: Columns = table.to_pydict()
    return columns


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    files: Iterator[str] = (p.name for p in sorted(path.parent.iterdir()) if p.suffix.lower() in READERS)
    names = list(files)[:8]
    return f"The folder {path.parent} has: {', '.join(names)}." if names else f"The folder {path.parent} has no data."


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
