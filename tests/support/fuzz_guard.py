"""What a spoiled file may cost: 256 MB of memory, and a second of work."""

import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MAX_BYTES = 256_000_000
MAX_SECONDS = 1.0
# Threads that wait for each other for ever do no work: this only ends a test that would never end.
_NEVER_SECONDS = 120
_MESSAGE_CHARACTERS = 3000


class TooLongError(BaseException):
    """A case worked for over a second. No `except Exception` may take it for something else."""


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let no more be allocated than this process has now and 256 MB.

    The limit is on data, not on addresses: a thread's arena reserves 64 MB of those and uses little of it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        yield  # only Linux holds a process to such a limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + MAX_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def limited_work(seconds: float = MAX_SECONDS) -> Iterator[None]:
    """Raise TooLongError after that many seconds of this process' own work, however busy the machine is."""

    def stop(_signal: int, frame: FrameType | None) -> None:
        raise TooLongError("".join(traceback.format_stack(frame)[-4:]))

    before = signal.signal(signal.SIGVTALRM, stop), signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    signal.alarm(_NEVER_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.alarm(0)
        signal.signal(signal.SIGVTALRM, before[0])
        signal.signal(signal.SIGALRM, before[1])


def check_error(error: BaseException) -> None:
    """An error of ours is a message for a person, and was not caused by memory that ran out."""
    length = len(str(error))
    assert length < _MESSAGE_CHARACTERS, f"a message of {length:,} characters from {place_of(error)}"
    assert str(error), "a message of nothing"
    assert all(line.isprintable() for line in str(error).split("\n")), f"unprintable, from {place_of(error)}"
    cause: BaseException | None = error
    while cause is not None:
        assert not isinstance(cause, MemoryError), f"memory ran out behind {str(error)[:300]!r}"
        assert "allocate memory" not in str(cause), f"memory ran out behind {str(error)[:300]!r}"
        cause = cause.__cause__


def place_of(error: BaseException) -> str:
    """Type of an error, and the last line of this package that it came from: equal for equal faults."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "layer_surgeon" in frame.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else str(error)[-60:]
    return f"{type(error).__name__} at {where}"
