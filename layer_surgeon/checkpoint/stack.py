"""Find the tensors of the decoder layers by their names and the config.

The layers are numbered in the names: `model.layers.31.mlp.up_proj.weight` belongs to layer 31 of the stack
`model.layers`. If a checkpoint has several stacks, such as that of a vision tower, `families.json` identifies the
decoder. `tools/generate_families.py` generates this table from transformers. For an unknown family only the
structure of the names counts, and the `donor` package decides when it loads the layer.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError

# DOTALL: without it, a malicious name with a thousand numbers and a line end is searched again from each number.
_NUMBERED_NAME = re.compile(r"(?P<stack>.*?)\.?(?<![^.])(?P<index>0|[1-9][0-9]{0,5})\.(?P<rest>.+)", re.DOTALL)
# The deepest config of a transformers family has 5 levels.
_MAX_DEPTH = 60
# The names of the number of layers in configs, as in transformers' attribute_map (gpt2 and falcon use n_layer).
_LAYER_COUNT_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# nemotron_h: newer versions of transformers only write the kind of each layer.
_LAYER_KINDS = "layers_block_type"


@dataclass(frozen=True, kw_only=True)
class LayerStack:
    """The stack of decoder layers of one checkpoint.

    Attributes:
        prefix: The prefix of its tensor names, such as `model.layers`.
        num_layers: The number of layers.
        members: The names of each layer's tensors, in the checkpoint's order.
    """

    prefix: str
    num_layers: int
    members: Mapping[int, tuple[str, ...]]

    def layer_prefix(self, index: int) -> str:
        """Return the prefix of the names of one layer's tensors, such as `model.layers.31.`."""
        return f"{self.prefix}.{index}." if self.prefix else f"{index}."


@cache
def _families_table() -> dict[str, Any]:
    path = resources.files("layer_surgeon.checkpoint") / "families.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def family_record(model_type: str) -> Mapping[str, Any] | None:
    """Return what `families.json` knows about a family; None if it is unknown."""
    record: Mapping[str, Any] | None = _families_table()["families"].get(model_type)
    return record


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the language model, which is a separate section in multimodal models."""
    for name in ("text_config", "llm_config", "language_config"):
        section = config.get(name)
        if isinstance(section, Mapping) and "model_type" in section:
            return section
    return config


def check_family(config: Mapping[str, Any]) -> None:
    """Refuse a model whose family has no decoder layers that can be extracted.

    Raises:
        UnsupportedArchitectureError: The family is refused. The message states the reason.
        CheckpointError: The config does not state the family, or is nested too deeply.
    """
    _check_depth(config)
    language_config = text_config(config)
    model_type = language_config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(
            "config.json has no model_type, so the architecture of the layers is unknown. Use a checkpoint in the "
            "format of the transformers library."
        )
    if config.get("is_encoder_decoder") or language_config.get("is_encoder_decoder"):
        raise UnsupportedArchitectureError(
            f"{model_type} is an encoder-decoder: its decoder layers attend to an encoder's output and can't work on "
            "their own. Use a decoder-only model, such as meta-llama/Llama-3.1-8B."
        )
    reason = _families_table()["refused"].get(model_type)
    if reason is not None:
        raise UnsupportedArchitectureError(f"A layer of {model_type} can't be extracted: {reason}")
    family = _families_table()["families"].get(model_type)
    stated_architectures = config.get("architectures")
    architectures = [str(name) for name in stated_architectures] if isinstance(stated_architectures, list) else []
    if not _is_decoder(language_config, family, architectures):
        raise UnsupportedArchitectureError(
            f"{model_type}{f' ({architectures[0]})' if architectures else ''} is not a decoder model. Use a "
            "decoder-only language model, such as meta-llama/Llama-3.1-8B."
        )


def _check_depth(config: Mapping[str, Any]) -> None:
    """Refuse a config with too many levels to be written again, because Python's JSON writer is recursive."""
    values_of_level: list[Any] = [config]
    for _ in range(_MAX_DEPTH):
        values_of_level = [
            part
            for value in values_of_level
            for part in (value.values() if isinstance(value, Mapping) else value)
            if isinstance(part, Mapping | list)
        ]
        if not values_of_level:
            return
    raise CheckpointError(
        f"config.json is nested more than {_MAX_DEPTH} levels deep, more than that of any model. Get it again."
    )


