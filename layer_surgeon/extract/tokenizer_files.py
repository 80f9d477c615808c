"""The files of a donor's tokenizer, and another vocabulary for its table of tokens.

Only GGUF files and other vocabularies need transformers, and then torch. The modules that use it come after this
package, so they are imported by name, as the records of tasks name their classes.
"""

from importlib import import_module

from layer_surgeon._text import first_line
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.companions import MAX_COMPANION_BYTES, companion_files, is_tokenizer_file
from layer_surgeon.checkpoint.gguf import GgufTable
from layer_surgeon.checkpoint.sources.together import read_files
from layer_surgeon.extract.vocabulary import VocabularyMap
from layer_surgeon.progress import Progress


def read_vocabulary(host: str, checkpoint: Checkpoint, token: str | bool | None) -> VocabularyMap:
    """Find the donor's tokens for each token of a host.

    Args:
        host: A folder, a repo id, or `packaged:NAME`.
        checkpoint: The donor.
        token: Access token for a Hub repo.

    Raises:
        SourceError: The tokenizer of one of them can't be read.
        DataError: A tokenizer doesn't show its vocabulary.
    """
    vocabulary: VocabularyMap = import_module("layer_surgeon._vocabulary").map_vocabulary(host, checkpoint, token=token)
    return vocabulary


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


def read_gguf_tokenizer(checkpoint: Checkpoint, progress: Progress) -> dict[str, bytes]:
    """Make a tokenizer's files from the header of a GGUF file, by name, if there are none next to it.

    Args:
        checkpoint: Of any format; the others have none in a header.
        progress: Receives a notice if it can't be read.

    Raises:
        SourceError: The header can't be read.
    """
    if not isinstance(checkpoint.table, GgufTable) or "tokenizer.json" in companion_files(checkpoint):
        return {}
    try:
        module = import_module("layer_surgeon._checkpoint_tokenizer")
        files: dict[str, bytes] = module.gguf_tokenizer_files(checkpoint.table, checkpoint.model_type)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        progress.notice(f"The tokenizer in {checkpoint.source.name} can't be read: {first_line(error)}.")
        return {}
    return files
