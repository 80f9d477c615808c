"""The checkpoints of an unfinished run: which are whole, which is the last one, and what a kill left of others.

Checkpoints may come from a stranger: nothing is deleted or written through that the trainer has not made.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerState

from layer_surgeon._io import read_json

# No run has as many steps as ten digits count.
_NAME = re.compile(r"checkpoint-([1-9][0-9]{0,8})")


def step_of(checkpoint: Path) -> int:
    """After how many steps a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end.

    The trainer writes its state last, so a checkpoint with a readable state is whole.
    """
    return max(filter(_is_whole, _list_checkpoints(checkpoints)), key=step_of, default=None)


def remove_broken(checkpoints: Path) -> None:
    """Delete the checkpoints that are not whole."""
    for folder in _list_checkpoints(checkpoints):
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _list_checkpoints(checkpoints: Path) -> list[Path]:
    if checkpoints.is_symlink():
        return []
    folders = checkpoints.glob("checkpoint-*")
    return [path for path in folders if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _is_whole(folder: Path) -> bool:
    try:
        state = read_json(folder / "trainer_state.json")
        TrainerState(**state)
    except (OSError, ValueError, TypeError):
        return False
    best = state.get("best_global_step")
    return (
        state.get("global_step") == step_of(folder)
        and (best is None or type(best) is int)
        and _is_log(state.get("log_history"))
    )


def _is_log(log: Any) -> bool:
    """Whether the trainer could have written it: entries with a step, and numbers."""
    return isinstance(log, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("step"), int)
        and all(isinstance(value, int | float) for value in entry.values())
        for entry in log
    )
