"""Skip queries and keys if each sequence has one position: attention then returns the value itself.

The softmax of a single score is 1. For classification, the paper sends one vector per text through the donor. The
projections to queries and keys then don't affect the result; in a layer of Llama-3.1-8B, they hold 21 M of 218 M
weights. `influence` finds these projections, and `DonorLayer.probe` compares the result with the full layer when a
donor is loaded.

A linear map with outputs that don't count is turned into one of the classes below. They subclass the classes of torch
and transformers and only change `forward`, so names, weights, copies, conversions, adapters and saved files stay the
same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layer_surgeon.donor.scaffold import has_cache


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The outputs of a linear map that count: channels `start` to `stop` in each of `blocks` blocks of equal width.

    If `start` equals `stop`, no output counts. A fused map of query, key and value stores them one after the other
    (phi3, gpt2: one block) or head by head (gpt_neox: one block per head).
    """

    blocks: int
    start: int
    stop: int


class OneKeyLinear(nn.Linear):
    """A linear map that skips the outputs that don't count if there is one position per sequence.

    Attributes:
        needed: The outputs that count.
        one_key: False computes all outputs, for comparison.
        full_class: The original class: `nn.Linear` or the family's own subclass.
    """

    needed: Needed
    one_key: bool
    full_class: type[nn.Linear]

    def forward(self, input: Tensor) -> Tensor:
        """Map [batch, seq, in] to [batch, seq, out], with zeros for the skipped outputs."""
        if self.one_key and is_one_key(input) and not has_cache():
            return _compute(input, self.weight, self.bias, self.needed)
        return self.full_class.forward(self, input)


class OneKeyConv1D(Conv1D):  # type: ignore[misc]  # transformers is untyped here
    """The same for a map whose weight is [in, out], as in gpt2."""

    needed: Needed
    one_key: bool
    full_class: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, seq, in] to [batch, seq, out], with zeros for the skipped outputs."""
        if self.one_key and is_one_key(x) and not has_cache():
            return _compute(x, self.weight.T, self.bias, self.needed)
        return self.full_class.forward(self, x)  # type: ignore[no-any-return]  # see above


def is_one_key(states: Tensor) -> bool:
    """Whether [batch, seq, width] has one position per sequence, and therefore one key if there is no cache."""
    return states.ndim == 3 and states.shape[1] == 1


def install(layer: nn.Module, needed: Mapping[str, Needed]) -> None:
    """Make the named linear maps of a layer skip the outputs that don't count, in place."""
    for name, needed_outputs in needed.items():
        module: Any = layer.get_submodule(name)
        module.needed, module.one_key, module.full_class = needed_outputs, True, type(module)
        module.__class__ = OneKeyLinear if isinstance(module, nn.Linear) else OneKeyConv1D


def uninstall(layer: nn.Module) -> None:
    """Undo `install`."""
    for _, module in list(installed(layer)):
        module.__class__ = module.full_class
        del module.needed, module.one_key, module.full_class


def installed(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names and modules of the linear maps that `install` changed."""
    for name, submodule in module.named_modules():
        if isinstance(submodule, (OneKeyLinear, OneKeyConv1D)):
            yield name, submodule


def _compute(states: Tensor, weight: Tensor, bias: Tensor | None, needed: Needed) -> Tensor:
    """Map [batch, 1, in] through a weight [out, in], with zeros for the outputs that are not needed."""
    width = weight.shape[0]
    if needed.start == needed.stop:
        return _zeros(states, weight, bias, width)
    if needed.blocks == 1:
        rows = slice(needed.start, needed.stop)
        output = F.linear(states, weight[rows], None if bias is None else bias[rows])
        return F.pad(output, (needed.start, width - needed.stop))
    block = width // needed.blocks
    rows_of_blocks = weight.reshape(needed.blocks, block, -1)[:, needed.start : needed.stop]
    output = torch.matmul(states.transpose(0, 1), rows_of_blocks.transpose(1, 2)).transpose(0, 1)  # [batch, blocks, n]
    if bias is not None:
        output = output + bias.reshape(needed.blocks, block)[:, needed.start : needed.stop]
    return F.pad(output, (needed.start, block - needed.stop)).flatten(1).unsqueeze(1)


def _zeros(states: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Tensor:
    device_type = states.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else states.dtype
    zeros = states.new_zeros((*states.shape[:-1], width), dtype=dtype)
    # Trained weights need a gradient of zero, as in the full computation, rather than no gradient: weight decay and
    # code that waits for all gradients (DDP) depend on it.
    for tensor in (weight, bias):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            zeros = zeros + tensor[:0].sum().to(dtype)
    return zeros
