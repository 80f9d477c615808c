"""A run of fine-tuning that notes every step's loss: alone, or as one of several processes.

python -m tests.support.together GRAFT FOLDER BATCH
torchrun --standalone --nproc-per-node 2 -m tests.support.together GRAFT FOLDER BATCH
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from layer_surgeon.finetune import finetune_model
from layer_surgeon.finetune.processes import number_of_processes
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.workspace import Workspace
from tests.support.classification import rows

# 10 steps an epoch of 8 texts each; 13 and 7 texts, which no number of processes divides.
DATA = {"train": rows(80), "validation": rows(13, seed=1), "test": rows(7, seed=2)}


def run(graft: Path, folder: Path, batch: int) -> None:
    """Train, and write what was seen beside the run."""
    losses: list[float] = []
    seen: dict[str, Any] = {}
    log, step = SurgeonTrainer.log, SurgeonTrainer.training_step

    def noting(self: Any, logs: dict[str, float], *arguments: Any) -> None:
        if "loss" in logs:
            losses.append(logs["loss"])
        log(self, logs, *arguments)

    def looking(self: Any, model: Any, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(model, DistributedDataParallel):
            seen["ignored"] = sorted(model.parameters_to_ignore)
            seen["reduced"] = sum(parameter.numel() for parameter in model._module_parameters)
        return step(self, model, *arguments, **keywords)

    SurgeonTrainer.log, SurgeonTrainer.training_step = noting, looking
    result = finetune_model(
        graft,
        DATA,
        output=folder / "run",
        workspace=Workspace(folder / "surgery"),
        num_epochs=2,
        batch_size=batch,
        eval_batch_size=2,
        learning_rate=1e-3,
    )
    if folder.joinpath("run").is_dir():
        seen |= {"losses": losses, "metrics": result.metrics, "trained": result.num_trained_parameters}
        seen["examples"] = {name: measured.examples for name, measured in result.measured.items()}
        seen["donor"] = sorted(f"donor.{name}" for name, _ in result.model.donor.named_parameters())
        (folder / f"seen-{number_of_processes()}-{batch}-{_rank()}.json").write_text(json.dumps(seen))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
