"""Count the multiply-accumulates of each part of a model with torch's counter, from shapes alone."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from layer_surgeon.donor import DonorLayer
from layer_surgeon.donor.influence import needed_by_shape
from layer_surgeon.donor.one_key import Needed, install, uninstall
from layer_surgeon.donor.probe import Traits, takes_position_ids
from layer_surgeon.errors import GraftError, LayerSurgeonError

# Operations per element that fvcore, the counter of the paper's table 16, counts for a layer norm with weights.
_PER_NORM_ELEMENT = 5
OTHER_PART = "other"
# Logs the traceback of each operation that fails on shapes, which our error also names.
_TORCH_LOGGER = logging.getLogger("torch._subclasses.fake_tensor")
ModuleType: TypeAlias = Literal["weighted", "constant", "plain"]


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        linear: Products with weights.
        attention: Products of activations with activations: attention scores, and weighted sums of the values.
        rest: Layer norms (5 per element, as in fvcore), convolutions, and angles of rotary positions. Activation
            functions, sums, and norms made of separate operations (RMS norms) are not counted.
    """

    linear: int = 0
    attention: int = 0
    rest: int = 0

    @property
    def total(self) -> int:
        """The sum of all three."""
        return self.linear + self.attention + self.rest

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(
            linear=self.linear + other.linear, attention=self.attention + other.attention, rest=self.rest + other.rest
        )


@dataclass(kw_only=True)
class _Tally:
    """Assigns the flops since the last update to the module that is running."""

    counter: FlopCounterMode
    stack: list[tuple[str, ModuleType]] = field(default_factory=lambda: [(OTHER_PART, "plain")])
    previous_flops: dict[Any, int] = field(default_factory=dict)
    counts: dict[str, Macs] = field(default_factory=dict)

    def update(self) -> None:
        flops_by_operation = dict(self.counter.flop_counts["Global"])
        part, module_type = self.stack[-1]
        for operation, flops in flops_by_operation.items():
            new_flops = flops - self.previous_flops.get(operation, 0)
            if new_flops:
                macs = Macs(**{_macs_field(str(operation), module_type): new_flops // 2})
                self.counts[part] = self.counts.get(part, Macs()) + macs
        self.previous_flops = flops_by_operation

    def enter(self, part: str, module_type: ModuleType) -> None:
        self.update()
        self.stack.append((part, module_type))

    def leave(self) -> None:
        self.update()
        self.stack.pop()


def count_macs(model: nn.Module, inputs: Mapping[str, Any], parts: Mapping[str, nn.Module]) -> dict[str, Macs]:
    """Count the multiply-accumulates of one forward pass by part; modules in no part count as "other".

    Args:
        model: A model inside `shapes_only`.
        inputs: Its inputs, also created inside `shapes_only`.
        parts: Modules of the model.
    """
    counter = new_counter()
    tally = _Tally(counter=counter)
    part_of = {module: name for name, part in parts.items() for module in part.modules()}
    handles = []
    for module in model.modules():
        frame = (part_of.get(module, OTHER_PART), _module_type(module))
        handles.append(module.register_forward_pre_hook(lambda *_, frame=frame: tally.enter(*frame)))
        handles.append(module.register_forward_hook(lambda *_: tally.leave()))
    try:
        with counter, torch.no_grad():
            model(**inputs)
        tally.update()
    finally:
        for handle in handles:
            handle.remove()
    return tally.counts


def count_training_macs(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Count the multiply-accumulates of forward and backward pass inside `shapes_only`; `inputs` include the labels."""
    counter = new_counter()
    with counter, torch.enable_grad():
        torch.autograd.backward(training_loss(model(**inputs)))
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() // 2


def training_loss(output: Any) -> Tensor:
    """Return the model's loss, or the sum of its first output if the task has no loss."""
    loss: Tensor | None = output.get("loss")
    if loss is None:
        loss = output.to_tuple()[0].float().sum()
    return loss


def new_counter() -> FlopCounterMode:
    """Create torch's flop counter, extended to count layer norms."""
    norms = {torch.ops.aten.native_layer_norm: _norm_flops}
    return FlopCounterMode(display=False, custom_mapping=norms)


@contextmanager
def shapes_only(model: nn.Module) -> Iterator[None]:
    """Run a model from the meta device on shapes alone, inside a `with` block.

    This uses torch's fake tensors and not the meta device, because transformers reads values of tensors that are not
    fake (is there padding? are there several texts in a row?). Attention is computed as separate products, and so are
    experts, because torch doesn't count those inside the kernels for attention and for grouped products.

    Raises:
        GraftError: A forward pass needs values.
    """
    donors = [part for part in model.modules() if isinstance(part, DonorLayer)]
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config._experts_implementation = "batched_mm"
    # Compute this before fake tensors are active, because it needs real numbers.
    probed = [[needed_by_shape(donor.config, index) for index in donor.layer_indices] for donor in donors]
    was_disabled, _TORCH_LOGGER.disabled = _TORCH_LOGGER.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
            model.to_empty(device="cpu")
            for donor, by_layer in zip(donors, probed, strict=True):
                _assume_traits(donor, by_layer)
            yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        limit = getattr(getattr(model.config, "host_config", model.config), "max_position_embeddings", None)
        positions = (
            f" The host has {limit:,} positions, so a smaller length may help." if isinstance(limit, int) else ""
        )
        raise GraftError(
            f"The forward pass of this {type(model).__name__} doesn't run on shapes alone: {error} So its "
            f"multiply-accumulates can't be counted.{positions} Choose another length, host or donor."
        ) from error
    finally:
        _TORCH_LOGGER.disabled = was_disabled


def _assume_traits(donor: DonorLayer, probed: list[tuple[dict[str, Needed], int | None]]) -> None:
    """Set the traits of a donor without weights, which can't be probed, so that it runs as one with weights.

    Args:
        donor: The donor.
        probed: What `needed_by_shape` returned for each layer.
    """
    donor._traits = tuple(
        Traits(extras=extras, takes_position_ids=takes_position_ids(scaffold), not_causal=None, not_bidirectional=None)
        for scaffold, (_, extras) in zip(donor.scaffolds, probed, strict=True)
    )
    for layer, (parts, _) in zip(donor.layers, probed, strict=True):
        uninstall(layer)
        install(layer, parts)


def _norm_flops(shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _PER_NORM_ELEMENT * torch.Size(shape).numel()


def _macs_field(operation: str, module_type: ModuleType) -> str:
    name = operation.rpartition(".")[2]
    if module_type == "constant" or "norm" in name or "conv" in name:
        return "rest"
    # A batched matrix product belongs to attention, unless its module has weight matrices, as experts do.
    return "linear" if module_type == "weighted" or name in ("mm", "addmm") else "attention"


def _module_type(module: nn.Module) -> ModuleType:
    if any(parameter is not None and parameter.ndim >= 2 for parameter in module._parameters.values()):
        return "weighted"
    # Rotary embeddings: some versions of transformers compute them as matrix products.
    constant = bool(module._buffers) and not module._parameters and not module._modules
    return "constant" if constant else "plain"
