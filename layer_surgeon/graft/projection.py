"""The projections of a graft: plain linear maps, or ones whose answer is multiplied by a fixed number."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from layer_surgeon.graft.config import GraftConfig


class ScaledLinear(nn.Linear):
    """A linear map times one number that is not trained: `projection_init="matched"`.

    The number is not multiplied into the weights, because an optimizer's step does not know how large they are: Adam
    moves each by about the learning rate. Weights 830 times smaller than drawn (MiniLM with the last layer of
    Gemma-3-270M) would be replaced by the first steps, weights 1,700 times larger would never move.

    Attributes:
        scale: [1].
    """

    scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the number format of the map's own answer."""
        out = super().forward(hidden)
        return out * self.scale.to(out.dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew; the scale is one again, unless it was loaded."""
        super().reset_parameters()
        if "scale" in self._buffers:
            init.ones_(self.scale)


def new_projection(in_features: int, out_features: int, settings: GraftConfig) -> nn.Linear:
    """A projection with fresh weights, as torch draws them, of the kind that the settings ask for."""
    kind = ScaledLinear if settings.projection_init == "matched" else nn.Linear
    return kind(in_features, out_features, bias=settings.projection_bias)
