"""Write files atomically, lock them, and read JSON with limits. `_folders` does the same for folders.

A new file gets a random temporary name in the same folder and is then renamed, so a link that someone placed at the
target is never followed.
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

# The largest config.json that we know of has 2 MB of labels; the index of DeepSeek-V3 has 9 MB.
MAX_JSON_BYTES = 50_000_000


@functools.cache
def _umask() -> int:
    # Python can only read the umask by setting it. Files that other threads create in between get the strictest mode.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def usual_mode(path: Path) -> None:
    """Give a file the mode that `open` would give it; temporary files, and so safetensors' files, have 0600."""
    path.chmod(0o666 & ~_umask())


def usual_modes(folder: Path) -> None:
    """Give the weight files directly in a folder the usual mode; safetensors lets only their owner read them.

    A file with several hard links keeps its mode: it may be a donor layer that belongs to another folder.
    """
    for path in folder.glob("*.safetensors"):
        if not path.is_symlink() and path.stat().st_nlink == 1:
            usual_mode(path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears at `path` only when everything was written and is on the disk.

    Args:
        path: The target. An existing file is replaced; for a link, the link itself and not its target.

    Raises:
        OSError: It can't be written. No partial file is left.
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
    """Do what `new_file` does for writers that open the file themselves: yield a path in a new, unguessable folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield folder / path.name
        usual_mode(folder / path.name)
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically.

    Raises:
        OSError: It can't be read or written.
    """
    with source.open("rb") as source_file, new_file(target) as target_file:
        shutil.copyfileobj(source_file, target_file)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: even after a kill -9, readers see the old file or the new one, never a part.

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
    """Parse JSON text.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or is larger than `MAX_JSON_BYTES`.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise ValueError(f"{len(raw):,} bytes of JSON; at most {MAX_JSON_BYTES:,} are read")
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: It can't be read.
        ValueError: As in `parse_json` and `read_json_bytes`.
    """
    return parse_json(read_json_bytes(path))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file with an object; {} if it is missing, damaged, or holds something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json_bytes(path: Path) -> bytes:
    """Read a JSON file without parsing it.

    Raises:
        OSError: It can't be read.
        ValueError: It is larger than any JSON file of a model.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
    return path.read_bytes()


class BusyError(OSError):
    """Another process holds the lock."""


class FileLock:
    """A lock file that the operating system releases when the process ends, for any reason.

    A pickled copy doesn't hold the lock.

    Args:
        path: The lock file. Missing parent folders are created.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __reduce__(self) -> tuple[type["FileLock"], tuple[Path]]:
        return FileLock, (self._path,)

    def take(self, *, wait: bool = False) -> None:
        """Acquire the lock.

        Args:
            wait: Wait until other processes release it.

        Raises:
            BusyError: Another process holds it, and `wait` is false.
            OSError: The file can't be written, or the file or its folder is a symbolic link.
        """
        while self._descriptor < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.parent.is_symlink():
                raise OSError(errno.ELOOP, "it is a link to another place")
            with contextlib.suppress(FileNotFoundError):  # Another process just removed the folder with its lock.
                self._descriptor = self._open(wait=wait)

    def _open(self, *, wait: bool) -> int:
        """Lock the file and return its descriptor, or -1 if the path no longer leads to that file."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_file(self._path, descriptor):
                locked_descriptor, descriptor = descriptor, -1
                return locked_descriptor
        except BlockingIOError as error:
            raise BusyError(errno.EBUSY, "another process is writing there") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return -1

    def release(self) -> None:
        """Release the lock if it is held, and delete its file."""
        if self._descriptor >= 0:
            if _is_file(self._path, self._descriptor):
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock file, and delete it afterwards.

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
    """Whether a process holds a lock file. A stale lock file is deleted."""
    try:
        if path.is_file():
            with locked(path, wait=False):
                pass
    except OSError as error:
        # If we can't write the file, we can't disturb another process either.
        return isinstance(error, BusyError)
    return False


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        at_path, opened = path.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (at_path.st_dev, at_path.st_ino) == (opened.st_dev, opened.st_ino)
