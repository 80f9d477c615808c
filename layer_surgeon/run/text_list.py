"""Read texts: from CSV, TSV, JSON Lines, Parquet and text files, a Hub data set, or a list."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon._folders import expand_home
from layer_surgeon._loading import load_dataset
from layer_surgeon._table_files import READERS, read_files
from layer_surgeon._text import first_line, is_unicode
from layer_surgeon.errors import DataError
from layer_surgeon.progress import Progress

TextsLike = str | os.PathLike[str] | Sequence[str]

_TEXT_SUFFIX = ".txt"
# Names of a column of texts, the most likely first.
_COLUMNS = ("text", "sentence", "content", "document")


@dataclass(frozen=True, kw_only=True)
class TextList:
    """Texts and where they came from.

    Attributes:
        texts: The texts; at least one, none of them empty.
        location: Their file, data set or list, for messages.
    """

    texts: tuple[str, ...]
    location: str


def read_texts(texts: TextsLike, column: str | None, progress: Progress) -> TextList:
    """Read texts.

    Args:
        texts: A file (.csv, .tsv, .jsonl, .ndjson, .json, .parquet; .txt with a text per line), the id of a data set
            on the Hub, whose training split is read, or a list of texts.
        column: The column with the texts. None: `text`, or another usual name, or the only column.
        progress: Receives a notice about a download from the Hub.

    Raises:
        DataError: The texts can't be read, or there are none.
    """
    if not isinstance(texts, str | os.PathLike):
        return _check(list(texts), "the list of texts")
    name = os.fspath(texts)
    path = Path(expand_home(name))
    if path.suffix.lower() == _TEXT_SUFFIX:
        return _check(_read_lines(path), name)
    try:
        exists = path.exists()
    except OSError as error:
        raise DataError(
            f"{name[:60]!r} can't be the name of a file ({error.strerror or error}). Give texts as a list."
        ) from error
    if path.suffix.lower() in READERS or exists or name.count("/") != 1:
        if not exists and path.suffix.lower() not in READERS:
            raise DataError(
                f"There is no file {name}. Expected a .txt file or one of {', '.join(READERS)}, or the id of a data "
                "set on the Hub (owner/name)."
            )
        return _check(_choose_column(read_files([path]), column, name), name)
    return _check(_choose_column(_read_hub(name, progress), column, name), name)


def _read_lines(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}. Check its name.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start} can't be decoded). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    return [line for line in content.split("\n") if line.strip()]


def _read_hub(hub_id: str, progress: Progress) -> Mapping[str, Sequence[Any]]:
    from datasets.exceptions import DatasetsError  # takes a second, which local files should not cost

    progress.notice(f"Loading {hub_id} from the Hub.")
    try:
        splits = load_dataset(hub_id)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"There is no file {hub_id}, and the data set {hub_id} can't be loaded from the Hub: {first_line(error)} "
            "Check the name and your network."
        ) from error
    if "train" not in splits and len(splits) != 1:
        raise DataError(
            f"{hub_id} has no split 'train', but {', '.join(map(str, splits))}. Save one of them to a file."
        )
    split = splits["train"] if "train" in splits else next(iter(splits.values()))
    columns: Mapping[str, Sequence[Any]] = split.with_format("python").to_dict()
    return columns


def _choose_column(columns: Mapping[str, Sequence[Any]], column: str | None, location: str) -> list[Any]:
    if column is None:
        usual = [name for name in _COLUMNS if name in columns]
        column = usual[0] if usual else next(iter(columns)) if len(columns) == 1 else None
    if column is None or column not in columns:
        raise DataError(
            f"{location} has {f'no column {column!r}' if column else 'several columns'}; its columns are "
            f"{', '.join(columns)}. Name the one with the texts with --text-column."
        )
    return list(columns[column])


def _check(texts: list[Any], location: str) -> TextList:
    if not texts:
        raise DataError(f"{location} has no texts. Add at least one.")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            described = "is empty" if isinstance(text, str) else f"has the type {type(text).__name__}"
            raise DataError(f"Text {number} of {location} {described}; each text must be a non-empty string.")
        if not is_unicode(text):
            raise DataError(f"Text {number} of {location} has half a character (a lone surrogate). Correct the text.")
    return TextList(texts=tuple(texts), location=location)
