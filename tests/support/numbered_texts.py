"""Texts whose tokens are known: the words w3 w17 are the tokens 3 and 17, with a tokenizer that adds none."""

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NUM_TOKENS = 96


def save_numbered_tokenizer(folder: Path, **settings: object) -> None:
    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(NUM_TOKENS)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", **settings).save_pretrained(folder)


def as_text(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def random_tokens(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(3, NUM_TOKENS) for _ in range(length)] for length in lengths]
