"""LOAD: artifact -> DonorLayer or DonorStack, a frozen module that computes what it computed inside its model.

config     `SurgeonDonorConfig`: the donor's own config, and the indices of its layers
family     find the family's config class, model class and list of layers from the donor's config
scaffold   the family's model without all weights but one layer's; it prepares that layer's masks and positions
probe      run the scaffold to find out what it passes to its layer, and whether the layer can run causally
cache      the layers' cache, and whether they run exactly with it
influence  find the outputs that don't matter with one position per sequence
one_key    linear maps that skip those outputs
tensors    convert between the artifact's tensors and weights, with the family's own conversions
quiet      silence transformers while models are loaded
files      read and write the artifact's files
frozen     what the two modules below have in common: their files, and that they stay frozen
layer      `DonorLayer`
entrance   what acts before the first layer
exit       what acts after the last layer
stack      `DonorStack`: the entrance and the first layers
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
