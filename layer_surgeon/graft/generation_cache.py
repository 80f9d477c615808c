"""The cache of a host and its graft in generation: one object, so beams are reordered in both."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from transformers import Cache, DynamicCache

from layer_surgeon.errors import GraftError


class GraftedCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped here
    """The host's cache, which also owns the donor's. What is done to it is done to both.

    Attributes:
        donor_cache: The donor's cache, from `DonorLayer.new_cache`.
    """

    donor_cache: Cache

    def reset(self) -> None:
        """Forget all positions."""
        super().reset()
        self.donor_cache.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put the rows of a batch in another order; beam search does so after each step."""
        super().reorder_cache(beam_idx)
        self.donor_cache.reorder_cache(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last positions; assisted decoding does so with rejected tokens."""
        super().crop(tokens_to_remove)
        self.donor_cache.crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of a batch."""
        super().batch_repeat_interleave(repeats)
        self.donor_cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows of a batch."""
        super().batch_select_indices(indices)
        self.donor_cache.batch_select_indices(indices)

    def activate_past_recording(self) -> None:
        """Keep what `crop` needs in layers that otherwise forget old positions."""
        super().activate_past_recording()
        self.donor_cache.activate_past_recording()

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` can remove positions of both."""
        return bool(super().is_croppable and self.donor_cache.is_croppable)


def follow_cache(cache: Any, new_donor_cache: Callable[[], Cache | None]) -> Cache | None:
    """Return the donor's part of the cache that a host was called with.

    An empty `DynamicCache` becomes a `GraftedCache` in place, because the host's `generate` keeps that object.

    Args:
        cache: The host's cache, before the host adds the new positions; None if there is none.
        new_donor_cache: Makes an empty cache for the donor, or returns None if the donor can't have one.

    Returns:
        None if the donor runs without cache.

    Raises:
        GraftError: The cache is not a `DynamicCache`, or it and the donor's cache hold different positions.
    """
    if cache is None:
        return None
    if not isinstance(cache, DynamicCache):
        raise GraftError(
            f"The cache is a {type(cache).__name__}, which the donor layer's cache can't join. Pass an empty "
            "DynamicCache or no cache."
        )
    length = cache.get_seq_length()
    if type(cache) is DynamicCache and length == 0 and (donor_cache := new_donor_cache()) is not None:
        cache.__class__ = GraftedCache
        cache = cast(GraftedCache, cache)
        cache.donor_cache = donor_cache
    if isinstance(cache, GraftedCache) and cache.donor_cache.get_seq_length() == length:
        return cache.donor_cache
    if length > 0 or isinstance(cache, GraftedCache):
        raise GraftError(
            "The cache holds tokens, but the donor layer has no cache of them. Pass all input_ids and an empty "
            "DynamicCache or no cache, as model.generate does."
        )
    return None
