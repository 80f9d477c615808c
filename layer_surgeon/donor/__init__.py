"""LOAD: artifact -> DonorLayer or DonorStack, a frozen module that computes what it computed inside its model.

config     `SurgeonDonorConfig`: the donor's own config, and the indices of its layers
family     find the family's config class, model class and list of layers from the donor's config
scaffold   the family's model without all weights but one layer's; it prepares that layer's masks and positions
probe      run the scaffold to find out what it passes to its layer, and whether the layer can run causally
cache      the layers' cache, and whether they run exactly with it
influence  find the outputs that don't matter with one position per sequence
one_key    linear maps that skip those outputs
tensors    convert between the artifact's tensors and weights, with the family's own conversions
files      read and write the artifact's files
frozen     what the two modules below have in common: their files, and that they stay frozen
layer      `DonorLayer`
entrance   what acts before the first layer
exit       what acts after the last layer
stack      `DonorStack`: the entrance and the first layers
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.donor.config import SurgeonDonorConfig
    from layer_surgeon.donor.layer import DonorLayer
    from layer_surgeon.donor.stack import DonorStack

_MODULE_OF = {"DonorLayer": "layer", "DonorStack": "stack", "SurgeonDonorConfig": "config"}

__all__ = ["DonorLayer", "DonorStack", "SurgeonDonorConfig"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.donor' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.donor.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
