"""The projections of a graft: linear layers, with or without a fixed scale."""

from typing import Self

import torch
from torch import Tensor, nn
from transformers import initialization as init

from layer_surgeon.graft.config import GraftConfig


class ScaledLinear(nn.Linear):
    """A linear layer with a fixed scale on its output, for `projection_init="matched"`.

    The scale is not multiplied into the weights, because the size of an optimizer step doesn't depend on them: Adam
    changes each weight by about the learning rate. The first steps would overwrite weights that are 830 times smaller
    (MiniLM with the last layer of Gemma-3-270M), and weights that are 1,700 times larger would hardly change.

    Attributes:
        scale: [1].
    """

    scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_buffer("scale", torch.ones(1))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Return a layer with a scale of one that shares the weights of `linear`."""
        with torch.device("meta"):
            scaled = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        scaled.weight, scaled.bias = linear.weight, linear.bias
        scaled.scale = torch.ones(1, dtype=linear.weight.dtype, device=linear.weight.device)
        return scaled

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features], in the dtype of the unscaled output."""
        out = super().forward(hidden)
        return out * self.scale.to(out.dtype)

    def reset_parameters(self) -> None:
        """Re-initialise the weights, and set the scale to one unless it was loaded."""
        super().reset_parameters()
        if "scale" in self._buffers:
            init.ones_(self.scale)


def new_projection(in_features: int, out_features: int, settings: GraftConfig) -> nn.Linear:
    """Create a projection of the type that the settings need, with torch's initial weights."""
    projection_class = ScaledLinear if settings.projection_init == "matched" else nn.Linear
    return projection_class(in_features, out_features, bias=settings.projection_bias)
