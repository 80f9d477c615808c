"""The folder of a run: `<name>.unfinished` while it trains, renamed to `<name>` when everything in it is whole.

sst2-bert+Llama-L31.unfinished/
├── run.json                the run's settings, data and model, to resume only the same run
├── .lock                   held while the run is going on
├── checkpoints/            the last epoch's, and the best one's
├── logs/                   what TensorBoard shows, if it was asked for
└── final/                  becomes sst2-bert+Llama-L31/

What else is in it was put there by somebody, and is never deleted.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layer_surgeon._folders import foreign_files, list_names, remove_ours
from layer_surgeon._io import BusyError, FileLock, is_locked, read_json, write_json
from layer_surgeon.errors import TrainingError, WorkspaceError
from layer_surgeon.finetune.checkpoints import last_checkpoint, remove_broken, step_of
from layer_surgeon.finetune.results import read_results
from layer_surgeon.progress import Progress

UNFINISHED = ".unfinished"
LOGS = "logs"
_RUN = "run.json"
_LOCK = ".lock"
# What a kill leaves before a run has said what it is; `run.json.tmp` is of earlier versions.
_BEFORE_RUN = (_LOCK, f".{_RUN}.*.tmp", f"{_RUN}.tmp")
_WRITTEN = (_RUN, *_BEFORE_RUN, "checkpoints/checkpoint-[0-9]*", f"{LOGS}/*", "final/*")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where a run writes.

    Attributes:
        target: The folder that appears when the run is finished.
        checkpoint: The checkpoint to go on from; None starts at the beginning.
        created: Parents that did not exist before, innermost first; removed again if the run leaves nothing.
        lock: Held while the run is going on, by its first process.
    """

    target: Path
    checkpoint: Path | None
    created: tuple[Path, ...]
    lock: FileLock = field(repr=False, compare=False)

    @property
    def work(self) -> Path:
        """The folder while the run is not finished."""
        return _work(self.target)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.work / "checkpoints"

    @property
    def logs(self) -> Path:
        """Where a tracker writes that writes files."""
        return self.work / LOGS

    @property
    def first_step(self) -> int:
        """The step that the run begins with."""
        return 1 if self.checkpoint is None else step_of(self.checkpoint) + 1

    @property
    def final(self) -> Path:
        """Where the finished run is put together."""
        return self.work / "final"

    def finish(self) -> list[str]:
        """Make the finished run appear under its name, and remove the checkpoints.

        Returns:
            Files of somebody else in the unfinished run's folder, which stays for them.
        """
        if self.target.is_dir():
            self.target.rmdir()
        if self.logs.is_dir():
            self.logs.replace(self.final / LOGS)
        self.final.replace(self.target)
        return self._leave()

    def abandon(self) -> Path | None:
        """After a failure: keep a checkpoint, if there is one, and return it; else leave nothing behind."""
        checkpoint = last_checkpoint(self.checkpoints)
        if checkpoint is not None:
            shutil.rmtree(self.final, ignore_errors=True)
            remove_broken(self.checkpoints)
            self.lock.release()
            return checkpoint
        self._leave()
        _remove_empty(self.created)
        return None

    def _leave(self) -> list[str]:
        remaining = remove_ours(self.work, _WRITTEN)
        self.lock.release()
        return remaining


def claim_folder(
    target: Path, signature: Mapping[str, Any], *, resume: bool, by_default: bool, progress: Progress
) -> RunFolder:
    """Take a folder for a run. The first process of several does it, and holds its lock until the run ends.

    Args:
        target: The wanted folder.
        signature: Settings, data and model; a run is resumed only if they are the same.
        resume: Go on with the unfinished run at this place.
        by_default: Nobody named the folder: a number is added to its name where it is taken.
        progress: Is told about an unfinished run beside it.

    Raises:
        WorkspaceError: The folder is in use, or can't be written.
        TrainingError: There is nothing to resume, or it is another run.
    """
    signature = json.loads(json.dumps(signature))
    while True:
        path = _pick(target, resume=resume, progress=progress) if by_default else target
        try:
            return _resume(path, signature, progress) if resume else _begin(path, signature)
        except BusyError as error:
            # By default another name is taken, since another run took this one in this moment.
            if resume or not by_default:
                raise _is_in_use(path) from error
        except OSError as error:
            if isinstance(error, WorkspaceError):
                raise
            raise WorkspaceError(
                f"{path} can't be written: {error.strerror or error}. Choose another folder with --output."
            ) from error


def _begin(target: Path, signature: Mapping[str, Any]) -> RunFolder:
    if _is_running(_work(target)):
        raise BusyError
    _check_contents(target)
    created = tuple(parent for parent in (target.parent, *target.parent.parents) if not parent.exists())
    work = _work(target)
    lock = FileLock(work / _LOCK)
    lock.take()
    try:
        # Again, now that nobody else can begin here.
        _check_contents(target)
        remove_ours(work, [name for name in _WRITTEN if name != _LOCK])
        (work / "checkpoints").mkdir(exist_ok=True)
        write_json(work / _RUN, {"signature": signature})
    except BaseException:
        lock.release()
        _remove_empty((work, *created))
        raise
    return RunFolder(target=target, checkpoint=None, created=created, lock=lock)


def _work(target: Path) -> Path:
    return target.with_name(target.name + UNFINISHED)


