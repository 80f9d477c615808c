"""Which tensors form the stack of decoder layers, read from the tensors' names and the config.

Layers are what the names number: `model.layers.31.mlp.up_proj.weight` belongs to layer 31 of the stack `model.layers`.
Where a checkpoint has several such stacks (a vision tower, say), `families.json` tells which one is the decoder. That
table is generated from transformers itself by `tools/generate_families.py`; a family it does not know is taken by its
structure alone, and the donor room has the last word when it loads the layer.
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

# DOTALL: a hostile name with a line's end behind a thousand numbers would be searched anew from each of them.
_NUMBERED = re.compile(r"(?P<stack>.*?)\.?(?<![^.])(?P<index>0|[1-9][0-9]{0,5})\.(?P<rest>.+)", re.DOTALL)
# The deepest config of the families that transformers knows is nested 5 deep.
_MAX_DEPTH = 60
# What configs call the number of layers; transformers' attribute_map has the same spellings (gpt2, falcon: n_layer).
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True, kw_only=True)
class LayerStack:
    """The stack of decoder layers of one checkpoint.

    Attributes:
        prefix: What its tensors' names begin with, such as `model.layers`.
        num_layers: How many layers it has.
        members: The names of each layer's tensors, in the checkpoint's order.
    """

    prefix: str
    num_layers: int
    members: Mapping[int, tuple[str, ...]]

    def layer_prefix(self, index: int) -> str:
        """What the names of one layer's tensors begin with, such as `model.layers.31.`."""
        return f"{self.prefix}.{index}." if self.prefix else f"{index}."


@cache
def _table() -> dict[str, Any]:
    path = resources.files("layer_surgeon.checkpoint") / "families.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model: a multimodal model keeps it apart."""
    for name in ("text_config", "llm_config", "language_config"):
        part = config.get(name)
        if isinstance(part, Mapping) and "model_type" in part:
            return part
    return config


def check_family(config: Mapping[str, Any]) -> None:
    """Refuse a model whose family has no decoder layers that can be taken out.

    Raises:
        UnsupportedArchitectureError: Says why.
        CheckpointError: The config does not say which family it is.
    """
    _check_depth(config)
    text = text_config(config)
    model_type = text.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(
            "config.json has no model_type, so it is not known what the layers compute. Use a checkpoint in the form "
            "of the transformers library."
        )
    if config.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        raise UnsupportedArchitectureError(
            f"{model_type} is an encoder-decoder: its decoder layers attend to an encoder's output and can't work "
            "alone. Take a layer from a decoder-only model, such as meta-llama/Llama-3.1-8B."
        )
    reason = _table()["refused"].get(model_type)
    if reason is not None:
        raise UnsupportedArchitectureError(f"A layer of {model_type} can't be taken out: {reason}")
    family = _table()["families"].get(model_type)
    stated = config.get("architectures")
    architectures = [str(name) for name in stated] if isinstance(stated, list) else []
    if not _is_decoder(text, family, architectures):
        raise UnsupportedArchitectureError(
            f"{model_type}{f' ({architectures[0]})' if architectures else ''} is not a decoder model. Take a layer "
            "from a decoder-only language model, such as meta-llama/Llama-3.1-8B."
        )


def _check_depth(config: Mapping[str, Any]) -> None:
    """Refuse a config that is nested too deep to be written again: Python's writer calls itself for each level."""
    level: list[Any] = [config]
    for _ in range(_MAX_DEPTH):
        level = [
            part
            for value in level
            for part in (value.values() if isinstance(value, Mapping) else value)
            if isinstance(part, Mapping | list)
        ]
        if not level:
            return
    raise CheckpointError(f"config.json is nested more than {_MAX_DEPTH} deep, which no model's is. Get it again.")


def _is_decoder(text: Mapping[str, Any], family: Mapping[str, Any] | None, architectures: list[str]) -> bool:
    if family is not None:
        # Families such as BERT can be built as decoders, but only with `is_decoder` do their layers attend as such.
        return not family.get("needs_is_decoder") or bool(text.get("is_decoder"))
    if not architectures:
        return True
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures)


def find_stack(names: Iterable[str], config: Mapping[str, Any]) -> LayerStack:
    """The stack of decoder layers among a checkpoint's tensors.

    Args:
        names: All tensor names.
        config: The model's config.json.

    Raises:
        CheckpointError: No stack, or no single one, fits the config.
    """
    text = text_config(config)
    num_layers = count_layers(config)
    stacks: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        match = _NUMBERED.match(name)
        if match is not None:
            stacks[match["stack"]][int(match["index"])].append(name)
    fitting = [prefix for prefix, layers in stacks.items() if all(index in layers for index in range(num_layers))]
    if not fitting:
        found = ", ".join(f"{prefix} with {len(layers)}" for prefix, layers in sorted(stacks.items())) or "none at all"
        raise CheckpointError(
            f"The config says {num_layers} layers, but no stack of {num_layers} is among the tensors (found: {found}). "
            "The checkpoint is not whole, or its config is another model's: get it again."
        )
    prefix = _choose(fitting, _table()["families"].get(str(text.get("model_type"))))
    members = {index: tuple(stacks[prefix][index]) for index in range(num_layers)}
    return LayerStack(prefix=prefix, num_layers=num_layers, members=members)


def count_layers(config: Mapping[str, Any]) -> int:
    """The number of decoder layers that a config states.

    Raises:
        CheckpointError: It states none.
    """
    text = text_config(config)
    family = _table()["families"].get(str(text.get("model_type")))
    for name in ([family["num_layers"]] if family else []) + list(_COUNTS):
        count = text.get(name)
        if type(count) is int and 0 < count < 100_000:
            return count
    raise CheckpointError(
        f"config.json does not say how many layers the model has (looked for {', '.join(_COUNTS)}). "
        "Use a checkpoint in the form of the transformers library."
    )


def _choose(fitting: list[str], family: Mapping[str, Any] | None) -> str:
    """The decoder's stack among several that have enough layers."""
    if len(fitting) == 1:
        return fitting[0]
    if family is not None:
        # A checkpoint of the base model alone lacks its prefix; a multimodal one has more in front.
        whole = f"{family['base_prefix']}.{family['stack']}".strip(".")
        for wanted in (whole, family["stack"]):
            if wanted in fitting:
                return str(wanted)
        fitting = [prefix for prefix in fitting if prefix.endswith(f".{family['stack']}")]
    language = [
        prefix for prefix in fitting if "language_model" in prefix.split(".") or "text_model" in prefix.split(".")
    ]
    for candidates in (fitting, language):
        if len(candidates) == 1:
            return candidates[0]
    raise CheckpointError(
        f"The checkpoint has several stacks that could be the decoder: {', '.join(sorted(fitting))}. "
        "Use a checkpoint of the language model alone."
    )
