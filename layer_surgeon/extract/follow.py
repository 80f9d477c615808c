"""Hash a file while readers still write it: each byte is read back once everything before it is written."""

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO

from layer_surgeon.checkpoint.sources import CHUNK_BYTES
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


def hash_tensors(descriptor: int, plan: CopyPlan, front: Front) -> Digests:
    """Compute the sha256 of each tensor while the file is written. Bytes that belong to no tensor are not read.

    Raises:
        StoppedError: The front was stopped.
    """
    digests = {}
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with FileIO(descriptor, "rb", closefd=False) as file:
        for tensor in plan.planned:
            digest = hashlib.sha256()
            position, end = file.seek(tensor.offset), tensor.offset + tensor.num_bytes
            while position < end:
                num_written = min(front.wait_beyond(position), end) - position
                count = file.readinto(buffer[:num_written])
                digest.update(buffer[:count])
                position += count
            digests[tensor.name] = digest.hexdigest()
    return Digests(file=None, tensors=digests)


def hash_written(descriptor: int, plan: CopyPlan, front: Front) -> Digests:
    """Compute the sha256 of the whole file and of each tensor while the file is written.

    This thread reads each byte back once and hashes the file; a second thread hashes the tensors from the same buffers.

    Raises:
        StoppedError: The front was stopped.
    """
    file_digest, tensor_digests = hashlib.sha256(), _TensorDigests(plan)
    buffers = [memoryview(bytearray(CHUNK_BYTES)) for _ in range(2)]
    hashing: list[Future[None]] = []
    with (
        FileIO(descriptor, "rb", closefd=False) as file,
        ThreadPoolExecutor(1, thread_name_prefix="tensors") as pool,
    ):
        position = file.seek(0)
        while position < plan.num_out_bytes:
            written_end = front.wait_beyond(position)
            while position < written_end:
                if len(hashing) == len(buffers):
                    # The chunk before the last one is in the buffer that is needed next.
                    hashing.pop(0).result()
                buffers.reverse()
                count = file.readinto(buffers[0][: written_end - position])
                chunk = buffers[0][:count]
                hashing.append(pool.submit(tensor_digests.update, position, chunk))
                file_digest.update(chunk)
                position += count
        for future in hashing:
            future.result()
    return Digests(file=file_digest.hexdigest(), tensors=tensor_digests.hexdigests)


class _TensorDigests:
    """Hashes the tensors of a file that is passed in chunks, in the order of the file."""

    def __init__(self, plan: CopyPlan) -> None:
        self._tensors = iter(sorted(plan.planned, key=lambda tensor: tensor.offset))
        self._digest = hashlib.sha256()
        self._tensor = next(self._tensors, None)
        self.hexdigests: dict[str, str] = {}

    def update(self, position: int, chunk: memoryview) -> None:
        """Hash the bytes at `position` of the file."""
        end = position + len(chunk)
        while self._tensor is not None and self._tensor.offset <= end:
            tensor_end = self._tensor.offset + self._tensor.num_bytes
            self._digest.update(chunk[max(self._tensor.offset - position, 0) : max(tensor_end - position, 0)])
            if tensor_end > end:
                break
            self.hexdigests[self._tensor.name] = self._digest.hexdigest()
            self._digest = hashlib.sha256()
            self._tensor = next(self._tensors, None)
