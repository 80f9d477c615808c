"""Find the tensors outside of the layers in a checkpoint, by the names of the module's weights."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.donor.scaffold import stack_path
from layer_surgeon.errors import UnsupportedArchitectureError


def checkpoint_names(
    model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint
) -> dict[str, str]:
    """Find the tensors of a checkpoint that hold weights outside of the layers.

    A weight that is missing because it is tied to another one, such as that of a language head, is found as that one.

    Args:
        model: A model of the family without layers, from a `surroundings_class`.
        shapes: The weights by name, and their shapes.
        checkpoint: The checkpoint.

    Returns:
        The names in the checkpoint, by name.

    Raises:
        UnsupportedArchitectureError: One is not there, or has another shape.
    """
    outside = checkpoint.names_outside_layers()
    stored_stack = checkpoint.stack_prefix.rstrip(".")
    names: dict[str, str] = {}
    for name in shapes:
        tied = model.surgeon_tied_weights.get(name)
        stored = next(
            (
                stored
                for alias in (name, tied)
                if alias and (stored := _find(_candidates(model, alias), stored_stack, stack_path(model), outside))
            ),
            None,
        )
        if stored is None:
            raise UnsupportedArchitectureError(
                f"{checkpoint.source.name} has no tensor {name!r} of {type(model).__name__} under a known name, but "
                f"among others {', '.join(outside[:3]) or 'none outside of its layers'}. Save the model again with "
                "transformers, or take a model of another family."
            )
        names[name] = stored
    described = {info.name: info for info in checkpoint.table.describe(dict.fromkeys(names.values()))}
    for name, stored in names.items():
        if described[stored].shape != shapes[name]:
            raise UnsupportedArchitectureError(
                f"{stored} of {checkpoint.source.name} has the shape {list(described[stored].shape)}, but "
                f"{type(model).__name__} needs {list(shapes[name])} as {name}. The checkpoint stores it in another "
                "form, which is not supported. Take a model of another family."
            )
    return names


def _candidates(model: PreTrainedModel, name: str) -> list[str]:
    """The names under which a checkpoint may have a weight: as in the module, and as the family saves it."""
    base_prefix = f"{model.base_model_prefix}."
    names = [*_revert(model, name), *_revert(model, base_prefix + name), name]
    return list(dict.fromkeys([*names, *(item.removeprefix(base_prefix) for item in names)]))


def _revert(model: PreTrainedModel, name: str) -> Iterable[str]:
    """The names under which the family saves a weight, if it renames it; also those that it makes of a part of it."""
    try:
        reverted: Iterable[str] = revert_weight_conversion(model, {name: torch.empty(1, 1, device="meta")})
    except (ValueError, RuntimeError, KeyError, IndexError, AttributeError, TypeError):
        return ()
    return reverted


def _find(candidates: list[str], stored_stack: str, module_stack: str, outside: Sequence[str]) -> str | None:
    known = set(outside)
    for candidate in candidates:
        for stack in (module_stack, module_stack.partition(".")[2]):
            if stack and (stored_stack == stack or stored_stack.endswith(f".{stack}")):
                stored = stored_stack[: len(stored_stack) - len(stack)] + candidate
                if stored in known:
                    return stored
    for candidate in candidates:
        matches = [name for name in outside if name == candidate or name.endswith(f".{candidate}")]
        if len(matches) == 1:
            return matches[0]
    return None
