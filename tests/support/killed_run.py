"""A run of fine-tuning, in a process of its own, that kills itself without a word, as by `kill -9`.

python -m tests.support.killed_run '{"step": 7, "place": "step", "model": ..., "output": ..., ...}'
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from layer_surgeon.finetune import finetune_model, run
from layer_surgeon.finetune.folder import RunFolder
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.workspace import Workspace
from tests.support.classification import rows

DATA = {"train": rows(42), "validation": rows(16, seed=1)}
# 6 steps an epoch, the last one of a part of a batch.
SETTINGS: dict[str, Any] = {"num_epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_steps": 2}
STEPS = 18
# In front of a step; when a checkpoint has weights, and no state yet; when the run is nearly written; when it is there,
# and its checkpoints are too.
PLACES = ("step", "saving", "report", "finish")


def train(model: Path, output: Path, *, resume: bool = False) -> Any:
    """The run that is killed, resumed, and compared."""
    workspace = Workspace(output.parent / "surgery")
    return finetune_model(model, DATA, output=output, workspace=workspace, resume=resume, **SETTINGS)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(step: int, place: str) -> None:
    """Put the kill into its place."""
    training_step, save_rng, write = SurgeonTrainer.training_step, SurgeonTrainer._save_rng_state, run.write_report

    def at_step(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if place == "step" and self.state.global_step == step:
            kill()
        return training_step(self, *arguments, **keywords)

    def at_saving(self: Any, folder: str) -> None:
        save_rng(self, folder)
        if place == "saving" and self.state.global_step >= step:
            kill()

    def at_report(*arguments: Any) -> None:
        write(*arguments)
        if place == "report":
            kill()

    def at_finish(self: RunFolder) -> None:
        self.final.replace(self.target)
        kill()

    SurgeonTrainer.training_step, SurgeonTrainer._save_rng_state = at_step, at_saving
    run.write_report = at_report
    if place == "finish":
        RunFolder.finish = at_finish


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    arm(task["step"], task["place"])
    train(Path(task["model"]), Path(task["output"]), resume=task["resume"])
