"""The folder of a run: `<name>.unfinished` during training, and `<name>` once the run is complete.

sst2-bert+Llama-L31.unfinished/
├── run.json                settings, data and model of the run; --resume requires the same ones
├── .lock                   held while the run is active
├── checkpoints/            the last and the best checkpoint
├── logs/                   TensorBoard logs, if enabled
└── final/                  becomes sst2-bert+Llama-L31/

Any other file in the folder belongs to the user and is never deleted.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layer_surgeon._folders import check_name, foreign_files, remove_ours
from layer_surgeon._format import list_names
from layer_surgeon._io import BusyError, FileLock, is_locked, read_object, write_json
from layer_surgeon.errors import TrainingError, WorkspaceError
from layer_surgeon.finetune.checkpoints import last_checkpoint, remove_broken, step_of
from layer_surgeon.finetune.results import read_results
from layer_surgeon.progress import Progress

UNFINISHED = ".unfinished"
LOGS = "logs"
_RUN_FILE = "run.json"
_LOCK_FILE = ".lock"
# Files that a run leaves if it is killed before it writes run.json. Earlier versions wrote `run.json.tmp`.
_EARLY_FILES = (_LOCK_FILE, f".{_RUN_FILE}.*.tmp", f"{_RUN_FILE}.tmp")
_OWN_FILES = (_RUN_FILE, *_EARLY_FILES, "checkpoints/checkpoint-[0-9]*", f"{LOGS}/*", "final/*")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder that a run writes to.

    Attributes:
        target: The folder that appears when the run is finished.
        checkpoint: The checkpoint to continue from; None starts at the beginning.
        created: Parent folders that this run created, innermost first. They are removed again if the run leaves
            nothing.
        lock: Held by the first process while the run is active.
    """

    target: Path
    checkpoint: Path | None
    created: tuple[Path, ...]
    lock: FileLock = field(repr=False, compare=False)

    @property
    def work(self) -> Path:
        """The folder of the unfinished run."""
        return _work_folder(self.target)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.work / "checkpoints"

    @property
    def logs(self) -> Path:
        """The folder for trackers that write files."""
        return self.work / LOGS

    @property
    def first_step(self) -> int:
        """The first step to train."""
        return 1 if self.checkpoint is None else step_of(self.checkpoint) + 1

    @property
    def final(self) -> Path:
        """The folder in which the finished run is assembled."""
        return self.work / "final"

    def finish(self) -> list[str]:
        """Move the finished run to its final name, and remove the checkpoints.

        Returns:
            Files in the unfinished run's folder that the run did not create. The folder is kept because of them.
        """
        if self.target.is_dir():
            self.target.rmdir()
        if self.logs.is_dir():
            self.logs.replace(self.final / LOGS)
        self.final.replace(self.target)
        return self._clean_up()

    def abandon(self) -> Path | None:
        """Clean up after a failure: keep and return the last checkpoint, or remove everything if there is none."""
        checkpoint = last_checkpoint(self.checkpoints)
        if checkpoint is not None:
            shutil.rmtree(self.final, ignore_errors=True)
            remove_broken(self.checkpoints)
            self.lock.release()
            return checkpoint
        self._clean_up()
        _remove_empty(self.created)
        return None

    def _clean_up(self) -> list[str]:
        remaining = remove_ours(self.work, _OWN_FILES)
        self.lock.release()
        return remaining


def claim_folder(
    target: Path, signature: Mapping[str, Any], *, resume: bool, by_default: bool, progress: Progress
) -> RunFolder:
    """Reserve a folder for a run. The main process calls this, and holds the folder's lock until the run ends.

    Args:
        target: The requested folder.
        signature: Settings, data and model. A run can only be resumed with the same ones.
        resume: Continue the unfinished run in this folder.
        by_default: The user did not name a folder: add a number to the name if it is taken.
        progress: Receives a notice if there is an unfinished run of the same name.

    Raises:
        WorkspaceError: The folder is in use, or can't be written.
        TrainingError: There is nothing to resume, or the unfinished run has a different signature.
    """
    check_name(target, "run", WorkspaceError)
    signature = json.loads(json.dumps(signature))
    while True:
        path = _choose_target(target, resume=resume, progress=progress) if by_default else target
        try:
            return _resume(path, signature, progress) if resume else _begin(path, signature)
        except BusyError as error:
            # Another run has just taken this name; with a default name, try the next one.
            if resume or not by_default:
                raise _in_use_error(path) from error
        except OSError as error:
            if isinstance(error, WorkspaceError):
                raise
            raise WorkspaceError(
                f"{path} can't be written: {error.strerror or error}. Choose another folder with --output."
            ) from error


def _begin(target: Path, signature: Mapping[str, Any]) -> RunFolder:
    _check_idle(target)
    created = tuple(parent for parent in (target.parent, *target.parent.parents) if not parent.exists())
    work = _work_folder(target)
    lock = FileLock(work / _LOCK_FILE)
    lock.take()
    try:
        # Check again: since the lock is taken, no other run can begin here.
        _check_contents(target)
        remove_ours(work, [name for name in _OWN_FILES if name != _LOCK_FILE])
        (work / "checkpoints").mkdir(exist_ok=True)
        write_json(work / _RUN_FILE, {"signature": signature})
    except BaseException:
        lock.release()
        _remove_empty((work / "checkpoints", work, *created))
        raise
    return RunFolder(target=target, checkpoint=None, created=created, lock=lock)


