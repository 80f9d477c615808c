"""The tokenizer of a checkpoint from any source: next to the weights, or in the header of a GGUF file."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from layer_surgeon._io import write_bytes, write_json
from layer_surgeon._loading import load_gguf_tokenizer, load_tokenizer
from layer_surgeon._text import first_line
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.companions import is_tokenizer_file, read_companions
from layer_surgeon.checkpoint.gguf import GgufTable
from layer_surgeon.errors import LayerSurgeonError, SourceNotFoundError


def load_checkpoint_tokenizer(
    checkpoint: Checkpoint, files: Mapping[str, bytes] | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is next to the weights, or in the header of a GGUF file.

    Args:
        checkpoint: The checkpoint.
        files: The tokenizer's files, if they have been read. A GGUF file's header is then not used.

    Raises:
        SourceNotFoundError: There is none that can be loaded.
        SourceError: It can't be read.
    """
    with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as folder:
        try:
            if files is None and isinstance(checkpoint.table, GgufTable):
                return _load_from_header(checkpoint.table, checkpoint.model_type, Path(folder))
            # Some tokenizers without a class of their own are chosen by the model's family.
            write_json(Path(folder) / "config.json", dict(checkpoint.config))
            for name, content in (read_companions(checkpoint) if files is None else files).items():
                write_bytes(Path(folder) / name, content)
            return load_tokenizer(folder)
        except LayerSurgeonError:
            raise
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            reason = first_line(error).replace(str(folder), checkpoint.source.name)
            raise SourceNotFoundError(
                f"{checkpoint.source.name} has no tokenizer that can be loaded ({reason}). Put the model's "
                "tokenizer.json and tokenizer_config.json next to its weights."
            ) from error


def gguf_tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Make the tokenizer's files from the header of a GGUF file, by name.

    Raises:
        ValueError, OSError, KeyError, TypeError, ImportError: As `load_gguf_tokenizer`.
        SourceError: The header can't be read.
    """
    if not isinstance(checkpoint.table, GgufTable):
        raise TypeError(f"{checkpoint.source.name} is not a GGUF file.")
    with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as folder:
        return saved_files(_load_from_header(checkpoint.table, checkpoint.model_type, Path(folder)))


def saved_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The files that a tokenizer saves, by name, without chat templates in folders."""
    with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as folder:
        tokenizer.save_pretrained(folder)
        files = [path for path in Path(folder).iterdir() if path.is_file() and is_tokenizer_file(path.name)]
        return {path.name: path.read_bytes() for path in files}


def _load_from_header(table: GgufTable, model_type: str, folder: Path) -> PreTrainedTokenizerBase:
    path = folder / "header.gguf"
    write_bytes(path, table.header_bytes())
    return load_gguf_tokenizer(path, model_type)
