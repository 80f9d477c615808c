"""Run a scaffold and its layer to find out what the layer receives, and whether it can run causally or bidirectionally.

No code here is specific to a family. A probe has seven positions, takes milliseconds, and runs once, when a donor is
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

# A prime that doesn't divide any head width: a tensor with this last dimension must have one number per position.
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
# Relative to the largest output. Equal rows of one matrix product may differ in the last bits (bfloat16: 2^-8).
_MAX_EQUAL_DIFFERENCE = 2e-2
_MIN_CHANGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Traits:
    """How to run one layer in its scaffold.

    Attributes:
        extras: See `Run.extras`.
        takes_position_ids: Whether the family's forward accepts position_ids.
        not_causal: Why the layer can't run causally; None if it can.
        not_bidirectional: Why the layer can't run bidirectionally; None if it can.
    """

    extras: int | None
    takes_position_ids: bool
    not_causal: str | None
    not_bidirectional: str | None


def bidirectional_mask(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Make the mask with which every position attends to every position that is not padding.

    Args:
        hidden_states: [batch, seq, donor_hidden]; only its shape, dtype and device are used.
        attention_mask: [batch, seq], 1 for tokens and 0 for padding, or None.

    Returns:
        [batch, 1, seq, seq], to add to the attention scores.
    """
    batch, length, _ = hidden_states.shape
    mask = hidden_states.new_zeros(batch, 1, length, length)
    if attention_mask is not None:
        is_padding = attention_mask.to(hidden_states.device)[:, None, None, :] == 0
        # With -inf instead of the lowest number, a row of only padding would become NaN.
        mask = mask.masked_fill(is_padding, torch.finfo(mask.dtype).min)
    return mask


def count_positions(hidden_states: Tensor) -> Tensor:
    """Make positions 0 to seq - 1, [batch, seq]. opt would compute different positions from a bidirectional mask."""
    batch, length, _ = hidden_states.shape
    return torch.arange(length, device=hidden_states.device).expand(batch, length)


def takes_position_ids(scaffold: PreTrainedModel) -> bool:
    """Whether the family's forward accepts position_ids."""
    return "position_ids" in signature(scaffold.forward).parameters


