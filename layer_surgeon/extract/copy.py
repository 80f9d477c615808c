"""The copy: pieces are read in parallel and written straight to their place, and hashed as the file grows.

Readers write with `pwrite`. Two followers read the file back behind them, one for the sha256 of the whole file and one
for that of each tensor, so that what is hashed is what the file holds, and hashing costs time only where it is slower
than reading. Memory stays at a few buffers of 1 MiB, however long the layer is.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon.checkpoint.sources import CHUNK_BYTES, Source
from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract.plan import ExtractionPlan, Piece, Segment
from layer_surgeon.progress import Progress

# What can be taken back by choosing another place, unlike a failing disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Digests:
    """sha256 of a file of weights and of the tensors in it, as hex."""

    file: str
    tensors: dict[str, str]


def copy_tensors(source: Source, plan: ExtractionPlan, path: Path, progress: Progress) -> Digests:
    """Write the planned file of weights, and hash it.

    Args:
        source: Where the plan's bytes lie.
        plan: What to read and where it goes.
        path: The file to write; it must not exist.
        progress: Told about source bytes as they arrive.

    Raises:
        SourceError: The source can't be read.
        ArtifactError: The disk is full.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.ftruncate(descriptor, plan.num_out_bytes)
            _write_all(descriptor, plan.header, 0)
            return _run(source, plan, descriptor, progress)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _FULL:
            raise ArtifactError(
                f"The disk of {path.parent} is full ({error.strerror}); the layer takes {plan.num_out_bytes:,} bytes. "
                "Free some space, or choose another place with --output or --workspace."
            ) from error
        raise


def _run(source: Source, plan: ExtractionPlan, descriptor: int, progress: Progress) -> Digests:
    front = _Front(plan)
    lock = threading.Lock()

    def report(amount: int) -> None:
        with lock:
            progress.advance(amount)

    readers = max(1, min(source.connections, len(plan.pieces)))
    with ThreadPoolExecutor(readers + 2, thread_name_prefix="extract") as pool:
        # The followers come first, so that they have threads from the start.
        whole = pool.submit(_hash_whole, descriptor, plan, front)
        each = pool.submit(_hash_each, descriptor, plan, front)
        reads = [pool.submit(_copy_piece, source, piece, descriptor, front, report) for piece in plan.pieces]
        try:
            _first_failure([whole, each, *reads])
        except BaseException:
            front.stop()
            for future in reads:
                future.cancel()
            raise
        return Digests(file=whole.result(), tensors=each.result())


def _first_failure(futures: Sequence[Future[Any]]) -> None:
    """Wait until all are done, or raise what the first one to fail raised."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    failures = [error for future in done if (error := future.exception()) is not None]
    # A follower that was stopped is a consequence; the reader's error is the reason.
    for error in sorted(failures, key=lambda error: isinstance(error, _StoppedError)):
        raise error


class _StoppedError(Exception):
    """Another thread failed."""


class _Front:
    """How far the file is written without a hole, for the followers to wait on."""

    def __init__(self, plan: ExtractionPlan) -> None:
        self._changed = threading.Condition()
        self._stopped = False
        self._written: dict[int, int] = {}
        segments = [segment for piece in plan.pieces for segment in piece.segments]
        self._order = sorted((segment.offset, segment.out_length) for segment in segments)
        self._next = 0
        self._position = len(plan.header)
        self._end = plan.num_out_bytes

    def add(self, segment: Segment, written: int) -> None:
        """Say that the first `written` bytes of a segment are in the file."""
        with self._changed:
            if self._stopped:
                raise _StoppedError
            self._written[segment.offset] = written
            while self._next < len(self._order):
                offset, length = self._order[self._next]
                have = self._written.get(offset, 0)
                self._position = offset + have
                if have < length:
                    break
                self._next += 1
            self._changed.notify_all()

    def wait_beyond(self, position: int) -> int:
        """Wait until more than `position` bytes are whole, and return how many are."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._position > position or position >= self._end)
            if self._stopped:
                raise _StoppedError
            return self._position

    def stop(self) -> None:
        """Wake and end all threads."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def _copy_piece(source: Source, piece: Piece, descriptor: int, front: _Front, report: Callable[[int], None]) -> None:
    reader = source.stream_range(piece.range.file, piece.range.start, piece.range.length)
    chunks = _Chunks(reader)
    for segment in piece.segments:
        block, written, left = segment.codec.block_bytes, 0, segment.length
        while left:
            # Conversions hold several copies of a chunk: the chunk stays at 1 MiB however long a block's result is.
            blocks = chunks.take(min(left, max(block, CHUNK_BYTES // block * block)), block)
            result = segment.codec.convert(blocks)
            _write_all(descriptor, result, segment.offset + written)
            written, left = written + len(result), left - len(blocks)
            front.add(segment, written)
            report(len(blocks))


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


def _write_all(descriptor: int, content: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _hash_whole(descriptor: int, plan: ExtractionPlan, front: _Front) -> str:
    digest = hashlib.sha256()
    for chunk in _follow(descriptor, front, 0, plan.num_out_bytes):
        digest.update(chunk)
    return digest.hexdigest()


def _hash_each(descriptor: int, plan: ExtractionPlan, front: _Front) -> dict[str, str]:
    digests = {}
    for tensor in plan.planned:
        digest = hashlib.sha256()
        for chunk in _follow(descriptor, front, tensor.offset, tensor.num_bytes):
            digest.update(chunk)
        digests[tensor.name] = digest.hexdigest()
    return digests


def _follow(descriptor: int, front: _Front, start: int, length: int) -> Iterator[bytes]:
    """A part of the file in chunks, each as soon as it is written."""
    position, end = start, start + length
    while position < end:
        ready = min(front.wait_beyond(position), end)
        while position < ready:
            chunk = os.pread(descriptor, min(CHUNK_BYTES, ready - position), position)
            yield chunk
            position += len(chunk)
