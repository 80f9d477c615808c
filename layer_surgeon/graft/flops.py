"""Multiply-accumulates of a model by part, from torch's own counter, on shapes alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from layer_surgeon.donor import DonorLayer
from layer_surgeon.donor.influence import needed_by_shape
from layer_surgeon.donor.one_key import Needed, install, uninstall
from layer_surgeon.donor.probe import Traits, takes_position_ids
from layer_surgeon.donor.scaffold import Run, run_scaffold
from layer_surgeon.errors import GraftError, LayerSurgeonError

# What fvcore counts for a layer norm with weights, per element; it is the counter of the paper's table 16.
_PER_NORM_ELEMENT = 5
_FAILURES = (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError, NotImplementedError)
OTHER_PART = "other"
Nature: TypeAlias = Literal["weighted", "constant", "plain"]


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        linear: Products with weights.
        attention: Products of activations with activations: scores and their sums of values.
        rest: Layer norms (5 per element, as fvcore counts them), convolutions, angles of rotary positions. Activation
            functions, sums and norms that are made of single operations (RMS norms) are not counted.
    """

    linear: int = 0
    attention: int = 0
    rest: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.attention + self.rest

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(
            linear=self.linear + other.linear, attention=self.attention + other.attention, rest=self.rest + other.rest
        )


@dataclass(kw_only=True)
class _Tally:
    """Assigns what the counter has seen since the last look to the module that is running."""

    counter: FlopCounterMode
    stack: list[tuple[str, Nature]] = field(default_factory=lambda: [(OTHER_PART, "plain")])
    seen: dict[Any, int] = field(default_factory=dict)
    counts: dict[str, Macs] = field(default_factory=dict)

    def look(self) -> None:
        now = dict(self.counter.flop_counts["Global"])
        part, nature = self.stack[-1]
        for operation, flops in now.items():
            new = flops - self.seen.get(operation, 0)
            if new:
                macs = Macs(**{_kind(str(operation), nature): new // 2})
                self.counts[part] = self.counts.get(part, Macs()) + macs
        self.seen = now

    def enter(self, part: str, nature: Nature) -> None:
        self.look()
        self.stack.append((part, nature))

    def leave(self) -> None:
        self.look()
        self.stack.pop()


def count_macs(model: nn.Module, inputs: Mapping[str, Any], parts: Mapping[str, nn.Module]) -> dict[str, Macs]:
    """Multiply-accumulates of one forward pass by part; what belongs to no part is under "other".

    Args:
        model: A model inside of `shapes_only`.
        inputs: Its inputs, made there too.
        parts: Modules inside of the model.
    """
    counter = new_counter()
    tally = _Tally(counter=counter)
    part_of = {module: name for name, part in parts.items() for module in part.modules()}
    handles = []
    for module in model.modules():
        entry = (part_of.get(module, OTHER_PART), _nature(module))
        handles.append(module.register_forward_pre_hook(lambda *_, entry=entry: tally.enter(*entry)))
        handles.append(module.register_forward_hook(lambda *_: tally.leave()))
    try:
        with counter, torch.no_grad():
            model(**inputs)
        tally.look()
    finally:
        for handle in handles:
            handle.remove()
    return tally.counts


def count_training_macs(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Multiply-accumulates of forward and backward pass inside of `shapes_only`; `inputs` have the labels."""
    counter = new_counter()
    with counter, torch.enable_grad():
        torch.autograd.backward(training_loss(model(**inputs)))
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() // 2


def training_loss(output: Any) -> Tensor:
    """The model's own loss; where its task has none, the sum of its first output."""
    loss: Tensor | None = output.get("loss")
    if loss is None:
        loss = output.to_tuple()[0].float().sum()
    return loss


def new_counter() -> FlopCounterMode:
    """Torch's counter, taught what a layer norm is."""
    norms = {torch.ops.aten.native_layer_norm: _norm_flops}
    return FlopCounterMode(display=False, custom_mapping=norms)


@contextmanager
def shapes_only(model: nn.Module) -> Iterator[None]:
    """Turn a model on the meta device into one that runs on shapes, and run what is inside on shapes.

    torch's fake tensors rather than the meta device itself, because transformers asks tensors for values (is there any
    padding? are these several texts in one row?) unless they are fake. Attention is taken apart into its products,
    because torch doesn't count those of the kernel that the CPU has for it.

    Raises:
        GraftError: A forward pass needs values.
    """
    donors = [part for part in model.modules() if isinstance(part, DonorLayer)]
    # Found before, because what counts is a matter of numbers.
    needed = [[needed_by_shape(donor.config, index) for index in donor.layer_indices] for donor in donors]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
            model.to_empty(device="cpu")
            for donor, by_layer in zip(donors, needed, strict=True):
                _assume_traits(donor, by_layer)
            yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise GraftError(
            f"The forward pass of this {type(model).__name__} can't be followed on shapes alone: {error} Its "
            "multiply-accumulates are not known then; choose another host or donor."
        ) from error


def _assume_traits(donor: DonorLayer, needed: list[dict[str, Needed]]) -> None:
    """Let a donor without weights run, of which there is nothing to probe, as one that has them will.

    Only the shapes that pass through its scaffold are looked at, to find out how layers hand on hidden states.
    """
    donor._traits = tuple(
        Traits(
            extras=_extras(scaffold, layer, donor.hidden_size),
            takes_position_ids=takes_position_ids(scaffold),
            not_causal=None,
            not_bidirectional=None,
        )
        for scaffold, layer in zip(donor.scaffolds, donor.layers, strict=True)
    )
    for layer, parts in zip(donor.layers, needed, strict=True):
        uninstall(layer)
        install(layer, parts)


def _extras(scaffold: Any, layer: nn.Module, width: int) -> int | None:
    states = torch.empty(2, 7, width, dtype=next(layer.parameters()).dtype)
    failure: Exception | None = None
    for extras in (None, 0, 1, 2, 3):
        run = Run(layer=layer, hidden_states=states, extras=extras)
        try:
            with torch.no_grad():
                run_scaffold(scaffold, run, None, None)
        except _FAILURES as error:
            failure = failure or error
            continue
        if isinstance(run.arrived, Tensor) and run.arrived.shape == states.shape:
            return extras
    raise GraftError(
        f"A layer of {type(scaffold).__name__} can't be followed on shapes alone: {failure} Its multiply-accumulates "
        "are not known then; choose another donor."
    ) from failure


def _norm_flops(shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _PER_NORM_ELEMENT * torch.Size(shape).numel()


def _kind(operation: str, nature: Nature) -> str:
    name = operation.rpartition(".")[2]
    if nature == "constant" or "norm" in name or "conv" in name:
        return "rest"
    # A product of a batch of matrices is attention's, unless the module that makes it holds matrices (experts do).
    return "linear" if nature == "weighted" or name in ("mm", "addmm") else "attention"


def _nature(module: nn.Module) -> Nature:
    if any(parameter is not None and parameter.ndim >= 2 for parameter in module._parameters.values()):
        return "weighted"
    # Rotary embeddings, which some versions of transformers multiply out as matrices.
    constant = bool(module._buffers) and not module._parameters and not module._modules
    return "constant" if constant else "plain"