def _work_folder(target: Path) -> Path:
    return target.with_name(target.name + UNFINISHED)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _choose_target(target: Path, *, resume: bool, progress: Progress) -> Path:
    """Choose from `name`, `name-2`, ...: the last unfinished run to resume, or the first free name for a new run."""
    candidates = [target]
    while _is_taken(candidates[-1]):
        candidates.append(target.with_name(f"{target.name}-{len(candidates) + 1}"))
    unfinished = [path for path in candidates if last_checkpoint(_work_folder(path) / "checkpoints") is not None]
    if not resume:
        if unfinished:
            progress.notice(
                f"Starting a new run. {_work_folder(unfinished[-1])} is unfinished; --resume would continue it instead."
            )
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
    """Check that a run can be written to a folder.

    Raises:
        WorkspaceError: The folder is not empty, or `<name>.unfinished` contains a run or files of the user.
    """
    check_name(target, "run", WorkspaceError)
    try:
        _check_idle(target)
    except BusyError as error:
        raise _in_use_error(target) from error


def _check_idle(target: Path) -> None:
    """Check that no run is active in a folder, and that one can begin.

    Raises:
        BusyError: A run is active, maybe one that began during this check.
        WorkspaceError: As in `check_free`.
    """
    contents_error: WorkspaceError | None = None
    try:
        _check_contents(target)
    except WorkspaceError as error:
        contents_error = error
    # Only now: the files of a run that has just begun would else be taken for the user's.
    if _is_running(_work_folder(target)):
        raise BusyError
    if contents_error is not None:
        raise contents_error


def _check_contents(target: Path) -> None:
    if target.is_symlink():
        raise WorkspaceError(f"{target} is a symbolic link. Name the folder itself with --output.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        is_run = target.is_dir() and read_results(target)
        problem = "already contains a finished run" if is_run else "already exists and is not an empty folder"
        raise WorkspaceError(f"{target} {problem}. Choose another folder with --output.")
    work = _work_folder(target)
    if work.is_symlink():
        raise WorkspaceError(f"{work} is a symbolic link. Delete it, or choose another folder with --output.")
    if last_checkpoint(work / "checkpoints") is not None:
        raise WorkspaceError(
            f"{work} contains an unfinished run. Continue it with --resume, delete it, or choose another folder with "
            "--output."
        )
    foreign = foreign_files(work, _OWN_FILES if _stored_signature(work) is not None else _EARLY_FILES)
    if foreign:
        raise WorkspaceError(
            f"This run would write to {work}, which contains files that no run created: {list_names(foreign)}. Move "
            "them elsewhere, or choose another folder with --output."
        )


def _stored_signature(work: Path) -> dict[str, Any] | None:
    """Read the signature of the run in a folder; None if no run was started there."""
    signature = read_object(work / _RUN_FILE).get("signature")
    return signature if isinstance(signature, dict) else None


def _is_running(work: Path) -> bool:
    """Whether a run is active: it holds the lock or, if an earlier version started it, its process is alive."""
    if is_locked(work / _LOCK_FILE):
        return True
    pid = read_object(work / _RUN_FILE).get("pid")
    try:
        # os.kill takes zero and negative numbers for process groups.
        if type(pid) is not int or pid <= 0 or pid == os.getpid():
            return False
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _in_use_error(target: Path) -> WorkspaceError:
    return WorkspaceError(
        f"{_work_folder(target)} is in use by an active run. Wait for it, stop it, or choose another folder with "
        "--output."
    )


def _resume(target: Path, signature: Mapping[str, Any], progress: Progress) -> RunFolder:
    work = _work_folder(target)
    if target.is_dir() and read_results(target):
        # The run was killed after it was finished, but before its work folder was removed.
        if _stored_signature(work) is not None and not _is_running(work):
            remove_ours(work, _OWN_FILES)
        raise TrainingError(f"The run {target} is finished: there is nothing to resume.")
    if _is_running(work):
        raise _in_use_error(target)
    if _stored_signature(work) is None:
        raise TrainingError(f"There is nothing to resume at {work}: no run was started there.")
    lock = FileLock(work / _LOCK_FILE)
    lock.take()
    try:
        _check_resumable(work, signature)
        # A run that was killed while it wrote final/ left part of a result, which must not mix with this one's.
        shutil.rmtree(work / "final", ignore_errors=True)
        remove_broken(work / "checkpoints")
        checkpoint = last_checkpoint(work / "checkpoints")
    except BaseException:
        lock.release()
        raise
    if checkpoint is None:
        progress.notice(f"{work} has no checkpoint yet: starting from the beginning.")
    else:
        progress.notice(f"Resuming from {checkpoint}.")
    return RunFolder(target=target, checkpoint=checkpoint, created=(), lock=lock)


def _check_resumable(work: Path, signature: Mapping[str, Any]) -> None:
    """Reject a different run, and a folder with symbolic links, through which the run would write elsewhere."""
    changes = _differences(_stored_signature(work), signature)
    if changes:
        raise TrainingError(
            f"{work} was started with different settings or data: {'; '.join(changes[:5])}. Resume with the original "
            "ones, or start a new run with another --output."
        )
    links = [path.relative_to(work).as_posix() for path in (work, *work.rglob("*")) if path.is_symlink()]
    if links:
        raise WorkspaceError(
            f"{work} contains symbolic links ({list_names(sorted(links))}), which no run creates. Replace each with "
            "its target, or start a new run with another --output."
        )


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            change
            for name in names
            for change in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [f"{key} was {old!r} and is now {new!r}"]
