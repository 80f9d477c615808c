"""Language modelling: the graft between a decoder and its language head."""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.generation import GeneratingModel


class GraftedModelForCausalLM(GeneratingModel):
    """A grafted model that continues a text.

    The states of all tokens go from the decoder's last layer through the graft to the host's language head. The donor
    layer attends causally and has no cache, so each new token needs a pass over the whole text so far.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq] of 1 (token) and 0 (padding).
            position_ids: [batch, seq]; default: with a mask, positions that don't count padding.
            inputs_embeds: [batch, seq, host_hidden], instead of input_ids.
            labels: [batch, seq] token ids, not shifted; -100 is ignored in the loss.
            kwargs: Passed to the host.

        Returns:
            The host's output: loss (with labels), logits, [batch, seq, vocabulary], and more. No cache.

        Raises:
            GraftError: You passed a cache that holds tokens.
        """
        if position_ids is None:
            position_ids = self._positions(attention_mask)
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if "use_cache" in self._host_inputs:
            kwargs["use_cache"] = False
        return self.host(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, labels=labels, **kwargs
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate text as in transformers, but without cache: each token needs a pass over the whole text so far.

        Raises:
            GraftError: use_cache is true.
        """
        if self.donor is not None:
            if kwargs.get("use_cache"):
                raise GraftError(
                    "use_cache is true, but the donor layer has no cache. Leave use_cache out; each new token is then "
                    "computed from the whole text so far."
                )
            kwargs["use_cache"] = False
        return super().generate(*args, **kwargs)
