"""Convert between an artifact's tensors, named as in the donor's checkpoint, and weights, named as in the module.

Both directions use the family's own weight conversion in transformers, which may fuse experts into one tensor.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from layer_surgeon.donor.family import find_stack, model_class
from layer_surgeon.donor.quiet import quiet_transformers
from layer_surgeon.donor.scaffold import scaffold_class, stack_path
from layer_surgeon.errors import ArtifactError, LayerSurgeonError

_NAME = re.compile(r"layers\.(\d+)\.(.+)")
# By the class and the content of a config. Building an empty model of the shape of Llama-3.1-70B takes 0.05 s.
_STACK_PATHS: dict[tuple[type[PretrainedConfig], str], str] = {}


def split_by_layer(tensors: Mapping[str, Tensor], layer_indices: list[int]) -> list[dict[str, Tensor]]:
    """Split an artifact's tensors by layer; in the result, names are relative to the layer.

    Raises:
        ArtifactError: A tensor belongs to no layer, or a layer has no tensor.
    """
    split: list[dict[str, Tensor]] = [{} for _ in layer_indices]
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) >= len(split):
            raise ArtifactError(
                f"The layer artifact has a tensor {name!r}, but for layer_indices {layer_indices}, names must start "
                f"with layers.0. to layers.{len(split) - 1}. Extract the layer again."
            )
        split[int(match[1])][match[2]] = tensor
    for position, layer_tensors in enumerate(split):
        if not layer_tensors:
            raise ArtifactError(
                f"The layer artifact has no tensor layers.{position}.*, but its config lists the donor's layer "
                f"{layer_indices[position]} there. Extract the layer again."
            )
    return split


def load_scaffold(
    config: PretrainedConfig, index: int, tensors: Mapping[str, Tensor], position: int, **settings: Any
) -> PreTrainedModel:
    """Make a scaffold that contains layer `index` with its weights.

    Args:
        config: The donor's config, of the family's own class.
        index: Index of the layer in the donor.
        tensors: The layer's tensors. Names are as in the donor's checkpoint, relative to the layer.
        position: The k of `layers.<k>.` in the artifact, for error messages.
        settings: Arguments for the family's `from_pretrained`: dtype, attn_implementation, device_map, ...

    Raises:
        ArtifactError: A tensor is missing, unexpected, or has the wrong shape. The message names it.
    """
    try:
        prefix = f"{_find_stack_path(config)}.{index}."
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise ArtifactError(
            f"No {config.model_type} can be made by the donor's config: {type(error).__name__}: {error}. Extract the "
            "layer again, from a checkpoint whose config.json is its own."
        ) from error
    state = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}

    def artifact_name(key: str) -> str:
        return key.replace(prefix, f"layers.{position}.")

    family = scaffold_class(config, index)
    return load_state(family, config, state, f"layers.{position}", f"layer {index}", artifact_name, **settings)


def _find_stack_path(config: PretrainedConfig) -> str:
    """Path of the layers in the family's model. It is the same for all layers, so a run builds the model once."""
    key = (type(config), config.to_json_string(use_diff=False))
    if key not in _STACK_PATHS:
        with torch.device("meta"):
            _STACK_PATHS[key] = find_stack(model_class(config)(config))
    return _STACK_PATHS[key]


def random_scaffold(config: PretrainedConfig, index: int) -> PreTrainedModel:
    """Make a scaffold that contains a layer with random weights; under `torch.device("meta")`, without any weights.

    The whole model is only created on the meta device: one layer of a 70B model has 1.7 GB, the model has 141 GB.
    """
    device = torch.empty(0).device
    with torch.device("meta"):
        scaffold = scaffold_class(config, index)(config)
    if device.type != "meta":
        scaffold.to_empty(device=device)
        scaffold.initialize_weights()
    return scaffold


def load_state(
    family: type[PreTrainedModel],
    config: PretrainedConfig,
    state: Mapping[str, Tensor],
    names: str,
    owner: str,
    shown: Callable[[str], str] = str,
    **settings: Any,
) -> PreTrainedModel:
    """Make a model of a class with tensors from memory, through the family's own `from_pretrained`.

    Args:
        family: The class, whose instances hold exactly these weights.
        config: The donor's config, of the family's own class.
        state: Its tensors, by name.
        names: What the tensors are called in error messages, such as `layers.0`.
        owner: What they must fit, such as `layer 31`.
        shown: Gives the name that error messages show for a tensor.
        settings: Arguments for `from_pretrained`: dtype, attn_implementation, device_map, ...

    Raises:
        ArtifactError: A tensor is missing, unexpected, or has the wrong shape. The message names it.
    """
    try:
        with quiet_transformers():
            model, info = family.from_pretrained(
                None, config=config, state_dict=dict(state), output_loading_info=True, **settings
            )
    except RuntimeError as error:
        raise ArtifactError(
            f"The tensors of {names} don't fit {owner} of {family.__name__}: {error}. "
            "Extract the layer again, from a checkpoint whose config.json matches its weights."
        ) from error
    problems = [
        f"{problem} {', '.join(sorted(shown(str(key)) for key in info[kind]))}"
        for kind, problem in (
            ("missing_keys", "missing:"),
            ("unexpected_keys", "unexpected:"),
            ("mismatched_keys", "of the wrong shape:"),
        )
        if info.get(kind)
    ]
    if problems:
        raise ArtifactError(
            f"The tensors of {names} are not those of {owner} of {family.__name__}: "
            f"{'; '.join(problems)}. Extract the layer again with the installed version of transformers."
        )
    return model


def artifact_tensors(scaffold: PreTrainedModel, layer: nn.Module, index: int, position: int) -> dict[str, Tensor]:
    """Convert a layer's weights back to the tensors of an artifact: the inverse of `load_scaffold`.

    Raises:
        ArtifactError: transformers' conversion returns a name outside of the layer.
    """
    prefix = f"{stack_path(scaffold)}.{index}."
    state = {f"{prefix}{name}": tensor.detach() for name, tensor in layer.state_dict().items()}
    tensors = {}
    for name, tensor in revert_weight_conversion(scaffold, state).items():
        _, separator, inner_name = name.partition(f".{index}.")
        if not separator:
            raise ArtifactError(
                f"The layer's tensor {name!r} can't be saved in a layer artifact: its name must contain .{index}. "
                "Save with the version of transformers that the artifact was loaded with."
            )
        tensors[f"layers.{position}.{inner_name}"] = tensor.contiguous().cpu()
    return tensors
