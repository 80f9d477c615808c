"""Find a family's code in transformers from the donor's own config: config class, model class, and list of layers."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PretrainedConfig, PreTrainedModel, __version__

from layer_surgeon._limits import check_config_sizes, check_no_code
from layer_surgeon.errors import ArtifactError, UnsupportedArchitectureError


def family_config(donor_config: Mapping[str, Any]) -> PretrainedConfig:
    """Make the config of the part with the decoder layers: the whole model, or the text part of a multimodal model.

    Args:
        donor_config: The donor's config.json, verbatim. It is not modified.

    Raises:
        ArtifactError: transformers can't read the config.
        UnsupportedArchitectureError: transformers doesn't know the family, or the family is not a decoder.
    """
    check_config_sizes(donor_config, "the donor", ArtifactError)
    check_no_code(donor_config, "the donor", ArtifactError)
    model_type = donor_config.get("model_type")
    if not isinstance(model_type, str):
        raise ArtifactError(
            f"The donor's config has model_type {model_type!r}, but must have the name of a model family. "
            "Extract the layer again from a checkpoint with a complete config.json."
        )
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitectureError(
            f"transformers {__version__} has no code for model_type {model_type!r}, and layer_surgeon never runs code "
            "from a checkpoint. Update transformers, or take a donor of a family that it supports."
        )
    if quantisation := donor_config.get("quantization_config"):
        method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
        method = method or "an unnamed method"
        raise UnsupportedArchitectureError(
            f"The donor's weights are quantised ({method}), but only plain weights can be loaded. "
            "Extract from a checkpoint of the same model in bfloat16, float16 or float32."
        )
    try:
        config = CONFIG_MAPPING[model_type].from_dict(_with_floats(dict(donor_config)))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise ArtifactError(
            f"transformers {__version__} can't read the donor's config as a config of {model_type!r}: {error}. "
            "Extract the layer again from a checkpoint whose config.json transformers can read."
        ) from error
    if config.is_encoder_decoder:
        raise UnsupportedArchitectureError(
            f"{model_type!r} is an encoder-decoder family: its decoder layers read an encoder's output. "
            "Take a donor that is a decoder-only language model."
        )
    text_config = config.get_text_config(decoder=True)
    # With these, the model would compute results that nothing uses.
    text_config.use_cache = False
    text_config.output_hidden_states = False
    return text_config


def _with_floats(value: Any) -> Any:
    """Copy a config, with the numbers that JSON can't hold: transformers writes {"__float__": "Infinity"} for them."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _with_floats(item) for key, item in value.items()}
    return [_with_floats(item) for item in value] if isinstance(value, list) else deepcopy(value)


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Find the family's model class without a head from the class of its config.

    Raises:
        UnsupportedArchitectureError: transformers has no such class.
    """
    model = MODEL_MAPPING.get(type(config), None)
    if isinstance(model, (list, tuple)):  # some families have several
        model = model[0] if model else None
    if model is None:
        raise UnsupportedArchitectureError(
            f"transformers {__version__} has no model without a head for {type(config).__name__}, so its layers "
            "can't be run by themselves. Take a donor of another family."
        )
    return model  # type: ignore[no-any-return]  # transformers is untyped here


def find_stack(model: PreTrainedModel) -> str:
    """Find the path of a model's decoder layers: the list of `num_hidden_layers` modules with the most weights.

    Raises:
        UnsupportedArchitectureError: There is no such list, or the layers are spread over several lists.
    """
    num_layers = getattr(model.config, "num_hidden_layers", None)
    sizes = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    }
    # A list inside a layer (experts) may have the same length by chance. The stack contains it, so it is larger.
    stack: str | None = max(sizes, key=lambda name: sizes[name], default=None)
    if stack is None or sizes[stack] == 0:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has no list of {num_layers} layers (its config's num_hidden_layers), so there is "
            "no layer to take out. Take a donor of another family."
        )
    sibling_lists = [name for name, size in sizes.items() if size and _parent(name) == _parent(stack)]
    if len(sibling_lists) > 1:
        raise UnsupportedArchitectureError(
            f"The layers of {type(model).__name__} are spread over several lists ({', '.join(sorted(sibling_lists))}), "
            "so there is no layer to take out as one. Take a donor of another family."
        )
    return stack


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
