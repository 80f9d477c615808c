"""The folder of a study, and what lies in it. Everything that shows a study reads these files and nothing else.

    my-study/
    ├── study.yaml            the plan as it runs: every default filled in (`plan.StudyPlan.as_dict`)
    ├── summary.json          the tables with their statistics (`summary.summarize`); written anew after every command
    ├── cells/<id>.json       one per finished training
    ├── cells/<id>.failed.json  one per training that failed, until it succeeds
    ├── logs/<id>.txt         what each training's process printed
    ├── data/<name>/          train.jsonl, validation.jsonl (where there is one), test.jsonl, data.json;
    │                         synthetic-<arm>-<hash>.jsonl: texts that a model wrote, by the settings for that
    ├── layers/<donor>-L17/   the layers that the arms use; <donor>-L17.json beside it says what it was taken out of
    ├── hosts/<name>/         a host that comes as an archive in Python packages, unpacked
    ├── probes.json, selection.json    what `surgeon select` measured before training, and what it chose
    ├── sweep.png             the picture of `surgeon sweep`
    └── runs/                 trained models, with `keep_models`, and those under way

A cell is one training: one arm, one seed, one data set, one share of it. It is measured on every test set. Its id
begins with these four, for people, and ends with a hash of all that decides what comes out.

cells/<id>.json:

    format           1
    id, arm, data, fraction, seed
    host             name of the host model
    donor            name of the donor layer, such as "gemma-3-270m-L17"; null without one
    tests            by test set: {"examples": 200, "scores": {"accuracy": 0.9, "macro_f1": ..., "loss": ...},
                     "correct": "1101..." (one digit per example, in the order of data/<name>/test.jsonl; null for tasks
                     that don't classify)}
    validation       {"examples", "scores"} of the kept epoch
    history          one entry per epoch: epoch, step, training_loss and the validation scores
    best_epoch       counted from 1
    parameters       {"total", "trained", "frozen"}
    train_examples   how many were trained on
    seconds          {"training", "testing", "all"}
    device           such as "cpu (1 threads)"
    config           the settings of fine-tuning
    versions         of layer_surgeon and the packages it computes with
    finished         time, ISO 8601, UTC

cells/<id>.failed.json: format, id, arm, data, fraction, seed, error {"type", "message"}, finished.

summary.json, selection.json: see `layer_surgeon.study.tables` and `selection`. All of them are read and written by
`layer_surgeon.study.records`.
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

FORMAT = 1
PLAN, SUMMARY = "study.yaml", "summary.json"
# Of a sweep or selection; said here, for a report needs none of what writes them, which imports torch.
SELECTION, PROBES, SWEEP = "selection.json", "probes.json", "sweep.png"
_FOLDERS = ("cells", "logs", "data", "layers", "hosts", "runs", "donors")


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """The paths in a study's folder. None of them leaves it, whatever its files say and whatever links are in it.

    Attributes:
        root: The folder.
        prepared: Another study's folder that links may lead to; see `rehearsal`.
    """

    root: Path
    prepared: Path | None = None

    def path(self, *names: str) -> Path:
        """A file or folder in the study's folder.

        Args:
            names: Of the folders on the way, and its own.

        Raises:
            WorkspaceError: A name is a path; or it is, or is below, a link that leaves the folder.
        """
        for name in names:
            if name in ("", ".", "..") or any(char in name for char in "/\\\0"):
                raise WorkspaceError(
                    f"{name!r} is not a name of a file or folder in {self.root}. Rename it in the plan."
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
            f"{path} leads to {target}, which is not in the study's folder, and nothing outside of it is read or "
            "written. Replace the link by what it leads to."
        )

    def check(self) -> None:
        """Refuse a folder with links that leave it, before the first file is written.

        Raises:
            WorkspaceError: There is one.
        """
        for name in _FOLDERS:
            self.path(name)

    @property
    def plan(self) -> Path:
        """The resolved plan."""
        return self.path(PLAN)

    @property
    def summary(self) -> Path:
        """The tables."""
        return self.path(SUMMARY)

    @property
    def lock(self) -> Path:
        """Held by the command that works on the study."""
        return self.path("study.lock")

    def result(self, cell_id: str) -> Path:
        """What a finished cell left."""
        return self.path("cells", f"{cell_id}.json")

    def failure(self, cell_id: str) -> Path:
        """What a failed cell left."""
        return self.path("cells", f"{cell_id}.failed.json")

    def log(self, cell_id: str) -> Path:
        """What a cell's process printed."""
        return self.path("logs", f"{cell_id}.txt")

    def run(self, cell_id: str, suffix: str = "") -> Path:
        """The folder of a cell's training; with a suffix, what is next to it."""
        return self.path("runs", f"{cell_id}{suffix}")

    def data(self, name: str) -> Path:
        """The prepared data set, none of whose files is a link that leaves the study's folder."""
        folder = self.path("data", name)
        for path in folder.iterdir() if folder.is_dir() else ():
            self._check_link(path)
        return folder

    @property
    def hosts(self) -> Path:
        """Where hosts are unpacked."""
        return self.path("hosts")

    def layer(self, name: str) -> Path:
        """An extracted layer."""
        return self.path("layers", name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of ours.

    Raises:
        WorkspaceError: It can't be read, or was written by a later version.
    """
    try:
        content = _io.read_json(path)
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{path} can't be read ({error}). Delete it; the study then makes it anew.") from error
    if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
        raise WorkspaceError(
            f"{path} is not of format {FORMAT}, the one that is known here. Update layer_surgeon, or delete the file."
        )
    return content


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock in a study's folder.

    Args:
        path: The lock's file.
        wait: Wait for another process that holds it.

    Raises:
        WorkspaceError: Another process holds it, and there is no waiting; or the folder can't be written.
    """
    try:
        lock = _io.FileLock(path)
        lock.take(wait=wait)
    except BusyError as error:
        raise WorkspaceError(
            f"Another process is at work on the study in {path.parent}. Wait for it, or choose another folder."
        ) from error
    except OSError as error:
        raise WorkspaceError(f"{path} can't be written: {error.strerror or error}. Choose another folder.") from error
    try:
        yield
    finally:
        lock.release()
