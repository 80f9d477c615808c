"""One training of a study, in its own process: `python -m layer_surgeon.study.cells FOLDER CELL`."""

import datetime
import importlib.metadata
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from layer_surgeon._io import read_json, write_json
from layer_surgeon.errors import LayerSurgeonError, TrainingError
from layer_surgeon.finetune import FinetuneConfig, FinetuneResult, finetune_model
from layer_surgeon.finetune.folder import UNFINISHED
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.data import PreparedData
from layer_surgeon.study.donor_layers import donor_name
from layer_surgeon.study.layout import StudyFolder, locked
from layer_surgeon.study.models import build_model, states_of, tokenizer_of
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.prepare import synthetic_file
from layer_surgeon.study.records import (
    CellParameters,
    CellResult,
    CellSeconds,
    ValidationScores,
    as_json,
    read_cell,
)
from layer_surgeon.study.tables import FailedCell
from layer_surgeon.study.testing import measure_cell
from layer_surgeon.tasks import get_task
from layer_surgeon.workspace import DONOR_STATES, Workspace


def run_cell(cell: Cell, folder: StudyFolder, progress: Progress | None = None) -> CellResult:
    """Train and test one cell, and write its result atomically. If the cell is already finished, read its result.

    A training that was killed continues from its last checkpoint.

    Raises:
        LayerSurgeonError: As in `finetune_model`. The error is also written to the cell's `.failed.json`.
    """
    progress = progress or NullProgress()
    with locked(folder.run(cell.id, ".lock"), wait=True):
        if folder.result(cell.id).exists():
            return read_cell(folder.result(cell.id))
        try:
            result = _run(cell, folder, progress)
        except Exception as error:
            failure = FailedCell(**_identify(cell), error={"type": type(error).__name__, "message": str(error)})
            write_json(folder.failure(cell.id), as_json(failure) | {"finished": _now()})
            raise
        write_json(folder.result(cell.id), as_json(result))
        folder.failure(cell.id).unlink(missing_ok=True)
    return result


def _run(cell: Cell, folder: StudyFolder, progress: Progress) -> CellResult:
    start_time = time.monotonic()
    trained = train_cell(cell, folder, progress)
    test_start_time = time.monotonic()
    tests = measure_cell(cell, trained, folder, progress)
    shutil.rmtree(folder.run(cell.id, f".{DONOR_STATES}"), ignore_errors=True)
    record = trained.as_dict()
    if not cell.keep_model:
        shutil.rmtree(folder.run(cell.id), ignore_errors=True)
    end_time = time.monotonic()
    return CellResult(
        **_identify(cell),
        host=cell.arm.host_name,
        donor=None if cell.arm.donor is None else donor_name(cell.arm.donor, folder),
        tests=tests,
        validation=ValidationScores(examples=trained.validation.examples, scores=dict(trained.validation.scores)),
        history=tuple(epoch.as_dict() for epoch in trained.history),
        best_epoch=trained.best_epoch,
        parameters=CellParameters(**trained.parameters),
        train_examples=trained.data["splits"]["train"]["examples"],
        seconds=CellSeconds(
            training=round(trained.seconds, 3),
            testing=round(end_time - test_start_time, 3),
            all=round(end_time - start_time, 3),
        ),
        device=trained.device,
        config=record["config"],
        versions={
            "layer_surgeon": record["layer_surgeon"],
            **record["versions"],
            "scipy": importlib.metadata.version("scipy"),
        },
        finished=_now(),
    )


def train_cell(cell: Cell, folder: StudyFolder, progress: Progress, **settings: Any) -> FinetuneResult:
    """Train a cell without testing it. `settings` override the cell's settings of fine-tuning."""
    config = FinetuneConfig(**{**cell.finetune, "task": cell.task, **settings})
    train: Any
    validation: Any = None
    if get_task(cell.task).one_label_per_text:
        data = PreparedData.open(folder.data(cell.data))
        config = FinetuneConfig.from_settings(config, data.columns)
        train, validation = data.part("train"), data.part("validation")
        if cell.arm.synthetic is not None:
            train = str(synthetic_file(cell.arm, cell.data, folder))
    else:
        spec = next(spec for spec in StudyPlan.read(folder.plan).data if spec.name == cell.data)
        config = FinetuneConfig.from_settings(config, spec.columns)
        train, validation = list(spec.train), list(spec.validation) or None
    run_folder, unfinished_folder = folder.run(cell.id), folder.run(cell.id, UNFINISHED)
    workspace = folder.run(cell.id, ".workspace")
    shutil.rmtree(run_folder, ignore_errors=True)
    resumable = any(unfinished_folder.glob("**/checkpoint-*"))
    arguments: dict[str, Any] = {
        "config": config,
        "output": run_folder,
        "workspace": Workspace(workspace),
        "tokenizer": tokenizer_of(cell.arm, folder),
        "states": states_of(cell, folder),
        "progress": progress,
    }
    try:
        for resume in (True, False) if resumable else (False,):
            model = build_model(cell.arm, cell.task, cell.seed, folder)
            try:
                return finetune_model(model, train, validation, resume=resume, **arguments)
            except TrainingError as error:
                if not resume:
                    raise
                progress.notice(f"{error} The training starts again from the beginning.")
            shutil.rmtree(unfinished_folder, ignore_errors=True)
        raise AssertionError("the last attempt returns or raises")
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _identify(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "arm": cell.arm.name,
        "data": cell.data,
        "fraction": cell.fraction,
        "seed": cell.seed,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class _Lines(NullProgress):
    """Prints notices and steps as lines, for the cell's log."""

    def begin(self, description: str, total: int | None, unit: str) -> None:
        print(f"{_now()} {description} ({total} {unit})", flush=True)

    def notice(self, message: str) -> None:
        print(f"{_now()} {message}", flush=True)


def main(arguments: list[str]) -> int:
    """Run the cell that is described in a file.

    Args:
        arguments: The study's folder and the file of the cell.

    Returns:
        0 if the cell is finished, 1 if it failed. The reason is then in the cell's `.failed.json`.
    """
    folder, cell_path = StudyFolder(root=Path(arguments[0])), Path(arguments[1])
    cell = Cell.from_dict(read_json(cell_path))
    try:
        run_cell(cell, folder, _Lines())
    except LayerSurgeonError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
