"""What `assembly_families.json` says about a family's layers. `tools/generate_assembly_families.py` makes the file."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from layer_surgeon.checkpoint.stack import text_config
from layer_surgeon.errors import UnsupportedArchitectureError


@cache
def family_table() -> dict[str, Any]:
    """Return the whole table: `families`, `refused` and the version of transformers."""
    path = resources.files("layer_surgeon.assemble") / "assembly_families.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def family_details(model_type: str) -> dict[str, Any]:
    """Return what the table says about a family.

    Raises:
        UnsupportedArchitectureError: No model can be assembled from its layers, or it is not in the table.
    """
    table = family_table()
    if (reason := table["refused"].get(model_type)) is not None:
        raise UnsupportedArchitectureError(f"No model can be assembled from layers of {model_type}: {reason}.")
    family: dict[str, Any] | None = table["families"].get(model_type)
    if family is None:
        raise UnsupportedArchitectureError(
            f"How the layers of {model_type} depend on their numbers is not known, so no model can be assembled from "
            "them. docs/assemble_families.md lists the families that can be assembled."
        )
    return family


def residual_outputs(config: Mapping[str, Any], matrices: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the tensors that carry what a layer adds to the hidden states. If they are zero, it adds nothing.

    Args:
        config: config.json of the layer's model.
        matrices: The layer's tensors with two dimensions or more, by their names inside the layer.

    Returns:
        Names inside the layer, such as `mlp.down_proj.weight`. `*` stands for a number, such as that of an expert. A
        layer need not have all of them: there are biases, and experts, that only some layers or checkpoints have.

    Raises:
        UnsupportedArchitectureError: The family has no such tensors, or the layer may have others.
    """
    text = text_config(config)
    model_type = str(text.get("model_type"))
    family = family_details(model_type)
    names = family.get("residual")
    if not names:
        raise UnsupportedArchitectureError(
            f"No tensors of a {model_type} layer carry everything that the layer adds to the hidden states, "
            "so the layer can't be made silent or scaled. Assemble the model without inserted or scaled layers."
        )
    for setting, allowed in family.get("silent_unless", {}).items():
        value = text.get(setting, family.get("defaults", {}).get(setting))
        if value not in allowed:
            raise UnsupportedArchitectureError(
                f"With {setting} {value!r}, a layer of {model_type} can't be made silent or scaled. Assemble the "
                "model without inserted or scaled layers."
            )
    known = {*family.get("modules", ()), *map(module_pattern, names)}
    for matrix in matrices:
        module = module_pattern(matrix)
        if module not in known and not any(other.startswith(f"{module}.") for other in known):
            raise UnsupportedArchitectureError(
                f"A layer has the tensor {matrix}, which layers of {model_type} don't have in transformers. It may add "
                "something to the hidden states, so the layer can't be made silent or scaled. Assemble the model "
                "without inserted or scaled layers."
            )
    return tuple(names)


def module_pattern(name: str) -> str:
    """Return the name of a tensor's module inside its layer, with `*` for the numbers of experts."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name).rpartition(".")[0]
