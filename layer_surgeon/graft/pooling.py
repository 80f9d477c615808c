"""Pooling: one vector per text from the states of its tokens."""

import torch
from torch import Tensor

from layer_surgeon.errors import GraftError


def check_mask(attention_mask: Tensor | None) -> None:
    """Check that a mask is None or [batch, seq].

    Raises:
        GraftError: It has another number of dimensions.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise GraftError(
            f"attention_mask has {attention_mask.dim()} dimensions; it must be [batch, seq] with 1 for text and 0 for "
            "padding. Pass the mask that the tokenizer returns."
        )


def count_positions(attention_mask: Tensor) -> Tensor:
    """Return the positions of a batch's tokens, from 0, [batch, seq], without counting padding."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def find_padding(input_ids: Tensor | None, padding: int | None) -> Tensor | None:
    """Compute the mask of a batch without one.

    Args:
        input_ids: [batch, seq], or None.
        padding: The id of the padding token; None if the host has none.

    Returns:
        [batch, seq], 1 for text and 0 for padding; None if there can't be padding, or without input_ids.

    Raises:
        GraftError: There are several texts, and the host has no padding token.
    """
    if input_ids is None:
        return None
    if padding is not None:
        return (input_ids != padding).long()
    if input_ids.shape[0] == 1:
        return None
    raise GraftError(
        "There is no attention_mask, and the host has no padding token, so the end of each text is unknown. Pass the "
        "attention_mask that the tokenizer returns, or set model.config.pad_token_id."
    )


def first_token_mask(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor | None:
    """Return a mask of the first token of each text, [batch, seq], from its ids or its vectors."""
    like = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
    if like is None:
        return None
    mask = torch.zeros_like(like, dtype=torch.long)
    mask[:, 0] = 1
    return mask


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool the states of each text to one vector.

    Args:
        states: [batch, seq, width].
        mask: [batch, seq], 1 for text and 0 for padding; None: no padding.
        pooling: cls, mean, mean_with_padding or last.

    Returns:
        [batch, width].
    """
    if pooling == "mean_with_padding" or (pooling == "mean" and mask is None):
        return states.mean(dim=1)
    if pooling == "mean" and mask is not None:
        # A sum of a text's states can be too large for float16.
        wide = states.float() if states.dtype == torch.float16 else states
        weights = mask.to(wide.dtype).unsqueeze(-1)  # [batch, seq, 1]
        return ((wide * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).to(states.dtype)
    if mask is None:
        return states[:, 0 if pooling == "cls" else -1]
    # Find the first or last token of each text, because padding may be on either side.
    if pooling == "cls":
        positions = (mask != 0).int().argmax(dim=-1)
    else:
        positions = mask.shape[1] - 1 - (mask != 0).int().flip(-1).argmax(dim=-1)
    return states[torch.arange(states.shape[0], device=states.device), positions]
