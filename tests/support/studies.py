"""Tiny studies: a host and a donor layer that train in a second."""

import json
from pathlib import Path
from typing import Any

from layer_surgeon.study.plan import StudyPlan
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


def tiny_plan(parts: dict[str, Any], **changes: Any) -> StudyPlan:
    return StudyPlan.from_dict({**parts, "name": "tiny", **changes})
