"""`load_report`: a study's folder -> the content of a report. Only files in the folder are read."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layer_surgeon._yaml import read_yaml
from layer_surgeon.errors import ConfigError, WorkspaceError
from layer_surgeon.study.layout import PLAN, PROBES, SWEEP, StudyFolder
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.records import CellResult, read_failures, read_selection, read_summary
from layer_surgeon.study.selection_result import Selection
from layer_surgeon.study.summary import read_results, summarize
from layer_surgeon.study.tables import Summary
from layer_surgeon.study.verdict import say_margin
from layer_surgeon.tasks import TASKS

Kind = Literal["compare", "sweep", "select"]


@dataclass(frozen=True, kw_only=True)
class OpenCell:
    """An unfinished training. `error` is the reason if it failed; None if it has not run."""

    arm: str
    data: str
    fraction: float
    seed: int
    error: str | None


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """The content of a report.

    Names of arms, data sets and metrics, titles and errors are text from users. They may contain `<`, `&`, `|`, `%` or
    line ends, so every format has to escape them.

    Attributes:
        path: The study's folder.
        kind: The command that made the study.
        plan: The plan, with every default filled in.
        summary: The tables and the verdict.
        results: Every finished training.
        failed: The trainings that failed.
        missing: The trainings that have not run.
        selection: The choice of `surgeon select`.
    """

    path: Path
    kind: Kind
    plan: StudyPlan
    summary: Summary
    results: tuple[CellResult, ...]
    failed: tuple[OpenCell, ...]
    missing: tuple[OpenCell, ...]
    selection: Selection | None

    @property
    def is_finished(self) -> bool:
        """Whether every planned training is finished."""
        return not (self.failed or self.missing)

    @property
    def state(self) -> str:
        """The state in words: "All 12 trainings are done.", or the number of missing trainings."""
        planned, done = self.summary.cells.planned, len(self.results)
        if self.is_finished:
            return f"All {planned} trainings are done." if planned > 1 else "The training is done."
        remaining = f", {len(self.failed)} failed" if self.failed else ""
        remaining += f", {len(self.missing)} missing" if self.missing else ""
        return f"Not finished: {done} of {planned} trainings are done{remaining}."

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of fine-tuning that all trainings share."""
        configs = [result.config for result in self.results]
        shared = [
            (name, value)
            for name, value in (configs[0] if configs else {}).items()
            if all(other.get(name) == value for other in configs)
        ]
        return dict(shared) or dict(self.plan.finetune)

    @property
    def versions(self) -> Mapping[str, str]:
        """Package -> version, or all versions if the trainings used several."""
        names = dict.fromkeys(name for result in self.results for name in result.versions)
        return {
            name: ", ".join(dict.fromkeys(str(result.versions.get(name, "none")) for result in self.results))
            for name in names
        }

    @property
    def machines(self) -> tuple[str, ...]:
        """The devices that trainings ran on."""
        return tuple(dict.fromkeys(result.device for result in self.results))

    @property
    def started(self) -> str | None:
        """The time when the first training ended, ISO 8601, UTC."""
        return min((result.finished for result in self.results), default=None)

    @property
    def finished(self) -> str | None:
        """The time when the last training ended, ISO 8601, UTC."""
        return max((result.finished for result in self.results), default=None)

    @property
    def training_seconds(self) -> float:
        """The duration of all trainings together."""
        return sum(result.seconds.training for result in self.results)

    @property
    def command(self) -> str:
        """The command that repeats the study."""
        folder = self.path.resolve() if self.path.name in ("", "..") else self.path
        plan, output = shlex.quote(str(folder / PLAN)), shlex.quote(f"{folder}-again")
        return f"surgeon compare --config {plan} --output {output}"

    @property
    def margin(self) -> str | None:
        """The margin of the chosen arm over the second best, in words."""
        margin = None if self.selection is None else self.selection.margin
        return None if margin is None else say_margin(margin, is_share=self.plan.is_share)


def load_report(path: Path) -> StudyReport:
    """Read a study of `surgeon compare`, `sweep` or `select`, finished or not.

    If trainings have finished since summary.json was written, the tables are computed again, in memory.

    Raises:
        WorkspaceError: The folder does not contain a study, or a file is damaged.
    """
    folder = StudyFolder(root=path)
    plan = _read_plan(folder)
    results = read_results(plan, folder)
    selection = read_selection(folder)
    # A selection only belongs to this report if the plan is still that of its final study.
    if selection is not None and [arm.name for arm in plan.arms if arm.donor is not None] != [selection.best]:
        selection = None
    open_cells = _open_cells(plan.cells(), folder)
    return StudyReport(
        path=path,
        kind=_kind(plan, folder, selection),
        plan=plan,
        summary=_read_summary(plan, folder, results),
        results=results,
        failed=tuple(cell for cell in open_cells if cell.error is not None),
        missing=tuple(cell for cell in open_cells if cell.error is None),
        selection=selection,
    )


def _read_plan(folder: StudyFolder) -> StudyPlan:
    if not folder.plan.is_file():
        problem = "is not a folder" if not folder.root.is_dir() else f"has no {PLAN}"
        raise WorkspaceError(
            f"{folder.root} {problem}. A report is made of a study's folder. Use the --output of surgeon compare, "
            "sweep or select, or a folder in the workspace under studies."
        )
    try:
        return StudyPlan.read(folder.plan)
    except ConfigError as error:
        with contextlib.suppress(ConfigError):
            task = read_yaml(folder.plan).get("task")
            if isinstance(task, str) and task not in TASKS:
                raise WorkspaceError(
                    f"{folder.plan} is a study of the task {task}, which is not installed. Install the package that "
                    "adds this task."
                ) from error
        raise WorkspaceError(
            f"{folder.plan} is damaged. Delete it and run the command of the study again, with --output {folder.root}. "
            "This writes the plan again and keeps finished trainings."
        ) from error


def _read_summary(plan: StudyPlan, folder: StudyFolder, results: Sequence[CellResult]) -> Summary:
    if folder.summary.exists():
        written_at = folder.summary.stat().st_mtime_ns
        files = [folder.plan, *(folder.result(result.id) for result in results)]
        summary = read_summary(folder.summary)
        if summary.cells.done == len(results) and all(file.stat().st_mtime_ns <= written_at for file in files):
            return summary
    return summarize(plan, folder)


def _open_cells(cells: Sequence[Cell], folder: StudyFolder) -> list[OpenCell]:
    errors = {
        failure.id: f"{failure.error.get('type')}: {failure.error.get('message')}" for failure in read_failures(folder)
    }
    return [
        OpenCell(arm=cell.arm.name, data=cell.data, fraction=cell.fraction, seed=cell.seed, error=errors.get(cell.id))
        for cell in cells
        if not folder.result(cell.id).exists()
    ]


def _kind(plan: StudyPlan, folder: StudyFolder, selection: Selection | None) -> Kind:
    if selection is not None:
        return "select"
    grafts = [arm for arm in plan.arms if arm.donor is not None]
    layers_only = len(grafts) > 1 and all(arm.kind == "graft" and not arm.finetune for arm in grafts)
    one_donor = len({arm.donor.source for arm in grafts if arm.donor is not None}) == 1
    if plan.focus is None and layers_only and one_donor:
        unfinished = folder.path(PROBES).exists() and not folder.path(SWEEP).exists()
        return "select" if unfinished else "sweep"
    return "compare"
