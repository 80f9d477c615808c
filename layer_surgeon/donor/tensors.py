"""Between an artifact's file, which has the names of the donor's checkpoint, and weights, which have the module's.

The way there and back is the family's own weight conversion in transformers (experts fused into one tensor, say).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from layer_surgeon.donor.scaffold import scaffold_class, stack_path
from layer_surgeon.errors import ArtifactError, LayerSurgeonError

_NAME = re.compile(r"layers\.(\d+)\.(.+)")


def split_by_layer(tensors: Mapping[str, Tensor], layer_indices: list[int]) -> list[dict[str, Tensor]]:
    """The tensors of each layer, by their names inside it.

    Raises:
        ArtifactError: A tensor belongs to no layer, or a layer has none.
    """
    split: list[dict[str, Tensor]] = [{} for _ in layer_indices]
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) >= len(split):
            raise ArtifactError(
                f"The layer artifact has a tensor {name!r}, but expected are names from layers.0. to "
                f"layers.{len(split) - 1}. for layer_indices {layer_indices}. Extract the layer again."
            )
        split[int(match[1])][match[2]] = tensor
    for position, found in enumerate(split):
        if not found:
            raise ArtifactError(
                f"The layer artifact has no tensor layers.{position}.*, but its config says that it holds the donor's "
                f"layer {layer_indices[position]}. Extract the layer again."
            )
    return split


def load_scaffold(
    config: PretrainedConfig, index: int, tensors: Mapping[str, Tensor], position: int, **settings: Any
) -> PreTrainedModel:
    """A scaffold that holds layer `index` with its weights.

    Args:
        config: The family's config of the donor.
        index: Which of the donor's layers.
        tensors: Its tensors, by their names inside the layer, as in the donor's checkpoint.
        position: The k of `layers.<k>.` in the artifact, for messages.
        settings: For the family's `from_pretrained`: dtype, attn_implementation, device_map, ...

    Raises:
        ArtifactError: A tensor is missing, too many, or has the wrong shape; the message names it.
    """
    try:
        family = scaffold_class(config, index)
        with torch.device("meta"):
            prefix = f"{stack_path(family(config))}.{index}."
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise ArtifactError(
            f"No {config.model_type} can be made by the donor's config: {type(error).__name__}: {error}. Extract the "
            "layer again, from a checkpoint whose config.json is its own."
        ) from error
    state = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    try:
        with _quiet():
            scaffold, info = family.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True, **settings
            )
    except RuntimeError as error:
        raise ArtifactError(
            f"The tensors of layers.{position} don't fit layer {index} of {family.__name__}: {error}. "
            "Extract the layer again, from a checkpoint whose config.json is its own."
        ) from error
    problems = [
        f"{problem} {', '.join(sorted(str(key).replace(prefix, f'layers.{position}.') for key in info[kind]))}"
        for kind, problem in (
            ("missing_keys", "missing are"),
            ("unexpected_keys", "not used are"),
            ("mismatched_keys", "of another shape are"),
        )
        if info.get(kind)
    ]
    if problems:
        raise ArtifactError(
            f"The tensors of layers.{position} are not those of layer {index} of {family.__name__}: "
            f"{'; '.join(problems)}. Extract the layer again, with this version of transformers if it is an older "
            "artifact."
        )
    return scaffold


def artifact_tensors(scaffold: PreTrainedModel, layer: nn.Module, index: int, position: int) -> dict[str, Tensor]:
    """The tensors of a layer, with the names of an artifact: the way back of `load_scaffold`.

    Raises:
        ArtifactError: transformers' conversion gives names outside of the layer.
    """
    prefix = f"{stack_path(scaffold)}.{index}."
    state = {f"{prefix}{name}": tensor.detach() for name, tensor in layer.state_dict().items()}
    named = {}
    for name, tensor in revert_weight_conversion(scaffold, state).items():
        _, found, inside = name.partition(f".{index}.")
        if not found:
            raise ArtifactError(
                f"The layer's tensor {name!r} has no place in a layer artifact: expected was a name with .{index}. in "
                "it. Save with the version of transformers that the artifact was loaded with."
            )
        named[f"layers.{position}.{inside}"] = tensor.contiguous().cpu()
    return named


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from showing a bar and a table for every layer; what they say, we check and raise."""
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
