"""The config.json of a model made of chosen layers, and which tensors carry what a layer adds to the hidden states.

No torch and no transformers: `assembly_families.json` says for each family how its layers depend on their numbers.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from layer_surgeon.checkpoint.stack import text_config
from layer_surgeon.errors import UnsupportedArchitectureError


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """One layer of the new model, and where it is taken from.

    Attributes:
        config: config.json of the source.
        layer: The layer's index in the source, counted from 0.
        silent: Whether the layer adds nothing to the hidden states at first.
        scale: The factor of what the layer adds to the hidden states.
    """

    config: Mapping[str, Any]
    layer: int
    silent: bool = False
    scale: float = 1.0


def assembled_config(base_config: Mapping[str, Any], layers: Sequence[LayerChoice]) -> dict[str, Any]:
    """Make the config.json of a model that consists of the chosen layers, in this order.

    Args:
        base_config: config.json of the source that everything but the layers is taken from.
        layers: The layers.

    Raises:
        UnsupportedArchitectureError: No config of the family describes these layers.
    """
    family = _family(base_config)
    config = deepcopy(dict(base_config))
    text = text_config(config)
    assert isinstance(text, dict)
    text[family["num_layers"]] = len(layers)
    if isinstance(text.get("layer_types"), list):
        text["layer_types"] = [text_config(choice.config)["layer_types"][choice.layer] for choice in layers]
    return config


def residual_outputs(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tensors that carry what a layer adds to the hidden states. If they are zero, it adds nothing.

    Returns:
        Names inside the layer, such as `mlp.down_proj.weight`. `*` stands for a number, such as that of an expert. A
        layer need not have all of them: biases, or experts in a dense layer.

    Raises:
        UnsupportedArchitectureError: The family has no such tensors.
    """
    return tuple(_family(config)["residual"])


def _family(config: Mapping[str, Any]) -> dict[str, Any]:
    model_type = str(text_config(config).get("model_type"))
    family: dict[str, Any] | None = _table()["families"].get(model_type)
    if family is None:
        raise UnsupportedArchitectureError(
            f"How the layers of {model_type} depend on their numbers is not known, so no model can be assembled from "
            "them. docs/assemble_families.md lists the families that can be assembled."
        )
    return family


@cache
def _table() -> dict[str, Any]:
    path = resources.files("layer_surgeon.assemble") / "assembly_families.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
