"""How long a study will take, from a timed sample of every arm."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.sources import load_data
from layer_surgeon.progress import Progress
from layer_surgeon.study.cells import train_cell
from layer_surgeon.study.data import PreparedData
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.preloaded import SUPPORTED
from layer_surgeon.study.prepare import check_layers, prepare_study, synthetic_file
from layer_surgeon.study.rehearsal import rehearsal

_STEPS = 4
# Starting Python, torch and transformers, and loading a model: 8 s on a laptop's core. Forked from a process that has
# done most of it, 1 s.
_START_SECONDS, _FORKED_SECONDS = 8.0, 1.0
# A forward pass alone takes a third of one with gradients.
_FORWARD = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a study will take.

    Attributes:
        cells: Trainings in all.
        done: Of these, done already.
        seconds_by_arm: Of one step of `batch_size` examples, by arm.
        seconds: For what is not done yet, with one process at a time.
    """

    cells: int
    done: int
    seconds_by_arm: Mapping[str, float]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "cells": self.cells,
            "done": self.done,
            "seconds_per_step": {name: round(value, 4) for name, value in self.seconds_by_arm.items()},
            "seconds": round(self.seconds, 1),
        }


def estimate_study(plan: StudyPlan, output: Path, progress: Progress) -> Estimate:
    """Train each arm for four steps, in a folder that is thrown away, and count.

    Nothing is written into the study's folder, which another process may be at work on: data and layers that are
    prepared there are used, and what is missing is prepared in the folder that is thrown away.

    Raises:
        What `prepare_study` and `finetune_model` raise.
    """
    study, cells = StudyFolder(root=output), plan.cells()
    todo = [cell for cell in cells if not study.result(cell.id).exists()]
    check_layers((arm.donor for arm in plan.arms if arm.donor is not None), study)
    with rehearsal(output) as folder:
        plan.write(folder.plan)
        prepare_study(plan, folder, progress)
        rates, seconds = _time(todo, plan, folder, progress)
    return Estimate(cells=len(cells), done=len(cells) - len(todo), seconds_by_arm=rates, seconds=seconds)


def _time(
    todo: Sequence[Cell], plan: StudyPlan, folder: StudyFolder, progress: Progress
) -> tuple[dict[str, float], float]:
    """Seconds of a step by arm, and of all trainings."""
    rates: dict[str, float] = {}
    for cell in todo:
        if cell.arm.name not in rates:
            rates[cell.arm.name] = _time_step(cell, folder, progress)
    forked = SUPPORTED and len(todo) > 1
    start = _FORKED_SECONDS if forked else _START_SECONDS
    seconds = sum(start + rates[cell.arm.name] * _steps(cell, plan, folder) for cell in todo)
    seconds += _START_SECONDS if forked else 0.0
    return rates, seconds


def _time_step(cell: Cell, folder: StudyFolder, progress: Progress) -> float:
    batch = FinetuneConfig(**cell.finetune).batch_size
    settings = {"max_steps": _STEPS, "max_eval_samples": batch, "train_fraction": 1.0}
    trained = train_cell(replace(cell, keep_model=False), folder, progress, **settings)
    shutil.rmtree(folder.run(cell.id), ignore_errors=True)
    return trained.seconds / (_STEPS + _FORWARD)


def _steps(cell: Cell, plan: StudyPlan, folder: StudyFolder) -> float:
    """Steps of training, with those of validation and test counted as a third."""
    config = FinetuneConfig(**cell.finetune)
    counts, tests = _examples(cell, plan, folder)
    examples = counts.get("train", 0)
    validation = counts.get("validation", round(config.validation_fraction * examples))
    examples -= 0 if "validation" in counts else validation
    wanted = min(config.train_fraction * examples, config.max_train_samples or examples)
    epochs = config.num_epochs
    if config.max_steps is not None:
        epochs = config.max_steps * config.batch_size / max(1, wanted)
    measured = min(validation, config.max_eval_samples or validation) * max(1, epochs)
    return float(wanted * epochs + _FORWARD * (measured + validation + tests)) / config.batch_size


def _examples(cell: Cell, plan: StudyPlan, folder: StudyFolder) -> tuple[Mapping[str, int], int]:
    """How many examples the parts of a cell's data have, and its test sets together."""
    if cell.task == "text-classification":
        counts = dict(PreparedData.open(folder.data(cell.data)).examples)
        if cell.arm.synthetic is not None:
            with synthetic_file(cell.arm, cell.data, folder).open(encoding="utf-8") as file:
                counts["train"] = sum(1 for _ in file)
        return counts, sum(PreparedData.open(folder.data(name)).examples.get("test", 0) for name in cell.tests)
    specs = {spec.name: spec for spec in plan.data}
    raw = load_data(list(specs[cell.data].train), task=cell.task)
    counts = {"train": len(raw.train)} | ({} if raw.validation is None else {"validation": len(raw.validation)})
    tests = 0
    for name in cell.tests:
        tested = load_data(list(specs[name].test or specs[name].train), task=cell.task)
        part = tested.train if specs[name].test else tested.test if tested.test is not None else tested.validation
        tests += 0 if part is None else len(part)
    return counts, tests
