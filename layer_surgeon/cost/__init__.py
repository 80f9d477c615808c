"""COUNT: parameters, multiply-accumulates, memory and time of a graft and of its host alone.

profile   `profile_graft`, which combines all of these
shapes    models on the meta device, without weights
flops     multiply-accumulates
measure   time and peak memory, in a new process
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.cost.measure import Workload
    from layer_surgeon.cost.profile import GraftProfile, profile_graft

# Lazy, because torch and transformers take seconds to import.
_MODULE_OF = {"Workload": "measure", "GraftProfile": "profile", "profile_graft": "profile"}

__all__ = ["GraftProfile", "Workload", "profile_graft"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.cost' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.cost.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
