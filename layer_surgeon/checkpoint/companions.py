"""The small files next to a model's weights that a copy of the model needs too: tokenizer and generation settings."""

from fnmatch import fnmatchcase

from layer_surgeon.checkpoint.checkpoint import Checkpoint
from layer_surgeon.checkpoint.sources.together import read_files

# All file names in `vocab_files_names` of the tokenizers in transformers 5.24, and two that `from_pretrained` reads
# in place of tokenizer.json: tekken.json (Mistral) and tiktoken.model.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "vocab.txt",
    "vocab.json",
    "vocab-src.json",
    "vocab-tgt.json",
    "target_vocab.json",
    "entity_vocab.json",
    "merges.txt",
    "bpe.codes",
    "byte_maps.json",
    "dict.txt",
    "emoji.json",
    "normalizer.json",
    "word_shape.json",
    "word_pronunciation.json",
    "prophetnet.tokenizer",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
)
GENERATION_FILE = "generation_config.json"
# The largest tokenizer.json of a model in use has 35 MB (Gemma 3).
MAX_COMPANION_BYTES = 100_000_000


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a model's folder belongs to its tokenizer."""
    # A * must not match folders.
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in TOKENIZER_FILES)


def companion_files(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the tokenizer's files and of the generation settings.

    Raises:
        SourceError: A web server can't be asked for them.
    """
    source = checkpoint.source
    if source.kind == "url":
        # Imported only when needed: local files should not cost the import of an HTTP client.
        from layer_surgeon.checkpoint.sources.url import UrlSource

        if isinstance(source, UrlSource):
            source.look_for(pattern for pattern in (*TOKENIZER_FILES, GENERATION_FILE) if "*" not in pattern)
    return [name for name in source.list_files() if name == GENERATION_FILE or is_tokenizer_file(name)]


def read_companions(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Read the tokenizer's files and the generation settings, by name.

    Raises:
        SourceError: One of them can't be read, or is too large.
    """
    return read_files(checkpoint.source, dict.fromkeys(companion_files(checkpoint), MAX_COMPANION_BYTES))
