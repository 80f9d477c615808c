"""Read the pieces of a plan in parallel, write each at its final position, and hash the file as it grows.

Readers write with `pwrite`. Two other threads read the written bytes back: one hashes the file, one hashes each tensor.
The digests therefore describe what the file really holds, and hashing only costs time if it is slower than reading.
Memory stays at a few buffers of 512 KiB, regardless of the size of the layer.
"""

import contextlib
import errno
import os
import threading
import zlib
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from layer_surgeon.checkpoint.sources import CHUNK_BYTES, Chunk
from layer_surgeon.checkpoint.sources.base import STOPPED
from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract.follow import Digests, Front, StoppedError, hash_file, hash_tensors
from layer_surgeon.extract.journal import STRETCH_BYTES, Journal
from layer_surgeon.extract.plan import CopyPlan, Piece
from layer_surgeon.progress import Progress

# Errors that the user can fix by choosing another folder, unlike a failing disk.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(ArtifactError):
    """The disk is full. A later run can go on from what was written."""


class Ranges(Protocol):
    """What a copy needs of a `Source`."""

    connections: int

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Yield exactly `length` bytes from `start`, in chunks."""


def copy_tensors(
    source: Ranges,
    plan: CopyPlan,
    path: Path,
    progress: Progress,
    *,
    journal: tuple[Path, str] | None = None,
    whole_file: bool = True,
    unversioned: Collection[str] = (),
) -> Digests:
    """Write the planned file of weights and hash it.

    Args:
        source: The source to read from.
        plan: The byte ranges to read, and where to write them.
        path: The file to write. If it exists, the parts that the journal confirms are reused.
        progress: Receives the number of source bytes as they arrive.
        journal: Path and identity of the journal, which lets an interrupted copy continue. None keeps no journal.
        whole_file: Hash the whole file too, and not only each tensor.
        unversioned: Files of sources that don't show whether they changed. They are always read from the start.

    Raises:
        SourceError: The source can't be read.
        ArtifactError: The disk is full.
    """
    with _disk_errors(path, plan.num_out_bytes):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            os.ftruncate(descriptor, plan.num_out_bytes)
            write_all(descriptor, plan.header, 0)
            opened = None if journal is None else Journal(*journal, plan, descriptor)
            try:
                return _run(source, plan, descriptor, progress, opened, whole_file, unversioned)
            finally:
                if opened is not None:
                    opened.close()
        finally:
            os.close(descriptor)


def fill_range(path: Path, offset: int, length: int, origin: tuple[Path, int] | None) -> None:
    """Write bytes of another file of weights, or zeros, into a file of weights.

    Args:
        path: The file to write into.
        offset: Absolute position of the first byte to write.
        length: The number of bytes.
        origin: The file to copy from, and the position there; None for zeros.

    Raises:
        ArtifactError: The disk is full, or another program shortened the file to copy from.
    """
    with _disk_errors(path, length), contextlib.ExitStack() as opened:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        opened.callback(os.close, descriptor)
        source, start = None, 0
        if origin is not None:
            source, start = os.open(origin[0], os.O_RDONLY | os.O_NOFOLLOW), origin[1]
            opened.callback(os.close, source)
        done = 0
        while done < length:
            size = min(CHUNK_BYTES, length - done)
            chunk = bytes(size) if source is None else os.pread(source, size, start + done)
            if not chunk:
                raise ArtifactError(
                    f"Another program shortened {path.parent} while it was written: a file in it ends at byte "
                    f"{start + done:,}, before the end of a tensor. Run the command again."
                )
            write_all(descriptor, chunk, offset + done)
            done += len(chunk)


@contextlib.contextmanager
def _disk_errors(path: Path, num_bytes: int) -> Iterator[None]:
    """Explain a full disk. `num_bytes` is what is written to `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise DiskFullError(
                f"The disk of {path.parent} is full ({error.strerror}); {path.name} takes {num_bytes:,} bytes. "
                "Free some space, or choose another folder with --output or --workspace."
            ) from error
        raise


def _run(
    source: Ranges,
    plan: CopyPlan,
    descriptor: int,
    progress: Progress,
    journal: Journal | None,
    whole_file: bool,
    unversioned: Collection[str],
) -> Digests:
    copy = _Copy(
        source=source,
        descriptor=descriptor,
        front=Front(plan),
        progress=progress,
        journal=journal,
        unversioned=unversioned,
        lock=threading.Lock(),
        stopped=STOPPED.get() or threading.Event(),
    )
    verified = (0,) * len(plan.pieces) if journal is None else journal.verified
    num_kept = sum(done for piece, done in zip(plan.pieces, verified, strict=True) if not piece.is_computed)
    if num_kept:
        progress.notice(f"Resuming: {num_kept:,} of {plan.num_bytes_read:,} bytes are left from an earlier run.")
    readers = max(1, min(source.connections, len(plan.pieces)))
    with ThreadPoolExecutor(readers + (2 if whole_file else 1), thread_name_prefix="extract") as pool:
        # Submitted first, because they need threads from the start. Each reads the file itself: waiting for each other
        # took longer than the second read from the page cache.
        file_digest = pool.submit(hash_file, descriptor, plan, copy.front) if whole_file else None
        tensor_digests = pool.submit(hash_tensors, descriptor, plan, copy.front)
        hashing = [tensor_digests] if file_digest is None else [file_digest, tensor_digests]
        reads = [pool.submit(copy.piece, index, piece, verified[index]) for index, piece in enumerate(plan.pieces)]
        try:
            _wait_for_all([*hashing, *reads])
        except BaseException:
            copy.front.stop()
            copy.stopped.set()
            for future in reads:
                future.cancel()
            raise
        return Digests(file=None if file_digest is None else file_digest.result(), tensors=tensor_digests.result())


def _wait_for_all(futures: Sequence[Future[Any]]) -> None:
    """Wait until all futures are done, or raise the error of the first that fails."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    failures = [error for future in done if (error := future.exception()) is not None]
    # A stopped thread is only a consequence: raise the reader's error, which is the cause.
    for error in sorted(failures, key=lambda error: isinstance(error, StoppedError)):
        raise error


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """State that the reader threads share."""

    source: Ranges
    descriptor: int
    front: Front
    progress: Progress
    journal: Journal | None
    unversioned: Collection[str]
    lock: threading.Lock
    stopped: threading.Event

    def piece(self, index: int, piece: Piece, verified: int) -> None:
        """Read and write one piece, without its first `verified` bytes."""
        STOPPED.set(self.stopped)
        self._report(piece, verified)
        byte_range = piece.range
        stream = self.source.stream_range(byte_range.file, byte_range.start + verified, byte_range.length - verified)
        try:
            self._write(index, piece, verified, Chunks(stream))
        finally:
            # If another piece failed, its traceback would keep this connection open until garbage collection.
            if isinstance(stream, Generator):
                stream.close()

    def _write(self, index: int, piece: Piece, verified: int, chunks: "Chunks") -> None:
        position, journaled, crc = 0, verified, 0
        journal = None if piece.range.file in self.unversioned else self.journal
        for segment in piece.segments:
            block, out_block = segment.codec.block_bytes, segment.codec.out_block_bytes
            done = min(max(verified - position, 0), segment.length)
            written = done // block * out_block
            if done:
                self.front.add(segment, written)
            while done < segment.length:
                # A conversion holds several copies of a chunk, so limit the chunk to 512 KiB or one block.
                blocks = chunks.take(min(segment.length - done, max(block, CHUNK_BYTES // block * block)), block)
                result = segment.codec.convert(blocks, segment.first_block + done // block)
                write_all(self.descriptor, result, segment.offset + written)
                written, done = written + len(result), done + len(blocks)
                if journal is not None:
                    crc = zlib.crc32(result, crc)
                    if position + done - journaled >= STRETCH_BYTES or position + done == piece.range.length:
                        journal.add(index, journaled, position + done, crc)
                        journaled, crc = position + done, 0
                self.front.add(segment, written)
                self._report(piece, len(blocks))
            position += segment.length

    def _report(self, piece: Piece, amount: int) -> None:
        if not piece.is_computed:
            with self.lock:
                self.progress.advance(amount)


class Chunks:
    """Reads whole blocks from chunks of any size; copies only the blocks that span two chunks."""

    def __init__(self, chunks: Iterator[bytes | bytearray | memoryview]) -> None:
        self._chunks = chunks
        self._buffer = memoryview(b"")

    def take(self, max_bytes: int, block_bytes: int) -> memoryview:
        """Take at least one block, and at most `max_bytes`."""
        if not self._buffer:
            self._buffer = memoryview(next(self._chunks))
        if len(self._buffer) >= block_bytes:
            size = min(max_bytes, len(self._buffer)) // block_bytes * block_bytes
            blocks, self._buffer = self._buffer[:size], self._buffer[size:]
            return blocks
        block = bytearray(self._buffer)
        while len(block) < block_bytes:
            self._buffer = memoryview(next(self._chunks))
            missing = block_bytes - len(block)
            block += self._buffer[:missing]
            self._buffer = self._buffer[missing:]
        return memoryview(block)


def write_all(descriptor: int, content: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `content` at a position of a file; `pwrite` may write less."""
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
