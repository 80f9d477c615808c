"""Read a checkpoint that is given as a list of parts, which may come from different sources."""

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from layer_surgeon.checkpoint.sources.base import Chunk, Source
from layer_surgeon.checkpoint.sources.shards import WEIGHTS
from layer_surgeon.errors import SourceChangedError, SourceError

_MAGIC = b"GGUF"
# Names of the pieces of a file that was cut: model.gguf.part00, model.gguf-split-a, model.gguf.part1of2.
_CUT_NAME = re.compile(r"(.+?\.gguf)[.-].+", re.IGNORECASE)


class PartsSource:
    """The parts of a split model as one source, each file under its own name.

    Args:
        parts: The source and name of each file, in the order in which the user gave them.

    Raises:
        SourceError: Two files have the same name.
        SourceChangedError: The files come from different commits.
    """

    def __init__(self, parts: Sequence[tuple[Source, str]]) -> None:
        self._source_of_part = {file: source for source, file in parts}
        if len(self._source_of_part) != len(parts):
            names = [file for _, file in parts]
            twice = next(name for name in names if names.count(name) > 1)
            raise SourceError(f"Two of the {len(parts)} parts are called {twice}. Give every part once.")
        self.files = tuple(self._source_of_part)
        """The names of the parts, in the order in which the user gave them."""
        self._first = parts[0][0]
        self.name, self.kind, self.repo_id = self._first.name, self._first.kind, self._first.repo_id
        self.commit = _one_commit(parts)
        self.connections = max(source.connections for source, _ in parts)

    def list_files(self) -> dict[str, int | None]:
        """Return the parts, and the files next to the first part that are not weights: licence, model card."""
        sizes: dict[str, int | None] = {
            file: size for file, size in self._first.list_files().items() if not file.endswith(WEIGHTS)
        }
        for file, source in self._source_of_part.items():
            sizes[file] = source.list_files().get(file)
        return sizes

    def size(self, file: str) -> int:
        """Return the size of `file` in bytes."""
        return self._source_of(file).size(file)

    def version(self, file: str) -> str | None:
        """Return the version that the part's own source reports."""
        return self._source_of(file).version(file)

    def sha256(self, file: str) -> str | None:
        """Return the sha256 that the part's own source knows."""
        return self._source_of(file).sha256(file)

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """Return the whole content of a small file."""
        return self._source_of(file).read_file(file, max_bytes)

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        return self._source_of(file).read_range(file, start, length)

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Yield exactly `length` bytes from `start`, in chunks."""
        return self._source_of(file).stream_range(file, start, length)

    def pieces(self, file: str) -> list[tuple[Source, str]]:
        """Return the source and name of what `file` is read from."""
        return [(self._source_of(file), file)]

    def _source_of(self, file: str) -> Source:
        return self._source_of_part.get(file, self._first)


class CutSource:
    """A file that was cut into pieces, for example to fit an upload limit, read as if it were whole.

    Args:
        parts: The source and name of each piece, in the order of the bytes.
        file: The name of the whole file. Default: the first piece's name without the suffix that marks it as a piece.
        name: What the user typed. Default: the path of the whole file.

    Raises:
        SourceChangedError: The pieces come from different commits.
    """

    def __init__(
        self, parts: Sequence[tuple[Source, str]], *, file: str | None = None, name: str | None = None
    ) -> None:
        self._parts = list(parts)
        self._first = parts[0][0]
        match = _CUT_NAME.fullmatch(parts[0][1])
        self.file = file or (match[1] if match is not None else f"{parts[0][1]}.gguf")
        """The name of the whole file."""
        self.name = name or f"{self._first.name.removesuffix(parts[0][1])}{self.file}"
        self.kind, self.repo_id = self._first.kind, self._first.repo_id
        self.commit = _one_commit(parts)
        self.connections = max(source.connections for source, _ in parts)
        self._ends = list(accumulate(source.size(file) for source, file in parts))

    def list_files(self) -> dict[str, int | None]:
        """Return the whole file, and the files next to the first piece that are not weights."""
        pieces = {file for _, file in self._parts}
        sizes: dict[str, int | None] = {
            file: size
            for file, size in self._first.list_files().items()
            if file not in pieces and not file.endswith(WEIGHTS) and _CUT_NAME.fullmatch(file) is None
        }
        return sizes | {self.file: self._ends[-1]}

    def size(self, file: str) -> int:
        """Return the size of `file` in bytes."""
        return self._ends[-1] if file == self.file else self._first.size(file)

    def version(self, file: str) -> str | None:
        """Return the versions of all pieces, joined; None if the version of any piece is unknown."""
        versions = [source.version(part) for source, part in self.pieces(file)]
        known = [version for version in versions if version is not None]
        return " ".join(known) if len(known) == len(versions) else None

    def pieces(self, file: str) -> list[tuple[Source, str]]:
        """Return the source and name of each piece that `file` is read from, in the order of the bytes."""
        return self._parts if file == self.file else [(self._first, file)]

    def sha256(self, file: str) -> str | None:
        """Return None for the whole file, of which only the pieces have hashes."""
        return None if file == self.file else self._first.sha256(file)

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """Return the whole content of a small file next to the pieces."""
        return self._first.read_file(file, max_bytes)

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        return b"".join(bytes(chunk) for chunk in self.stream_range(file, start, length))

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Yield exactly `length` bytes from `start`, in chunks, across as many pieces as needed."""
        if file != self.file:
            yield from self._first.stream_range(file, start, length)
            return
        end = start + length
        if start < 0 or length < 0 or end > self._ends[-1]:
            raise SourceError(
                f"The {len(self._parts)} parts of {self.name} have {self._ends[-1]:,} bytes together, but bytes "
                f"{start:,} to {end:,} were requested. A part is missing or truncated: get the parts again."
            )
        index = bisect_right(self._ends, start)
        while start < end:
            source, part = self._parts[index]
            piece_start = self._ends[index - 1] if index else 0
            stop = min(end, self._ends[index])
            if stop > start:
                yield from source.stream_range(part, start - piece_start, stop - start)
            start, index = stop, index + 1


