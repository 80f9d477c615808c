"""Controls: a trained block in the donor's place, and a donor with permuted weights.

Does the donor's knowledge help, or only the weights around it, or the size of its weights?
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layer_surgeon.graft import SurgeonGraftConfig, graft_layer
from layer_surgeon.graft.hosts import host_width, mark_loaded, open_host
from layer_surgeon.study.arms import Control
from layer_surgeon.tasks import get_task


class ControlModel:
    """A mixin that trains a block where a graft would be. Each task combines it with its own model class.

    The block is the projections of a graft: Linear(host, donor width) and Linear(donor width, host), without bias. As a
    function, the two are one linear map. With `wide-head`, a GELU between them makes an MLP with the same number of
    parameters. The block sees each position separately, like a donor layer that sees only one position.

    Args:
        config: The config of the host alone, with the additional fields `control` and `control_width`.
        host: The loaded host; None creates one with new weights.
    """

    def __init__(self, config: SurgeonGraftConfig, host: PreTrainedModel | None = None) -> None:
        super().__init__(config, host=host)  # type: ignore[call-arg]  # the task's class is next in the MRO
        width = host_width(config.host_config)
        activation = nn.GELU() if config.control == "wide-head" else nn.Identity()
        self.block = nn.Sequential(
            nn.Linear(width, config.control_width, bias=False),
            activation,
            nn.Linear(config.control_width, width, bias=False),
        )
        self.post_init()  # type: ignore[attr-defined]  # defined by the task's class

    def graft(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the block to [..., host_hidden]; what else a graft gets doesn't matter."""
        return self.block(hidden)  # type: ignore[no-any-return]  # torch's call is untyped


@functools.cache
def _class_for(task: str) -> Any:
    base = get_task(task).load_model_class()
    return type(f"Control{base.__name__.removeprefix('GraftedModel')}", (ControlModel, base), {})


def control_model(host: Any, control: Control, donor_width: int, *, task: str, **settings: Any) -> Any:
    """Return the host with a trained block, for any task that a graft supports.

    Args:
        host: As in `graft_layer`.
        control: The kind of block.
        donor_width: The width of the donor that the block replaces.
        task: The task that is learned.
        settings: Fields of `GraftConfig`.

    Raises:
        ConfigError: A setting needs a donor, such as a gate, which would be trained too.
        GraftError: The host can't be used for the task.
    """
    # The host of the model below can't be reused: with the site embeddings, `graft_layer` removes its layers.
    opened = open_host(host, task, revision=None, token=None)
    config = graft_layer(opened.model, None, task=task, **settings).config
    config.control, config.control_width = control, donor_width
    mark_loaded(opened.model)
    return _class_for(task)(config, host=opened.model).to(opened.model.dtype).eval()


@torch.no_grad()
def permute_weights(donor: Any, seed: int) -> Any:
    """Put the weights of each matrix of a donor in random order, in place, and return the donor.

    Each matrix keeps its values, and so its norm, its mean and its standard deviation. Vectors, such as the weights of
    norms and the biases, stay as they are.

    Args:
        donor: A `DonorLayer` or `DonorStack`.
        seed: Determines the order.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, weight in sorted(donor.named_parameters()):
        if weight.ndim < 2:
            continue
        # Stacked matrices, such as those of experts, are permuted one by one.
        for matrix in weight.view(-1, *weight.shape[-2:]):
            order = torch.randperm(matrix.numel(), generator=generator)
            matrix.copy_(matrix.flatten()[order].view_as(matrix))
    return donor
