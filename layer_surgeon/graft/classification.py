"""Text classification: one vector per text, through the graft, to the paper's head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.configuration import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel, fresh_linear


class ClassificationHead(nn.Module):
    """Linear(h, h) -> Dropout -> GELU -> Linear(h, labels); paper, table 20 (0.592 M at h = 768, 2 labels)."""

    def __init__(self, width: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.GELU()
        self.out = nn.Linear(width, num_labels)

    def forward(self, vectors: Tensor) -> Tensor:
        """[batch, host_hidden] -> [batch, num_labels]."""
        return self.out(self.activation(self.dropout(self.dense(vectors))))  # type: ignore[no-any-return]


class GraftedModelForSequenceClassification(GraftedModel):
    """A grafted model that classifies texts or pairs of texts.

    The host's hidden states are pooled to one vector per text; it goes through the graft as a sequence of length one
    (paper, section 3.1 and table 10), and on to the head.
    """

    task = "text-classification"

    def __init__(
        self,
        config: SurgeonGraftConfig,
        host: PreTrainedModel | None = None,
        donor: DonorLayer | None = None,
        donor_follows: bool = False,
    ) -> None:
        super().__init__(config, host=host, donor=donor, donor_follows=donor_follows)
        settings = config.settings
        self.pooling = settings.pooling
        if self.pooling == "cls" and self.host_kind == "decoder":
            raise GraftError(
                f"pooling is 'cls', but the host ({config.host_config.model_type}) is a decoder: its first token has "
                "seen nothing of the text. Choose last or mean."
            )
        self.head = ClassificationHead(config.hidden_size, config.num_labels, settings.dropout)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers is untyped here
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq] of 1 (token) and 0 (padding).
            token_type_ids: [batch, seq], for hosts that know segments.
            position_ids: [batch, seq].
            inputs_embeds: [batch, seq, host_hidden], in place of input_ids.
            labels: [batch] class ids; [batch] floats for regression; [batch, num_labels] floats for several labels.
            kwargs: Passed to the host.

        Returns:
            loss (with labels) and logits, [batch, num_labels]; hidden states and attentions of the host where asked.

        Raises:
            GraftError: Padding can't be told from text.
        """
        outputs = self.run_host(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        pooled = self._pool(hidden, self._token_mask(input_ids, attention_mask))
        logits = self.head(self.graft(pooled.unsqueeze(1)).squeeze(1))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def set_labels(self, names: Sequence[str]) -> None:
        """Name the labels; where their number changes, the head's last linear layer starts anew."""
        super().set_labels(names)
        if len(names) != self.head.out.out_features:
            self.head.out = fresh_linear(self.head.out, len(names))

    def _token_mask(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
        """[batch, seq], 1 where there is text; None where all is."""
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise GraftError(
                    f"attention_mask has {attention_mask.dim()} dimensions; it must be [batch, seq] of 1 and 0."
                )
            return attention_mask
        if self.host_kind != "decoder" or input_ids is None or self.pooling == "mean_with_padding":
            return None
        padding: int | None = self.config.pad_token_id
        if padding is not None:
            return (input_ids != padding).long()
        if input_ids.shape[0] == 1:
            return None
        raise GraftError(
            "There is no attention_mask, and the host names no padding token, so that the end of each text is not "
            "known. Pass the attention_mask that the tokenizer makes, or set model.config.pad_token_id."
        )

    def _pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[batch, seq, host_hidden] -> [batch, host_hidden]."""
        if self.pooling == "mean_with_padding" or (self.pooling == "mean" and mask is None):
            return hidden.mean(dim=1)
        if self.pooling == "mean" and mask is not None:
            weights = mask.to(hidden.dtype).unsqueeze(-1)  # [batch, seq, 1]
            return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        if mask is None:
            return hidden[:, 0 if self.pooling == "cls" else -1]
        # Not simply the first or the last column: padding may be on either side.
        if self.pooling == "cls":
            positions = (mask != 0).int().argmax(dim=-1)
        else:
            positions = mask.shape[1] - 1 - (mask != 0).int().flip(-1).argmax(dim=-1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), positions]
