"""The folder of a run: `<name>.unfinished` while it trains, renamed to `<name>` when everything in it is whole.

sst2-bert+Llama-L31.unfinished/
├── run.json                the run's settings, data and model, to resume only the same run
├── checkpoints/            the last epoch's, and the best one's
├── logs/                   what TensorBoard shows, if it was asked for
└── final/                  becomes sst2-bert+Llama-L31/
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon.errors import TrainingError, WorkspaceError
from layer_surgeon.finetune.results import read_results
from layer_surgeon.finetune.trainer import last_checkpoint
from layer_surgeon.progress import Progress

UNFINISHED = ".unfinished"
LOGS = "logs"
_RUN = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where a run writes.

    Attributes:
        target: The folder that appears when the run is finished.
        checkpoint: The checkpoint to go on from; None starts at the beginning.
        created: Parents that did not exist before, innermost first; removed again if the run leaves nothing.
    """

    target: Path
    checkpoint: Path | None
    created: tuple[Path, ...]

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
        return 1 if self.checkpoint is None else int(self.checkpoint.name.rpartition("-")[2]) + 1

    @property
    def final(self) -> Path:
        """Where the finished run is put together."""
        return self.work / "final"

    def finish(self) -> None:
        """Make the finished run appear under its name, and remove the checkpoints."""
        if self.target.is_dir():
            self.target.rmdir()
        if self.logs.is_dir():
            self.logs.replace(self.final / LOGS)
        self.final.replace(self.target)
        shutil.rmtree(self.work, ignore_errors=True)

    def abandon(self) -> Path | None:
        """After a failure: keep a checkpoint, if there is one, and return it; else leave nothing behind."""
        checkpoint = last_checkpoint(self.checkpoints)
        if checkpoint is not None:
            shutil.rmtree(self.final, ignore_errors=True)
            _write_run(self.work, json.loads((self.work / _RUN).read_text(encoding="utf-8")) | {"pid": None})
            return checkpoint
        shutil.rmtree(self.work, ignore_errors=True)
        for parent in self.created:
            try:
                parent.rmdir()
            except OSError:
                break
        return None


def claim_folder(
    target: Path, signature: Mapping[str, Any], *, resume: bool, by_default: bool, progress: Progress
) -> RunFolder:
    """Take a folder for a run.

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
    if by_default:
        target = _pick(target, resume=resume, progress=progress)
    try:
        signature = json.loads(json.dumps(signature))
        if resume:
            return _resume(target, signature, progress)
        check_free(target)
        parents = [target.parent, *target.parent.parents]
        created = tuple(parent for parent in parents if not parent.exists())
        shutil.rmtree(_work(target), ignore_errors=True)
        (_work(target) / "checkpoints").mkdir(parents=True)
        _write_run(_work(target), {"signature": signature, "pid": os.getpid()})
    except OSError as error:
        if isinstance(error, WorkspaceError):
            raise
        raise WorkspaceError(
            f"{target} can't be written: {error.strerror or error}. Choose another folder with --output."
        ) from error
    return RunFolder(target=target, checkpoint=None, created=created)


def _work(target: Path) -> Path:
    return target.with_name(target.name + UNFINISHED)


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
    return target.exists() or last_checkpoint(_work(target) / "checkpoints") is not None or _is_running(_work(target))


def check_free(target: Path) -> None:
    """See that a run can be written there.

    Raises:
        WorkspaceError: The folder holds something, or an unfinished run lies beside it.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        what = "a finished run" if target.is_dir() and read_results(target) else "something else"
        raise WorkspaceError(f"{target} is in use: it holds {what}. Choose another folder with --output.")
    if _is_running(_work(target)):
        raise WorkspaceError(f"{_work(target)} is in use by a run that is going on. Choose another with --output.")
    if last_checkpoint(_work(target) / "checkpoints") is not None:
        raise WorkspaceError(
            f"{_work(target)} holds an unfinished run. Go on with it (--resume), delete it, or choose another folder "
            "with --output."
        )


def _is_running(work: Path) -> bool:
    try:
        pid = json.loads((work / _RUN).read_text(encoding="utf-8"))["pid"]
        if not isinstance(pid, int) or pid == os.getpid():
            return False
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, ValueError, KeyError):
        return False
    return True


def _resume(target: Path, signature: Mapping[str, Any], progress: Progress) -> RunFolder:
    work = _work(target)
    if target.is_dir() and read_results(target):
        # Killed between the finished run's appearing and the end of tidying up.
        if not _is_running(work):
            shutil.rmtree(work, ignore_errors=True)
        raise TrainingError(f"The run {target} is finished: there is nothing to resume.")
    if _is_running(work):
        raise WorkspaceError(f"{work} is in use by a run that is going on. Wait for it, or stop it.")
    try:
        stored = json.loads((work / _RUN).read_text(encoding="utf-8"))["signature"]
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise TrainingError(f"There is nothing to resume at {work}: no run was begun there.") from error
    changes = _differences(stored, signature)
    if changes:
        raise TrainingError(
            f"{work} was started with other settings or data: {'; '.join(changes[:5])}. Resume with the same ones, or "
            "start a new run with another --output."
        )
    checkpoint = last_checkpoint(work / "checkpoints")
    # What a kill during the last lines of a run has left: half a run, which would be taken for a part of this one.
    shutil.rmtree(work / "final", ignore_errors=True)
    _write_run(work, {"signature": signature, "pid": os.getpid()})
    if checkpoint is None:
        progress.notice(f"{work} has no checkpoint yet: the run begins anew.")
    else:
        progress.notice(f"Going on from {checkpoint}.")
    return RunFolder(target=target, checkpoint=checkpoint, created=())


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            change
            for name in names
            for change in _differences(old.get(name), new.get(name), f"{place}.{name}" if place else name)
        ]
    return [] if old == new else [f"{place} was {old!r} and is {new!r}"]


def _write_run(work: Path, content: Mapping[str, Any]) -> None:
    temporary = work / f"{_RUN}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(work / _RUN)
