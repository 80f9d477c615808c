"""A checkpoint that is named by the list of its parts, wherever each of them lies."""

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from layer_surgeon.checkpoint.sources.base import Chunk, Source
from layer_surgeon.checkpoint.sources.shards import WEIGHTS
from layer_surgeon.errors import SourceChangedError, SourceError

_MAGIC = b"GGUF"
# What a piece of a file that was cut is called: model.gguf.part00, model.gguf-split-a, model.gguf.part1of2.
_CUT_NAME = re.compile(r"(.+?\.gguf)[.-].+", re.IGNORECASE)


class PartsSource:
    """Several files as one place: the parts of a split model, each under its own name.

    Args:
        parts: The place and the name of each file, in the order in which they were given.

    Raises:
        SourceError: Two files have the same name.
        SourceChangedError: They are of different commits.
    """

    def __init__(self, parts: Sequence[tuple[Source, str]]) -> None:
        self._places = {file: source for source, file in parts}
        if len(self._places) != len(parts):
            names = [file for _, file in parts]
            twice = next(name for name in names if names.count(name) > 1)
            raise SourceError(f"Two of the {len(parts)} parts are called {twice}. Name every part once.")
        self.files = tuple(self._places)
        """The parts' names, in the order in which they were given."""
        self._first = parts[0][0]
        self.name, self.kind = self._first.name, self._first.kind
        self.commit = _one_commit(parts)
        self.connections = max(source.connections for source, _ in parts)

    def list_files(self) -> dict[str, int | None]:
        """The parts, and what lies beside the first one that is not another checkpoint: licence, model card."""
        found: dict[str, int | None] = {
            file: size for file, size in self._first.list_files().items() if not file.endswith(WEIGHTS)
        }
        for file, source in self._places.items():
            found[file] = source.list_files().get(file)
        return found

    def size(self, file: str) -> int:
        """The size of `file` in bytes."""
        return self._place(file).size(file)

    def version(self, file: str) -> str | None:
        """What the part's own place says."""
        return self._place(file).version(file)

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """The whole of a small file."""
        return self._place(file).read_file(file, max_bytes)

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        return self._place(file).read_range(file, start, length)

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Exactly `length` bytes from `start`, in chunks."""
        return self._place(file).stream_range(file, start, length)

    def _place(self, file: str) -> Source:
        return self._places.get(file, self._first)


class CutSource:
    """One file that was cut into pieces, as sites with a limit to files make people do it; read as if it were whole.

    Args:
        parts: The place and the name of each piece, in their order.

    Raises:
        SourceChangedError: They are of different commits.
    """

    def __init__(self, parts: Sequence[tuple[Source, str]]) -> None:
        self._parts = list(parts)
        self._first = parts[0][0]
        match = _CUT_NAME.fullmatch(parts[0][1])
        self.file = match[1] if match is not None else f"{parts[0][1]}.gguf"
        """What the whole is called: the first piece's name without what says that it is a piece."""
        self.name = f"{self._first.name.removesuffix(parts[0][1])}{self.file}"
        self.kind = self._first.kind
        self.commit = _one_commit(parts)
        self.connections = max(source.connections for source, _ in parts)
        self._ends = list(accumulate(source.size(file) for source, file in parts))

    def list_files(self) -> dict[str, int | None]:
        """The whole file, and what lies beside the first piece that is not another checkpoint."""
        pieces = {file for _, file in self._parts}
        found: dict[str, int | None] = {
            file: size
            for file, size in self._first.list_files().items()
            if file not in pieces and not file.endswith(WEIGHTS) and _CUT_NAME.fullmatch(file) is None
        }
        return found | {self.file: self._ends[-1]}

    def size(self, file: str) -> int:
        """The size of `file` in bytes."""
        return self._ends[-1] if file == self.file else self._first.size(file)

    def version(self, file: str) -> str | None:
        """What the pieces' places say of all of them; None where one says nothing."""
        if file != self.file:
            return self._first.version(file)
        versions = [source.version(part) for source, part in self._parts]
        known = [version for version in versions if version is not None]
        return " ".join(known) if len(known) == len(versions) else None

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """The whole of a small file beside the pieces."""
        return self._first.read_file(file, max_bytes)

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        return b"".join(bytes(chunk) for chunk in self.stream_range(file, start, length))

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Exactly `length` bytes from `start`, in chunks, from as many pieces as they lie in."""
        if file != self.file:
            yield from self._first.stream_range(file, start, length)
            return
        end = start + length
        if start < 0 or length < 0 or end > self._ends[-1]:
            raise SourceError(
                f"The {len(self._parts)} parts of {self.name} have {self._ends[-1]:,} bytes together, but bytes "
                f"{start:,} to {end:,} are wanted. A part is missing or truncated."
            )
        index = bisect_right(self._ends, start)
        while start < end:
            source, part = self._parts[index]
            begin = self._ends[index - 1] if index else 0
            stop = min(end, self._ends[index])
            if stop > start:
                yield from source.stream_range(part, start - begin, stop - start)
            start, index = stop, index + 1


def join_parts(sources: Sequence[Source], names: Sequence[str | os.PathLike[str]]) -> Source:
    """One place out of several that hold a file each.

    Parts that each begin as a GGUF file are those of a split model, in any order; else they are pieces of one file
    that was cut, in their order.

    Raises:
        SourceError: A name is not that of one file, or a file can't be read.
    """
    parts = [(source, _only_file(source, name)) for source, name in zip(sources, names, strict=True)]
    for source, file in parts[1:]:
        if source.size(file) < len(_MAGIC) or source.read_range(file, 0, len(_MAGIC)) != _MAGIC:
            return CutSource(parts)
    return PartsSource(parts)


def _only_file(source: Source, name: str | os.PathLike[str]) -> str:
    """The name of the one file that was named, in its place."""
    last = os.fspath(name).partition("?")[0].rstrip("/").rpartition("/")[2]
    if source.kind == "folder" or last not in source.list_files():
        raise SourceError(f"{os.fspath(name)} is no single file. In a list of parts, name the file of every part.")
    return last


def _one_commit(parts: Sequence[tuple[Source, str]]) -> str | None:
    commits = {source.commit for source, _ in parts}
    if len(commits) > 1:
        found = ", ".join(sorted(str(commit)[:12] for commit in commits))
        raise SourceChangedError(
            f"The parts are of different commits ({found}). Name a revision, so that all are read at the same one."
        )
    return commits.pop()