def join_parts(sources: Sequence[Source], names: Sequence[str | os.PathLike[str]]) -> Source:
    """Join several sources, each with one file, into one source.

    If every part begins with the GGUF magic number, the parts are a split model, and their order does not matter.
    Otherwise they are pieces of one file, in the order of its bytes.

    Args:
        sources: The opened source of each part.
        names: The path or URL of each part, as the user typed it.

    Raises:
        SourceError: A name does not refer to a single file, or a file can't be read.
    """
    parts = [(source, _only_file(source, name)) for source, name in zip(sources, names, strict=True)]
    for source, file in parts[1:]:
        if source.size(file) < len(_MAGIC) or source.read_range(file, 0, len(_MAGIC)) != _MAGIC:
            return CutSource(parts)
    return PartsSource(parts)


def _only_file(source: Source, name: str | os.PathLike[str]) -> str:
    """Return the name, within its source, of the one file that `name` refers to."""
    file = getattr(source, "file", None) or os.fspath(name).partition("?")[0].rstrip("/").rpartition("/")[2]
    if source.kind == "folder" or file not in source.list_files():
        raise SourceError(f"{os.fspath(name)} is not a single file. A list of parts must name the file of every part.")
    return file


def _one_commit(parts: Sequence[tuple[Source, str]]) -> str | None:
    commits = {source.commit for source, _ in parts}
    if len(commits) > 1:
        listed = ", ".join(sorted(str(commit)[:12] for commit in commits))
        raise SourceChangedError(
            f"The parts come from different commits ({listed}). Give a revision, so all are read at the same commit."
        )
    return commits.pop()
