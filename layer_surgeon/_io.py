"""Files: written whole or not at all, locked, and read with limits. `_folders` does the same for folders.

These two are the only places of the package that write. A file is made under a random name next to its own, and
renamed, so that nothing is written through a link that somebody put there before.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from layer_surgeon.errors import WorkspaceError

# The largest config.json that we know has 2 MB of labels, the index of DeepSeek-V3 has 9 MB.
MAX_JSON_BYTES = 50_000_000


@functools.cache
def _umask() -> int:
    # Python can't ask for it without setting it. A thread that makes a file in this moment gets the strictest mode.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def usual_mode(path: Path) -> None:
    """Give a file the mode that `open` would have given it: temporary files, and so those of safetensors, have 0600."""
    path.chmod(0o666 & ~_umask())


def usual_modes(folder: Path) -> None:
    """Give the files of weights right in a folder the usual mode: safetensors lets only their owner read them.

    A file with a second name is left as it is: a donor layer that is linked from another folder belongs there.
    """
    for path in folder.glob("*.safetensors"):
        if not path.is_symlink() and path.stat().st_nlink == 1:
            usual_mode(path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which takes its place when everything was written and is on the disk.

    Args:
        path: Its place. What is there is replaced; a link is replaced itself, not what it leads to.

    Raises:
        OSError: It can't be written; then nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        usual_mode(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """As `new_file`, for writers that open the file themselves: a path to write to, in a folder nobody knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield folder / path.name
        usual_mode(folder / path.name)
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, whole or not at all.

    Raises:
        OSError: It can't be read or written.
    """
    with source.open("rb") as read, new_file(target) as written:
        shutil.copyfileobj(read, written)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader, or a kill -9, never meets half of it.

    Raises:
        WorkspaceError: It can't be written.
    """
    try:
        with new_file(path) as file:
            file.write(content)
    except OSError as error:
        raise WorkspaceError(
            f"{path} can't be written: {error.strerror or error}. Make room, or choose another folder."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_bytes` does.

    Raises:
        WorkspaceError: It can't be written.
    """
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file, as `write_bytes` does.

    Raises:
        WorkspaceError: It can't be written.
    """
    write_text(path, json.dumps(content, ensure_ascii=False, indent=indent) + "\n")


def parse_json(raw: bytes | str) -> Any:
    """What JSON text says.

    Raises:
        ValueError: It is not JSON, or too deep or too large to be what it should be.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise ValueError(f"{len(raw):,} bytes of JSON; at most {MAX_JSON_BYTES:,} are read")
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        OSError: It can't be read.
        ValueError: As in `parse_json`.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
    return parse_json(path.read_bytes())


class BusyError(OSError):
    """Another process holds the lock."""


class FileLock:
    """A lock that the system gives back when the process dies, however it dies.

    A copy of it (pickle) is not held.

    Args:
        path: The lock's file. Its folder is made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __reduce__(self) -> tuple[type["FileLock"], tuple[Path]]:
        return FileLock, (self._path,)

    def take(self, *, wait: bool = False) -> None:
        """Take the lock.

        Args:
            wait: Wait for another process that holds it.

        Raises:
            BusyError: Another process holds it, and there is no waiting.
            OSError: The file can't be written; or it, or its folder, is a link to another place.
        """
        while self._descriptor < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.parent.is_symlink():
                raise OSError(errno.ELOOP, "it is a link to another place")
            with contextlib.suppress(FileNotFoundError):  # Its folder was removed in this moment, with its lock.
                self._descriptor = self._open(wait=wait)

    def _open(self, *, wait: bool) -> int:
        """The descriptor of the locked file; -1 where that is no longer the file at the path."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_file(self._path, descriptor):
                kept, descriptor = descriptor, -1
                return kept
        except BlockingIOError as error:
            raise BusyError(errno.EBUSY, "another process is writing there") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return -1

    def release(self, *, remove: bool = True) -> None:
        """Give the lock back, if it is held; `remove` its file too."""
        if self._descriptor >= 0:
            if remove and _is_file(self._path, self._descriptor):
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a file, which is removed afterwards.

    Raises:
        BusyError, OSError: As in `FileLock.take`.
    """
    lock = FileLock(path)
    lock.take(wait=wait)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file. A file that was left behind is removed."""
    try:
        if path.is_file():
            with locked(path, wait=False):
                pass
    except OSError as error:
        # Where it can't be written, nothing of another process can be harmed either.
        return isinstance(error, BusyError)
    return False


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        at_path, opened = path.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (at_path.st_dev, at_path.st_ino) == (opened.st_dev, opened.st_ino)
