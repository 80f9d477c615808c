"""Load the tokenizer of a checkpoint from any source, and split texts into tokens."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from layer_surgeon._io import write_bytes
from layer_surgeon._loading import load_gguf_tokenizer, load_tokenizer
from layer_surgeon._text import first_line
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.gguf import GgufTable
from layer_surgeon.errors import DataError, LayerSurgeonError, SourceNotFoundError
from layer_surgeon.progress import Progress
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.text_list import TextList

# Suffixes of the files that a tokenizer consists of. The largest, of vocabularies of 262,144 tokens, have 40 MB.
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".vocab", ".bpe", ".codes", ".spm", ".tiktoken", ".tokenizer")
_MAX_BYTES = 200_000_000
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


def load_checkpoint_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is next to the weights, or in the header of a GGUF file.

    Raises:
        SourceNotFoundError: There is none that can be loaded.
        SourceError: It can't be read.
    """
    with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as folder:
        try:
            if isinstance(checkpoint.table, GgufTable):
                path = Path(folder) / "header.gguf"
                write_bytes(path, checkpoint.table.header_bytes())
                return load_gguf_tokenizer(path)
            _copy_files(checkpoint, Path(folder))
            return load_tokenizer(folder)
        except LayerSurgeonError:
            raise
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            reason = first_line(error).replace(str(folder), checkpoint.source.name)
            raise SourceNotFoundError(
                f"{checkpoint.source.name} has no tokenizer that can be loaded ({reason}). Put the model's "
                "tokenizer.json and tokenizer_config.json next to its weights."
            ) from error


def _copy_files(checkpoint: Checkpoint, folder: Path) -> None:
    for name in checkpoint.source.list_files():
        if "/" not in name and name.endswith(_SUFFIXES) and not name.endswith(".index.json"):
            write_bytes(folder / name, checkpoint.source.read_file(name, _MAX_BYTES))


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
    positions = getattr(family, "max_position_embeddings", None)
    limits = [
        limit
        for limit in (config.max_length, positions, tokenizer.model_max_length)
        if isinstance(limit, int) and 0 < limit < _MAX_LENGTH
    ]
    return min(limits, default=None)
