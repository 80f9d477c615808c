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
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon.errors import WorkspaceError

FORMAT = 1
PLAN, SUMMARY = "study.yaml", "summary.json"
# Of a sweep or selection; said here, for a report needs none of what writes them, which imports torch.
SELECTION, PROBES, SWEEP = "selection.json", "probes.json", "sweep.png"


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """The places in a study's folder."""

    root: Path

    @property
    def plan(self) -> Path:
        """The resolved plan."""
        return self.root / PLAN

    @property
    def summary(self) -> Path:
        """The tables."""
        return self.root / SUMMARY

    def result(self, cell_id: str) -> Path:
        """What a finished cell left."""
        return self.root / "cells" / f"{cell_id}.json"

    def failure(self, cell_id: str) -> Path:
        """What a failed cell left."""
        return self.root / "cells" / f"{cell_id}.failed.json"

    def log(self, cell_id: str) -> Path:
        """What a cell's process printed."""
        return self.root / "logs" / f"{cell_id}.txt"

    def run(self, cell_id: str) -> Path:
        """The folder of a cell's training."""
        return self.root / "runs" / cell_id

    def data(self, name: str) -> Path:
        """The prepared data set."""
        return self.root / "data" / name

    @property
    def hosts(self) -> Path:
        """Where hosts are unpacked."""
        return self.root / "hosts"

    def layer(self, name: str) -> Path:
        """An extracted layer."""
        return self.root / "layers" / name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of ours.

    Raises:
        WorkspaceError: It can't be read, or was written by a later version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{path} can't be read ({error}). Delete it; the study then makes it anew.") from error
    if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
        raise WorkspaceError(
            f"{path} is not of format {FORMAT}, the one that is known here. Update layer_surgeon, or delete the file."
        )
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all: a reader, or a kill -9, never meets half of it.

    Raises:
        WorkspaceError: The folder can't be written.
    """
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        WorkspaceError: The folder can't be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        WorkspaceError: The folder can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WorkspaceError(
            f"{path} can't be written: {error.strerror}. Make room, or choose another folder."
        ) from error


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock that the system gives back when the process dies, however it dies.

    Args:
        path: The lock's file.
        wait: Wait for another process that holds it.

    Raises:
        WorkspaceError: Another process holds it, and there is no waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; there, two commands on one folder are the user's to avoid.
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise WorkspaceError(
                f"Another process is at work on the study in {path.parent}. Wait for it, or choose another folder."
            ) from error
        yield
