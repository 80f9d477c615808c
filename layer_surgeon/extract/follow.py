"""Hash a file while readers still write it: each byte is read back once everything before it is written."""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from layer_surgeon.checkpoint.sources import CHUNK_BYTES
from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract.plan import CopyPlan, Segment


@dataclass(frozen=True, kw_only=True)
class Digests:
    """sha256 of a file of weights (None if only the tensors were hashed), and of each tensor in it by name, as hex."""

    file: str | None
    tensors: dict[str, str]


class StoppedError(Exception):
    """Another thread failed, so this one stopped waiting."""


class Front:
    """Tracks up to which position the file is written without gaps, and lets another thread wait for more."""

    def __init__(self, plan: CopyPlan) -> None:
        self._changed = threading.Condition()
        self._stopped = False
        self._written: dict[int, int] = {}
        segments = [segment for piece in plan.pieces for segment in piece.segments]
        self._order = sorted((segment.offset, segment.out_length) for segment in segments)
        self._next = 0
        self._position = len(plan.header)
        self._end = plan.num_out_bytes

    def add(self, segment: Segment, written: int) -> None:
        """Record that the first `written` bytes of a segment are in the file.

        Raises:
            StoppedError: `stop` was called.
        """
        with self._changed:
            if self._stopped:
                raise StoppedError
            self._written[segment.offset] = written
            position = self._position
            while self._next < len(self._order):
                offset, length = self._order[self._next]
                segment_written = self._written.get(offset, 0)
                self._position = offset + segment_written
                if segment_written < length:
                    break
                self._next += 1
            if self._position > position:
                self._changed.notify_all()

    def wait_beyond(self, position: int) -> int:
        """Wait until the file is written without gaps beyond `position`; return how far it is.

        Raises:
            StoppedError: `stop` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._position > position or position >= self._end)
            if self._stopped:
                raise StoppedError
            return self._position

    def stop(self) -> None:
        """Wake all waiting threads and end them with `StoppedError`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def hash_file(descriptor: int, plan: CopyPlan, front: Front) -> str:
    """Compute the sha256 of the whole file while it is written, as hex.

    Raises:
        ArtifactError: Another program shortened the file.
        StoppedError: The front was stopped.
    """
    digest = hashlib.sha256()
    for chunk in _written_chunks(descriptor, front, 0, plan.num_out_bytes):
        digest.update(chunk)
    return digest.hexdigest()


def hash_tensors(descriptor: int, plan: CopyPlan, front: Front) -> dict[str, str]:
    """Compute the sha256 of each tensor while the file is written. Bytes that belong to no tensor are not read.

    Raises:
        ArtifactError: Another program shortened the file.
        StoppedError: The front was stopped.
    """
    digests = {}
    for tensor in plan.planned:
        digest = hashlib.sha256()
        for chunk in _written_chunks(descriptor, front, tensor.offset, tensor.offset + tensor.num_bytes):
            digest.update(chunk)
        digests[tensor.name] = digest.hexdigest()
    return digests


def _written_chunks(descriptor: int, front: Front, start: int, end: int) -> Iterator[memoryview]:
    """Yield the bytes from `start` to `end` as soon as they are written, in chunks that share one buffer."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, end - start)))
    position = start
    while position < end:
        written_end = min(front.wait_beyond(position), end)
        while position < written_end:
            count = os.preadv(descriptor, [buffer[: written_end - position]], position)
            if count == 0:
                raise ArtifactError(
                    f"Another program shortened the new file while it was written: it ends at byte {position:,}, after "
                    f"{written_end:,} bytes were written. Run the command again."
                )
            yield buffer[:count]
            position += count
