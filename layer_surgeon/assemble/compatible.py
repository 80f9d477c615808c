"""Refuse sources of other vocabularies or dtypes. `layer_settings` compares all that their configs say."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from layer_surgeon._format import list_names
from layer_surgeon._io import parse_json
from layer_surgeon.assemble.model_source import ModelSource
from layer_surgeon.checkpoint.companions import MAX_COMPANION_BYTES, companion_files
from layer_surgeon.checkpoint.stack import text_config
from layer_surgeon.errors import AssemblyError
from layer_surgeon.extract.dtypes import NAME_OF_CODE

# Files that hold the whole vocabulary, the most precise one first.
_VOCABULARY_FILES = (
    "tokenizer.json",
    "tekken.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
)


def check_vocabularies(base: ModelSource, others: Sequence[ModelSource]) -> None:
    """Refuse sources of another vocabulary than the base.

    Raises:
        AssemblyError: They differ; the message names tokens or sizes.
        SourceError: A tokenizer can't be read.
    """
    for other in others:
        _check_vocabulary(base, other)


def check_dtypes(dtypes: Mapping[str, str]) -> None:
    """Refuse sources of several dtypes: a config can only name one, and transformers would convert the others.

    Args:
        dtypes: The safetensors code of most bytes that are taken from each source, by the source's name, the base
            first.

    Raises:
        AssemblyError: They differ.
    """
    (base, base_code), *others = dtypes.items()
    for name, code in others:
        if code != base_code:
            base_dtype, dtype = (NAME_OF_CODE.get(code, code) for code in (base_code, code))
            raise AssemblyError(
                f"The weights of {base} are {base_dtype}, and those of {name} {dtype}. Choose one dtype for all, such "
                f"as --dtype {base_dtype} (in Python: dtype={base_dtype!r})."
            )


def _check_vocabulary(base: ModelSource, other: ModelSource) -> None:
    files = [set(companion_files(source.checkpoint)) for source in (base, other)]
    file = next((name for name in _VOCABULARY_FILES if all(name in names for names in files)), None)
    if file is None:
        sizes = [text_config(source.config).get("vocab_size") for source in (base, other)]
        if sizes[0] != sizes[1]:
            raise AssemblyError(
                f"{base.name} has a vocabulary of {sizes[0]} tokens, and {other.name} one of {sizes[1]}. Their layers "
                "can only be combined if both models have the same vocabulary."
            )
        return
    # Hash first: parsing two vocabularies of 256,000 tokens takes 200 MB.
    contents = [source.checkpoint.source.read_file(file, MAX_COMPANION_BYTES) for source in (base, other)]
    if sha256(contents[0]).digest() == sha256(contents[1]).digest():
        return
    vocabularies = [_vocabulary(content, file, source) for content, source in zip(contents, (base, other), strict=True)]
    if vocabularies[0] != vocabularies[1]:
        raise AssemblyError(
            f"{base.name} and {other.name} have different tokenizers{_example(*vocabularies)}. Their layers can only "
            "be combined if both models have the same vocabulary. Added tokens may differ."
        )


def _vocabulary(content: bytes, file: str, source: ModelSource) -> Any:
    """Return the vocabulary in a tokenizer's file, without tokens that were added later. Other files count whole."""
    if not file.endswith(".json") or file == "tekken.json":
        return content
    try:
        parsed = parse_json(content)
    except ValueError as error:
        raise AssemblyError(f"{file} of {source.name} can't be read: {error}. Get it again.") from error
    if file != "tokenizer.json":
        return parsed
    model = parsed.get("model") if isinstance(parsed, Mapping) else None
    return model.get("vocab") if isinstance(model, Mapping) else parsed


def _example(first: Any, second: Any) -> str:
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return ""
    tokens = [repr(token) for token in [*first, *second] if first.get(token) != second.get(token)]
    return f": they number {list_names(list(dict.fromkeys(tokens)))} differently"
