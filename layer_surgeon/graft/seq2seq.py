"""Translation and summarisation: the graft between encoder and decoder."""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import Seq2SeqLMOutput

from layer_surgeon.graft.generation import GeneratingModel


class GraftedModelForSeq2SeqLM(GeneratingModel):
    """A grafted model that generates a text from a text.

    All tokens of the source go through the graft, and the decoder attends to the result (paper, section 3.2). The host
    keeps its decoder and language head and runs its own code; only the output of its encoder is replaced. Generation
    runs the graft once per text, and supports beams, sampling and cache like the host.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        donor_states: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Predict the next token at every position of the target.

        Args:
            input_ids: [batch, seq], the source.
            attention_mask: [batch, seq] of 1 (token) and 0 (padding), of the source.
            decoder_input_ids: [batch, target_seq]; default: made from labels.
            decoder_attention_mask: [batch, target_seq].
            encoder_outputs: Output of `get_encoder()`, which already went through the graft.
            inputs_embeds: [batch, seq, host_hidden], instead of input_ids.
            decoder_inputs_embeds: [batch, target_seq, host_hidden], instead of decoder_input_ids.
            labels: [batch, target_seq] token ids; -100 is ignored in the loss.
            use_cache: Return the decoder's cache.
            donor_states: From `read_text` of the source, instead of running a donor that reads text. Not used with
                encoder_outputs.
            kwargs: Passed to the host, such as the decoder's cache.

        Returns:
            The host's output: loss (with labels), logits, [batch, target_seq, vocabulary], and more.
        """
        # With encoder_outputs the encoder doesn't run, so the states would stay for the next text.
        self.keep_states(input_ids, attention_mask, donor_states if encoder_outputs is None else None)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "encoder_outputs": encoder_outputs,
            "inputs_embeds": inputs_embeds,
            "decoder_inputs_embeds": decoder_inputs_embeds,
            "labels": labels,
            "use_cache": use_cache,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        return self.host(**given, **self.wanted_outputs(kwargs))

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Shift the target by one, as the host's decoder expects."""
        return self.host.prepare_decoder_input_ids_from_labels(labels)  # type: ignore[no-any-return]  # as above

    def get_encoder(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's encoder, whose output already went through the graft."""
        return self.host.get_encoder(*args, **kwargs)
