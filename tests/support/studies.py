"""Tiny studies: a host and a donor layer that train in a second."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from layer_surgeon.errors import LayerSurgeonError
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.records import CellResult, read_cell
from tests.support.classification import rows, save_host
from tests.support.tiny_models import save_quietly, tiny_llama

NAMES = ("negative", "positive")


def write_data(folder: Path, name: str, *, count: int = 60, seed: int = 0) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed=seed, labels=NAMES)))
    return str(path)


def tiny_parts(folder: Path) -> dict[str, Any]:
    """Host, donor (a whole model, to be extracted from) and two data sets, as a plan names them."""
    save_quietly(tiny_llama(seed=5), folder / "tiny-llama")
    return {
        "host": str(save_host(folder / "tiny-bert")),
        "donor": {"source": str(folder / "tiny-llama"), "layer": -1},
        "data": [write_data(folder, "films"), write_data(folder, "shops", seed=1)],
        "finetune": {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
        "seeds": [1, 2],
    }


def read_cells(folder: StudyFolder) -> tuple[CellResult, ...]:
    """Read all finished trainings of a folder, in the order of their ids."""
    names = sorted(path.name for path in (folder.root / "cells").glob("*.json"))
    return tuple(read_cell(folder.path("cells", name)) for name in names if not name.endswith(".failed.json"))


def run_in_this_process(
    cells: Iterable[Cell], folder: StudyFolder, workers: int, notice: Any = None
) -> Iterator[tuple[Cell, str | None]]:
    """Replaces `compare.run_local`, whose processes take 8 s to start, where a test is not about processes."""
    for cell in cells:
        try:
            run_cell(cell, folder)
        except LayerSurgeonError as error:
            yield cell, f"{type(error).__name__}: {error}"
        else:
            yield cell, None


def tiny_plan(parts: dict[str, Any], **changes: Any) -> StudyPlan:
    return StudyPlan.from_dict({**parts, "name": "tiny", **changes})