def probe_layer(scaffold: PreTrainedModel, layer: nn.Module, hidden_size: int, *, causal_only: bool = False) -> Traits:
    """Find out how to run a layer. The layer must have its weights.

    Args:
        scaffold: The layer's scaffold.
        layer: The layer.
        hidden_size: Width of its input.
        causal_only: Don't find out whether it can run bidirectionally.

    Raises:
        UnsupportedArchitectureError: The layer can't run by itself, or depends on weights outside of it.
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
    if causal_only:
        not_bidirectional: str | None = "it was only loaded to run causally"
    else:
        not_bidirectional = _why_bias(scaffold, states, extras) or _why_not(
            scaffold, layer, states, extras, causal=False
        )
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
    """Find out how layers return their hidden states, by trying which way they reach the entrance intact.

    Returns:
        See `Run.extras`.

    Raises:
        UnsupportedArchitectureError: No way works, or the layer also reads a tensor made from weights outside of it.
    """
    nan = torch.full((2, _LENGTH, hidden_size), torch.nan, dtype=reference.dtype, device=reference.device)
    first_error: Exception | None = None
    wrong_inputs = set()
    for extras in (None, 0, 1, 2, 3):
        try:
            arguments = _arguments(scaffold, nan, None, extras)
        except FAILURES as error:
            first_error = first_error or error
            continue
        arrived = arguments.pop("hidden_states")
        if not isinstance(arrived, Tensor) or arrived.shape != nan.shape:
            wrong_inputs.add(str(list(arrived.shape)) if isinstance(arrived, Tensor) else type(arrived).__name__)
            continue
        if name := _find_nan(arguments):
            raise UnsupportedArchitectureError(
                f"A layer of {type(scaffold).__name__} also reads {name!r}, made from weights outside of the layer, so "
                "the layer alone can't compute what it computed. Take a donor of another family."
            )
        return extras
    expected = list(nan.shape)
    reason = f"{type(first_error).__name__}: {first_error}"
    if first_error is not None and "meta" in str(first_error):
        reason = "its model computes with weights outside of the layer"
    if wrong_inputs:
        reason = f"what reaches it is {' or '.join(sorted(wrong_inputs))} instead of hidden states of shape {expected}"
    raise UnsupportedArchitectureError(
        f"A layer of {type(scaffold).__name__} can't be run without the rest of its model ({reason}). "
        "Take a donor of another family."
    ) from first_error


def _find_nan(arguments: dict[str, Any]) -> str | None:
    """The name of the first argument that contains NaN, which means that it depends on left-out weights; or None."""
    for name, value in arguments.items():
        if any(tensor.is_floating_point() and tensor.isnan().any() for tensor in _tensors(value)):
            return name
    return None


def _check_alone(scaffold: PreTrainedModel, layer: nn.Module, run: Run) -> None:
    """Check that the layer only reads hidden states from the layer before it; zaya's also reads its router's output.

    Raises:
        UnsupportedArchitectureError: The layer reads such an output.
    """
    extra_outputs = run.result[1:] if isinstance(run.result, (tuple, list)) else ()
    if not run.extras or not any(True for _ in _tensors(extra_outputs)):
        return
    filler = torch.full_like(run.hidden_states, torch.nan)
    second_run = Run(layer=layer, hidden_states=run.hidden_states, extras=run.extras, filler=filler)
    no_padding = torch.ones(filler.shape[:2], dtype=torch.long, device=filler.device)
    try:
        output = run_scaffold(scaffold, second_run, no_padding, None).output
    except FAILURES:
        output = None
    if output is None or run.output is None or not torch.equal(output, run.output):
        raise UnsupportedArchitectureError(
            f"A layer of {type(scaffold).__name__} also reads something made by the layer before it, so the layer "
            "alone can't compute what it computed. Take the first layer, or a donor of another family."
        )


def _arguments(scaffold: PreTrainedModel, states: Tensor, mask: Tensor | None, extras: int | None) -> dict[str, Any]:
    """Record the arguments of the scaffold's call to its layer. `hidden_states` are those that the scaffold passes."""
    calls: list[dict[str, Any]] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        named = {f"argument {position}": value for position, value in enumerate(args)}
        calls.append({**named, **kwargs})
        return states if extras is None else (states, *[None] * extras)

    run = Run(layer=record, hidden_states=states, extras=extras)
    run_scaffold(scaffold, run, mask, _positions(scaffold, states, mask))
    if len(calls) != 1:
        raise ValueError(f"the layer is called {len(calls)} times in one pass")
    arguments = calls[0]
    arguments.pop("argument 0", None)
    arguments["hidden_states"] = run.arrived
    return arguments


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
    """Why a custom mask would not have the intended effect; None if it does.

    A bias per key (alibi) only works for attention to earlier positions: it only decreases with the distance there.
    """
    mask = bidirectional_mask(states, None)
    try:
        arguments = _arguments(scaffold, states, mask, extras)
    except FAILURES as error:
        return f"its model doesn't accept a custom mask ({type(error).__name__}: {error})"
    del arguments["hidden_states"]
    tensors = [(name, tensor) for name, value in arguments.items() for tensor in _tensors(value)]
    if not any(tensor.shape == mask.shape and torch.equal(tensor, mask) for _, tensor in tensors):
        return "its model doesn't pass a custom mask on to the layer"
    for name, tensor in tensors:
        # Rotary embeddings have one row per position. A bias has one number per key, or per possible key.
        if tensor.is_floating_point() and tensor.shape != mask.shape and _LENGTH not in tensor.shape[:-1]:
            return f"it receives a bias per key ({name!r}), which only works for attention to earlier positions"
    return None


def _why_not(
    scaffold: PreTrainedModel, layer: nn.Module, states: Tensor, extras: int | None, *, causal: bool
) -> str | None:
    """Why a layer can't run causally (or bidirectionally); None if it can.

    Changes the last position: the first output must not change if causal, and must change if bidirectional.
    """
    changed = states.clone()
    changed[:, -1] = -2 * changed[:, -1]
    no_padding = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    outputs: list[Tensor] = []
    with torch.no_grad():
        for hidden_states in (states, changed):
            mask = no_padding if causal else bidirectional_mask(states, None)
            run = Run(layer=layer, hidden_states=hidden_states, extras=extras)
            try:
                output = run_scaffold(scaffold, run, mask, _positions(scaffold, states, mask)).output
            except FAILURES as error:
                return f"it fails with {type(error).__name__} {error}".rstrip()
            if not isinstance(output, Tensor) or output.shape != states.shape:
                return "its output doesn't have the shape of its input"
            if causal:
                _check_alone(scaffold, layer, run)
            outputs.append(output.float())
    scale = outputs[0].abs().max()
    difference = (outputs[0] - outputs[1])[:, 0].abs().max()
    if causal and difference > _MAX_EQUAL_DIFFERENCE * scale:
        return "its positions attend to later positions"
    if not causal and not difference > _MIN_CHANGE * scale:
        return "its positions don't attend to later positions, even if the mask allows it"
    return None
