"""The tokenizers of a host and of a donor that reads text."""

from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from layer_surgeon._loading import load_tokenizer
from layer_surgeon._text import first_line
from layer_surgeon._vocabulary import vocabulary_sha256
from layer_surgeon.donor import DonorStack
from layer_surgeon.donor.quiet import quiet_transformers
from layer_surgeon.errors import GraftError, LayerSurgeonError
from layer_surgeon.graft.hosts import OpenedHost
from layer_surgeon.graft.translate import hub_errors


def load_part_tokenizer(
    part: Literal["host", "donor"], name: str, *, revision: str | None = None, token: str | bool | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a host or a donor.

    Args:
        part: Which of the two, for messages.
        name: A folder, a repo id, or `packaged:NAME`.
        revision: Branch, tag or commit of a repo.
        token: Hub token.

    Raises:
        GraftError: It has none that transformers can load.
        SourceError: It can't be read.
    """
    message = f"The {part} {name!r} has no tokenizer that transformers can load"
    advice = f"Put the tokenizer's files into the model's folder, or choose another {part}."
    try:
        with hub_errors(f"The tokenizer of the {part} {name!r}"), quiet_transformers():
            return load_tokenizer(name, revision=revision, token=token)
    except (ValueError, KeyError, TypeError, ImportError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise GraftError(f"{message}: {first_line(error).rstrip('.')}. {advice}") from error


def load_donor_tokenizer(folder: Path | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the tokens that a stack reads, from its artifact.

    Raises:
        GraftError: There is no artifact, or it has no tokenizer.
    """
    if folder is None:
        raise GraftError(
            "The donor is not from a folder, so its tokenizer is unknown. Pass the folder or the repo id of its "
            "artifact."
        )
    return load_part_tokenizer("donor", str(folder))


def first_special_token(folder: Path | None) -> int | None:
    """Return the id of the token that a stack's tokenizer puts in front of each text; None if there is none."""
    try:
        tokenizer = load_donor_tokenizer(folder)
    except LayerSurgeonError:
        return None
    (first, *_) = tokenizer("a")["input_ids"]
    return int(first) if first in tokenizer.all_special_ids else None


def check_vocabulary(stack: DonorStack, host: OpenedHost, *, is_named: bool, token: str | bool | None) -> None:
    """Refuse a stack that was extracted for the vocabulary of another host.

    Args:
        stack: A stack for the tokens of a host.
        host: The host of the graft.
        is_named: The caller named the host, so its tokenizer may be read. Of a loaded host, only the number of tokens
            is known.
        token: Hub token.

    Raises:
        GraftError: The vocabularies differ, or the host has no tokenizer.
    """
    vocabulary = stack.vocabulary or {}
    name = host.name or f"a {host.config.model_type} model"
    advice = (
        f"Extract a stack for it: surgeon extract MODEL --layer 0:{stack.num_layers} --embeddings --vocabulary {name}"
    )
    num_tokens = host.model.get_input_embeddings().num_embeddings
    if vocabulary["size"] > num_tokens:
        raise GraftError(
            f"The stack reads the {vocabulary['size']:,} tokens of {vocabulary.get('name')}, but the host, {name}, has "
            f"{num_tokens:,}. {advice}"
        )
    if not is_named:
        return
    tokenizer = load_part_tokenizer("host", str(host.name), revision=host.commit, token=token)
    sha256 = vocabulary_sha256(tokenizer, name)
    if sha256 != vocabulary.get("sha256"):
        raise GraftError(
            f"The stack reads the tokens of {vocabulary.get('name')} (sha256 {vocabulary.get('sha256')}), but the "
            f"host, {name}, has other tokens (sha256 {sha256}). {advice}"
        )
