"""`load_report`: a study's folder -> all that a report shows. Nothing but the folder's own files is read."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layer_surgeon.errors import ConfigError, WorkspaceError
from layer_surgeon.graft.config import ENCODER_OUTPUT
from layer_surgeon.study.layout import PLAN, PROBES, SELECTION, SWEEP, StudyFolder, read_json
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.report_tables import learning_curves, read_table, shift_matrices, sweeps_of
from layer_surgeon.study.report_types import (
    ArmFacts,
    Kind,
    Measurement,
    OpenCell,
    Selection,
    SelectionRung,
    StudyReport,
)
from layer_surgeon.study.summary import summarize
from layer_surgeon.study.verdict import difference_in_words

Result = Mapping[str, Any]
# Of a cell's file: what a report can't do without.
_CELL_KEYS = (
    *("id", "arm", "data", "fraction", "seed", "tests", "validation", "history", "best_epoch", "parameters"),
    *("train_examples", "seconds", "device", "config", "versions", "finished"),
)


def load_report(folder: Path) -> StudyReport:
    """Read a study: of `surgeon compare`, `sweep` or `select`, finished or not.

    Where trainings were finished since summary.json was written, the tables are computed anew, in memory.

    Raises:
        WorkspaceError: The folder holds no study, or a file of it is damaged.
    """
    place = StudyFolder(root=folder)
    plan = _read_plan(place)
    cells = plan.cells()
    try:
        there = [cell for cell in cells if place.result(cell.id).exists()]
        paths = [place.result(cell.id) for cell in there]
        # As in the summary: a cell can be older than the name of its arm.
        results = [{**_read_cell(path), "arm": cell.arm.name} for path, cell in zip(paths, there, strict=True)]
        summary = _read_summary(plan, place, paths)
        tables = tuple(read_table(table, summary, plan) for table in summary["tables"])
        selection = _read_selection(plan, place)
        return StudyReport(
            path=folder,
            kind=_kind(plan, place, selection),
            name=plan.name,
            title=plan.title,
            task=plan.task,
            metric=plan.metric,
            higher_is_better=plan.higher_is_better,
            reference=plan.reference,
            focus=plan.focus,
            alpha=summary["alpha"],
            verdict=summary["verdict"],
            planned=len(cells),
            done=len(results),
            **_open_cells(cells, place),
            seeds=plan.seeds,
            fractions=plan.fractions,
            arms=_arms(plan, summary),
            tables=tables,
            shifts=shift_matrices(tables, plan),
            curves=learning_curves(plan, results),
            sweeps=sweeps_of(tables, plan),
            selection=selection,
            measurements=tuple(entry for result in results for entry in _measurements(result)),
            plan=plan.as_dict(),
            settings=_shared([result["config"] for result in results]) or dict(plan.finetune),
            versions=_versions(results),
            machines=tuple(dict.fromkeys(result["device"] for result in results)),
            started=min((result["finished"] for result in results), default=None),
            finished=max((result["finished"] for result in results), default=None),
            training_seconds=sum(result["seconds"]["training"] for result in results),
            command=_command(folder),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError) as error:
        raise WorkspaceError(
            f"A file in {folder} lacks what a study's files hold ({type(error).__name__}: {error}). Delete "
            f"summary.json there and go on with the study, which writes it anew: surgeon compare --output {folder}"
        ) from error


def _read_plan(place: StudyFolder) -> StudyPlan:
    if not place.plan.is_file():
        found = "is no folder" if not place.root.is_dir() else f"holds no {PLAN}"
        raise WorkspaceError(
            f"{place.root} {found}. A report is made of a study's folder: what --output said to surgeon compare, sweep "
            "or select, or in the workspace under studies."
        )
    try:
        return StudyPlan.read(place.plan)
    except (ConfigError, AttributeError, ValueError) as error:
        raise WorkspaceError(
            f"{place.plan} is damaged ({error}). Start the study again with --output {place.root}: it writes the plan "
            "anew, and what is trained is kept."
        ) from error


def _read_cell(path: Path) -> Result:
    result = read_json(path)
    missing = [name for name in _CELL_KEYS if name not in result]
    if missing:
        raise WorkspaceError(
            f"{path} lacks {missing[0]}. Delete it and go on with the study, which trains it anew: surgeon compare "
            f"--output {path.parent.parent}"
        )
    return result


def _read_summary(plan: StudyPlan, place: StudyFolder, paths: Sequence[Path]) -> Mapping[str, Any]:
    if place.summary.exists():
        written = place.summary.stat().st_mtime_ns
        since = [path for path in (place.plan, *paths) if path.stat().st_mtime_ns > written]
        summary = read_json(place.summary)
        if not since and summary["cells"]["done"] == len(paths):
            return summary
    return summarize(plan, place)


def _open_cells(cells: Sequence[Cell], place: StudyFolder) -> dict[str, tuple[OpenCell, ...]]:
    failures = {failure["id"]: failure["error"] for failure in place.failures()}
    failed: list[OpenCell] = []
    missing: list[OpenCell] = []
    for cell in cells:
        if place.result(cell.id).exists():
            continue
        error = failures.get(cell.id)
        text = None if error is None else f"{error['type']}: {error['message']}"
        entry = OpenCell(arm=cell.arm.name, data=cell.data, fraction=cell.fraction, seed=cell.seed, error=text)
        (missing if text is None else failed).append(entry)
    return {"failed": tuple(failed), "missing": tuple(missing)}


def _arms(plan: StudyPlan, summary: Mapping[str, Any]) -> tuple[ArmFacts, ...]:
    facts = []
    for arm in plan.arms:
        known = summary["arms"].get(arm.name, {})
        counts = known.get("parameters") or {}
        facts.append(
            ArmFacts(
                name=arm.name,
                text=arm.text,
                kind=arm.kind,
                host=arm.host_name,
                donor=None if arm.donor is None else arm.donor.name,
                total=counts.get("total"),
                trained=counts.get("trained"),
                training_seconds=known.get("training_seconds"),
            )
        )
    return tuple(facts)


def _measurements(result: Result) -> list[Measurement]:
    return [
        Measurement(
            arm=result["arm"],
            data=result["data"],
            fraction=result["fraction"],
            test=test,
            seed=result["seed"],
            examples=measured["examples"],
            scores=measured["scores"],
            validation=result["validation"]["scores"],
            total=result["parameters"]["total"],
            trained=result["parameters"]["trained"],
            train_examples=result["train_examples"],
            best_epoch=result["best_epoch"],
            training_seconds=result["seconds"]["training"],
            testing_seconds=result["seconds"]["testing"],
            device=result["device"],
        )
        for test, measured in result["tests"].items()
    ]


def _read_selection(plan: StudyPlan, place: StudyFolder) -> Selection | None:
    """What was chosen, where the plan is still that of the selection's last rung."""
    path = place.path(SELECTION)
    if not path.exists():
        return None
    content = read_json(path)
    if [arm.name for arm in plan.arms if arm.donor is not None] != [content["best"]]:
        return None
    rungs = (
        SelectionRung(name=rung["name"], scores=rung["scores"], kept=tuple(rung["kept"])) for rung in content["rungs"]
    )
    margin = content.get("margin")
    return Selection(
        best=content["best"],
        layers=tuple(content["layers"]),
        site=str(content.get("site", ENCODER_OUTPUT)),
        cost=content["cost"],
        margin=None if margin is None else _margin(margin, plan.metric),
        rungs=tuple(rungs),
    )


