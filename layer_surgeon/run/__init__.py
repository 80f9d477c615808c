"""RUN: any decoder, one layer at a time: all texts through layer 0, then all through layer 1 -> hidden states.

settings     `RunConfig`
text_list    read texts from files, the Hub or a list
tokenizing   split texts into tokens
batches      sort the texts by length, and put them into batches
state_files  the states of each depth on disk, and the file of kept states
fetching     fetch the next layer while the current one computes
walk         `walk_layers`: all batches through one layer after another; `LayerObserver` sees the states
inputs       `prepare_run` finds out what a walk needs, and `walk_inputs` walks
run_folder   the folder that a run is written in, and which an interrupted run goes on in
states       `HiddenStates`, the result
shares       the texts shared out among processes; share_process: the program of each
running      `run_layers`, which combines all of these
measures     `measure_layers`: what layers do to the states; layer_sums and moments have the sums
difference   `diff_checkpoints`: compare two checkpoints tensor by tensor, without torch
sides        the tensors of one side of a comparison; number_sums: the sums over their numbers
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.run.difference import CheckpointDifference, diff_checkpoints
    from layer_surgeon.run.measures import LayerMeasures, measure_layers
    from layer_surgeon.run.running import run_layers
    from layer_surgeon.run.settings import RunConfig
    from layer_surgeon.run.states import HiddenStates

# Lazy, because a comparison of weights must not import torch.
_MODULE_OF = {
    "CheckpointDifference": "difference",
    "HiddenStates": "states",
    "LayerMeasures": "measures",
    "RunConfig": "settings",
    "diff_checkpoints": "difference",
    "measure_layers": "measures",
    "run_layers": "running",
}

__all__ = [
    "CheckpointDifference",
    "HiddenStates",
    "LayerMeasures",
    "RunConfig",
    "diff_checkpoints",
    "measure_layers",
    "run_layers",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.run' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.run.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
