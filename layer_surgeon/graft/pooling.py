"""From the states of a text's tokens to one vector for the text."""

import torch
from torch import Tensor

from layer_surgeon.errors import GraftError


def check_mask(attention_mask: Tensor | None) -> None:
    """Raise `GraftError` unless it is None or [batch, seq]."""
    if attention_mask is not None and attention_mask.dim() != 2:
        raise GraftError(f"attention_mask has {attention_mask.dim()} dimensions; it must be [batch, seq] of 1 and 0.")


def count_positions(attention_mask: Tensor) -> Tensor:
    """The positions of a batch's tokens, from 0, [batch, seq]; padding is not counted."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def find_padding(input_ids: Tensor | None, padding: int | None) -> Tensor | None:
    """The mask of a batch that came without: [batch, seq], 1 where there is text; None where all is.

    Args:
        input_ids: [batch, seq], or None.
        padding: The id of the padding token; None where the host names none.

    Raises:
        GraftError: Padding can't be told from text.
    """
    if input_ids is None:
        return None
    if padding is not None:
        return (input_ids != padding).long()
    if input_ids.shape[0] == 1:
        return None
    raise GraftError(
        "There is no attention_mask, and the host names no padding token, so that the end of each text is not "
        "known. Pass the attention_mask that the tokenizer makes, or set model.config.pad_token_id."
    )


def pool(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector per text.

    Args:
        states: [batch, seq, width].
        mask: [batch, seq], 1 where there is text; None: everywhere.
        pooling: cls, mean, mean_with_padding or last.

    Returns:
        [batch, width].
    """
    if pooling == "mean_with_padding" or (pooling == "mean" and mask is None):
        return states.mean(dim=1)
    if pooling == "mean" and mask is not None:
        weights = mask.to(states.dtype).unsqueeze(-1)  # [batch, seq, 1]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    if mask is None:
        return states[:, 0 if pooling == "cls" else -1]
    # Not simply the first or the last column: padding may be on either side.
    if pooling == "cls":
        positions = (mask != 0).int().argmax(dim=-1)
    else:
        positions = mask.shape[1] - 1 - (mask != 0).int().flip(-1).argmax(dim=-1)
    return states[torch.arange(states.shape[0], device=states.device), positions]
