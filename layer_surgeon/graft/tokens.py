"""Token classification: every token goes through the graft to the paper's head."""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import can_return_tuple

from layer_surgeon.graft.head import ClassificationHead, check_labels
from layer_surgeon.graft.modeling import GraftedModel


class GraftedModelForTokenClassification(GraftedModel):
    """A grafted model that gives each token a label.

    All tokens go through the graft, and each through the head. The paper doesn't have this task; the head is the same
    as for its other tasks.
    """

    head: ClassificationHead

    def build_head(self) -> ClassificationHead:
        """Build the paper's head, with one output per label."""
        return self.new_head(self.config.num_labels)

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers is untyped here
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        donor_states: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Label the tokens.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq] of 1 (token) and 0 (padding); None: no padding.
            token_type_ids: [batch, seq], for hosts with segments.
            position_ids: [batch, seq].
            inputs_embeds: [batch, seq, host_hidden], instead of input_ids.
            labels: [batch, seq] class ids; -100 is ignored in the loss.
            donor_states: From `read_text`, instead of running a donor that reads text.
            kwargs: Passed to the host.

        Returns:
            loss (with labels) and logits, [batch, seq, num_labels]; the host's hidden states and attentions on request.
        """
        outputs, states = self.read(
            attention_mask,
            self.read_text(input_ids, attention_mask, donor_states=donor_states),
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.head(states)
        loss = None
        if labels is not None:
            check_labels(labels, self.config.num_labels)
            loss = self.loss_function(logits=logits, labels=labels, config=self.config)
        return TokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
