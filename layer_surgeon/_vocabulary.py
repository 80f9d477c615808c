"""Find the donor's tokens for the string of each token of a host.

A token's string is what its own tokenizer decodes it to after a word, so it starts with a space if the token starts a
word. The donor's tokenizer then splits the string as it would inside of a text: at the start of a word, or in the
middle of one. Tokens that are parts of a character are matched byte by byte.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from string import ascii_lowercase, digits
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from layer_surgeon._checkpoint_tokenizer import load_checkpoint_tokenizer, saved_files
from layer_surgeon._limits import MAX_VOCABULARY, check_size
from layer_surgeon._loading import load_tokenizer
from layer_surgeon._text import first_line, without_secrets
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.errors import DataError, LayerSurgeonError, SourceNotFoundError

# What a row is, for config.json. A change of the rule gets another name.
RULE = "mean of the donor's rows for the token's string"
# Special tokens that do the same in different models: the first and the last of a text, padding, ...
_ROLES = (("bos_token", "cls_token"), ("eos_token", "sep_token"), ("pad_token",), ("unk_token",), ("mask_token",))
# How vocabularies with byte fallback name a byte.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_NOT_A_CHARACTER = "\ufffd"
_WORD_START = "\u2581"


@dataclass(frozen=True, kw_only=True)
class VocabularyMap:
    """Which of the donor's tokens each token of a host stands for.

    Attributes:
        name: The host, as the user named it.
        tokenizer_class: The class of its tokenizer.
        donor_tokenizer_class: The class of the donor's tokenizer.
        sha256: Digest of its tokens, in the order of their ids.
        tokens: For each token of the host, in the order of their ids, the donor's tokens for its string. None for a
            token without a counterpart, whose row is the mean of all rows that are read.
        special: The donor's token of each of the host's special tokens; None for those without a counterpart.
        files: The files of the host's tokenizer, by name.
    """

    name: str
    tokenizer_class: str
    donor_tokenizer_class: str
    sha256: str
    tokens: tuple[tuple[int, ...] | None, ...]
    special: Mapping[str, str | None]
    files: Mapping[str, bytes]

    @cached_property
    def donor_rows(self) -> tuple[int, ...]:
        """The rows of the donor's table that are needed, sorted, each once."""
        return tuple(sorted({token for tokens in self.tokens if tokens for token in tokens}))

    def record(self) -> dict[str, Any]:
        """The description for config.json."""
        return {
            "name": self.name,
            "tokenizer_class": self.tokenizer_class,
            "size": len(self.tokens),
            "sha256": self.sha256,
            "rule": RULE,
            "donor_tokenizer_class": self.donor_tokenizer_class,
            "donor_rows": len(self.donor_rows),
            "one_row": sum(len(tokens) == 1 for tokens in self.tokens if tokens),
            "without_counterpart": sum(tokens is None for tokens in self.tokens),
            "special": dict(self.special),
        }


def map_vocabulary(host: str, checkpoint: Checkpoint, *, token: str | bool | None = None) -> VocabularyMap:
    """Find the donor's tokens for each token of a host.

    Args:
        host: The host: a folder, a repo id, or `packaged:NAME`.
        checkpoint: The donor.
        token: Access token for a Hub repo.

    Raises:
        SourceNotFoundError: The host or the donor has no tokenizer that can be loaded.
        DataError: The tokenizer of one of them doesn't show its vocabulary, or they have nothing in common.
        SourceError: One of them can't be read.
    """
    try:
        tokenizer = load_tokenizer(host, token=token)
    except LayerSurgeonError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise SourceNotFoundError(
            f"{without_secrets(host)} has no tokenizer that can be loaded ({first_line(error)}), so its vocabulary is "
            "unknown. Name a host with a tokenizer.json: a folder, a repo id or packaged:NAME."
        ) from error
    donor = _Donor(load_checkpoint_tokenizer(checkpoint), checkpoint.source.name)
    tokens = _all_tokens(tokenizer, without_secrets(host))
    special = _special_tokens(tokenizer)
    counterparts = {token_id: donor.counterpart(role, tokens[token_id]) for token_id, role in special.items()}
    ordinary = [index for index, name in enumerate(tokens) if name is not None and index not in special]
    ids_of = dict(zip(ordinary, donor.split(_strings(tokenizer, [tokens[index] for index in ordinary])), strict=True))
    for token_id, counterpart in counterparts.items():
        ids_of[token_id] = None if counterpart is None else (counterpart,)
    if not any(ids_of.values()):
        raise DataError(
            f"The tokenizer of {checkpoint.source.name} has no tokens for any of the {len(tokens):,} tokens of "
            f"{without_secrets(host)}. Check that both are tokenizers of text."
        )
    return VocabularyMap(
        name=without_secrets(host),
        tokenizer_class=type(tokenizer).__name__,
        donor_tokenizer_class=type(donor.tokenizer).__name__,
        sha256=_digest(tokens),
        tokens=tuple(ids_of.get(index) for index in range(len(tokens))),
        special={
            str(tokens[token_id]): None if counterpart is None else donor.tokenizer.convert_ids_to_tokens(counterpart)
            for token_id, counterpart in sorted(counterparts.items())
        },
        files=saved_files(tokenizer),
    )


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Return the digest of a tokenizer's tokens in the order of their ids, as in `VocabularyMap`.

    Args:
        tokenizer: The tokenizer.
        name: The name of its model, for messages.

    Raises:
        DataError: The tokenizer doesn't show its vocabulary.
    """
    return _digest(_all_tokens(tokenizer, name))


def _digest(tokens: list[str | None]) -> str:
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _all_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> list[str | None]:
    """All tokens in the order of their ids; None for an id without a token.

    Raises:
        DataError: The tokenizer doesn't show them, or has too many.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise DataError(
            f"The tokenizer of {name} is a {type(tokenizer).__name__}, which has no tokenizer.json, so its tokens "
            "can't be compared with another model's. Convert it to a fast tokenizer first."
        )
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    size = max(vocabulary.values(), default=0) + 1
    check_size(size, MAX_VOCABULARY, f"token ids of {name}", DataError)
    tokens: list[str | None] = [None] * size
    for token, token_id in vocabulary.items():
        tokens[token_id] = token
    return tokens


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, int | None]:
    """The special tokens by id, each with the number of its role in `_ROLES`, if it has one."""
    special: dict[int, int | None] = dict.fromkeys(tokenizer.all_special_ids)
    special |= {index: None for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for role, names in reversed(list(enumerate(_ROLES))):
        for name in names:
            token_id = getattr(tokenizer, f"{name}_id", None)
            if token_id is not None:
                special[token_id] = role
    return special


def _strings(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str | None]) -> list[str | bytes]:
    """What each token stands for after a word: text, or bytes of a part of a character."""
    anchor = _some_word(tokenizer)[-1]
    start = len(tokenizer.convert_tokens_to_string([anchor]))
    strings: list[str | bytes] = []
    for token in map(str, tokens):
        text = tokenizer.convert_tokens_to_string([anchor, token])[start:]
        is_byte = _BYTE.fullmatch(token)
        if is_byte is not None:
            strings.append(bytes.fromhex(is_byte[1]))
        elif _NOT_A_CHARACTER in text and all(character in _byte_of() for character in token):
            strings.append(bytes(_byte_of()[character] for character in token))
        else:
            strings.append(text)
    return strings


