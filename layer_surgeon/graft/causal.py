"""Language modelling: the graft between a decoder and its language head."""

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from layer_surgeon.donor.scaffold import CACHE_ARGUMENTS, cache_argument
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import EMBEDDINGS
from layer_surgeon.graft.generation import GeneratingModel

# The settings with which transformers makes a `DynamicCache`.
_DYNAMIC = (None, "dynamic", "dynamic_full", "offloaded")


class GraftedModelForCausalLM(GeneratingModel):
    """A grafted model that continues a text.

    The states of all tokens go from the decoder's last layer through the graft to the host's language head. The donor
    layer attends causally. Its cache is part of the host's, so each new token is computed once. If the donor layer or
    the host can't have such a cache, each new token needs a pass over the whole text so far.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        donor_states: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq] of 1 (token) and 0 (padding). With a cache, it also covers the cached tokens.
            position_ids: [batch, seq]; default: with a mask, positions that don't count padding.
            inputs_embeds: [batch, seq, host_hidden], instead of input_ids.
            labels: [batch, seq] token ids, not shifted; -100 is ignored in the loss.
            use_cache: Return a cache, to pass with the next tokens. Ignored if the donor layer or the host can't have
                one. Default: only if you pass a cache.
            donor_states: From `read_text`, instead of running a donor that reads text.
            kwargs: Passed to the host, such as the cache.

        Returns:
            The host's output: loss (with labels), logits, [batch, seq, vocabulary], and more.

        Raises:
            GraftError: You passed a cache that holds tokens which the donor layer has not seen.
        """
        if position_ids is None and (position_ids := self._positions(attention_mask)) is not None:
            tokens = input_ids if inputs_embeds is None else inputs_embeds
            position_ids = position_ids if tokens is None else position_ids[:, -tokens.shape[1] :]
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if "use_cache" in self._host_inputs:
            kwargs |= self._choose_cache(use_cache, kwargs)
        self.keep_states(input_ids, attention_mask, donor_states)
        return self.host(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **self.wanted_outputs(kwargs),
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate text as in transformers. Without a cache for the donor layer, each token needs a pass over all.

        Raises:
            GraftError: use_cache is true, but the donor layer or the host can't have a cache.
        """
        implementation = _cache_implementation(self.generation_config, args, kwargs)
        if self.donor is not None and (reason := self._why_no_cache(implementation)) is not None:
            if kwargs.get("use_cache"):
                raise GraftError(
                    f"use_cache is true, but {reason}. Leave use_cache out; each new token is then computed from the "
                    "whole text so far."
                )
            kwargs["use_cache"] = False
        return super().generate(*args, **kwargs)

    def new_donor_cache(self) -> Cache | None:
        """Make an empty cache for the donor; None if it has none with which its result stays exact."""
        return None if self.donor is None else self.donor.new_cache()

    def _choose_cache(self, use_cache: bool | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the host's arguments for a pass: `use_cache`, and an empty cache that the donor's can join."""
        has_cache = any(kwargs.get(name) is not None for name in CACHE_ARGUMENTS)
        if has_cache or not use_cache or self.donor is None:
            return {"use_cache": has_cache if use_cache is None else use_cache}
        name = cache_argument(self.host)
        if name is None or self._why_no_cache() is not None:
            return {"use_cache": False}
        return {"use_cache": True, name: self._new_host_cache()}

    def _new_host_cache(self) -> DynamicCache:
        return DynamicCache(config=self.host.config.get_text_config(decoder=True))

    def _why_no_cache(self, implementation: str | None = None) -> str | None:
        """Why each token needs a pass over the whole text; None if the donor's cache can join the host's.

        Args:
            implementation: The `cache_implementation` of the settings for generation.
        """
        if self.new_donor_cache() is None:
            return "the donor layer has no cache"
        if self.config.settings.site == EMBEDDINGS:
            return "a host without layers has no cache"
        if self.host.training and any(getattr(m, "gradient_checkpointing", False) for m in self.host.modules()):
            return "gradient checkpointing in training mode allows no cache"
        try:
            self._new_host_cache().get_seq_length()
            is_dynamic = bool(self.host._supports_default_dynamic_cache())
        except ValueError:  # no layer of the host has attention
            is_dynamic = False
        if not is_dynamic:
            return f"the host ({self.host.config.model_type}) has another kind of cache than the donor layer"
        if implementation not in _DYNAMIC:
            return f"cache_implementation {implementation!r} is another kind of cache than the donor layer's"
        return None


def _cache_implementation(default: GenerationConfig, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Find `cache_implementation` in the arguments of `generate`."""
    config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or default
    implementation: str | None = kwargs.get("cache_implementation") or config.cache_implementation
    return implementation
