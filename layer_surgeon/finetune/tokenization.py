"""Tokenize texts, and count the truncated ones."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from layer_surgeon.donor import DonorStack
from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.examples import Examples
from layer_surgeon.graft import GraftedModel

Features = dict[str, Any]

_TEXTS_PER_CALL = 1000


class TokenizedDataset:
    """Tokenized examples, as a map-style data set for torch.

    Attributes:
        features: One dict of ids per feature, not padded.
        lengths: Number of tokens of each feature.
        num_truncated: Number of examples that were truncated.
        cut_at: The maximum length, for messages.
        alignments: What a task needs to map the output for each feature back to its example; may be empty.
        donor_states: Returns the donor's states for the feature of a number; None if no donor reads the text, or if the
            model itself runs it. See `StateCache`.
    """

    donor_states: Callable[[int], Tensor] | None = None

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
        # A copy, because the collator removes keys.
        feature = dict(self.features[index])
        return feature if self.donor_states is None else feature | {"donor_states": self.donor_states(index)}


class NumberedDataset:
    """Adds to each feature its number, by which outputs are put back in order."""

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
    """Limit `max_length` to what the tokenizer, the model's positions and a donor that reads text support."""
    positions = num_positions(model)
    limits: list[int] = [max_length, int(tokenizer.model_max_length), *([positions] if positions else [])]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and similar models start counting positions after the padding id.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    if isinstance(model, GraftedModel) and isinstance(model.donor, DonorStack):
        longest = getattr(model.donor.config.family_config(), "max_position_embeddings", None)
        limits += [] if longest is None else [int(longest)]
    return min(limits)


def num_positions(model: Any) -> int | None:
    """Return how many positions a model's config allows; None if it names no number."""
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions


def padding_right(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that pads on the right (a copy if necessary), so token positions stay the same in a batch."""
    if tokenizer.padding_side == "right":
        return tokenizer
    right_padding = copy.copy(tokenizer)
    right_padding.padding_side = "right"
    return right_padding


def tokenize(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> TokenizedDataset:
    """Tokenize examples without padding, and truncate them to `max_length` tokens.

    Special tokens count towards `max_length`. In a pair, the longer text is truncated first.

    Raises:
        ConfigError: `max_length` leaves no room for tokens other than the special ones.
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
    """Tokenize texts or pairs; with `targets`, as target texts.

    Returns:
        The features of each text or pair, and whether it was truncated.

    Raises:
        ConfigError: `max_length` leaves no room for tokens other than the special ones.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    if max_length <= special:
        name = "max_target_length" if targets else "max_length"
        raise ConfigError(
            f"{name} is {max_length}, but {special} tokens are special tokens. Set it to at least {special + 1}."
        )
    features: list[Features] = []
    cut: list[bool] = []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        part = slice(start, start + _TEXTS_PER_CALL)
        encoded = _encode(tokenizer, texts[part], pairs and pairs[part], targets=targets)
        for index in range(len(encoded["input_ids"])):
            feature = {name: values[index] for name, values in encoded.items()}
            cut.append(max(map(len, feature.values())) > max_length)
            if cut[-1]:
                row = slice(start + index, start + index + 1)
                truncated = _encode(tokenizer, texts[row], pairs and pairs[row], targets=targets, max_length=max_length)
                feature = {name: values[0] for name, values in truncated.items()}
            features.append(feature)
    return features, cut


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    targets: bool,
    max_length: int | None = None,
) -> dict[str, Any]:
    # Without max_length, nothing is truncated, to see which texts are too long. verbose=False: no warning for each.
    settings: dict[str, Any] = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
    if targets:
        return dict(tokenizer(text_target=list(texts), **settings))
    return dict(tokenizer(list(texts), list(pairs) if pairs else None, **settings))
