"""The cache of a layer's keys and values, and whether the layer computes the same with it as without.

No code here is specific to a family: the cache is the one that transformers makes for the family's config, and a few
passes over a short text show whether it is exact.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from layer_surgeon.donor.probe import FAILURES, Traits
from layer_surgeon.donor.scaffold import Run, cache_argument, run_scaffold

# A first piece of several positions, then one at a time as in generation, then several as in assisted decoding.
_PIECES = (3, 1, 1, 2)
_LENGTH = sum(_PIECES)
_PADDING = 2
# Small states, so that what the layer adds isn't lost next to what it receives. Its norms scale them up first.
_SCALE = 0.1
# Root mean square of the difference, relative to the output. The order of summation differs between a long and a short
# pass: with real layers of Gemma 3, the difference is up to 2e-6 in float32 and 3e-3 in bfloat16. A missed change of
# RoPE (longrope) makes 3e-2.
_MAX_DIFFERENCE = 1e-5  # In float32; in half precision, twice the dtype's rounding.


@dataclass(frozen=True, kw_only=True)
class _Text:
    """A short text: which of its positions are padding, and their numbers if the family accepts them.

    Attributes:
        mask: [batch, seq], 1 for tokens and 0 for padding.
        position_ids: [batch, seq], or None.
    """

    mask: Tensor
    position_ids: Tensor | None


def new_cache_layer(scaffold: PreTrainedModel, index: int) -> Any:
    """Make an empty cache for the layer at `index`, of the kind that transformers makes for the family's config."""
    layer = DynamicCache(config=scaffold.config).layers[index]
    # A sliding window is in the mask too. With all positions kept, `crop` (assisted decoding) always works.
    return DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer


def is_exact_with_cache(
    scaffold: PreTrainedModel, layer: nn.Module, index: int, traits: Traits, hidden_size: int
) -> bool:
    """Whether a layer computes the same for a text in pieces, with a cache, as for the text in one pass.

    Args:
        scaffold: The layer's scaffold.
        layer: The layer, with its weights.
        index: Index of the layer in the donor.
        traits: How to run the layer.
        hidden_size: Width of the layer's hidden states.

    Returns:
        True if the outputs are equal up to rounding. False for layers that ignore the cache or keep another state.
    """
    if traits.not_causal is not None or cache_argument(scaffold) is None:
        return False
    reference = next(layer.parameters())
    ramp = torch.arange(2 * _LENGTH * hidden_size, device=reference.device, dtype=torch.float32)
    states = (_SCALE * (ramp * 0.7).sin()).reshape(2, _LENGTH, hidden_size).to(reference.dtype)
    with torch.no_grad():
        try:
            return all(
                _is_exact(scaffold, layer, index, traits, states, text) for text in _texts(scaffold, states, traits)
            )
        except FAILURES:
            return False


def _texts(scaffold: PreTrainedModel, states: Tensor, traits: Traits) -> list[_Text]:
    """Make a text with padding on the left, and one whose last position is the last one that the family knows.

    The rotary embeddings of some configs (longrope) change for all positions when a text gets long. The keys in the
    cache would keep the old ones.
    """
    full = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    padded = full.clone()
    padded[1, :_PADDING] = 0
    if not traits.takes_position_ids:
        return [_Text(mask=full, position_ids=None), _Text(mask=padded, position_ids=None)]
    positions = (padded.cumsum(dim=-1) - 1).clamp(min=0)
    texts = [_Text(mask=padded, position_ids=positions)]
    last_position = (getattr(scaffold.config, "max_position_embeddings", None) or 0) - 1
    if last_position >= _LENGTH:
        distant = torch.arange(_LENGTH, device=states.device).repeat(len(states), 1)
        distant[:, -1] = last_position
        texts.append(_Text(mask=full, position_ids=distant))
    return texts


def _is_exact(
    scaffold: PreTrainedModel, layer: nn.Module, index: int, traits: Traits, states: Tensor, text: _Text
) -> bool:
    cache_layer = new_cache_layer(scaffold, index)

    def run_piece(start: int, stop: int, cache_layer: Any) -> Tensor:
        # Not `layer` itself: hooks on it are for the caller's own passes.
        run = Run(
            layer=layer.forward,
            hidden_states=states[:, start:stop],
            extras=traits.extras,
            cache_layer=cache_layer,
        )
        positions = None if text.position_ids is None else text.position_ids[:, start:stop]
        output = run_scaffold(scaffold, run, text.mask[:, :stop], positions).output
        if not isinstance(output, Tensor):
            raise TypeError("the layer returned no hidden states")
        return output

    whole = run_piece(0, _LENGTH, None)
    tolerance = _MAX_DIFFERENCE if whole.dtype == torch.float32 else 2 * torch.finfo(whole.dtype).eps
    stop = 0
    for length in _PIECES:
        start, stop = stop, stop + length
        is_token = text.mask[:, start:stop].bool()
        expected = whole[:, start:stop][is_token].float()
        difference = run_piece(start, stop, cache_layer)[is_token].float() - expected
        # A layer that ignores the cache leaves it empty.
        if cache_layer.get_seq_length() != stop or not difference.norm() <= tolerance * expected.norm():
            return False
    return True
