"""With one key per sequence, attention gives its value back, whatever query and key are: they needn't be computed.

The softmax of one score is 1. The paper's classification sends one vector per text through the donor, so there the
products for queries and keys, which are 42 M of the 218 M of a layer of Llama-3.1-8B, change nothing. Which ones these
are is found by `influence`, and checked against the full layer when a donor is loaded (`DonorLayer.probe`).

A linear map some of whose outputs don't count becomes one of the classes here. They are those of transformers and torch
with another forward, so that names and weights, copies, conversions, adapters and saved files stay what they were.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Which outputs of a linear map count: of `blocks` blocks of equal width, the channels `start` to `stop` of each.

    None count where `start` equals `stop`. Maps that make query, key and value at once have them one after the other
    (phi3, gpt2: one block) or by head (gpt_neox: as many blocks as heads).
    """

    blocks: int
    start: int
    stop: int


class OneKeyLinear(nn.Linear):
    """A linear map that leaves out, with one position per sequence, what doesn't count then.

    Attributes:
        needed: What counts.
        one_key: False computes everything, for comparing.
        full_class: What it was: `nn.Linear` or the family's own subclass.
    """

    needed: Needed
    one_key: bool
    full_class: type[nn.Linear]

    def forward(self, input: Tensor) -> Tensor:
        """[batch, seq, in] -> [batch, seq, out], zeros where nothing counts."""
        if self.one_key and is_one_key(input):
            return _compute(input, self.weight, self.bias, self.needed)
        return self.full_class.forward(self, input)


class OneKeyConv1D(Conv1D):  # type: ignore[misc]  # transformers is untyped here
    """The same of a map whose weight is [in, out], as gpt2's are."""

    needed: Needed
    one_key: bool
    full_class: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        """[batch, seq, in] -> [batch, seq, out], zeros where nothing counts."""
        if self.one_key and is_one_key(x):
            return _compute(x, self.weight.T, self.bias, self.needed)
        return self.full_class.forward(self, x)  # type: ignore[no-any-return]  # see above


def is_one_key(states: Tensor) -> bool:
    """Whether [batch, seq, width] has one position per sequence. The donor keeps no cache, so one key too."""
    return states.ndim == 3 and states.shape[1] == 1


def install(layer: nn.Module, needed: Mapping[str, Needed]) -> None:
    """Let the named linear maps of a layer leave out what doesn't count, in place."""
    for name, part in needed.items():
        module: Any = layer.get_submodule(name)
        module.needed, module.one_key, module.full_class = part, True, type(module)
        module.__class__ = OneKeyLinear if isinstance(module, nn.Linear) else OneKeyConv1D


def uninstall(layer: nn.Module) -> None:
    """Undo `install`."""
    for _, module in list(installed(layer)):
        module.__class__ = module.full_class
        del module.needed, module.one_key, module.full_class


def installed(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The linear maps inside that may leave something out, with their names."""
    for name, inner in module.named_modules():
        if isinstance(inner, (OneKeyLinear, OneKeyConv1D)):
            yield name, inner


def _compute(states: Tensor, weight: Tensor, bias: Tensor | None, needed: Needed) -> Tensor:
    """Only the needed outputs of [batch, 1, in] through a weight [out, in], among zeros."""
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
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    zeros = states.new_zeros((*states.shape[:-1], width), dtype=dtype)
    # Weights that are trained get gradients of zero, as they would in full, rather than none: a decay of weights, and
    # whoever waits for all gradients, depend on it.
    for tensor in (weight, bias):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            zeros = zeros + tensor[:0].sum().to(dtype)
    return zeros
