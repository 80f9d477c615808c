"""Watch one training of each arm, step by step: why does a plain graft do worse than its host?

    python -m research.loudness --data data/sst2 --work DIR     measure; continues where it stopped

DATA holds train.csv, validation.csv and test.csv. The trainings are those of research/plans: host all-MiniLM-L6-v2,
layer 17 of Gemma-3-270M, 10 % of SST-2 (692 texts, seed 2023), the paper's settings with precision bf16. Each arm is
one run: enough to see a cause, but not to measure a gain. `--layers FOLDER` uses layers that a study has extracted.
What was expected, what came out, and the names of the numbers: research/loudness.md.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.machine import machine, say, versions
from layer_surgeon._io import write_json, write_text
from layer_surgeon.finetune import run
from layer_surgeon.progress import NullProgress
from layer_surgeon.study import cells
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.layout import StudyFolder, read_json
from layer_surgeon.study.models import build_model
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.prepare import prepare_study
from research.evidence import MEASURED
from research.loudness_start import measure_start
from research.loudness_watch import Watch, as_text, fold, quieten, watched_trainer

RESULTS = MEASURED / "loudness.json"
SEED = 2023
DONORS = ("packaged:gemma-3-270m", "packaged:qwen2.5-coder-1.5b-instruct")
ARMS: tuple[Any, ...] = (
    "host",
    "graft",
    "matched",
    {"name": "folded", "like": "matched"},
    {"name": "folded-slow", "like": "matched", "finetune": {"projection_learning_rate": 5e-8}},
    {"name": "quiet", "like": "graft"},
    "random",
    "wide-head",
    "gated",
    {"name": "fast-projections", "like": "graft", "finetune": {"projection_learning_rate": 1e-3}},
    {"name": "fast-head", "like": "graft", "finetune": {"head_learning_rate": 1e-3}},
)
# The arms that differ before training; the others begin like `graft`.
STARTING = ("host", "graft", "matched", "folded", "quiet", "random", "wide-head")


def make_plan(data: Path, donor: str, max_steps: int | None = None) -> StudyPlan:
    """The plan of all arms, as the studies train them."""
    settings: dict[str, Any] = {"precision": "bf16", "max_eval_samples": 200}
    if max_steps is not None:
        settings["max_steps"] = max_steps
    files = {part: str(data / f"{part}.csv") for part in ("train", "validation", "test")}
    return StudyPlan.from_dict(
        {
            "name": "loudness",
            "host": "packaged:all-MiniLM-L6-v2",
            "donor": donor,
            "arms": list(ARMS),
            "fractions": [0.1],
            "seeds": [SEED],
            "data": [{"name": "sst2", **files}],
            "finetune": settings,
        }
    )


def train(cell: Cell, folder: StudyFolder, series: Path) -> None:
    """Run one training, watched; its numbers are written when it is whole."""
    # A training that continues would have only a part of the steps.
    for path in (folder.run(cell.id), folder.run(cell.id).with_name(f"{cell.id}.unfinished")):
        shutil.rmtree(path, ignore_errors=True)
    folder.result(cell.id).unlink(missing_ok=True)
    watch = Watch()
    with (
        mock.patch.object(run, "SurgeonTrainer", watched_trainer(watch)),
        mock.patch.object(cells, "build_model", build),
    ):
        result = cells.run_cell(cell, folder)
    write_json(
        series,
        {
            "test_accuracy": result.tests[cell.data].scores["accuracy"],
            "best_epoch": result.best_epoch,
            "history": list(result.history),
            "series": watch.rounded(),
        },
    )


def build(arm: Arm, *arguments: Any) -> Any:
    """The model of an arm: as the studies build it, then changed for the arms that studies don't have."""
    model = build_model(arm, *arguments)
    change = {"quiet": quieten, "folded": fold, "folded-slow": fold}.get(arm.name)
    return model if change is None else change(model)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is under way")
    parser.add_argument("--layers", type=Path, action="append", default=[])
    parser.add_argument("--max-steps", type=int, help="to try the script out")
    parser.add_argument("--arms", nargs="+", help="train these only, in this order")
    parser.add_argument("--without-start", action="store_true", help="trainings only")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Measure everything that is not measured yet; the file is written after each step."""
    work: Path = arguments.work
    for path in (path for layers in arguments.layers for path in layers.iterdir()):
        copy = work / "layers" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    plan, folder = make_plan(arguments.data, DONORS[0], arguments.max_steps), StudyFolder(root=work)
    if not arguments.without_start:
        measure_before_training(DONORS[0], work, arguments.data)
    prepare_study(plan, folder, NullProgress())
    planned = {cell.arm.name: cell for cell in plan.cells()}
    for name in arguments.arms or planned:
        series = work / "series" / f"{name}.json"
        if not series.is_file():
            say(name)
            train(planned[name], folder, series)
        write_text(arguments.output, as_text(collect(work, plan)))
    if not arguments.without_start:
        measure_before_training(DONORS[1], work, arguments.data)
        write_text(arguments.output, as_text(collect(work, plan)))


def measure_before_training(donor: str, work: Path, data: Path) -> None:
    """Write start/<donor>.json, unless it is there."""
    path = work / "start" / f"{donor.partition(':')[2]}.json"
    if path.is_file():
        return
    say(f"before training: {path.stem}")
    folder, plan = StudyFolder(root=work), make_plan(data, donor)
    prepare_study(plan, folder, NullProgress())
    arms = [arm for arm in plan.arms if arm.name in STARTING]
    write_json(path, measure_start(arms, folder, "sst2", build, seed=SEED))


def collect(work: Path, plan: StudyPlan) -> dict[str, Any]:
    """The document, with everything measured so far."""
    starts = [work / "start" / f"{donor.partition(':')[2]}.json" for donor in DONORS]
    series = [work / "series" / f"{arm.name}.json" for arm in plan.arms]
    return {
        "format": 1,
        "machine": machine(),
        "versions": versions("layer-surgeon", "torch", "transformers", "accelerate"),
        "command": "python -m research.loudness --work DIR --data data/sst2",
        "settings": dict(plan.finetune) | {"seed": SEED, "fraction": 0.1},
        "start": {path.stem: read_json(path) for path in starts if path.is_file()},
        "training": {path.stem: read_json(path) for path in series if path.is_file()},
    }


if __name__ == "__main__":
    main()