def _some_word(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens of a word that the tokenizer knows, of one letter if there is one.

    Raises:
        DataError: It knows no word.
    """
    # The vocabulary itself may have whole words only.
    for word in (*ascii_lowercase, *digits, *islice(tokenizer.get_vocab(), 1000)):
        tokens: list[str] = tokenizer.tokenize(word)
        if tokens and tokenizer.unk_token not in tokens:
            return tokens
    raise DataError(
        f"The tokenizer {type(tokenizer).__name__} knows no word of its own vocabulary, so its tokens can't be "
        "compared with another model's. Check its files."
    )


@cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for."""
    return {character: byte for byte, character in bytes_to_unicode().items()}


class _Donor:
    """The donor's tokenizer.

    Args:
        tokenizer: The tokenizer.
        name: The donor's name, for messages.

    Raises:
        DataError: The tokenizer doesn't show its vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.tokenizer = tokenizer
        _all_tokens(tokenizer, name)
        self._vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        backend: Any = tokenizer.backend_tokenizer
        self._model, self._normalizer = backend.model, backend.normalizer
        # WordPiece marks the tokens that continue a word, instead of those that start one.
        self._continues = getattr(self._model, "continuing_subword_prefix", None) or ""
        (first,) = _strings(tokenizer, _some_word(tokenizer)[:1])
        # Whether a text without a space in front is taken as the start of a word.
        self._adds_space = first[:1] == " " or bool(self._continues)

    def counterpart(self, role: int | None, token: str | None) -> int | None:
        """The special token with a role, or with the same string; None if there is none."""
        for name in () if role is None else _ROLES[role]:
            token_id: int | None = getattr(self.tokenizer, f"{name}_id", None)
            if token_id is not None:
                return token_id
        same_string = self._vocabulary.get(str(token))
        return same_string if same_string in self.tokenizer.all_special_ids else None

    def split(self, strings: list[str | bytes]) -> list[tuple[int, ...] | None]:
        """The tokens of each string; None if it has none."""
        texts = {string: self._as_text(string) for string in strings if isinstance(string, str)}
        whole = sorted({text for text in texts.values() if text is not None})
        encoded: Any = self.tokenizer(whole, add_special_tokens=False, return_attention_mask=False) if whole else {}
        ids_of = dict(zip(whole, encoded.get("input_ids", ()), strict=True))
        token_ids = []
        for string in strings:
            if isinstance(string, bytes):
                tokens = self._split_bytes(string)
            elif (text := texts[string]) is not None:
                tokens = ids_of[text]
            else:
                tokens = self._split_in_word(string)
            token_ids.append(tuple(tokens) or None)
        return token_ids

    def _as_text(self, string: str) -> str | None:
        """The text that the tokenizer splits into the string's tokens; None if it would take it as a word's start."""
        if not self._adds_space:
            return string
        if self._continues and not string[:1].isalnum():
            # WordPiece has no spaces, and punctuation always starts a word.
            return string.strip()
        word = string.removeprefix(" ")
        return word if word != string and word.strip() else None

    def _split_in_word(self, string: str) -> list[int]:
        """Split a string that doesn't start a word, without what the tokenizer does to the start of a text."""
        normalized = string if self._normalizer is None else self._normalizer.normalize_str(string)
        if not self._continues:
            normalized = normalized.removeprefix(_WORD_START).replace(" ", _WORD_START)
        return [token.id for token in self._model.tokenize(self._continues + normalized)] if normalized else []

    def _split_bytes(self, string: bytes) -> list[int]:
        for names in ([f"<0x{byte:02X}>" for byte in string], [bytes_to_unicode()[byte] for byte in string]):
            if all(name in self._vocabulary for name in names):
                return [self._vocabulary[name] for name in names]
        return []
