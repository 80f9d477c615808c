"""What a layer computes inside its whole model, and what a DonorLayer computes from the same hidden states."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layer_surgeon.donor import DonorLayer


@dataclass(frozen=True, kw_only=True)
class Passed:
    """Hidden states before and after a layer, [batch, seq, width]."""

    before: Tensor
    after: Tensor


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a whole model: the largest list of as many modules as its config says it has layers."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return max(lists, key=lambda module: sum(parameter.numel() for parameter in module.parameters()))


def watch(model: PreTrainedModel, index: int, input_ids: Tensor, attention_mask: Tensor | None) -> Passed:
    """Run the whole model, and say what went into one of its layers and what came out."""
    seen: dict[str, Any] = {}

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen["before"] = (args[0] if args else kwargs["hidden_states"]).detach().clone()
        seen["after"] = (output[0] if isinstance(output, (tuple, list)) else output).detach().clone()

    handle = find_layers(model)[index].register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            model(input_ids=input_ids, attention_mask=attention_mask)
    finally:
        handle.remove()
    return Passed(**seen)


def padding(kind: str, batch: int, length: int) -> Tensor | None:
    """A mask of [batch, length] whose rows have 0, 3, 6, ... positions of padding, on the left or right."""
    if kind == "none":
        return None
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(batch):
        number = min(3 * row, length - 2)
        if number:
            mask[row, -number:] = 0
    return mask if kind == "right" else mask.flip(1)


def difference(model: PreTrainedModel, donor: DonorLayer, index: int, kind: str, length: int = 19) -> float:
    """The largest difference at a position that is not padding. NaN where only one of the two has NaN."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    input_ids = torch.randint(3, vocabulary, (3, length), generator=torch.Generator().manual_seed(index))
    mask = padding(kind, 3, length)
    passed = watch(model, index, input_ids, mask)
    with torch.no_grad():
        output = donor(passed.before, attention_mask=mask)
    kept = torch.ones(3, length, dtype=torch.bool) if mask is None else mask.bool()
    if not passed.after[kept].isfinite().all():
        return float("nan")
    return (output - passed.after)[kept].abs().max().item()
