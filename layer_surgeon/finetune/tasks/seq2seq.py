"""Translation and summarisation: generate a text from a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq

from layer_surgeon._devices import as_float64
from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.examples import ExampleSet, check_texts
from layer_surgeon.finetune.labels import LabelMap
from layer_surgeon.finetune.scorers import extra_scores
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext
from layer_surgeon.finetune.tokenization import TokenizedDataset, longest_input, num_positions, tokenize_texts
from layer_surgeon.finetune.written import TextMetrics, measure_texts
from layer_surgeon.progress import Progress

_IGNORED = -100
# `generate` reads the source itself, also for a donor whose states are kept: it repeats every text for its beams.
_NOT_GENERATED_FROM = ("labels", "decoder_input_ids", "donor_states")


@dataclass(frozen=True, kw_only=True)
class TextPairs(ExampleSet):
    """Source texts and target texts."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TextPrediction:
    """A generated text.

    Attributes:
        text: The input text.
        written: The generated text.
    """

    text: str
    written: str

    def as_row(self) -> dict[str, Any]:
        """Convert to plain JSON types, for a line of output."""
        return {"text": self.text, "written": self.written}


class Seq2Seq(FinetuneTask):
    """Trains with teacher forcing; generates text with beam search for validation and test."""

    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> TextPairs:
        """Check that no source or target text is empty."""
        sources, targets = (
            check_texts(table.columns[str(name)], f"{table.location}, column {name!r}")
            for name in (columns.text, columns.label)
        )
        return TextPairs(sources=sources, targets=targets)

    def tokenize(self, examples: ExampleSet, context: TaskContext) -> TokenizedDataset:
        """Tokenize source and target, each truncated to its maximum length; a pair counts as truncated only once."""
        pairs, config = _pairs(examples), context.config
        longest_target = _longest_target(context)
        longest = longest_input(context.tokenizer, context.model, config.max_length)
        sources = [(config.source_prefix or "") + text for text in pairs.sources]
        inputs, cut = tokenize_texts(context.tokenizer, sources, None, longest)
        if any(pairs.targets):
            targets, cut_targets = tokenize_texts(context.tokenizer, pairs.targets, None, longest_target, targets=True)
            inputs = [source | {"labels": target["input_ids"]} for source, target in zip(inputs, targets, strict=True)]
            cut = [source_cut or target_cut for source_cut, target_cut in zip(cut, cut_targets, strict=True)]
        limits = f"{longest} tokens (source, --max-length) or {longest_target} (target, --max-target-length)"
        return TokenizedDataset(inputs, sum(cut), longest, cut_at=limits)

    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Pad to the longest feature of the batch; the decoder's input is the target shifted by one."""
        collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
        collate = DataCollatorForSeq2Seq(context.tokenizer, model=context.model)
        return collate

    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """Return new tokens, [batch, written], and with labels their summed loss and their number, [batch] each."""
        inputs = {name: tensor for name, tensor in batch.items() if name not in _NOT_GENERATED_FROM}
        written = write(model, inputs, context, _longest_target(context))
        if "labels" not in batch:
            return (written,)
        teacher = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**teacher).logits.float()
        losses = cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=_IGNORED, reduction="none")
        return written, as_float64(losses).sum(-1), (batch["labels"] != _IGNORED).sum(-1)

    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> TextMetrics:
        """Compute BLEU, ROUGE and METEOR over the whole set."""
        loss = float(outputs[1].sum() / outputs[2].sum())
        return measure_texts(decode(outputs[0], context), _pairs(examples).targets, loss)

    def add_scores(
        self, metrics: TextMetrics, outputs: Outputs, examples: ExampleSet, context: TaskContext, progress: Progress
    ) -> TextMetrics:
        """Add BERTScore and BARTScore, if the settings ask for them."""
        if not context.config.wanted_extra_metrics:
            return metrics
        device = next(context.model.parameters()).device
        targets = _pairs(examples).targets
        extra = extra_scores(decode(outputs[0], context), targets, context.config, device, progress)
        return replace(metrics, extra=extra)

    def inputs(self, items: Sequence[Any]) -> TextPairs:
        """Convert source texts; the targets are empty."""
        return TextPairs(sources=check_texts(items, "The given texts"), targets=("",) * len(items))

    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[TextPrediction]:
        """Return the generated text for every source text."""
        written = decode(outputs[0], context)
        return [
            TextPrediction(text=text, written=new) for text, new in zip(_pairs(examples).sources, written, strict=True)
        ]


def write(model: Any, inputs: Mapping[str, torch.Tensor], context: TaskContext, num_new: int) -> torch.Tensor:
    """Generate at most `num_new` tokens with beam search, [batch, written]. For a decoder, the prompt comes first."""
    # With several processes, the model is wrapped, and the wrapper has no `generate`.
    ids: torch.Tensor = getattr(model, "module", model).generate(
        **inputs, num_beams=context.config.num_beams, max_new_tokens=num_new, do_sample=False
    )
    return ids


def _longest_target(context: TaskContext) -> int:
    """Limit `max_target_length` to the positions of the decoder."""
    decoder_positions = getattr(context.model.config.get_text_config(), "max_decoder_position_embeddings", None)
    positions = decoder_positions or num_positions(context.model)  # LED names both.
    return min(context.config.max_target_length, positions or context.config.max_target_length)


def decode(ids: Any, context: TaskContext) -> list[str]:
    """Decode token ids that are padded with -100, without special tokens."""
    ids = np.where(ids < 0, context.tokenizer.pad_token_id, ids)
    return [text.strip() for text in context.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _pairs(examples: ExampleSet) -> TextPairs:
    if not isinstance(examples, TextPairs):
        raise TypeError(f"expected TextPairs, got {type(examples).__name__}")
    return examples
