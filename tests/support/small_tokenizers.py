"""Small tokenizers of each kind of vocabulary, made of chosen words."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def wordpiece(words: Iterable[str], folder: Path) -> Path:
    """Like BERT's, uncased: `the`, and `##ing` in a word."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, "a", "x", *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _save(tokenizer, folder, pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")


def word_level(words: Iterable[str], folder: Path) -> Path:
    """Whole words, in this order, separated by spaces."""
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    first = next(iter(vocabulary))
    return _save(tokenizer, folder, pad=first, unk=first)


def byte_level(words: Iterable[str], folder: Path) -> Path:
    """Like GPT-2's: `the` in a word, and `Ġthe` at its start."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(*_merged(["<|begin|>", "<|end|>", "<|chat|>"], alphabet, words)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _save(tokenizer, folder, bos="<|begin|>", eos="<|end|>", additional=["<|chat|>"])


def sentencepiece(words: Iterable[str], folder: Path, *, adds_space: bool) -> Path:
    """Like Llama 2's (`adds_space`) or Gemma's: `the` in a word, `▁the` at its start, and bytes such as `<0xE4>`."""
    data_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    words = list(words)
    alphabet = sorted({character for word in ["▁", "a", "x", *words] for character in word})
    special = ["<unk>", "<s>", "</s>", "<|chat|>", *data_bytes]
    vocabulary, merges = _merged(special, alphabet, words)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if adds_space else replace
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _save(tokenizer, folder, bos="<s>", eos="</s>", unk="<unk>", additional=["<|chat|>"])


def _merged(
    special: list[str], alphabet: list[str], words: Iterable[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A BPE vocabulary with these words, each merged from the left."""
    merges: list[tuple[str, str]] = []
    for word in words:
        merges += [(word[:end], word[end]) for end in range(1, len(word))]
    merges = list(dict.fromkeys(merges))
    tokens = dict.fromkeys([*special, *alphabet, *(first + second for first, second in merges)])
    return {token: index for index, token in enumerate(tokens)}, merges


def _save(tokenizer: Tokenizer, folder: Path, additional: list[str] | None = None, **roles: str) -> Path:
    special = {f"{role}_token": token for role, token in roles.items()}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=additional or [], **special
    ).save_pretrained(folder)
    return folder
