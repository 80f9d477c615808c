"""A run of fine-tuning that notes every step's loss: alone, or as one of several processes.

python -m tests.support.together GRAFT FOLDER BATCH
torchrun --standalone --nproc-per-node 2 -m tests.support.together GRAFT FOLDER BATCH

A second run is stopped within its second epoch and resumed.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from layer_surgeon._launched import number_of_processes
from layer_surgeon.finetune import finetune_model
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.workspace import Workspace
from tests.support.classification import rows

# 10 steps an epoch of 8 texts each; 13 and 7 texts, which no number of processes divides.
DATA = {"train": rows(80), "validation": rows(13, seed=1), "test": rows(7, seed=2)}
SETTINGS: dict[str, Any] = {"num_epochs": 2, "eval_batch_size": 2, "learning_rate": 1e-3}
# In the second epoch, of which the last checkpoint then holds two steps.
STOP_AT = 13


class Stopped(BaseException):
    """As if somebody had pressed Ctrl-C."""


class Watched:
    """What was seen of a trainer at work."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seen: dict[str, Any] = {}
        self.stop_at: int | None = None

    def watch(self) -> None:
        """Look at every trainer from now on."""
        watched = self
        log, step, save = SurgeonTrainer.log, SurgeonTrainer.training_step, SurgeonTrainer._save_optimizer_and_scheduler

        def noting(self: Any, logs: dict[str, float], *arguments: Any) -> None:
            if "loss" in logs:
                watched.losses.append(logs["loss"])
            log(self, logs, *arguments)

        def looking(self: Any, model: Any, *arguments: Any, **keywords: Any) -> Any:
            if self.state.global_step == watched.stop_at:
                raise Stopped
            watched.look(model)
            return step(self, model, *arguments, **keywords)

        def saving(self: Any, folder: str) -> None:
            save(self, folder)
            if self.args.should_save:
                watched.look_at_checkpoint(Path(folder))

        SurgeonTrainer.log, SurgeonTrainer.training_step = noting, looking
        SurgeonTrainer._save_optimizer_and_scheduler = saving

    def look(self, model: Any) -> None:
        """Note what the processes share of a model."""
        if isinstance(model, DistributedDataParallel):
            self.seen["ignored"] = sorted(model.parameters_to_ignore)
            self.seen["reduced"] = sum(parameter.numel() for parameter in model._module_parameters)
        spread = {name: isinstance(parameter, DTensor) for name, parameter in model.named_parameters()}
        self.seen["spread"] = sorted(name for name, is_spread in spread.items() if is_spread)
        self.seen["whole"] = sorted(name for name, is_spread in spread.items() if not is_spread)

    def look_at_checkpoint(self, folder: Path) -> None:
        """Note the names of the weights, and of the files."""
        with safe_open(folder / "model.safetensors", "pt") as file:
            self.seen["checkpoint"] = sorted(file.keys())
        self.seen["files"] = sorted(path.name for path in folder.rglob("*") if path.is_file())


def run(graft: Path, folder: Path, batch: int) -> None:
    """Train, and write the log next to the run."""
    watched = Watched()
    watched.watch()
    workspace = Workspace(folder / "surgery")
    places: dict[str, Any] = {"workspace": workspace, "batch_size": batch, **SETTINGS}
    result = finetune_model(graft, DATA, output=folder / "run", **places)
    seen = watched.seen | {
        "losses": list(watched.losses),
        "metrics": result.metrics,
        "trained": result.num_trained_parameters,
        "examples": {name: measured.examples for name, measured in result.measured.items()},
        "donor": sorted(f"donor.{name}" for name, _ in result.model.donor.named_parameters()),
    }
    watched.stop_at = STOP_AT
    try:
        finetune_model(graft, DATA, output=folder / "resumed", checkpoint_steps=4, **places)
    except Stopped:
        watched.stop_at = None
        finetune_model(graft, DATA, output=folder / "resumed", checkpoint_steps=4, resume=True, **places)
    seen["weights"] = {name: _sha256(folder / name / "model.safetensors") for name in ("run", "resumed")}
    (folder / f"seen-{number_of_processes()}-{batch}-{_rank()}.json").write_text(json.dumps(seen))


def take_for_gpus() -> None:
    """Have accelerate take processes on the CPU for such on GPUs, for which alone it has FSDP."""
    make = PartialState.__init__

    def taken(self: Any, *arguments: Any, **keywords: Any) -> None:
        make(self, *arguments, **keywords)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = taken


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        take_for_gpus()
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