def _remove_empty(folders: Iterable[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _pick(target: Path, *, resume: bool, progress: Progress) -> Path:
    """The last unfinished one of `name`, `name-2`, ... to resume; the first free one otherwise."""
    candidates = [target]
    while _is_taken(candidates[-1]):
        candidates.append(target.with_name(f"{target.name}-{len(candidates) + 1}"))
    unfinished = [path for path in candidates if last_checkpoint(_work(path) / "checkpoints") is not None]
    if not resume:
        if unfinished:
            progress.notice(f"{_work(unfinished[-1])} is unfinished; --resume would go on with it. This is a new run.")
        return candidates[-1]
    return unfinished[-1] if unfinished else candidates[-1]


def _is_taken(target: Path) -> bool:
    if os.path.lexists(target):
        return True
    try:
        check_free(target)
    except WorkspaceError:
        return True
    return False


def check_free(target: Path) -> None:
    """See that a run can be written there.

    Raises:
        WorkspaceError: The folder holds something, or an unfinished run or somebody's files are next to it.
    """
    if _is_running(_work(target)):
        raise _is_in_use(target)
    _check_contents(target)


def _check_contents(target: Path) -> None:
    if target.is_symlink():
        raise WorkspaceError(f"{target} is a symbolic link. Name the folder itself with --output.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        content = "a finished run" if target.is_dir() and read_results(target) else "something else"
        raise WorkspaceError(f"{target} is in use: it holds {content}. Choose another folder with --output.")
    work = _work(target)
    if work.is_symlink():
        raise WorkspaceError(f"{work} is a symbolic link. Delete it, or choose another folder with --output.")
    if last_checkpoint(work / "checkpoints") is not None:
        raise WorkspaceError(
            f"{work} holds an unfinished run. Go on with it (--resume), delete it, or choose another folder "
            "with --output."
        )
    foreign = foreign_files(work, _WRITTEN if _stored_signature(work) is not None else _BEFORE_RUN)
    if foreign:
        raise WorkspaceError(
            f"{work} would be written by this run, but holds files that no run has made: {list_names(foreign)}. Move "
            "them to another place, or choose another folder with --output."
        )


def _stored_signature(work: Path) -> dict[str, Any] | None:
    """What the run in a folder was started with; None where no run was begun there."""
    try:
        signature = _read_run(work)["signature"]
    except (OSError, ValueError, KeyError):
        return None
    return signature if isinstance(signature, dict) else None


def _read_run(work: Path) -> dict[str, Any]:
    content = read_json(work / _RUN)
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    return content


def _is_running(work: Path) -> bool:
    """Whether a run is going on there: it holds the lock, or is one of an earlier version, which notes its process."""
    if is_locked(work / _LOCK):
        return True
    try:
        pid = _read_run(work).get("pid")
        # What is no number of a process asks for a group of them, or for all.
        if type(pid) is not int or pid <= 0 or pid == os.getpid():
            return False
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _is_in_use(target: Path) -> WorkspaceError:
    return WorkspaceError(
        f"{_work(target)} is in use by a run that is going on. Wait for it, stop it, or choose another folder with "
        "--output."
    )


def _resume(target: Path, signature: Mapping[str, Any], progress: Progress) -> RunFolder:
    work = _work(target)
    if target.is_dir() and read_results(target):
        # Killed between the finished run's appearing and the end of tidying up.
        if _stored_signature(work) is not None and not _is_running(work):
            remove_ours(work, _WRITTEN)
        raise TrainingError(f"The run {target} is finished: there is nothing to resume.")
    if _is_running(work):
        raise _is_in_use(target)
    if _stored_signature(work) is None:
        raise TrainingError(f"There is nothing to resume at {work}: no run was begun there.")
    lock = FileLock(work / _LOCK)
    lock.take()
    try:
        _check_resumable(work, signature)
        # What a kill during the last lines of a run has left: half a run, which would be taken for a part of this one.
        shutil.rmtree(work / "final", ignore_errors=True)
        remove_broken(work / "checkpoints")
        checkpoint = last_checkpoint(work / "checkpoints")
    except BaseException:
        lock.release()
        raise
    if checkpoint is None:
        progress.notice(f"{work} has no checkpoint yet: the run begins anew.")
    else:
        progress.notice(f"Going on from {checkpoint}.")
    return RunFolder(target=target, checkpoint=checkpoint, created=(), lock=lock)


def _check_resumable(work: Path, signature: Mapping[str, Any]) -> None:
    """Refuse another run, and a folder with links: what a run writes under its own names must not end elsewhere."""
    changes = _differences(_stored_signature(work), signature)
    if changes:
        raise TrainingError(
            f"{work} was started with other settings or data: {'; '.join(changes[:5])}. Resume with the same ones, or "
            "start a new run with another --output."
        )
    links = [path.relative_to(work).as_posix() for path in (work, *work.rglob("*")) if path.is_symlink()]
    if links:
        raise WorkspaceError(
            f"{work} holds symbolic links ({list_names(sorted(links))}), which no run makes. Replace them by what they "
            "lead to, or start a new run with another --output."
        )


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            change
            for name in names
            for change in _differences(old.get(name), new.get(name), f"{place}.{name}" if place else name)
        ]
    return [] if old == new else [f"{place} was {old!r} and is {new!r}"]
