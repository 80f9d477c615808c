"""What a scaffold hands its layer, and which way the layer's positions see each other: found by running both.

Nothing here knows a family. A probe is seven positions long and costs milliseconds; it runs once, when a donor is
loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layer_surgeon.donor.scaffold import Run, run_scaffold
from layer_surgeon.errors import UnsupportedArchitectureError

# A prime that no head width is a multiple of, so that a tensor with this last dimension has a number per position.
_LENGTH = 7
FAILURES = (
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    RuntimeError,
    UnboundLocalError,
    StopIteration,
)
# Of the largest output. Equal rows of one matrix product may differ in the last bits (bfloat16: 2^-8 of the value).
_SAME = 2e-2
_DIFFERENT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Traits:
    """How to run one layer in its scaffold.

    Attributes:
        extras: See `Run.extras`.
        takes_position_ids: Whether the family's forward takes positions from outside.
        not_causal: Why the layer can't be run causally; None if it can.
        not_bidirectional: Why it can't be run bidirectionally; None if it can.
    """

    extras: int | None
    takes_position_ids: bool
    not_causal: str | None
    not_bidirectional: str | None


def bidirectional_mask(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mask with which every position sees every position that is not padding.

    Args:
        hidden_states: [batch, seq, donor_hidden], for its size, element type and device.
        attention_mask: [batch, seq] of 1 and 0, or None.

    Returns:
        [batch, 1, seq, seq], to be added to the attention scores.
    """
    batch, length, _ = hidden_states.shape
    mask = hidden_states.new_zeros(batch, 1, length, length)
    if attention_mask is not None:
        hidden = attention_mask.to(hidden_states.device)[:, None, None, :] == 0
        # The lowest number, not -inf: a row that is all padding then has no NaN.
        mask = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
    return mask


def count_positions(hidden_states: Tensor) -> Tensor:
    """Positions 0 to seq - 1, [batch, seq]; for a bidirectional mask, from which opt would count others."""
    batch, length, _ = hidden_states.shape
    return torch.arange(length, device=hidden_states.device).expand(batch, length)


def takes_position_ids(scaffold: PreTrainedModel) -> bool:
    """Whether the family's forward takes positions from outside."""
    return "position_ids" in signature(scaffold.forward).parameters


def probe_layer(scaffold: PreTrainedModel, layer: nn.Module, hidden_size: int) -> Traits:
    """Find out how to run a layer that has its weights.

    Raises:
        UnsupportedArchitectureError: It can't be run by itself, or depends on weights outside of it.
    """
    if "inputs_embeds" not in signature(scaffold.forward).parameters:
        raise UnsupportedArchitectureError(
            f"{type(scaffold).__name__} reads token ids only (its forward takes no inputs_embeds), so its layers can't "
            "be given hidden states. Take a donor of another family."
        )
    reference = next(layer.parameters())
    extras = find_extras(scaffold, reference, hidden_size)
    ramp = torch.arange(2 * _LENGTH * hidden_size, device=reference.device, dtype=torch.float32)
    states = (ramp * 0.7).sin().reshape(2, _LENGTH, hidden_size).to(reference.dtype)
    not_causal = _why_not(scaffold, layer, states, extras, causal=True)
    not_bidirectional = _why_bias(scaffold, states, extras) or _why_not(scaffold, layer, states, extras, causal=False)
    if not_causal and not_bidirectional:
        raise UnsupportedArchitectureError(
            f"A layer of {type(scaffold).__name__} can't be run by itself: {not_causal}. "
            "Take another layer, or a donor of another family."
        )
    return Traits(
        extras=extras,
        takes_position_ids=takes_position_ids(scaffold),
        not_causal=not_causal,
        not_bidirectional=not_bidirectional,
    )


def find_extras(scaffold: PreTrainedModel, reference: Tensor, hidden_size: int) -> int | None:
    """How layers return their hidden states: the way in which these reach the entrance whole."""
    nan = torch.full((2, _LENGTH, hidden_size), torch.nan, dtype=reference.dtype, device=reference.device)
    failure: Exception | None = None
    shapes = set()
    for extras in (None, 0, 1, 2, 3):
        try:
            seen = _arguments(scaffold, nan, None, extras)
        except FAILURES as error:
            failure = failure or error
            continue
        arrived = seen.pop("hidden_states")
        if not isinstance(arrived, Tensor) or arrived.shape != nan.shape:
            shapes.add(str(list(arrived.shape)) if isinstance(arrived, Tensor) else type(arrived).__name__)
            continue
        if name := _find_nan(seen):
            raise UnsupportedArchitectureError(
                f"A layer of {type(scaffold).__name__} also reads {name!r}, made from weights outside of the layer, so "
                "the layer alone can't compute what it computed. Take a donor of another family."
            )
        return extras
    expected = list(nan.shape)
    reason = f"{type(failure).__name__}: {failure}"
    if failure is not None and "meta" in str(failure):
        reason = "its model computes with weights outside of the layer"
    if shapes:
        reason = f"what reaches it is {' or '.join(sorted(shapes))} instead of hidden states of shape {expected}"
    raise UnsupportedArchitectureError(
        f"A layer of {type(scaffold).__name__} can't be run without the rest of its model ({reason}). "
        "Take a donor of another family."
    ) from failure


