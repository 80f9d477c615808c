"""The journal of an unfinished copy, from which a later run continues.

The journal is a file next to the file of weights. It has one line with a CRC-32 per stretch of bytes that was written.
If a power cut damages a line or a stretch, the CRC does not match and the stretch is read again. The first line
identifies the source and the plan: if the commit or the plan differs, the copy starts over.
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
from layer_surgeon.extract.plan import CopyPlan, Piece

# Source bytes per line of the journal. After a kill, up to this much is read again for each connection.
STRETCH_BYTES = 4 << 20


class Journal:
    """The journal of one file of weights.

    Args:
        path: The journal's file; created if it doesn't exist.
        identity: Identifies the source and the plan. A journal with a different identity is overwritten.
        plan: The plan of the copy.
        descriptor: The file of weights, open for reading.

    Attributes:
        verified: For each piece, how many of its source bytes, from its start, are already in the file.
    """

    def __init__(self, path: Path, identity: str, plan: CopyPlan, descriptor: int) -> None:
        self._lock = threading.Lock()
        lines = _read_lines(path)
        verified = [0] * len(plan.pieces)
        resumes = bool(lines) and lines[0] == {"identity": identity}
        if resumes:
            for line in lines[1:]:
                _apply(line, plan, verified, descriptor)
        self.verified = tuple(verified)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | (0 if resumes else os.O_TRUNC)
        self._file = os.open(path, flags, 0o666)
        # The last line may be incomplete, without a line break: write one before the next line.
        self._write_line(None if resumes else {"identity": identity})

    def add(self, index: int, start: int, end: int, crc: int) -> None:
        """Record that source bytes `start` to `end` of a piece were written. `crc` is the CRC-32 of the result."""
        self._write_line({"piece": index, "start": start, "end": end, "crc": crc})

    def close(self) -> None:
        """Close the journal's file."""
        os.close(self._file)

    def _write_line(self, content: dict[str, Any] | None) -> None:
        line = b"\n" if content is None else json.dumps(content).encode() + b"\n"
        with self._lock:
            os.write(self._file, line)


def plan_identity(where: object, plan: CopyPlan) -> str:
    """Hash the source and the whole plan. A run can only continue another run with the same identity."""
    pieces = [(piece.range.file, piece.range.start, piece.range.length) for piece in plan.pieces]
    return sha256(repr((where, plan.header, pieces)).encode()).hexdigest()


def extents(piece: Piece, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where the source bytes `start` to `end` of a piece are in the artifact's file, as (offset, length)."""
    position = 0
    for segment in piece.segments:
        first, last = max(start, position), min(end, position + segment.length)
        if first < last:
            block, out_block = segment.codec.block_bytes, segment.codec.out_block_bytes
            offset = (first - position) // block * out_block
            yield segment.offset + offset, (last - first) // block * out_block
        position += segment.length


def _ends_a_block(piece: Piece, end: int) -> bool:
    """Whether a block ends at byte `end` of a piece.

    If a digit of `end` in the journal is wrong, `end` can be inside a block. The CRC still matches then, because it
    only covers the blocks before it.
    """
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
            continue  # an incomplete line, or the empty line after it
        lines.append(content)
    return lines


def _apply(line: Any, plan: CopyPlan, verified: list[int], descriptor: int) -> None:
    """Extend `verified` by one line of the journal, if the bytes in the file have the CRC of that line."""
    if not isinstance(line, dict) or not all(type(line.get(key)) is int for key in ("piece", "start", "end", "crc")):
        return
    index, start, end = line["piece"], line["start"], line["end"]
    if not 0 <= index < len(verified) or start != verified[index] or not start < end <= plan.pieces[index].range.length:
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
        verified[index] = end
