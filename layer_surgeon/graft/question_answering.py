"""Question answering: all tokens go through the graft; the head scores the answer's start and end."""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.utils import can_return_tuple

from layer_surgeon.graft.head import ClassificationHead
from layer_surgeon.graft.modeling import GraftedModel


class GraftedModelForQuestionAnswering(GraftedModel):
    """A grafted model that finds the answer to a question in a text.

    All tokens of question and text go through the graft, and each through the paper's head. Its two outputs are the
    logits of the answer's start and end (table 20: 0.592 M parameters). Padding can be neither.
    """

    head: ClassificationHead

    def build_head(self) -> ClassificationHead:
        """Build the paper's head, with one output for the start and one for the end."""
        return self.new_head(2)

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers is untyped here
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        donor_states: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Find answers.

        Args:
            input_ids: [batch, seq]: question and text.
            attention_mask: [batch, seq] of 1 (token) and 0 (padding); None: no padding.
            token_type_ids: [batch, seq], for hosts with segments.
            position_ids: [batch, seq].
            inputs_embeds: [batch, seq, host_hidden], instead of input_ids.
            start_positions: [batch], the answer's first token; seq or more means that the answer is not in this piece
                of the text, and is ignored in the loss.
            end_positions: [batch], the answer's last token.
            donor_states: From `read_text`, instead of running a donor that reads text.
            kwargs: Passed to the host.

        Returns:
            loss (the mean of the two cross entropies, if both positions are passed); start_logits and end_logits,
            [batch, seq], with the lowest number of their dtype at padding; the host's hidden states and attentions on
            request.
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
        if attention_mask is not None:
            # Not minus infinity: a loss would subtract it from itself, and that is NaN.
            logits = logits.masked_fill((attention_mask == 0).unsqueeze(-1), torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
