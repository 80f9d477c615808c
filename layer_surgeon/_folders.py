"""Create folders atomically, replace and delete only our own, and refuse links that lead out of them."""

import contextlib
import errno
import filecmp
import fnmatch
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from layer_surgeon._format import list_names

_OLD = ".old"
# The random part of `mkdtemp`'s names. It has no dot, so leftovers of `out.v2` are not mistaken for those of `out`.
_RANDOM = "[a-z0-9_]" * 8
# The Hub's cache names the files that its snapshots link to by git's sha1, or by the sha256 of a large file.
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHARED_BLOB = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}")


def expand_home(name: str | os.PathLike[str]) -> str:
    """Replace a leading `~` with the home folder, as the shell does. Other names, such as `./x`, stay as they are."""
    text = os.fspath(name)
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:  # There is no such user.
        return text


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a temporary folder to write into, and rename it to `folder` when it is complete.

    Args:
        folder: The final path.
        replace: Replace an existing folder; see `check_replaceable`. If this is false, a folder that holds the same
            files already stays as it is.

    Raises:
        FileExistsError: There is a folder with other files, and `replace` is false.
        OSError: It can't be written. No partial folder is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The parent has an unguessable name. The folder in it has the final name, because writers may use it.
    parent = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    made = parent / folder.name
    try:
        made.mkdir()
        yield made
        if replace:
            put_in_place(made, folder)
        elif not have_same_files(made, folder):
            put_where_nothing_is(made, folder)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def have_same_files(folder: Path, other: Path) -> bool:
    """Whether two folders hold files of the same names with the same bytes."""
    names, others = ({path.relative_to(top) for path in top.rglob("*") if path.is_file()} for top in (folder, other))
    return names == others and all(filecmp.cmp(folder / name, other / name, shallow=False) for name in names)


def put_where_nothing_is(made: Path, folder: Path) -> None:
    """Rename a finished folder to `folder`, which must be missing or an empty folder.

    Raises:
        FileExistsError: There is something else at `folder`.
    """
    try:
        # A rename replaces an empty folder, but nothing else.
        made.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, "another process created it in the meantime") from error
        raise


def put_in_place(made: Path, folder: Path) -> None:
    """Rename a finished folder to `folder`, and delete the old one.

    If the rename fails, the old folder is restored. Old folders that killed runs left are deleted too.

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
            shutil.rmtree(old.parent, ignore_errors=True)
            raise
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.{_RANDOM}{_OLD}"):
        shutil.rmtree(leftover, ignore_errors=True)  # Another process may be deleting it too.


def foreign_files(folder: Path, ours: Sequence[str]) -> list[str]:
    """List the files of a folder that we didn't write, as paths relative to it. Deleting the folder would lose them.

    Links always count as foreign, because we never create any.

    Args:
        folder: The folder.
        ours: Patterns of the files that we write into such a folder, such as `config.json` or `donor/*`.
    """
    foreign = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        is_ours = path.is_dir() or any(fnmatch.fnmatchcase(name, pattern) for pattern in ours)
        if path.is_symlink() or not is_ours:
            foreign.append(name)
    return sorted(foreign)


def remove_ours(folder: Path, ours: Sequence[str]) -> list[str]:
    """Delete our files from a folder, and the folder itself if it holds no others.

    Args:
        folder: The folder; it need not exist. A symbolic link is left alone.
        ours: As in `foreign_files`.

    Returns:
        The foreign files, which stay; see `foreign_files`.
    """
    # `lexists` is also false, and raises nothing, if the name is too long.
    if not os.path.lexists(folder) or folder.is_symlink():
        return []
    foreign = foreign_files(folder, ours)
    if not foreign:
        shutil.rmtree(folder, ignore_errors=True)
        return []
    # Files before the folders that hold them.
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # It holds a foreign file.
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in foreign:
            path.unlink(missing_ok=True)
    return foreign


def check_name(folder: Path, kind: str, error: type[Exception]) -> None:
    """Refuse `.` and mount points, because a folder can't be moved to them; arguments as in `check_replaceable`."""
    if folder.name in ("", ".."):
        raise error(
            f"The {kind} is written next to its folder and then moved, so the folder can't be {str(folder)!r}. Name a "
            "new folder with --output."
        )
    if os.path.ismount(folder):
        raise error(
            f"{folder} is a mount point, which can't be renamed. The {kind} is written next to its folder and then "
            f"moved: name a folder inside it, such as {folder / kind.split()[-1]}, with --output."
        )


