"""The gate of `residual="gated"` and `join="gated"`: host + gate x graft."""

import torch
from torch import Tensor, nn
from transformers import initialization as init


class Gate(nn.Module):
    """A single trained number that starts at zero, so training starts from the unchanged host.

    This is a module because peft's `modules_to_save` can only train whole modules. It is called `residual_gate` in the
    model, because peft would also train modules of host and donor whose names end the same way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, graft: Tensor) -> Tensor:
        """Return hidden + weight x graft, all [..., host_hidden]."""
        return hidden + self.weight * graft

    def reset_parameters(self) -> None:
        """Reset the weight to zero, unless it was loaded."""
        init.zeros_(self.weight)
