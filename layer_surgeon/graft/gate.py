"""The gate of `residual="gated"`: host + gate x graft."""

import torch
from torch import Tensor, nn
from transformers import initialization as init


class Gate(nn.Module):
    """One trained number, zero at first, so that training starts at the host itself.

    A module and not a bare parameter, because adapters (peft's `modules_to_save`) can only train whole modules. Its
    name in the model is one that no module of a host or a donor ends in, by which peft would take those too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, graft: Tensor) -> Tensor:
        """The sum of hidden and weight x graft, both [..., host_hidden]."""
        return hidden + self.weight * graft

    def reset_parameters(self) -> None:
        """Back to zero, unless the weight was loaded."""
        init.zeros_(self.weight)
