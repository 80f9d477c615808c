"""Controls that train something in the donor's place: is it what the layer knows, or the weights around it?"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from layer_surgeon.graft import GraftedModelForSequenceClassification, SurgeonGraftConfig, graft_layer
from layer_surgeon.graft.hosts import host_width, mark_loaded
from layer_surgeon.study.arms import Control


class ControlModel(GraftedModelForSequenceClassification):
    """The host, a trained block in place of the graft, and the head.

    The block is Linear(host, donor width) and Linear(donor width, host) without bias, the projections of a graft; with
    `wide-head` a GELU is between them, which makes an MLP of equally many parameters (the projections alone are, as a
    function, one linear map).

    Args:
        config: Of the host alone, with `control` and `control_width` beside its fields.
        host: The loaded host; None makes one with fresh weights.
    """

    def __init__(self, config: SurgeonGraftConfig, host: PreTrainedModel | None = None) -> None:
        super().__init__(config, host=host)
        width = host_width(config.host_config)
        between = nn.GELU() if config.control == "wide-head" else nn.Identity()
        self.block = nn.Sequential(
            nn.Linear(width, config.control_width, bias=False),
            between,
            nn.Linear(config.control_width, width, bias=False),
        )
        self.post_init()

    def graft(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[..., host_hidden] through the block."""
        return self.block(hidden)  # type: ignore[no-any-return]  # torch's call is untyped


def control_model(host: Any, control: Control, donor_width: int, **settings: Any) -> ControlModel:
    """The host with a trained block.

    Args:
        host: As in `graft_layer`.
        control: Which block.
        donor_width: The width of the donor that it stands for.
        settings: Fields of `GraftConfig`.

    Raises:
        GraftError: The host can't be used.
    """
    alone = graft_layer(host, None, **settings)
    config = alone.config
    config.control, config.control_width = control, donor_width
    mark_loaded(alone.host)
    return ControlModel(config, host=alone.host).to(alone.dtype).eval()  # type: ignore[no-any-return]  # untyped base
