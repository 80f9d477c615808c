"""What determines the states of a run: a run only goes on from files of a run with the same identity."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from layer_surgeon._version import __version__
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.sources import CutSource, FolderSource, PartsSource, Source
from layer_surgeon.errors import CheckpointError
from layer_surgeon.run.inputs import RunInputs
from layer_surgeon.run.states import dtype_name
from layer_surgeon.workspace import PACKAGED


def run_identity(inputs: RunInputs) -> Mapping[str, Any]:
    """Everything that determines the states.

    If nothing shows whether a file of the model changed, its version is different each time. The packages of
    `packaged:NAME` are checked by hash.
    """
    config, source = inputs.config, inputs.checkpoint.source
    unknown = "checked" if source.name.startswith(PACKAGED) else secrets.token_hex(8)
    model = model_identity(inputs.checkpoint)
    return {
        "source": source.name,
        **model,
        "files": {file: version or unknown for file, version in model["files"].items()},
        "texts": _sha256([inputs.tokens.ids, inputs.texts.texts]),
        "layers": list(config.depths(inputs.checkpoint.num_layers)),
        "pool": config.pool,
        "dtype": dtype_name(inputs.dtype),
        "device": torch.device(inputs.device).type,
        "batch_tokens": config.batch_tokens,
        "score": config.score,
        "versions": list(run_versions().values()),
    }


def model_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """The part of the identity that is the model's: `config`, a hash, and `files`.

    `files` has a string per file that changes with its content: the commit, the source's own version, or size and time.
    It is None if there is nothing of the kind.
    """
    files = sorted(set(checkpoint.table.files().values()))
    return {
        "files": {file: _file_version(checkpoint.source, file) for file in files},
        "config": _sha256(checkpoint.config),
    }


def check_same_model(checkpoint: Checkpoint, expected: Mapping[str, Any]) -> None:
    """Refuse a model that has changed since another process of the run opened it.

    Args:
        checkpoint: The model, opened by this process.
        expected: Its `model_identity` in the other one.

    Raises:
        CheckpointError: It has changed.
    """
    if model_identity(checkpoint) != expected:
        raise CheckpointError(
            f"{checkpoint.source.name} has changed since this run began. Run the same command again: it starts "
            "from the beginning."
        )


def run_versions() -> dict[str, str]:
    """The versions that decide the states."""
    return {"layer_surgeon": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def _sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _file_version(source: Source, file: str) -> str | None:
    if isinstance(source, PartsSource | CutSource):
        versions = [_file_version(*piece) or "" for piece in source.pieces(file)]
        return " ".join(versions) if all(versions) else None
    version = source.commit or source.version(file)
    if version is None and isinstance(source, FolderSource):
        status = (source.root / file).stat()
        version = f"{status.st_size} {status.st_mtime_ns}"
    return version