def _margin(margin: Mapping[str, Any], metric: str) -> str:
    ahead = f"ahead of {margin['runner_up']} by {difference_in_words(margin['difference'], metric).lstrip('+')}"
    if margin["deviation"] is None:
        return f"{ahead}, with one seed"
    close = ": too close to call" if margin["difference"] <= margin["deviation"] else ""
    return f"{ahead}, which scatters by {difference_in_words(margin['deviation'], metric).lstrip('+')} by seed{close}"


def _kind(plan: StudyPlan, place: StudyFolder, selection: Selection | None) -> Kind:
    if selection is not None:
        return "select"
    donors = [arm for arm in plan.arms if arm.donor is not None]
    layers_only = len(donors) > 1 and all(arm.kind == "graft" and not arm.finetune for arm in donors)
    one_donor = len({arm.donor.source for arm in donors if arm.donor is not None}) == 1
    if plan.focus is None and layers_only and one_donor:
        unfinished = (place.root / PROBES).exists() and not (place.root / SWEEP).exists()
        return "select" if unfinished else "sweep"
    return "compare"


def _shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not configs:
        return {}
    first = configs[0]
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in configs)}


def _versions(results: Sequence[Result]) -> dict[str, str]:
    names = dict.fromkeys(name for result in results for name in result["versions"])
    return {
        name: ", ".join(dict.fromkeys(str(result["versions"].get(name, "none")) for result in results))
        for name in names
    }


def _command(folder: Path) -> str:
    if folder.name in ("", ".."):
        folder = folder.resolve()
    plan, output = shlex.quote(str(folder / PLAN)), shlex.quote(f"{folder}-again")
    return f"surgeon compare --config {plan} --output {output}"
