"""Folders: made whole or not at all, replaced and deleted only where they are ours, and left by no link."""

import contextlib
import errno
import fnmatch
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

_OLD = ".old"
# What `mkdtemp` puts into a name. It has no dot, so a leftover of `out.v2` is not taken for one of `out`.
_RANDOM = "[a-z0-9_]" * 8
# How the Hub's cache names the files that its snapshots link to: git's sha1, or the sha256 of a large file.
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


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
