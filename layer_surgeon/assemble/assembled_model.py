"""The folder of an assembled model: an ordinary transformers model, and a record of where its layers come from.

config.json, model.safetensors (or shards and their index), tokenizer files, generation_config.json
assembly.yaml       sources, layers, and the sha256 of every tensor
README.md           model card
LICENSE*, NOTICE*   of the sources
"""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from layer_surgeon._io import read_json, read_json_bytes
from layer_surgeon._model_types import ASSEMBLY_FILE, MAX_ASSEMBLY_CHARACTERS
from layer_surgeon._yaml import parse_yaml
from layer_surgeon.checkpoint.companions import GENERATION_FILE, TOKENIZER_FILES
from layer_surgeon.checkpoint.safetensors import INDEX_FILE, SINGLE_FILE, parse_index, read_local_header
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import ArtifactError, CheckpointError
from layer_surgeon.extract.artifact import CONFIG_FILE, PAPERS, range_sha256
from layer_surgeon.extract.staging import JOURNAL_FILE, StagedFiles

SHARD_PATTERN = "model-*-of-*.safetensors"
MODEL_FILES = (
    CONFIG_FILE,
    SINGLE_FILE,
    SHARD_PATTERN,
    INDEX_FILE,
    ASSEMBLY_FILE,
    GENERATION_FILE,
    *TOKENIZER_FILES,
    *PAPERS,
)
# Files that replacing an assembled model may delete. A run that is killed just after the rename also leaves its lock.
REPLACEABLE_FILES = (*MODEL_FILES, ".lock")
STAGED_FILES = StagedFiles(
    noun="model",
    maker="assembly",
    kept=(SINGLE_FILE, SHARD_PATTERN, f"{JOURNAL_FILE}-*"),
    replaceable=REPLACEABLE_FILES,
)
_HOW_TO_MAKE = "Make one with: surgeon assemble MODEL --keep 0:16"


class AssembledModel:
    """An assembled model on disk.

    Attributes:
        path: The folder.
        config: The content of its config.json.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "AssembledModel":
        """Open the folder of an assembled model. Reads config.json, but no weights.

        Raises:
            ArtifactError: The folder is not an assembled model.
        """
        folder = Path(path)
        try:
            config = read_json(folder / CONFIG_FILE)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ArtifactError(
                f"{folder} is not an assembled model: {CONFIG_FILE}: {reason}. {_HOW_TO_MAKE}"
            ) from error
        if not isinstance(config, dict) or not (folder / ASSEMBLY_FILE).is_file():
            raise ArtifactError(f"{folder} is not an assembled model: it has no {ASSEMBLY_FILE}. {_HOW_TO_MAKE}")
        return cls(folder, config)

    def __repr__(self) -> str:
        return f"AssembledModel({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of assembly.yaml: sources, layers, and the sha256 of every tensor.

        Raises:
            ArtifactError: It can't be read, or is not such a record.
        """
        path = self.path / ASSEMBLY_FILE
        try:
            content = parse_yaml(path.read_text(encoding="utf-8"), max_characters=MAX_ASSEMBLY_CHARACTERS)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} can't be read: {error}. Assemble the model again.") from error
        if not isinstance(content, dict) or not isinstance(content.get("sha256"), dict):
            raise ArtifactError(f"{path} has no sha256 of the tensors. Assemble the model again.")
        return content

    @property
    def num_bytes(self) -> int:
        """Total size of the tensors in bytes."""
        return sum(tensor.num_bytes for tensor in self.tensors())

    def tensors(self) -> list[TensorInfo]:
        """The tensors in the files of weights.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        try:
            return [info for file in self._files() for info in read_local_header(self.path / file).values()]
        except (OSError, ValueError, CheckpointError) as error:
            raise ArtifactError(f"{self.path} is not a complete model: {error} Assemble it again.") from error

    def verify(self) -> None:
        """Read all weights and compare them with the sha256 digests in assembly.yaml.

        Raises:
            ArtifactError: A tensor has changed, is missing, or is not in the record. The message names the first one.
        """
        digests: dict[str, Any] = self.record["sha256"]
        tensors = self.tensors()
        differing = sorted({tensor.name for tensor in tensors} ^ set(digests))
        if differing:
            raise ArtifactError(
                f"{self.path}: only one of {ASSEMBLY_FILE} and the files of weights has the tensor {differing[0]!r}. "
                "The files were changed. Assemble the model again, with --force."
            )
        for tensor in tensors:
            with (self.path / tensor.file).open("rb") as file:
                sha256 = range_sha256(file, tensor.offset, tensor.num_bytes)
            if sha256 != digests[tensor.name]:
                raise ArtifactError(
                    f"{self.path / tensor.file}: the sha256 of {tensor.name!r} differs from the one in "
                    f"{ASSEMBLY_FILE}. The file was changed or damaged. Assemble the model again, with --force."
                )

    def _files(self) -> list[str]:
        index = self.path / INDEX_FILE
        if not index.is_file():
            return [SINGLE_FILE]
        present = [path.name for path in self.path.iterdir()]
        return sorted(set(parse_index(read_json_bytes(index), INDEX_FILE, present).values()))


def is_assembled_model(folder: Path) -> bool:
    """Whether a folder has the record of an assembled model."""
    return (folder / ASSEMBLY_FILE).is_file()