def _find_nan(seen: dict[str, Any]) -> str | None:
    """The name of an argument that has NaN: it comes from what was left out."""
    for name, value in seen.items():
        if any(tensor.is_floating_point() and tensor.isnan().any() for tensor in _tensors(value)):
            return name
    return None


def _check_alone(scaffold: PreTrainedModel, layer: nn.Module, run: Run) -> None:
    """Refuse a layer that reads what the layer before it gave besides hidden states (zaya: its router's).

    Raises:
        UnsupportedArchitectureError: It does.
    """
    given = run.result[1:] if isinstance(run.result, (tuple, list)) else ()
    if not run.extras or not any(True for _ in _tensors(given)):
        return
    filler = torch.full_like(run.hidden_states, torch.nan)
    again = Run(layer=layer, hidden_states=run.hidden_states, extras=run.extras, filler=filler)
    everything = torch.ones(filler.shape[:2], dtype=torch.long, device=filler.device)
    try:
        output = run_scaffold(scaffold, again, everything, None).output
    except FAILURES:
        output = None
    if output is None or run.output is None or not torch.equal(output, run.output):
        raise UnsupportedArchitectureError(
            f"A layer of {type(scaffold).__name__} also reads something made by the layer before it, so the layer "
            "alone can't compute what it computed. Take the first layer, or a donor of another family."
        )


def _arguments(scaffold: PreTrainedModel, states: Tensor, mask: Tensor | None, extras: int | None) -> dict[str, Any]:
    """What the scaffold calls its layer with; `hidden_states` are those that arrive, not those of the run."""
    calls: list[dict[str, Any]] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        named = {f"argument {position}": value for position, value in enumerate(args)}
        calls.append({**named, **kwargs})
        return states if extras is None else (states, *[None] * extras)

    run = Run(layer=record, hidden_states=states, extras=extras)
    run_scaffold(scaffold, run, mask, _positions(scaffold, states, mask))
    if len(calls) != 1:
        raise ValueError(f"the layer is called {len(calls)} times in one pass")
    seen = calls[0]
    seen.pop("argument 0", None)
    seen["hidden_states"] = run.arrived
    return seen


def _positions(scaffold: PreTrainedModel, states: Tensor, mask: Tensor | None) -> Tensor | None:
    if mask is None or not takes_position_ids(scaffold):
        return None
    return count_positions(states)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _why_bias(scaffold: PreTrainedModel, states: Tensor, extras: int | None) -> str | None:
    """Why a mask from outside would not mean what it says; None if it does.

    A bias per key (alibi) is made for attention that looks back: it only falls with the distance on that side.
    """
    mask = bidirectional_mask(states, None)
    try:
        seen = _arguments(scaffold, states, mask, extras)
    except FAILURES as error:
        return f"its model takes no mask of its own ({type(error).__name__}: {error})"
    del seen["hidden_states"]
    tensors = [(name, tensor) for name, value in seen.items() for tensor in _tensors(value)]
    if not any(tensor.shape == mask.shape and torch.equal(tensor, mask) for _, tensor in tensors):
        return "its model doesn't hand a mask of its own to the layer"
    for name, tensor in tensors:
        # Rotary embeddings have a row per position; a bias has a number per key, or for every key there can be.
        if tensor.is_floating_point() and tensor.shape != mask.shape and _LENGTH not in tensor.shape[:-1]:
            return f"it is given a bias per key ({name!r}), which is made for attention that only looks back"
    return None


def _why_not(
    scaffold: PreTrainedModel, layer: nn.Module, states: Tensor, extras: int | None, *, causal: bool
) -> str | None:
    """Change the last position and see whether the first notices, which it must not (or must, if bidirectional)."""
    changed = states.clone()
    changed[:, -1] = -2 * changed[:, -1]
    everything = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    outputs: list[Tensor] = []
    with torch.no_grad():
        for hidden_states in (states, changed):
            mask = everything if causal else bidirectional_mask(states, None)
            run = Run(layer=layer, hidden_states=hidden_states, extras=extras)
            try:
                output = run_scaffold(scaffold, run, mask, _positions(scaffold, states, mask)).output
            except FAILURES as error:
                return f"it fails with {type(error).__name__} {error}".rstrip()
            if not isinstance(output, Tensor) or output.shape != states.shape:
                return "it doesn't return hidden states of the width that it takes"
            if causal:
                _check_alone(scaffold, layer, run)
            outputs.append(output.float())
    scale = outputs[0].abs().max()
    difference = (outputs[0] - outputs[1])[:, 0].abs().max()
    if causal and difference > _SAME * scale:
        return "its positions see the positions after them"
    if not causal and not difference > _DIFFERENT * scale:
        return "its positions see none of the positions after them, whatever the mask"
    return None