def check_replaceable(
    folder: Path,
    ours: Sequence[str],
    *,
    is_ours: Callable[[Path], bool],
    force: bool,
    kind: str,
    error: type[Exception],
) -> None:
    """Refuse a non-empty folder, unless `force` is true and every file in it is ours.

    Args:
        folder: The folder; it need not exist.
        ours: As in `foreign_files`.
        is_ours: Tells whether a folder holds a `kind`.
        force: It may be replaced.
        kind: The kind of folder, such as `graft`, for the message.
        error: The exception type to raise.

    Raises:
        error: The folder may not be replaced; the message says what it holds and what to do.
    """
    check_name(folder, kind, error)
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return
    noun = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if folder.is_symlink():
        raise error(f"{folder} is a symbolic link. Name the folder itself with --output.")
    if not folder.is_dir() or not is_ours(folder):
        raise error(f"{folder} already exists and is not {noun}. Choose another folder with --output.")
    if not force:
        raise error(f"{folder} already holds {noun}. Replace it with --force, or choose another folder with --output.")
    foreign = foreign_files(folder, ours)
    if foreign:
        raise error(
            f"{folder} holds {noun}, but also files that are not part of one: {list_names(foreign)}. Replacing it "
            "would delete them. Move them elsewhere, or choose another folder with --output."
        )


def resolve_blob(path: Path) -> Path:
    """Resolve a path, but only as far as the blob of a repo in the Hub's cache, whose name is the file's hash.

    Since version 2.4, huggingface_hub moves large blobs to a store that all repos of the cache share, and replaces them
    with links. Files in the store are named `blobs/<2 digits>/<Xet hash>`. Only links to the same cache's store count.

    Args:
        path: The path, such as that of a file in a snapshot.

    Raises:
        OSError, RuntimeError: As `Path.resolve` raises them.
    """
    target = path.resolve()
    store = target.parent.parent
    if path.is_symlink() and store.name == "blobs" and _SHARED_BLOB.fullmatch(f"{target.parent.name}/{target.name}"):
        blob = path.parent / path.readlink()
        blobs = blob.parent.resolve()
        if _BLOB.fullmatch(blob.name) and blobs.name == "blobs" and blobs.parent.parent == store.parent:
            return blobs / blob.name
    return target


def leaving_link(path: Path, folder: Path) -> Path | None:
    """Return where a path leads if a link takes it out of the folder, or None if it stays inside.

    Links of a snapshot in the Hub's cache to the blobs of its repo count as inside.

    Args:
        path: A path below the folder.
        folder: The folder; its own path may be a link.
    """
    root, target = folder.resolve(), resolve_blob(path)
    if target.is_relative_to(root):
        return None
    # The folder may be part of a snapshot, such as a graft's donor/.
    snapshots = (parent for parent in root.parents if parent.name == "snapshots")
    if _BLOB.fullmatch(target.name) and any(target.parent == parent.parent / "blobs" for parent in snapshots):
        return None
    return target


def check_links(paths: Iterable[Path], folder: Path, error: type[Exception]) -> None:
    """Refuse links that lead out of a folder before its content is copied or uploaded.

    Args:
        paths: Paths below the folder.
        folder: The folder; its own path may be a link.
        error: The exception type to raise.

    Raises:
        error: A path leads out of the folder; the message says which one, and where it leads.
    """
    for path in paths:
        target = leaving_link(path, folder)
        if target is not None:
            raise error(
                f"{path} leads out of {folder} through a symbolic link, to {target}. Files outside the folder are not "
                "copied or uploaded. Remove the link, or replace it with a copy of the file."
            )
