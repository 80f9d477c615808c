"""Feature extraction: the states of all tokens after the graft, and one vector per text."""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.pooling import pool


class GraftedModelForFeatureExtraction(GraftedModel):
    """A grafted model without a head, for sentence embeddings.

    All tokens go through the graft. `last_hidden_state` has the result, as in every base model of transformers, and
    `pooler_output` has one vector per text, unless pooling is none.
    """

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers is untyped here
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        donor_input_ids: Tensor | None = None,
        donor_attention_mask: Tensor | None = None,
        donor_states: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Compute features.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq] of 1 (token) and 0 (padding); None: no padding.
            token_type_ids: [batch, seq], for hosts with segments.
            position_ids: [batch, seq].
            inputs_embeds: [batch, seq, host_hidden], instead of input_ids.
            donor_input_ids: [batch, donor_seq], the donor's tokens, for donor_tokens="own".
            donor_attention_mask: [batch, donor_seq] of 1 (token) and 0 (padding).
            donor_states: From `read_text`, instead of running a donor that reads text.
            kwargs: Passed to the host.

        Returns:
            last_hidden_state, [batch, seq, host_hidden]; pooler_output, [batch, host_hidden], unless pooling is none;
            the host's hidden states and attentions on request.

        Raises:
            GraftError: There is no mask, and the host has no padding token.
        """
        attention_mask = self.token_mask(input_ids, attention_mask)
        donor_states = self.read_text(input_ids, attention_mask, donor_input_ids, donor_attention_mask, donor_states)
        outputs, states = self.read(
            attention_mask,
            donor_states,
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        pooled = None if self.pooling == "none" else pool(states, attention_mask, self.pooling)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=pooled,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
