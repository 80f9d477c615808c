"""Language modelling: predict the next token of a text."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq

from layer_surgeon._devices import as_float64
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.examples import ExampleSet, check_texts
from layer_surgeon.finetune.labels import LabelMap
from layer_surgeon.finetune.sources import Table
from layer_surgeon.finetune.tasks.base import FinetuneTask, LossFunction, Outputs, TaskContext
from layer_surgeon.finetune.tasks.seq2seq import TextPrediction, decode, write
from layer_surgeon.finetune.tokenization import TokenizedDataset, longest_input, tokenize_texts

_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class PlainTexts(ExampleSet):
    """Texts."""

    texts: tuple[str, ...]


class Prompts(PlainTexts):
    """Beginnings of texts to continue."""


@dataclass(frozen=True, kw_only=True)
class LanguageMetrics:
    """Metrics of one set of texts.

    Attributes:
        perplexity: exp(loss).
        loss: Mean cross-entropy over all predicted tokens in nats, without label smoothing.
        examples: Number of texts.
        tokens: Number of predicted tokens: all except the first of each block.
    """

    perplexity: float
    loss: float
    examples: int
    tokens: int

    @property
    def scores(self) -> dict[str, float]:
        """The scores by name, perplexity first."""
        return {"perplexity": self.perplexity, "loss": self.loss}

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)


class CausalLM(FinetuneTask):
    """Causal language modelling on all texts, joined with end tokens and split into blocks of the maximum length."""

    one_feature_each = False

    def examples(self, table: Table, columns: ColumnChoice, labels: LabelMap | None) -> PlainTexts:
        """Check that no text is empty."""
        return PlainTexts(texts=check_texts(table.columns[columns.text], f"{table.location}, column {columns.text!r}"))

    def tokenize(self, examples: ExampleSet, context: TaskContext) -> TokenizedDataset:
        """Join all texts and split them into blocks; tokenize prompts one by one, without labels.

        Raises:
            ConfigError: The text to generate would need all positions of the model.
            DataError: All texts together have fewer than two tokens.
        """
        texts, tokenizer = _texts(examples), context.tokenizer
        if isinstance(examples, Prompts):
            return _tokenize_prompts(texts.texts, context)
        longest = longest_input(tokenizer, context.model, context.config.max_length)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        stream = [
            token
            for ids in tokenizer(list(texts.texts), verbose=False)["input_ids"]
            for token in (ids if ids[-1:] == end else [*ids, *end])
        ]
        blocks = [stream[start : start + longest] for start in range(0, len(stream), longest)]
        # The first token of a block is not predicted, so a block of one token has nothing to learn.
        blocks = [block for block in blocks if len(block) > 1]
        if not blocks:
            raise DataError(f"All texts together have {len(stream)} tokens, but at least 2 are needed. Add more text.")
        features = [
            {"input_ids": block, "attention_mask": [1] * len(block), "labels": [_IGNORED, *block[1:]]}
            for block in blocks
        ]
        return TokenizedDataset(features, 0, longest)

    def collator(self, context: TaskContext) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Pad to the longest feature of the batch; labels are padded with -100."""
        collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
        collate = DataCollatorForSeq2Seq(context.tokenizer)
        return collate

    def loss_function(self, config: FinetuneConfig) -> LossFunction:
        """Return the cross-entropy of the next token, label-smoothed, over the tokens of all accumulated batches."""

        def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            logits, targets = outputs["logits"][:, :-1].float(), labels[:, 1:]
            total = cross_entropy(
                logits.transpose(1, 2),
                targets,
                ignore_index=_IGNORED,
                reduction="sum",
                label_smoothing=config.label_smoothing,
            )
            count = (targets != _IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            return total / count

        return loss

    def step(self, model: Any, batch: Mapping[str, torch.Tensor], context: TaskContext) -> tuple[torch.Tensor, ...]:
        """Return summed loss and number of predicted tokens, [batch] each; for prompts, new tokens [batch, written]."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        if "labels" not in batch:
            inputs = _padded_left(inputs)
            return (write(model, inputs, context, context.config.max_target_length)[:, inputs["input_ids"].shape[1] :],)
        targets = batch["labels"][:, 1:]
        logits = model(**inputs).logits[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=_IGNORED, reduction="none")
        return as_float64(losses).sum(-1), (targets != _IGNORED).sum(-1)

    def measure(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> LanguageMetrics:
        """Compute loss and perplexity over all tokens."""
        tokens = int(outputs[1].sum())
        loss = float(outputs[0].sum() / tokens)
        # exp overflows a float above 709.
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return LanguageMetrics(perplexity=perplexity, loss=loss, examples=len(examples), tokens=tokens)

    def inputs(self, items: Sequence[Any]) -> Prompts:
        """Convert the beginnings of texts to prompts."""
        return Prompts(texts=check_texts(items, "The given texts"))

    def predictions(
        self, outputs: Outputs, dataset: TokenizedDataset, examples: ExampleSet, context: TaskContext
    ) -> list[TextPrediction]:
        """Return the continuation of each text."""
        written = decode(outputs[0], context)
        return [
            TextPrediction(text=text, written=new) for text, new in zip(_texts(examples).texts, written, strict=True)
        ]


def _tokenize_prompts(texts: Sequence[str], context: TaskContext) -> TokenizedDataset:
    """Tokenize the beginnings of texts, and leave room for the tokens that follow."""
    max_length, num_new = context.config.max_length, context.config.max_target_length
    limit = longest_input(context.tokenizer, context.model, max_length + num_new)
    if limit <= num_new + context.tokenizer.num_special_tokens_to_add():
        raise ConfigError(
            f"max_target_length is {num_new}, but the model takes at most {limit} tokens, text and continuation "
            "together. Set it to less."
        )
    features, cut = tokenize_texts(context.tokenizer, texts, None, limit - num_new)
    return TokenizedDataset(features, sum(cut), limit - num_new)


def _padded_left(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move the padding to the left, because generation continues from the last column."""
    order = inputs["attention_mask"].sort(dim=1, stable=True).indices
    return {name: tensor.gather(1, order) for name, tensor in inputs.items()}


def _texts(examples: ExampleSet) -> PlainTexts:
    if not isinstance(examples, PlainTexts):
        raise TypeError(f"expected PlainTexts, got {type(examples).__name__}")
    return examples
