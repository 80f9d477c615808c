"""Estimates how long a study will take, from a few timed steps of every arm."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.sources import load_data
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.cells import train_cell
from layer_surgeon.study.data import PreparedData
from layer_surgeon.study.donor_layers import check_layers
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.preload_client import SUPPORTED
from layer_surgeon.study.prepare import prepare_study, synthetic_file
from layer_surgeon.study.rehearsal import rehearsal
from layer_surgeon.study.synthesis_config import SynthesisConfig
from layer_surgeon.study.testing import find_test_source
from layer_surgeon.tasks import get_task

_STEPS = 4
# Starting Python, importing torch and transformers and loading a model takes 8 s on one core of a laptop. A fork of a
# process that has already imported them takes 1 s.
_START_SECONDS, _FORKED_SECONDS = 8.0, 1.0
# A forward pass takes a third of the time of a training step.
_FORWARD = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated duration of a study.

    Attributes:
        cells: Number of all trainings.
        done: Number of finished trainings.
        seconds_by_arm: Arm -> seconds for one step of `batch_size` examples.
        seconds: Seconds for the remaining trainings, with one process at a time.
    """

    cells: int
    done: int
    seconds_by_arm: Mapping[str, float]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "cells": self.cells,
            "done": self.done,
            "seconds_per_step": {name: round(value, 4) for name, value in self.seconds_by_arm.items()},
            "seconds": round(self.seconds, 1),
        }


def estimate_study(plan: StudyPlan, output: Path, progress: Progress) -> Estimate:
    """Train each arm for four steps in a temporary folder, and extrapolate.

    The study's folder is only read, because another process may be working on it. The estimate uses the data and layers
    that are already there, and prepares everything else in the temporary folder.

    Raises:
        LayerSurgeonError: As in `prepare_study` and `finetune_model`.
    """
    study, cells = StudyFolder(root=output), plan.cells()
    todo = [cell for cell in cells if not study.result(cell.id).exists()]
    check_layers((arm.donor for arm in plan.arms if arm.donor is not None), study)
    with rehearsal(output) as folder:
        plan.write(folder.plan)
        # Enough to time a batch: writing all of them would take longer than anything else, and they are not kept.
        sizes = [FinetuneConfig(**cell.finetune).batch_size for cell in todo]
        prepare_study(plan, folder, progress, most_per_label=2 * max(sizes, default=1))
        step_seconds, seconds = _estimate_seconds(todo, plan, folder, progress)
    return Estimate(cells=len(cells), done=len(cells) - len(todo), seconds_by_arm=step_seconds, seconds=seconds)


def _estimate_seconds(
    todo: Sequence[Cell], plan: StudyPlan, folder: StudyFolder, progress: Progress
) -> tuple[dict[str, float], float]:
    """Return the seconds per step for each arm, and the seconds for all trainings."""
    step_seconds: dict[str, float] = {}
    for cell in todo:
        if cell.arm.name not in step_seconds:
            step_seconds[cell.arm.name] = _time_batch(cell, folder, progress)
    forked = SUPPORTED and len(todo) > 1
    start_seconds = _FORKED_SECONDS if forked else _START_SECONDS
    seconds = sum(start_seconds + step_seconds[cell.arm.name] * _count_batches(cell, plan, folder) for cell in todo)
    seconds += _START_SECONDS if forked else 0.0
    return step_seconds, seconds


def _time_batch(cell: Cell, folder: StudyFolder, progress: Progress) -> float:
    config = FinetuneConfig(**cell.finetune)
    settings = {"max_steps": _STEPS, "max_eval_samples": config.batch_size, "train_fraction": 1.0}
    trained = train_cell(replace(cell, keep_model=False), folder, progress, **settings)
    shutil.rmtree(folder.run(cell.id), ignore_errors=True)
    return trained.seconds / (_STEPS * config.gradient_accumulation_steps + _FORWARD)


def _count_batches(cell: Cell, plan: StudyPlan, folder: StudyFolder) -> float:
    """Return the number of batches of training. Those of validation and testing count as a third."""
    config = FinetuneConfig(**cell.finetune)
    counts, tests = _count_examples(cell, plan, folder)
    examples = counts.get("train", 0)
    validation = counts.get("validation", round(config.validation_fraction * examples))
    examples -= 0 if "validation" in counts else validation
    used = min(config.train_fraction * examples, config.max_train_samples or examples)
    epochs = config.num_epochs
    if config.max_steps is not None:
        epochs = config.max_steps * config.gradient_accumulation_steps * config.batch_size / max(1, used)
    validated = min(validation, config.max_eval_samples or validation) * max(1, epochs)
    return float(used * epochs + _FORWARD * (validated + validation + tests)) / config.batch_size


def _count_synthetic(cell: Cell, folder: StudyFolder) -> int:
    """Return how many texts a model writes for a cell's arm, or how many are in the file that the plan names."""
    settings = dict(cell.arm.synthetic or {})
    if "file" in settings:
        with synthetic_file(cell.arm, cell.data, folder).open(encoding="utf-8") as file:
            return sum(1 for _ in file)
    return SynthesisConfig.from_settings(None, settings).per_label * len(
        PreparedData.open(folder.data(cell.data)).labels
    )


def _count_examples(cell: Cell, plan: StudyPlan, folder: StudyFolder) -> tuple[Mapping[str, int], int]:
    """Return the number of examples in each part of a cell's data, and in all of its test sets together."""
    if get_task(cell.task).one_label_per_text:
        counts = dict(PreparedData.open(folder.data(cell.data)).examples)
        if cell.arm.synthetic is not None:
            counts["train"] = _count_synthetic(cell, folder)
        return counts, sum(PreparedData.open(folder.data(name)).examples.get("test", 0) for name in cell.tests)
    specs = {spec.name: spec for spec in plan.data}
    raw = load_data(list(specs[cell.data].train), task=cell.task)
    counts = {"train": len(raw.train)} | ({} if raw.validation is None else {"validation": len(raw.validation)})
    num_tests = 0
    for name in cell.tests:
        test_source = find_test_source(specs[name], cell, NullProgress())
        if test_source is not None:
            sources, split = test_source
            num_rows = len(load_data(list(sources), task=cell.task).choose(split))
            num_tests += min(num_rows, specs[name].max_test_samples or num_rows)
    return counts, num_tests
