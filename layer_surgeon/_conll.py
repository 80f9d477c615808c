"""Read files in CoNLL's format: one word per line, its label in the last column, a blank line between texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layer_surgeon.errors import DataError

SUFFIXES = (".conll", ".bio", ".iob")
# The line that starts a document in the files of CoNLL-2003.
_DOCUMENT = "-DOCSTART-"


def conll_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield `tokens` and `tags` of each text. Columns are separated by tabs or spaces; comments start with `# `.

    Raises:
        DataError: A line has no label, or fewer or more columns than the first one.
    """
    tokens: list[str] = []
    tags: list[str] = []
    width: int | None = None
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            columns = line.split("\t") if "\t" in line.strip() else line.split()
            columns = [column.strip() for column in columns]
            if not any(columns) or columns[0] == _DOCUMENT:
                if tokens:
                    yield {"tokens": tokens, "tags": tags}
                tokens, tags = [], []
                continue
            # A tab after # says that it is a word.
            if not tokens and (line.startswith("# ") or columns == ["#"]):
                continue
            width = width or len(columns)
            if len(columns) != width or width < 2:
                raise DataError(
                    f"{path}, line {number}: {len(columns)} columns; expected {max(width, 2)}: a word first and its "
                    "label last, separated by tabs or spaces. Put a blank line between two texts."
                )
            tokens.append(columns[0])
            tags.append(columns[-1])
    if tokens:
        yield {"tokens": tokens, "tags": tags}
