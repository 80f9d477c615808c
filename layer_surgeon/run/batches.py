"""Put texts into batches: sorted by length, so that there is little padding, and limited by a number of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Whole texts that go through a layer together. Shorter ones are padded on the right.

    Attributes:
        texts: Indices of the texts, the shortest first.
        lengths: Their numbers of tokens.
        start: Number of tokens in the batches before this one.
    """

    texts: tuple[int, ...]
    lengths: tuple[int, ...]
    start: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens without padding."""
        return sum(self.lengths)

    @property
    def width(self) -> int:
        """Length of the longest text."""
        return self.lengths[-1]

    @cached_property
    def mask(self) -> Tensor | None:
        """[batch, seq] of 1 for tokens and 0 for padding; None if there is no padding."""
        if self.lengths[0] == self.width:
            return None
        return (torch.arange(self.width) < torch.tensor(self.lengths)[:, None]).long()

    def pad(self, states: Tensor) -> Tensor:
        """Turn one value or vector per token, [tokens, ...], into [batch, seq, ...] with zeros at padding."""
        if self.mask is None:
            return states.reshape(len(self.texts), self.width, *states.shape[1:])
        padded = states.new_zeros(len(self.texts), self.width, *states.shape[1:])
        padded[self.mask.bool().to(states.device)] = states
        return padded

    def unpad(self, states: Tensor) -> Tensor:
        """Undo `pad`."""
        return states.flatten(0, 1) if self.mask is None else states[self.mask.bool().to(states.device)]


def rope_limits(config: Any) -> list[int]:
    """Return the numbers of tokens above which a model with "longrope" takes its other rotary frequencies.

    In transformers, the longest text of a batch decides which frequencies all of them get.

    Args:
        config: The model's config.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    # There can be one set for each kind of layer.
    sets = [item for item in (parameters, *parameters.values()) if isinstance(item, Mapping)]
    return [item["original_max_position_embeddings"] for item in sets if item.get("rope_type") == "longrope"]


def make_batches(lengths: Sequence[int], batch_tokens: int, limits: Sequence[int] = ()) -> tuple[Batch, ...]:
    """Put texts into batches.

    Args:
        lengths: The number of tokens of each text.
        batch_tokens: Most tokens in a batch, padding included. A longer text is a batch of its own.
        limits: Texts up to such a length don't share a batch with longer ones.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batches: list[Batch] = []
    texts: list[int] = []
    start = 0
    for index in [*order, None]:
        if texts and (
            index is None
            or (len(texts) + 1) * lengths[index] > batch_tokens
            or any(lengths[texts[-1]] <= limit < lengths[index] for limit in limits)
        ):
            batch = Batch(texts=tuple(texts), lengths=tuple(lengths[text] for text in texts), start=start)
            batches.append(batch)
            start += batch.num_tokens
            texts = []
        if index is not None:
            texts.append(index)
    return tuple(batches)
