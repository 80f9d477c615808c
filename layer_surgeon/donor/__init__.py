"""LOAD: layer artifact -> DonorLayer, a frozen module that computes what the layer computed inside its model.

config     `SurgeonDonorConfig`: the donor's own config, and which of its layers these are
family     the donor's config -> its family's config class, model class and stack of layers, read off their structure
scaffold   the family's model with everything but one layer left out: it makes that layer's masks and positions
probe      what a scaffold hands its layer, and which way its positions see each other, found by running it
tensors    the artifact's tensors <-> weights, by the family's own conversions
files      the artifact's files
layer      `DonorLayer`
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.donor.config import SurgeonDonorConfig
    from layer_surgeon.donor.layer import DonorLayer

_MODULE_OF = {"DonorLayer": "layer", "SurgeonDonorConfig": "config"}

__all__ = ["DonorLayer", "SurgeonDonorConfig"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.donor' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.donor.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
