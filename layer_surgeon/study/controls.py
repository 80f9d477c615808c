"""Controls that train something in the donor's place: is it what the layer knows, or the weights around it?"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from layer_surgeon.errors import ConfigError
from layer_surgeon.graft import GraftedModel, SurgeonGraftConfig, graft_layer
from layer_surgeon.graft.hosts import host_width, mark_loaded, open_host
from layer_surgeon.graft.sites import find_layers, find_reader
from layer_surgeon.graft.tasks import TASKS
from layer_surgeon.study.arms import Control


class ControlModel:
    """The host, a trained block where a graft would be, and what comes behind it; a class for each task is made of it.

    The block is Linear(host, donor width) and Linear(donor width, host) without bias, the projections of a graft; with
    `wide-head` a GELU is between them, which makes an MLP of equally many parameters (the projections alone are, as a
    function, one linear map). It takes each position by itself, as does a donor layer that sees one position.

    Args:
        config: Of the host alone, with `control` and `control_width` beside its fields.
        host: The loaded host; None makes one with fresh weights.
    """

    def __init__(self, config: SurgeonGraftConfig, host: PreTrainedModel | None = None) -> None:
        super().__init__(config, host=host)  # type: ignore[call-arg]  # of the task's class, the next one
        width = host_width(config.host_config)
        between = nn.GELU() if config.control == "wide-head" else nn.Identity()
        self.block = nn.Sequential(
            nn.Linear(width, config.control_width, bias=config.settings.projection_bias),
            between,
            nn.Linear(config.control_width, width, bias=config.settings.projection_bias),
        )
        self._place_block()
        self.post_init()  # type: ignore[attr-defined]  # of the task's class

    def _place_block(self: Any) -> None:
        """Where a graft's place is inside of the host, have the block replace that module's output."""
        reader, site = find_reader(self.host, self.host_kind), self.config.settings.site
        if isinstance(site, int):
            find_layers(reader)[1][site].register_forward_hook(self._replace_output)
        elif TASKS[self.config.task].generates:
            reader.register_forward_hook(self._replace_output)

    def graft(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[..., host_hidden] through the block."""
        return self.block(hidden)  # type: ignore[no-any-return]  # torch's call is untyped


def _class_for(task: str) -> Any:
    base = GraftedModel._task_classes[task]
    return type(f"Control{base.__name__.removeprefix('GraftedModel')}", (ControlModel, base), {})


_CLASSES: Mapping[str, Any] = MappingProxyType({task: _class_for(task) for task in TASKS})


def control_model(host: Any, control: Control, donor_width: int, *, task: str, **settings: Any) -> Any:
    """The host with a trained block, for any task that a graft can do.

    Args:
        host: As in `graft_layer`.
        control: Which block.
        donor_width: The width of the donor that it stands for.
        task: What is learned.
        settings: Fields of `GraftConfig`.

    Raises:
        ConfigError: The settings ask for a gate, which would be trained too, or for projections that match a donor.
        GraftError: The host can't be used for the task.
    """
    if settings.get("residual", "none") != "none":
        raise ConfigError(
            f"residual is {settings['residual']!r}, but {control} has no gate. Say it in the arms that have a donor "
            "(graft: {residual: gated}), and not for the whole study."
        )
    if settings.get("projection_init", "default") != "default":
        raise ConfigError(
            f"projection_init is {settings['projection_init']!r}, but {control} has no donor to match. Say it in the "
            "arms that have one."
        )
    # Not the host of the one alone: with the site embeddings, that has lost its layers already.
    opened = open_host(host, task, revision=None, token=None)
    config = graft_layer(opened.model, None, task=task, **settings).config
    config.control, config.control_width = control, donor_width
    mark_loaded(opened.model)
    return _CLASSES[task](config, host=opened.model).to(opened.model.dtype).eval()
