"""Files and folders: written whole or not at all, locked, replaced only where they are ours, and read with limits.

The one place of the package that writes. A file is made under a random name next to its own, and renamed; a folder
likewise. Nothing is written through a link that somebody put there before, and nothing is deleted that is not ours.
"""

import contextlib
import errno
import fcntl
import fnmatch
import functools
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from layer_surgeon.errors import WorkspaceError

# The largest config.json that we know has 2 MB of labels, the index of DeepSeek-V3 has 9 MB.
MAX_JSON_BYTES = 50_000_000
_OLD = ".old"
# What `mkdtemp` puts into a name. Without a dot in it, what `out.v2` had to replace is no leftover of `out`.
_RANDOM = "[a-z0-9_]" * 8
# How the Hub's cache names the files that its snapshots link to: git's sha1, or the sha256 of a large file.
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


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


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when everything in it is there.

    Args:
        folder: Its place.
        replace: Replace what is there; see `check_replaceable`.

    Raises:
        FileExistsError: There is a folder that holds something, and it is not to be replaced.
        OSError: It can't be written; then nothing is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, whose name nobody knows before; the last part of the path is the final one's.
    parent = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    made = parent / folder.name
    try:
        made.mkdir()
        yield made
        if replace:
            put_in_place(made, folder)
        else:
            put_where_nothing_is(made, folder)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def put_where_nothing_is(made: Path, folder: Path) -> None:
    """Give a finished folder, made next to it, the name `folder`, which only an empty folder may have.

    Raises:
        FileExistsError: Something else has the name.
    """
    try:
        # A rename takes the place of an empty folder, and of nothing else.
        made.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, "another process has made it in the meantime") from error
        raise


def put_in_place(made: Path, folder: Path) -> None:
    """Give a finished folder, made next to it, the name `folder`. What is there is replaced in the last moment.

    Where the new one can't take its place, the old one comes back. What runs left that were killed in between is
    removed.

    Raises:
        OSError: It can't be renamed.
    """
    if not os.path.lexists(folder):
        made.rename(folder)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_OLD, dir=folder.parent)) / folder.name
        try:
            folder.rename(old)
            made.rename(folder)
        except BaseException:
            if os.path.lexists(old) and not os.path.lexists(folder):
                old.rename(folder)
            shutil.rmtree(old.parent)
            raise
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.{_RANDOM}{_OLD}"):
        shutil.rmtree(left)


def foreign_files(folder: Path, ours: Sequence[str]) -> list[str]:
    """The files of a folder that are not ours, by their path in it: what deleting the folder would take along.

    Links are never ours, whatever their name: we make none.

    Args:
        folder: The folder.
        ours: Patterns of what we write into such a folder, such as `config.json` or `donor/*`.
    """
    foreign = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        is_ours = path.is_dir() or any(fnmatch.fnmatchcase(name, pattern) for pattern in ours)
        if path.is_symlink() or not is_ours:
            foreign.append(name)
    return sorted(foreign)


def list_names(names: Sequence[str]) -> str:
    """Some names for a message: the first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def remove_ours(folder: Path, ours: Sequence[str]) -> list[str]:
    """Delete what is ours in a folder, and the folder itself where nothing else is in it.

    Args:
        folder: The folder; it need not exist. A link to one is left alone.
        ours: As in `foreign_files`, whose list of what stays is returned.
    """
    if folder.is_symlink():
        return []
    foreign = foreign_files(folder, ours)
    if not foreign:
        shutil.rmtree(folder, ignore_errors=True)
        return []
    # Files before the folders that hold them.
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # It holds something that stays.
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in foreign:
            path.unlink(missing_ok=True)
    return foreign


def check_replaceable(
    folder: Path,
    ours: Sequence[str],
    *,
    is_ours: Callable[[Path], bool],
    force: bool,
    kind: str,
    error: type[Exception],
) -> None:
    """Refuse a folder that holds anything, unless it is ours from the first file to the last and may be replaced.

    Args:
        folder: The folder; it need not exist.
        ours: As in `foreign_files`.
        is_ours: Whether the folder is of the kind that is to be written.
        force: It may be replaced.
        kind: What it should be, such as `graft`.
        error: What to raise.

    Raises:
        error: Says what is there, and what to do.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return
    if folder.is_symlink():
        raise error(f"{folder} is a symbolic link. Name the folder itself with --output.")
    if not folder.is_dir() or not is_ours(folder):
        raise error(f"{folder} is in use, and not by a {kind}. Choose another folder with --output.")
    if not force:
        raise error(
            f"{folder} holds a {kind} already. Replace it with --force, or choose another folder with --output."
        )
    foreign = foreign_files(folder, ours)
    if foreign:
        raise error(
            f"{folder} holds a {kind}, but also files that are not part of one: {list_names(foreign)}. Replacing it "
            "would delete them. Move them to another place, or choose another folder with --output."
        )


def leaving_link(path: Path, folder: Path) -> Path | None:
    """Where a path leads that is, or is below, a link out of its folder; None where it stays inside.

    The links of a snapshot in the Hub's cache lead to the cache's own blobs, which belong to it.

    Args:
        path: A path below the folder.
        folder: The folder, which may itself be named by a link.
    """
    root, target = folder.resolve(), path.resolve()
    if target.is_relative_to(root):
        return None
    # The folder may be one inside of a snapshot, such as a graft's donor/.
    snapshots = (parent for parent in root.parents if parent.name == "snapshots")
    if _BLOB.fullmatch(target.name) and any(target.parent == parent.parent / "blobs" for parent in snapshots):
        return None
    return target


def check_links(paths: Iterable[Path], folder: Path, error: type[Exception]) -> None:
    """Refuse links out of a folder whose content is to be passed on: copied, or uploaded.

    Args:
        paths: Paths below the folder.
        folder: The folder, which may itself be named by a link.
        error: What to raise.

    Raises:
        error: Says which path it is, and where it leads.
    """
    for path in paths:
        target = leaving_link(path, folder)
        if target is not None:
            raise error(
                f"{path} is, or is in, a link that leads out of {folder}, to {target}. What is there is not passed on. "
                "Remove the link, or put a copy of the file in its place."
            )
