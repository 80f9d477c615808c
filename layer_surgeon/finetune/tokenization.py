"""Texts to token ids, and how many texts were cut."""

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
        max_length: The maximum, in tokens.
        places: What a task has to know of each feature to lead its output back to the example; may be empty.
    """

    def __init__(
        self, features: list[Features], num_truncated: int, max_length: int, places: Sequence[Any] = ()
    ) -> None:
        self.features = features
        self.max_length = max_length
        self.lengths = [len(feature["input_ids"]) for feature in features]
        self.num_truncated = num_truncated
        self.places = places

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


def tokenize(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> TokenizedDataset:
    """Tokenize, cut at `max_length` tokens (special ones counted; of a pair the longer one first), don't pad.

    Raises:
        ConfigError: `max_length` leaves no room for a token beside the special ones.
    """
    special = tokenizer.num_special_tokens_to_add(pair=examples.pairs is not None)
    if max_length <= special:
        raise ConfigError(
            f"max_length is {max_length}, and {special} tokens are special ones. Take at least {special + 1}."
        )
    features: list[Features] = []
    truncated = 0
    for start in range(0, len(examples), _TEXTS_PER_CALL):
        part = slice(start, start + _TEXTS_PER_CALL)
        encoded = _encode(tokenizer, examples.texts[part], examples.pairs and examples.pairs[part])
        for index, label in enumerate(examples.labels[part]):
            whole = {name: values[index] for name, values in encoded.items()}
            if len(whole["input_ids"]) > max_length:
                truncated += 1
                pair = examples.pairs[start + index] if examples.pairs else None
                whole = dict(tokenizer(examples.texts[start + index], pair, truncation=True, max_length=max_length))
            features.append(whole | {"labels": label})
    return TokenizedDataset(features, truncated, max_length)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, Any]:
    # Not truncated here, to know which ones are: verbose=False, for it would warn of every long one.
    encoded = tokenizer(list(texts), list(pairs) if pairs else None, truncation=False, verbose=False)
    return dict(encoded)
