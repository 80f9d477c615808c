"""One source of layers for an assembly: its checkpoint, and the names of its tensors in the new model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from layer_surgeon.assemble.text_only import is_multimodal, text_model
from layer_surgeon.checkpoint import Checkpoint, TensorInfo
from layer_surgeon.errors import UnsupportedArchitectureError


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSource:
    """A checkpoint that layers, or the rest of the new model, are taken from.

    Attributes:
        number: Its number among the sources of the assembly, from 0.
        name: The path, repo id or URL. No two sources have the same.
        checkpoint: The checkpoint.
        config: Its config.json, or that of the language model in it.
        new_name: Returns the name of a tensor in a checkpoint of the language model alone; None for tensors of other
            parts.
    """

    number: int
    name: str
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    new_name: Callable[[str], str | None]

    @cached_property
    def stack_prefix(self) -> str:
        """The prefix of the names of all layers in the new model, such as `model.layers.`."""
        prefix = self.checkpoint.stack_prefix
        renamed = self.new_name(prefix)
        if renamed is None:
            raise ValueError(f"the layers {prefix}* are not part of the language model")
        return renamed

    def layer_tensors(self, layer: int) -> list[TensorInfo]:
        """Locate the tensors of one layer."""
        return self.checkpoint.layer_tensors(layer)

    def inner_name(self, layer: int, name: str) -> str:
        """Return the name of a tensor inside its layer, such as `mlp.up_proj.weight`."""
        return name.removeprefix(self.checkpoint.layer_prefix(layer))

    @cached_property
    def other_names(self) -> tuple[str, ...]:
        """The names of all tensors in the checkpoint that belong to no layer: embeddings, final norm, head."""
        prefix = self.checkpoint.stack_prefix
        return tuple(
            name
            for name in self.checkpoint.names_outside_layers()
            if not _is_numbered(name, prefix) and self.new_name(name) is not None
        )

    @cached_property
    def extra_names(self) -> tuple[str, ...]:
        """The names of tensors of layers beyond the last one, such as the layer of DeepSeek-V3 that predicts ahead."""
        prefix = self.checkpoint.stack_prefix
        return tuple(name for name in self.checkpoint.names_outside_layers() if _is_numbered(name, prefix))


def model_source(number: int, name: str, checkpoint: Checkpoint, *, text_only: bool) -> ModelSource:
    """Make the source of an assembly from a checkpoint.

    Args:
        number: Its number among the sources.
        name: Its name among them.
        checkpoint: The checkpoint.
        text_only: Take only the language model out of a vision-language checkpoint.

    Raises:
        UnsupportedArchitectureError: It is a vision-language checkpoint, and `text_only` is false.
    """
    if not is_multimodal(checkpoint.config):
        return ModelSource(
            number=number, name=name, checkpoint=checkpoint, config=checkpoint.config, new_name=lambda tensor: tensor
        )
    if not text_only:
        raise UnsupportedArchitectureError(
            f"{name} ({checkpoint.config.get('model_type')}) is a vision-language checkpoint. Only "
            f"its language model ({checkpoint.model_type}) can be assembled: add --text-only (in Python: "
            "text_only=True)."
        )
    config, new_name = text_model(checkpoint)
    return ModelSource(number=number, name=name, checkpoint=checkpoint, config=config, new_name=new_name)


def _is_numbered(name: str, prefix: str) -> bool:
    number, dot, _ = name.removeprefix(prefix).partition(".")
    return name.startswith(prefix) and bool(dot) and number.isdecimal()
