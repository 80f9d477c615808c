"""The copy: pieces are read in parallel and written straight to their place, and hashed as the file grows.

Readers write with `pwrite`. Two followers read the file back behind them, one for the sha256 of the whole file and one
for that of each tensor, so that what is hashed is what the file holds, and hashing costs time only where it is slower
than reading. Memory stays at a few buffers of 1 MiB, however long the layer is.
"""

import errno
import os
import threading
import zlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon.checkpoint.sources import CHUNK_BYTES, Source
from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract.follow import Digests, Front, StoppedError, hash_file, hash_tensors
from layer_surgeon.extract.journal import STRETCH_BYTES, Journal
from layer_surgeon.extract.plan import ExtractionPlan, Piece
from layer_surgeon.progress import Progress

# What can be taken back by choosing another place, unlike a failing disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def copy_tensors(
    source: Source, plan: ExtractionPlan, path: Path, progress: Progress, *, journal: tuple[Path, str] | None = None
) -> Digests:
    """Write the planned file of weights, and hash it.

    Args:
        source: Where the plan's bytes lie.
        plan: What to read and where it goes.
        path: The file to write. What it holds is used again as far as the journal proves it.
        progress: Told about source bytes as they arrive.
        journal: Its path and identity, for a copy that can go on after it was cut off; None keeps none.

    Raises:
        SourceError: The source can't be read.
        ArtifactError: The disk is full.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            os.ftruncate(descriptor, plan.num_out_bytes)
            write_all(descriptor, plan.header, 0)
            opened = None if journal is None else Journal(*journal, plan, descriptor)
            try:
                return _run(source, plan, descriptor, progress, opened)
            finally:
                if opened is not None:
                    opened.close()
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _FULL:
            raise ArtifactError(
                f"The disk of {path.parent} is full ({error.strerror}); the layer takes {plan.num_out_bytes:,} bytes. "
                "Free some space, or choose another place with --output or --workspace."
            ) from error
        raise


def _run(source: Source, plan: ExtractionPlan, descriptor: int, progress: Progress, journal: Journal | None) -> Digests:
    copy = _Copy(
        source=source,
        descriptor=descriptor,
        front=Front(plan),
        progress=progress,
        journal=journal,
        lock=threading.Lock(),
    )
    good = (0,) * len(plan.pieces) if journal is None else journal.good
    if any(good):
        progress.notice(f"{sum(good):,} of {plan.num_bytes_read:,} bytes are already there from an earlier run.")
    readers = max(1, min(source.connections, len(plan.pieces)))
    with ThreadPoolExecutor(readers + 2, thread_name_prefix="extract") as pool:
        # The followers come first, so that they have threads from the start.
        whole = pool.submit(hash_file, descriptor, plan, copy.front)
        each = pool.submit(hash_tensors, descriptor, plan, copy.front)
        reads = [pool.submit(copy.piece, index, piece, good[index]) for index, piece in enumerate(plan.pieces)]
        try:
            _first_failure([whole, each, *reads])
        except BaseException:
            copy.front.stop()
            for future in reads:
                future.cancel()
            raise
        return Digests(file=whole.result(), tensors=each.result())


def _first_failure(futures: Sequence[Future[Any]]) -> None:
    """Wait until all are done, or raise what the first one to fail raised."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    failures = [error for future in done if (error := future.exception()) is not None]
    # A follower that was stopped is a consequence; the reader's error is the reason.
    for error in sorted(failures, key=lambda error: isinstance(error, StoppedError)):
        raise error


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """What the readers share."""

    source: Source
    descriptor: int
    front: Front
    progress: Progress
    journal: Journal | None
    lock: threading.Lock

    def piece(self, index: int, piece: Piece, good: int) -> None:
        """Read one piece from its byte `good` on, and write it."""
        self._report(good)
        place = piece.range
        stream = self.source.stream_range(place.file, place.start + good, place.length - good)
        try:
            self._write(index, piece, good, _Chunks(stream))
        finally:
            # Where another piece failed, the error would keep this one's connection open until it is collected.
            if isinstance(stream, Generator):
                stream.close()

    def _write(self, index: int, piece: Piece, good: int, chunks: "_Chunks") -> None:
        position, noted, crc = 0, good, 0
        for segment in piece.segments:
            block, out_block = segment.codec.block_bytes, segment.codec.out_block_bytes
            done = min(max(good - position, 0), segment.length)
            written = done // block * out_block
            if done:
                self.front.add(segment, written)
            while done < segment.length:
                # Conversions hold several copies of a chunk, so it stays at 1 MiB however long a block's result is.
                blocks = chunks.take(min(segment.length - done, max(block, CHUNK_BYTES // block * block)), block)
                result = segment.codec.convert(blocks, segment.first_block + done // block)
                write_all(self.descriptor, result, segment.offset + written)
                written, done = written + len(result), done + len(blocks)
                if self.journal is not None:
                    crc = zlib.crc32(result, crc)
                    if position + done - noted >= STRETCH_BYTES or position + done == piece.range.length:
                        self.journal.add(index, noted, position + done, crc)
                        noted, crc = position + done, 0
                self.front.add(segment, written)
                self._report(len(blocks))
            position += segment.length

    def _report(self, amount: int) -> None:
        with self.lock:
            self.progress.advance(amount)


class _Chunks:
    """Whole blocks out of chunks of any size, copied only where a block spans two chunks."""

    def __init__(self, chunks: Iterator[bytes | bytearray | memoryview]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def take(self, most: int, block: int) -> memoryview:
        """At least one block and at most `most` bytes."""
        if not self._rest:
            self._rest = memoryview(next(self._chunks))
        if len(self._rest) >= block:
            size = min(most, len(self._rest)) // block * block
            taken, self._rest = self._rest[:size], self._rest[size:]
            return taken
        joined = bytearray(self._rest)
        while len(joined) < block:
            self._rest = memoryview(next(self._chunks))
            need = block - len(joined)
            joined += self._rest[:need]
            self._rest = self._rest[need:]
        return memoryview(joined)


def write_all(descriptor: int, content: bytes | bytearray | memoryview, offset: int) -> None:
    """Write bytes at a position of a file."""
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
