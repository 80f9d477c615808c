"""What is already known to be good of a file that is still being written, so that a later run goes on from there.

Beside the growing file lies a journal: one line per stretch that was written, with its CRC-32. A line or a stretch that
a power cut tore does not match, and is read again. The first line tells what is being extracted from where: another
commit, another plan, and everything starts over.
"""

import json
import os
import threading
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from layer_surgeon._io import parse_json
from layer_surgeon.checkpoint.sources import CHUNK_BYTES
from layer_surgeon.extract.plan import ExtractionPlan, Piece

# How much of a piece is written between two lines: what is read again after a kill, for each connection.
STRETCH_BYTES = 4 << 20


class Journal:
    """The journal of one file of weights.

    Args:
        path: The journal's file; made when it is missing.
        identity: Says what is extracted from where. A journal with another one is started over.
        plan: The plan of the file.
        descriptor: The file of weights, open for reading.
    """

    def __init__(self, path: Path, identity: str, plan: ExtractionPlan, descriptor: int) -> None:
        self._lock = threading.Lock()
        lines = _read_lines(path)
        good = [0] * len(plan.pieces)
        same = bool(lines) and lines[0] == {"identity": identity}
        if same:
            for line in lines[1:]:
                _apply(line, plan, good, descriptor)
        self.good = tuple(good)
        """How many source bytes of each piece are in the file already, from the piece's start."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | (0 if same else os.O_TRUNC)
        self._file = os.open(path, flags, 0o666)
        # A line that was torn has no end: what follows begins on a line of its own.
        self._write_line({"identity": identity} if not same else None)

    def add(self, index: int, start: int, end: int, crc: int) -> None:
        """Record that source bytes `start` to `end` of a piece were written, with the CRC-32 of what they became."""
        self._write_line({"piece": index, "start": start, "end": end, "crc": crc})

    def close(self) -> None:
        """Close the journal's file."""
        os.close(self._file)

    def _write_line(self, content: dict[str, Any] | None) -> None:
        line = b"\n" if content is None else json.dumps(content).encode() + b"\n"
        with self._lock:
            os.write(self._file, line)


def plan_identity(where: object, plan: ExtractionPlan) -> str:
    """What must be equal for two runs to be parts of one: the source, and every byte of the plan."""
    pieces = [(piece.range.file, piece.range.start, piece.range.length) for piece in plan.pieces]
    return sha256(repr((where, plan.header, pieces)).encode()).hexdigest()


def extents(piece: Piece, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the source bytes `start` to `end` of a piece lie in the artifact's file, as (offset, length)."""
    position = 0
    for segment in piece.segments:
        first, last = max(start, position), min(end, position + segment.length)
        if first < last:
            block, out_block = segment.codec.block_bytes, segment.codec.out_block_bytes
            offset = (first - position) // block * out_block
            yield segment.offset + offset, (last - first) // block * out_block
        position += segment.length


def _ends_a_block(piece: Piece, end: int) -> bool:
    """Whether a block ends at byte `end` of a piece: one wrong digit in a line has the CRC of the blocks before it."""
    position = 0
    for segment in piece.segments:
        if position < end <= position + segment.length:
            return (end - position) % segment.codec.block_bytes == 0
        position += segment.length
    return False


def _read_lines(path: Path) -> list[Any]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for line in raw.split(b"\n"):
        try:
            content = parse_json(line)
        except ValueError:
            continue  # torn, or the empty line after it
        lines.append(content)
    return lines


def _apply(line: Any, plan: ExtractionPlan, good: list[int], descriptor: int) -> None:
    """Extend what is known to be good by one line, if the file holds what the line says."""
    if not isinstance(line, dict) or not all(type(line.get(key)) is int for key in ("piece", "start", "end", "crc")):
        return
    index, start, end = line["piece"], line["start"], line["end"]
    if not 0 <= index < len(good) or start != good[index] or not start < end <= plan.pieces[index].range.length:
        return
    if not _ends_a_block(plan.pieces[index], end):
        return
    crc = 0
    for offset, length in extents(plan.pieces[index], start, end):
        while length:
            chunk = os.pread(descriptor, min(CHUNK_BYTES, length), offset)
            if not chunk:
                return
            crc = zlib.crc32(chunk, crc)
            offset, length = offset + len(chunk), length - len(chunk)
    if crc == line["crc"]:
        good[index] = end
