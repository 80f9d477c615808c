"""Text classification: one vector per text goes through the graft to the paper's head."""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from layer_surgeon.graft.config import ENCODER_OUTPUT
from layer_surgeon.graft.head import ClassificationHead, check_labels
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.pooling import pool


class GraftedModelForSequenceClassification(GraftedModel):
    """A grafted model that classifies texts or pairs of texts.

    The host's hidden states are pooled to one vector per text, which goes through the graft as a sequence of length one
    and then to the head (paper, section 3.1 and table 10). If the donor reads text, its states are pooled too, and
    joined with that vector. With any site other than encoder_output, all tokens go through the graft, and pooling comes
    after the host's remaining layers.
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
        donor_input_ids: Tensor | None = None,
        donor_attention_mask: Tensor | None = None,
        donor_states: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq] of 1 (token) and 0 (padding).
            token_type_ids: [batch, seq], for hosts with segments.
            position_ids: [batch, seq].
            inputs_embeds: [batch, seq, host_hidden], instead of input_ids.
            labels: [batch] class ids; [batch] floats for regression; [batch, num_labels] floats for multi-label tasks.
            donor_input_ids: [batch, donor_seq], the donor's tokens, for donor_tokens="own".
            donor_attention_mask: [batch, donor_seq] of 1 (token) and 0 (padding).
            donor_states: From `read_text`, instead of running a donor that reads text.
            kwargs: Passed to the host.

        Returns:
            loss (with labels) and logits, [batch, num_labels]; the host's hidden states and attentions on request.

        Raises:
            GraftError: There is no mask, and the host has no padding token.
        """
        mask = self.token_mask(input_ids, attention_mask)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            **kwargs,
        }
        donor_states = self.read_text(input_ids, mask, donor_input_ids, donor_attention_mask, donor_states)
        if self.config.graft["site"] == ENCODER_OUTPUT:
            outputs = self.run_host(**inputs)
            pooled = pool(outputs.last_hidden_state, mask, self.pooling)
            vectors = self.graft(pooled.unsqueeze(1), donor_states=donor_states).squeeze(1)
        else:
            outputs, states = self.read(donor_states=donor_states, **inputs)
            vectors = pool(states, mask, self.pooling)
        logits = self.head(vectors)
        loss = None
        if labels is not None:
            check_labels(labels, self.config.num_labels)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
