"""The files of a donor's tokenizer, and another vocabulary for its table of tokens.

Only extraction with embeddings needs transformers, and then torch. The modules that use it are therefore imported in
functions: plain extraction takes less time than that import.
"""

import json
from typing import TYPE_CHECKING

from layer_surgeon._io import parse_json
from layer_surgeon._text import first_line
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.companions import MAX_COMPANION_BYTES, companion_files, is_tokenizer_file
from layer_surgeon.checkpoint.sources.together import read_files
from layer_surgeon.errors import GraftError, SourceError, SourceNotFoundError
from layer_surgeon.progress import Progress

_TOKENIZER_CONFIG = "tokenizer_config.json"

if TYPE_CHECKING:
    from layer_surgeon._vocabulary import VocabularyMap


def read_vocabulary(host: str, checkpoint: Checkpoint, token: str | bool | None) -> "VocabularyMap":
    """Find the donor's tokens for each token of a host.

    Args:
        host: A folder, a repo id, or `packaged:NAME`.
        checkpoint: The donor.
        token: Access token for a Hub repo.

    Raises:
        SourceError: The tokenizer of one of them can't be read.
        DataError: A tokenizer doesn't show its vocabulary.
    """
    from layer_surgeon._vocabulary import map_vocabulary

    return map_vocabulary(host, checkpoint, token=token)


def read_tokenizer_files(checkpoint: Checkpoint, progress: Progress) -> dict[str, bytes]:
    """Read the files of a donor's tokenizer, by name, without chat templates in folders.

    Args:
        checkpoint: The donor.
        progress: Receives a notice if there are none.

    Raises:
        SourceError: One of them can't be read, or is too large.
    """
    names = [name for name in companion_files(checkpoint) if is_tokenizer_file(name) and "/" not in name]
    files = read_files(checkpoint.source, dict.fromkeys(names, MAX_COMPANION_BYTES))
    files |= read_gguf_tokenizer(checkpoint, progress)
    if all("chat_template" in name for name in files):
        progress.notice(
            f"{checkpoint.source.name} has no tokenizer files, so the artifact has none. Copy those of the original "
            "model into its folder."
        )
    return files


def with_class(files: dict[str, bytes], checkpoint: Checkpoint) -> dict[str, bytes]:
    """State in the files of a donor's tokenizer which class it has.

    transformers also chooses it by the model's family, and the config.json of an artifact names another one.

    Args:
        files: The files, by name.
        checkpoint: The donor.

    Returns:
        The files; unchanged if transformers can't load the tokenizer.
    """
    made_from_header = checkpoint.format == "gguf" and "tokenizer.json" not in companion_files(checkpoint)
    if not files or made_from_header:
        return files
    from layer_surgeon._checkpoint_tokenizer import load_checkpoint_tokenizer

    try:
        name = type(load_checkpoint_tokenizer(checkpoint, files)).__name__
    except (SourceNotFoundError, GraftError):
        return files
    config = parse_json(files.get(_TOKENIZER_CONFIG, b"{}"))
    text = json.dumps({**config, "tokenizer_class": name}, ensure_ascii=False, indent=2)
    return {**files, _TOKENIZER_CONFIG: f"{text}\n".encode()}


def read_gguf_tokenizer(checkpoint: Checkpoint, progress: Progress) -> dict[str, bytes]:
    """Make a tokenizer's files from the header of a GGUF file, by name, if there are none next to it.

    Args:
        checkpoint: Of any format; the others have none in a header.
        progress: Receives a notice if it can't be read.

    Raises:
        SourceError: The header can't be read.
    """
    if checkpoint.format != "gguf" or "tokenizer.json" in companion_files(checkpoint):
        return {}
    try:
        from layer_surgeon._checkpoint_tokenizer import gguf_tokenizer_files

        return gguf_tokenizer_files(checkpoint)
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        progress.notice(f"The tokenizer in {checkpoint.source.name} can't be read: {first_line(error)}.")
        return {}
