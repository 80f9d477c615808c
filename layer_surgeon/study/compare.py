"""`run_study`: trains every cell of a plan once, even across interruptions, then makes the tables."""

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon._io import write_bytes, write_json
from layer_surgeon._workers import Executor, threads_each
from layer_surgeon.errors import ConfigError
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.executors import run_local, run_ray
from layer_surgeon.study.layout import StudyFolder, locked
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.records import CellResult, as_json, read_cell
from layer_surgeon.study.summary import summarize
from layer_surgeon.study.tables import Summary
from layer_surgeon.study.verdict import say_share


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The result of a study.

    Attributes:
        path: The study's folder.
        done: Number of finished cells, including those of earlier calls.
        ran: Number of cells that this call finished.
        failed: Id of a failed cell -> the reason.
        missing: Number of cells that have neither finished nor failed.
        summary: The tables.
        seconds: Duration of this call.
    """

    path: Path
    done: int
    ran: int
    failed: dict[str, str]
    missing: int
    summary: Summary
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
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
    """Run the cells that are not finished yet, and write summary.json.

    Failed cells run again; finished cells don't. You can add arms, seeds and data sets to a plan: its finished cells
    are kept, unless a new data set is a test of every model. A changed setting makes new cells. The old ones stay in
    the folder and are not counted.

    Args:
        plan: The plan of the study.
        output: The study's folder.
        workers: Number of local processes that run at the same time.
        executor: local, or ray.
        address: Address of the Ray cluster.
        progress: Receives an update for every cell.

    Raises:
        ConfigError: The plan can't be run.
        DataError, SourceError, CheckpointError, ArtifactError: Data, a host or a layer can't be read.
        WorkspaceError: The folder can't be written, has links that lead out of it, or another process works on it.
        KeyboardInterrupt: The user pressed Ctrl-C. The same call continues the study later.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1.")
    start_time = time.monotonic()
    progress, folder = progress or NullProgress(), StudyFolder(root=output)
    folder.check()
    with locked(folder.lock, wait=False):
        cells = plan.cells()
        with _written(plan, folder):
            prepare_study(plan, folder, progress)
        todo = [cell for cell in cells if not folder.result(cell.id).exists()]
        if len(todo) < len(cells):
            progress.notice(f"{len(cells) - len(todo)} of {len(cells)} trainings are already done.")
        if plan.keep_models and any(
            folder.result(cell.id).exists() and not folder.run(cell.id).is_dir() for cell in cells
        ):
            progress.notice(
                "Some of their models are not there, because they were trained without keep_models. To train them "
                f"again, delete their files in {folder.path('cells')}."
            )
        failed: dict[str, str] = {}
        outcomes: Generator[tuple[Cell, str | None]]
        if executor == "ray":
            outcomes = run_ray(todo, folder, threads_each(workers), address)
        else:
            outcomes = run_local(todo, folder, workers, progress.notice)
        if todo:
            progress.begin("Training", len(todo), "trainings")
        try:
            with contextlib.closing(outcomes):
                for cell, reason in outcomes:
                    if reason is not None:
                        failed[cell.id] = reason
                        progress.notice(f"Failed: {_describe(cell)}: {reason}")
                    elif folder.result(cell.id).exists():
                        progress.notice(_describe_result(cell, read_cell(folder.result(cell.id)), plan.metric))
                    progress.advance(1)
        finally:
            progress.end()
            # Even if the study is interrupted: the user can look at the finished cells.
            summary = summarize(plan, folder)
            write_json(folder.summary, as_json(summary))
    done = sum(folder.result(cell.id).exists() for cell in cells)
    return StudyResult(
        path=output,
        done=done,
        ran=sum(folder.result(cell.id).exists() for cell in todo),
        failed=failed,
        missing=len(cells) - done - len(failed),
        summary=summary,
        seconds=time.monotonic() - start_time,
    )


@contextlib.contextmanager
def _written(plan: StudyPlan, folder: StudyFolder) -> Iterator[None]:
    """Write the plan into the study's folder, and put the earlier one back if the preparation fails.

    Raises:
        ConfigError: Somebody wrote the folder's file by hand, and it would be replaced.
    """
    previous = folder.plan.read_bytes() if folder.plan.exists() else None
    if previous is not None:
        StudyPlan.read(folder.plan)
    plan.write(folder.plan)
    try:
        yield
    except Exception:  # After Ctrl-C the new plan stays: the study continues from its folder.
        if previous is None:
            folder.plan.unlink(missing_ok=True)
        else:
            write_bytes(folder.plan, previous)
        raise


def _describe_result(cell: Cell, result: CellResult, metric: str) -> str:
    test = cell.tests[0]
    score = result.tests[test].scores.get(metric)
    score_text = "" if score is None else f"{metric} {score:.4f} on the test part of {test}, "
    return f"{_describe(cell)}: {score_text}{result.seconds.all:.0f} s"


def _describe(cell: Cell) -> str:
    return f"{cell.arm.name} on {cell.data}{say_share(cell.fraction)}, seed {cell.seed}"
