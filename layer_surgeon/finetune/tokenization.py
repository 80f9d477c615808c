"""Texts to token ids, and how many texts were cut."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.examples import Examples

Features = dict[str, Any]

_TEXTS_PER_CALL = 1000


class TokenizedDataset:
    """Tokenized examples: what torch calls a map-style data set.

    Attributes:
        features: One dict of ids per example, not padded.
        lengths: Tokens of each.
        num_truncated: Examples that were longer than the maximum, and were cut.
        cut_at: Where, for a person.
        alignments: What a task has to know of each feature to lead its output back to the example; may be empty.
    """

    def __init__(
        self,
        features: list[Features],
        num_truncated: int,
        max_length: int,
        alignments: Sequence[Any] = (),
        cut_at: str = "",
    ) -> None:
        self.features = features
        self.cut_at = cut_at or f"{max_length} tokens (--max-length)"
        self.lengths = [len(feature["input_ids"]) for feature in features]
        self.num_truncated = num_truncated
        self.alignments = alignments

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Features:
        # A copy: the collator takes keys out of what it gets.
        return dict(self.features[index])


class NumberedDataset:
    """The same, with each feature's number in it, by which outputs find back to their place."""

    def __init__(self, dataset: TokenizedDataset) -> None:
        self._dataset = dataset
        self.lengths = dataset.lengths

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Features:
        return self._dataset[index] | {"index": index}

    def __iter__(self) -> Iterator[Features]:
        return (self[index] for index in range(len(self)))


def longest_input(tokenizer: PreTrainedTokenizerBase, model: Any, max_length: int) -> int:
    """`max_length`, or less where the tokenizer or the model's positions end before."""
    limits = [max_length, int(tokenizer.model_max_length)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from the padding id on: the rows up to it hold no token.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)


def padding_right(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy, that fills up behind the text, so that tokens keep their alignments in a batch."""
    if tokenizer.padding_side == "right":
        return tokenizer
    other = copy.copy(tokenizer)
    other.padding_side = "right"
    return other


def tokenize(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> TokenizedDataset:
    """Tokenize, cut at `max_length` tokens (special ones counted; of a pair the longer one first), don't pad.

    Raises:
        ConfigError: `max_length` leaves no room for a token beside the special ones.
    """
    encoded, cut = tokenize_texts(tokenizer, examples.texts, examples.pairs, max_length)
    features = [feature | {"labels": label} for feature, label in zip(encoded, examples.labels, strict=True)]
    return TokenizedDataset(features, sum(cut), max_length)


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    *,
    targets: bool = False,
) -> tuple[list[Features], list[bool]]:
    """The ids of each text or pair, and whether it was cut. `targets`: they are what is to be written.

    Raises:
        ConfigError: `max_length` leaves no room for a token beside the special ones.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    if max_length <= special:
        name = "max_target_length" if targets else "max_length"
        raise ConfigError(
            f"{name} is {max_length}, and {special} tokens are special ones. Take at least {special + 1}."
        )
    features: list[Features] = []
    cut: list[bool] = []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        part = slice(start, start + _TEXTS_PER_CALL)
        encoded = _encode(tokenizer, texts[part], pairs and pairs[part], targets=targets)
        for index in range(len(encoded["input_ids"])):
            whole = {name: values[index] for name, values in encoded.items()}
            cut.append(len(whole["input_ids"]) > max_length)
            if cut[-1]:
                one = slice(start + index, start + index + 1)
                again = _encode(tokenizer, texts[one], pairs and pairs[one], targets=targets, max_length=max_length)
                whole = {name: values[0] for name, values in again.items()}
            features.append(whole)
    return features, cut


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    targets: bool,
    max_length: int | None = None,
) -> dict[str, Any]:
    # Not cut at first, to know which ones are: verbose=False, for it would warn of every long one.
    settings: dict[str, Any] = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
    if targets:
        return dict(tokenizer(text_target=list(texts), **settings))
    return dict(tokenizer(list(texts), list(pairs) if pairs else None, **settings))
