"""RUN: any decoder, one layer at a time.

difference   `diff_checkpoints`: compare two checkpoints tensor by tensor. No torch
sides        the tensors of one side of a comparison, by layer and name
number_sums  the sums from which relative L2, cosine and the largest difference are computed
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.run.difference import CheckpointDifference, diff_checkpoints

# Lazy, because a comparison of weights must not import torch.
_MODULE_OF = {"CheckpointDifference": "difference", "diff_checkpoints": "difference"}

__all__ = ["CheckpointDifference", "diff_checkpoints"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.run' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.run.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
