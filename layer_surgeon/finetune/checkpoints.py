"""The checkpoints of an unfinished run: find the last complete one, and remove incomplete ones.

A run folder may come from an untrusted source, so this module never follows links or deletes files that the trainer
did not create.
"""

import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerState

from layer_surgeon._io import read_json

# At most nine digits: no run has a billion steps.
_NAME = re.compile(r"checkpoint-([1-9][0-9]{0,8})")


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Find the newest complete checkpoint.

    The trainer writes its state last, so a checkpoint with a readable state is complete.
    """
    return max(filter(_is_complete, _list_checkpoints(checkpoints)), key=step_of, default=None)


def remove_broken(checkpoints: Path) -> None:
    """Delete incomplete checkpoints."""
    for folder in _list_checkpoints(checkpoints):
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _list_checkpoints(checkpoints: Path) -> list[Path]:
    if checkpoints.is_symlink():
        return []
    folders = checkpoints.glob("checkpoint-*")
    return [path for path in folders if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _is_complete(folder: Path) -> bool:
    try:
        state = read_json(folder / "trainer_state.json")
        if not isinstance(state, dict):
            return False
        # Another version of transformers may have written other fields too.
        TrainerState(**{field.name: state[field.name] for field in fields(TrainerState) if field.name in state})
    except (OSError, ValueError, TypeError):
        return False
    best = state.get("best_global_step")
    return (
        state.get("global_step") == step_of(folder)
        and (best is None or type(best) is int)
        and _is_log(state.get("log_history"))
    )


def _is_log(log: Any) -> bool:
    """Whether the trainer could have written this log: records with a step, and only numbers."""
    return isinstance(log, list) and all(
        isinstance(record, dict)
        and isinstance(record.get("step"), int)
        and all(isinstance(value, int | float) for value in record.values())
        for record in log
    )
