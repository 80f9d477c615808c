"""The states of a donor that reads the text itself, and their norm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache
from transformers import initialization as init

from layer_surgeon.donor import DonorStack
from layer_surgeon.donor.layer import last
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.pooling import check_mask, count_positions, pool


class DonorNorm(nn.LayerNorm):
    """A trained LayerNorm over a donor's states, with a fixed mean and scale of each feature.

    In decoders, a few features are larger than all others by orders of magnitude. In Gemma-3-270M, the mean over a
    text's tokens after 9 layers is 9,700 in one feature, and 7.5 in the median feature. A plain LayerNorm leaves little
    but the large ones: a head on these means, trained on 692 texts of SST-2 with a learning rate of 2e-5, stays at 51 %
    (chance) on the validation texts, and gets 85 % with this norm. Mean and scale are not trained, because the size of
    an optimizer step doesn't depend on the size of a weight (as with `ScaledLinear`). `standardise_states` measures
    them.

    Attributes:
        mean: [donor_hidden], subtracted after the LayerNorm.
        scale: [donor_hidden], multiplied after that, before the trained weight and bias.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """Normalise [..., donor_hidden], in float32."""
        mean, scale, weight, bias = (part.float() for part in (self.mean, self.scale, self.weight, self.bias))
        return (self.unscaled(states) - mean) * scale * weight + bias

    def unscaled(self, states: Tensor) -> Tensor:
        """Return the states with a mean of 0 and a standard deviation of 1 over the features of each state."""
        return functional.layer_norm(states.to(self.weight.device).float(), self.normalized_shape, eps=self.eps)

    def reset_parameters(self) -> None:
        """Re-initialise weight and bias, and let mean and scale have no effect, unless they were loaded."""
        super().reset_parameters()
        if "mean" in self._buffers:
            init.zeros_(self.mean)
            init.ones_(self.scale)


def run_stack(
    stack: DonorStack, ids: Tensor | None, mask: Tensor | None, settings: GraftConfig, cache: Cache | None = None
) -> Tensor:
    """Run a stack on tokens.

    Args:
        stack: The donor.
        ids: [batch, seq].
        mask: [batch, seq] of 1 (token) and 0 (padding); None: no padding. With a cache, [batch, cached + seq].
        settings: The graft's settings.
        cache: The donor's cache, which holds earlier positions and receives these. None: run without cache.

    Returns:
        [batch, seq, donor_hidden], zero at padding; or, if the join needs vectors, [batch, donor_hidden]: the mean or
        the last of each text's tokens without padding. Special tokens count as tokens.

    Raises:
        GraftError: The ids are missing, or the mask has another shape.
    """
    if ids is None:
        raise GraftError(_no_ids(settings))
    check_mask(mask)
    cached = 0 if cache is None else cache.get_seq_length()
    if mask is not None and mask.shape != (ids.shape[0], cached + ids.shape[1]):
        raise GraftError(
            f"The mask of the donor's tokens has the shape {list(mask.shape)}; it must be [batch, seq] = "
            f"{[ids.shape[0], cached + ids.shape[1]]}. Pass the mask that the tokenizer returns with the tokens."
        )
    positions = None
    if stack.takes_position_ids and (mask is not None or cached):
        # Padding is not counted, so a text gives the same result with and without padding on the left.
        counted = ids.new_ones(ids.shape[0], cached + ids.shape[1]) if mask is None else mask
        positions = count_positions(counted)[:, cached:]
    states = stack(ids, attention_mask=mask, position_ids=positions, cache=cache)
    if mask is not None:
        # At padding, the donor's values are undefined, even NaN, which no later factor of zero removes.
        states = states.masked_fill((mask[:, cached:] == 0).to(states.device).unsqueeze(-1), 0)
    return _pool_for_join(states, mask, settings)


def run_stack_alone(stack: DonorStack, texts: Sequence[Tensor], settings: GraftConfig) -> list[Tensor]:
    """Run a stack on each of several texts alone, without padding: each layer on all texts, then the next.

    Each result equals that of `run_stack` on this text, bit for bit. On a CPU this takes three quarters of the time,
    because a layer's weights stay in the processor's cache.

    Args:
        stack: The donor.
        texts: The tokens of each text, [seq]. There must be one text or more.
        settings: The graft's settings.

    Returns:
        For each text [seq, donor_hidden]; or [donor_hidden] if the join needs vectors.
    """
    masks = [torch.ones_like(ids)[None] for ids in texts]
    positions = [count_positions(mask) if stack.takes_position_ids else None for mask in masks]
    walks = [
        stack.walk(ids[None], attention_mask=mask, position_ids=position)
        for ids, mask, position in zip(texts, masks, positions, strict=True)
    ]
    outputs = last(zip(*walks, strict=True))  # One layer of all texts at a time.
    return [_pool_for_join(states, mask, settings)[0] for states, mask in zip(outputs, masks, strict=True)]


def _pool_for_join(states: Tensor, mask: Tensor | None, settings: GraftConfig) -> Tensor:
    if not settings.joins_vectors:
        return states
    mask = None if mask is None else mask.to(states.device)
    return pool(states.float(), mask, settings.donor_pooling or "mean")


def vocabulary_size(stack: DonorStack) -> int:
    """Return the number of different ids that a stack reads."""
    vocabulary = stack.vocabulary
    return int(stack.config.family_config().vocab_size if vocabulary is None else vocabulary["size"])


def check_new_tokens(stack: DonorStack, present: int, wanted: int | None) -> None:
    """Check that a stack which reads the host's tokens can read those of a larger table.

    Args:
        stack: The donor.
        present: The number of rows of the host's table.
        wanted: The new number; None: it stays.

    Raises:
        GraftError: The stack has no vectors for the new tokens.
    """
    known = vocabulary_size(stack)
    if wanted is not None and wanted > max(known, present):
        raise GraftError(
            f"The donor has vectors for {known} tokens of the host, so it can't read {wanted} tokens. Extract the "
            "stack again, with --vocabulary and a tokenizer that has the new tokens."
        )


def check_states(states: Tensor, width: int, settings: GraftConfig, ids: Tensor | None) -> Tensor:
    """Check states of a donor that were computed earlier, and return them.

    Args:
        states: The states.
        width: The donor's width.
        settings: The graft's settings.
        ids: [batch, seq], the host's tokens; None if they are not known here.

    Raises:
        GraftError: They don't have the shape that `run_stack` returns.
    """
    expected: list[int | str] = ["batch", width] if settings.joins_vectors else ["batch", "seq", width]
    if ids is not None:
        expected[: len(expected) - 1] = ids.shape[: len(expected) - 1]
    shape = list(states.shape)
    matches = len(shape) == len(expected) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(shape, expected, strict=True)
    )
    if not matches:
        raise GraftError(
            f"donor_states has the shape {shape}; it must be [{', '.join(map(str, expected))}]. Compute it with "
            "model.read_text for the same texts, with the same padding."
        )
    return states


def _no_ids(settings: GraftConfig) -> str:
    if settings.donor_tokens == "own":
        return (
            "The donor of this graft reads tokens of its own, but there are no donor_input_ids. Pass all that the "
            "graft's tokenizer returns (AutoTokenizer.from_pretrained of the graft's folder), or donor_states."
        )
    return (
        "The donor of this graft reads the text, but there are no input_ids (inputs_embeds has no text). Pass "
        "input_ids, or donor_states."
    )