def _is_decoder(language_config: Mapping[str, Any], family: Mapping[str, Any] | None, architectures: list[str]) -> bool:
    if family is not None:
        # Families such as BERT can be decoders, but their layers only use causal attention with `is_decoder`.
        return not family.get("needs_is_decoder") or bool(language_config.get("is_decoder"))
    if not architectures:
        return True
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures)


def find_stack(names: Iterable[str], config: Mapping[str, Any]) -> LayerStack:
    """Find the stack of decoder layers among the tensors of a checkpoint.

    Args:
        names: All tensor names.
        config: The model's config.json.

    Raises:
        CheckpointError: No stack or more than one fits the config.
    """
    language_config = text_config(config)
    num_layers = count_layers(config)
    stacks: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        match = _NUMBERED_NAME.match(name)
        if match is not None:
            stacks[match["stack"]][int(match["index"])].append(name)
    matching_prefixes = [
        prefix for prefix, layers in stacks.items() if all(index in layers for index in range(num_layers))
    ]
    if not matching_prefixes:
        description = (
            ", ".join(f"{prefix} with {len(layers)}" for prefix, layers in sorted(stacks.items())) or "none at all"
        )
        raise CheckpointError(
            f"The config states {num_layers} layers, but the tensors form no such stack (found: {description}). The "
            "checkpoint is incomplete, or its config belongs to another model: get it again."
        )
    prefix = _choose_decoder(
        matching_prefixes, _families_table()["families"].get(str(language_config.get("model_type")))
    )
    members = {index: tuple(stacks[prefix][index]) for index in range(num_layers)}
    return LayerStack(prefix=prefix, num_layers=num_layers, members=members)


def count_layers(config: Mapping[str, Any]) -> int:
    """Return the number of decoder layers that a config states.

    A section of a multimodal config may leave it to the family: older versions of transformers wrote only what differs
    from the defaults there.

    Raises:
        CheckpointError: The config states no number of layers.
    """
    language_config = text_config(config)
    family = _families_table()["families"].get(str(language_config.get("model_type")))
    for name in count_names(family):
        count = language_config.get(name)
        if type(count) is int and 0 < count < 100_000:
            return count
    kinds = language_config.get(_LAYER_KINDS)
    if isinstance(kinds, list) and 0 < len(kinds) < 100_000:
        return len(kinds)
    if family is not None and language_config is not config and not states_count(language_config):
        return int(family["default_layers"])
    raise CheckpointError(
        f"config.json does not state the number of layers (as {', '.join(_LAYER_COUNT_NAMES)}). "
        "Use a checkpoint in the format of the transformers library."
    )


def count_names(family: Mapping[str, Any] | None) -> list[str]:
    """Return the names under which a config can have the number of layers, the family's own first."""
    return [*([family["num_layers"]] if family else []), *_LAYER_COUNT_NAMES]


def states_count(language_config: Mapping[str, Any]) -> bool:
    """Whether a language model's config states the number of layers, under any name."""
    family = family_record(str(language_config.get("model_type")))
    return any(name in language_config for name in (*count_names(family), _LAYER_KINDS))


def _choose_decoder(matching_prefixes: list[str], family: Mapping[str, Any] | None) -> str:
    """Choose the decoder's stack among those with enough layers."""
    if len(matching_prefixes) == 1:
        return matching_prefixes[0]
    if family is not None:
        # A checkpoint of only the base model lacks this prefix. A multimodal one has a longer prefix.
        full_prefix = f"{family['base_prefix']}.{family['stack']}".strip(".")
        for prefix_to_find in (full_prefix, family["stack"]):
            if prefix_to_find in matching_prefixes:
                return str(prefix_to_find)
        matching_prefixes = [prefix for prefix in matching_prefixes if prefix.endswith(f".{family['stack']}")]
    language_prefixes = [
        prefix
        for prefix in matching_prefixes
        if "language_model" in prefix.split(".") or "text_model" in prefix.split(".")
    ]
    for candidates in (matching_prefixes, language_prefixes):
        if len(candidates) == 1:
            return candidates[0]
    raise CheckpointError(
        f"The checkpoint has several stacks that could be the decoder: {', '.join(sorted(matching_prefixes))}. "
        "Use a checkpoint of only the language model."
    )
