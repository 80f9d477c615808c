"""`run_study`: every cell of a plan, each once, however often it is stopped; then the tables."""

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon.errors import ConfigError
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.executors import Executor, run_local, run_ray, threads_each
from layer_surgeon.study.layout import StudyFolder, locked
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.records import as_json, write_summary
from layer_surgeon.study.summary import summarize
from layer_surgeon.study.tables import Summary
from layer_surgeon.study.verdict import say_share


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study came to.

    Attributes:
        path: The study's folder.
        done: Cells that are finished, those of earlier calls among them.
        ran: How many of them this call trained.
        failed: Id of a failed cell -> what went wrong.
        missing: Cells that were neither finished nor failed.
        summary: The tables.
        seconds: Time of this call.
    """

    path: Path
    done: int
    ran: int
    failed: dict[str, str]
    missing: int
    summary: Summary
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "path": str(self.path),
            "done": self.done,
            "ran": self.ran,
            "failed": dict(self.failed),
            "missing": self.missing,
            "seconds": round(self.seconds, 1),
            **{name: value for name, value in as_json(self.summary).items() if name != "format"},
        }


def run_study(
    plan: StudyPlan,
    output: Path,
    *,
    workers: int = 1,
    executor: Executor = "local",
    address: str | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Run what is not done yet, and write summary.json.

    A cell that failed is run again; one that is done is not. A plan may grow (arms, seeds, data sets): the cells that
    it had are kept. A changed setting makes other cells; the old ones stay in the folder and are not counted.

    Args:
        plan: The study.
        output: Its folder.
        workers: Local processes at a time.
        executor: local, or ray.
        address: Of the Ray cluster.
        progress: Told about every cell.

    Raises:
        ConfigError: The plan can't be run.
        DataError, SourceError, CheckpointError, ArtifactError: What all cells need can't be had.
        WorkspaceError: The folder can't be written, has links that leave it, or another process is at work on it.
        KeyboardInterrupt: Ctrl-C; the same call goes on later.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1.")
    progress, folder, began = progress or NullProgress(), StudyFolder(root=output), time.monotonic()
    folder.check()
    with locked(folder.lock, wait=False):
        plan.write(folder.plan)
        prepare_study(plan, folder, progress)
        cells = plan.cells()
        todo = [cell for cell in cells if not folder.result(cell.id).exists()]
        if len(todo) < len(cells):
            progress.notice(f"{len(cells) - len(todo)} of {len(cells)} trainings are done already.")
        failed: dict[str, str] = {}
        running: Generator[tuple[Cell, str | None]]
        if executor == "ray":
            running = run_ray(todo, folder, threads_each(workers), address)
        else:
            running = run_local(todo, folder, workers, progress.notice)
        progress.begin("Training", len(todo), "trainings")
        try:
            with contextlib.closing(running):
                for cell, reason in running:
                    progress.advance(1)
                    if reason is not None:
                        failed[cell.id] = reason
                        progress.notice(f"Failed: {_words(cell)}: {reason}")
        finally:
            progress.end()
            # Also of a study that is stopped: what is there can be looked at.
            summary = summarize(plan, folder)
            write_summary(folder.summary, summary)
    done = sum(folder.result(cell.id).exists() for cell in cells)
    return StudyResult(
        path=output,
        done=done,
        ran=sum(folder.result(cell.id).exists() for cell in todo),
        failed=failed,
        missing=len(cells) - done - len(failed),
        summary=summary,
        seconds=time.monotonic() - began,
    )


def _words(cell: Cell) -> str:
    return f"{cell.arm.name} on {cell.data}{say_share(cell.fraction)}, seed {cell.seed}"
