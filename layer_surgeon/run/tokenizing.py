"""Split texts into tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from layer_surgeon.checkpoint.stack import family_record
from layer_surgeon.errors import DataError
from layer_surgeon.progress import Progress
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.text_list import TextList

# transformers' value for a tokenizer without a limit is 1e30.
_MAX_LENGTH = 100_000_000


@dataclass(frozen=True, kw_only=True)
class TokenizedTexts:
    """The tokens of texts.

    Attributes:
        ids: The token ids of each text.
        num_truncated: Number of texts that were truncated.
    """

    ids: tuple[tuple[int, ...], ...]
    num_truncated: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each text."""
        return tuple(len(ids) for ids in self.ids)


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: TextList,
    family: PretrainedConfig,
    config: RunConfig,
    progress: Progress,
) -> TokenizedTexts:
    """Split texts into tokens, with the special tokens that the tokenizer adds.

    Args:
        tokenizer: The model's tokenizer.
        texts: The texts.
        family: The model's config.
        config: `max_length` and `long_texts`.
        progress: Receives a notice about truncated texts.

    Raises:
        DataError: A text has no tokens, or more than allowed with `long_texts="refuse"`.
    """
    encoded: Any = tokenizer(list(texts.texts), return_attention_mask=False, return_token_type_ids=False, verbose=False)
    ids: Sequence[Sequence[int]] = encoded["input_ids"]
    for number, tokens in enumerate(ids, start=1):
        if not tokens:
            raise DataError(
                f"Text {number} of {texts.location} has no tokens for this model's tokenizer. Remove or change it."
            )
    limit = _limit(tokenizer, family, config)
    long_texts = [number for number, tokens in enumerate(ids, start=1) if limit is not None and len(tokens) > limit]
    if long_texts:
        first = long_texts[0]
        if config.long_texts == "refuse":
            raise DataError(
                f"Text {first} of {texts.location} has {len(ids[first - 1]):,} tokens, more than the limit of "
                f"{limit:,}{f', and {len(long_texts) - 1:,} more texts are too long' if len(long_texts) > 1 else ''}. "
                "Shorten them, or use long_texts=truncate."
            )
        progress.notice(f"{len(long_texts):,} of {len(ids):,} texts have more than {limit:,} tokens and are truncated.")
    return TokenizedTexts(ids=tuple(tuple(tokens[:limit]) for tokens in ids), num_truncated=len(long_texts))


def _limit(tokenizer: PreTrainedTokenizerBase, family: PretrainedConfig, config: RunConfig) -> int | None:
    """Most tokens of a text: the smallest of what was set, the model's positions, and the tokenizer's limit."""
    # MPT has max_seq_len.
    positions = getattr(family, "max_position_embeddings", None) or getattr(family, "max_seq_len", None)
    if isinstance(positions, int) and (family_record(family.model_type) or {}).get("token_table", "") is None:
        # RoBERTa and similar families count positions from the ids that are not padding, after the padding id.
        positions -= family.pad_token_id + 1
    limits = [
        limit
        for limit in (config.max_length, positions, tokenizer.model_max_length)
        if isinstance(limit, int) and 0 < limit < _MAX_LENGTH
    ]
    return min(limits, default=None)
