"""The folder of a study and its files. Everything that displays a study reads only these files.

    my-study/
    ├── study.yaml            the plan, with every default filled in (`plan.StudyPlan.as_dict`)
    ├── models.json           the sha256 of local hosts and layer artifacts, which are read where they are
    ├── summary.json          the tables with their statistics (`summary.summarize`); rewritten after every command
    ├── cells/<id>.json       one per finished training
    ├── cells/<id>.failed.json  one per training that failed, until it succeeds
    ├── logs/<id>.txt         the output of each training's process
    ├── data/<name>/          train.jsonl, validation.jsonl (if the data set has one), test.jsonl, data.json (only the
    │                         last for tasks without one label per text: the sha256 of the local data files);
    │                         synthetic-<arm>-<hash>.jsonl: texts that a model wrote; the hash is of the settings
    ├── layers/<donor>-L17/   the layers that the arms use; <donor>-L17.json next to it: the donor and its files;
    │                         <donor>-first-9-for-<host>/: a stack, which reads text; <donor>-L0-1-model/: a cut model
    ├── donor-states/        what frozen donors that read text compute for each text; see `finetune.donor_states`
    ├── probes.json, selection.json    the measurements of `surgeon select` before training, and its choice
    ├── sweep.png             the figure of `surgeon sweep`
    └── runs/                 unfinished trainings and, with `keep_models`, trained models

A cell is one training: one arm, one seed, one data set, and one share of that data set. It is measured on every test
set. Its id starts with these four, for readers, and ends with a hash of everything that decides the result.

cells/<id>.json:

    format           1
    id, arm, data, fraction, seed
    host             name of the host model
    donor            name of the donor layer, such as "gemma-3-270m-L17"; null without a donor
    tests            test set -> {"examples": 200, "scores": {"accuracy": 0.9, "macro_f1": ..., "loss": ...},
                     "correct": "1101..." (one digit per example, in the order of data/<name>/test.jsonl; null for tasks
                     other than classification)}
    validation       {"examples", "scores"} of the epoch that was kept
    history          one entry per epoch: epoch, step, training_loss and the validation scores
    best_epoch       the epoch that was kept, counted from 1
    parameters       {"total", "trained", "frozen"}
    train_examples   number of training examples
    seconds          {"training", "testing", "all"}
    device           such as "cpu (1 threads)"
    config           the settings of fine-tuning
    versions         versions of layer_surgeon and the packages that it computes with
    finished         time, ISO 8601, UTC

cells/<id>.failed.json: format, id, arm, data, fraction, seed, error {"type", "message"}, finished.

summary.json, selection.json: see `layer_surgeon.study.tables` and `selection_result`. `layer_surgeon.study.records`
reads and writes all of these files.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon import _io
from layer_surgeon._folders import leaving_link
from layer_surgeon._io import BusyError
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.workspace import DONOR_STATES

FORMAT = 1
PLAN, SUMMARY = "study.yaml", "summary.json"
# The files of a sweep or a selection. They are named here because the code that writes them imports torch, which a
# report doesn't need.
SELECTION, PROBES, SWEEP = "selection.json", "probes.json", "sweep.png"
_FOLDERS = ("cells", "logs", "data", "layers", DONOR_STATES, "runs")


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """The paths in a study's folder. No path can lead out of the folder, by a name in its files or by a link.

    Attributes:
        root: The folder.
        prepared: The folder of another study, which links may lead to; see `rehearsal`.
    """

    root: Path
    prepared: Path | None = None

    def path(self, *names: str) -> Path:
        """Return the path of a file or folder in the study's folder.

        Args:
            names: The names of the parent folders, then that of the file or folder.

        Raises:
            WorkspaceError: A name is itself a path, or the path leads out of the folder through a link.
        """
        for name in names:
            if name in ("", ".", "..") or any(char in name for char in "/\\\0"):
                raise WorkspaceError(
                    f"{name!r} is not a valid name for a file or folder in {self.root}. Rename it in the plan."
                )
        path = self.root.joinpath(*names)
        self._check_link(path)
        return path

    def _check_link(self, path: Path) -> None:
        try:
            target = leaving_link(path, self.root)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise WorkspaceError(f"{path} can't be read: {error}. Remove it.") from error
        if target is None or (self.prepared is not None and target.is_relative_to(self.prepared.resolve())):
            return
        raise WorkspaceError(
            f"{path} leads to {target}, which is not in the study's folder. A study only reads and writes files in "
            "its own folder. Replace the link with a copy of its target."
        )

    def check(self) -> None:
        """Reject a folder with links that lead out of it, before the first file is written.

        Raises:
            WorkspaceError: A link leads out of the folder.
        """
        for name in _FOLDERS:
            self.path(name)

    @property
    def plan(self) -> Path:
        """The file of the plan, with every default filled in."""
        return self.path(PLAN)

    @property
    def summary(self) -> Path:
        """The file of the tables."""
        return self.path(SUMMARY)

    @property
    def models(self) -> Path:
        """The file with the sha256 of local hosts and layer artifacts."""
        return self.path("models.json")

    @property
    def lock(self) -> Path:
        """The lock file, held by the command that works on the study."""
        return self.path("study.lock")

    def result(self, cell_id: str) -> Path:
        """Return the result file of a finished cell."""
        return self.path("cells", f"{cell_id}.json")

    def failure(self, cell_id: str) -> Path:
        """Return the error file of a failed cell."""
        return self.path("cells", f"{cell_id}.failed.json")

    def log(self, cell_id: str) -> Path:
        """Return the file with the output of a cell's process."""
        return self.path("logs", f"{cell_id}.txt")

    def run(self, cell_id: str, suffix: str = "") -> Path:
        """Return the folder of a cell's training or, with a suffix, the file or folder next to it."""
        return self.path("runs", f"{cell_id}{suffix}")

    def data(self, name: str) -> Path:
        """Return the folder of a prepared data set, after checking that no file in it is a link out of the study.

        Raises:
            WorkspaceError: A file is a link that leads out of the study's folder.
        """
        folder = self.path("data", name)
        for path in folder.iterdir() if folder.is_dir() else ():
            self._check_link(path)
        return folder

    def layer(self, name: str) -> Path:
        """Return the folder of an extracted layer."""
        return self.path("layers", name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a study wrote.

    Raises:
        WorkspaceError: The file can't be read, or was written by a later version.
    """
    try:
        content = _io.read_json(path)
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{path} can't be read ({error}). Delete it; the study then makes it again.") from error
    if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
        raise WorkspaceError(
            f"{path} is not of format {FORMAT}, the only one that this version reads. Update layer_surgeon, or delete "
            "the file."
        )
    return content


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock in a study's folder.

    Args:
        path: The lock file.
        wait: Whether to wait if another process holds the lock.

    Raises:
        WorkspaceError: Another process holds the lock and `wait` is false, or the folder can't be written.
    """
    try:
        lock = _io.FileLock(path)
        lock.take(wait=wait)
    except BusyError as error:
        raise WorkspaceError(
            f"Another process is working on the study in {path.parent}. Wait until it ends, or choose another folder."
        ) from error
    except OSError as error:
        raise WorkspaceError(f"{path} can't be written: {error.strerror or error}. Choose another folder.") from error
    try:
        yield
    finally:
        lock.release()
