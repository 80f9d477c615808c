"""The layer artifact: a self-contained folder with one or more layers of a model, and the means to verify them.

config.json         model_type surgeon_donor, the LLM's own config, the layers and their source
model.safetensors   tensors layers.<k>.<name inside the layer>; in a stack artifact also embeddings.<name>
tokenizer.json, ... in a stack artifact: the tokenizer
README.md           model card
LICENSE*, NOTICE*   copied from the donor's repo
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from layer_surgeon._folders import check_links
from layer_surgeon._io import read_json_bytes, read_object
from layer_surgeon._model_types import LAYER
from layer_surgeon.checkpoint.companions import TOKENIZER_FILES
from layer_surgeon.checkpoint.safetensors import SINGLE_FILE, parse_json_object, read_local_header
from layer_surgeon.checkpoint.sources import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.papers import LICENCE_FILES, README_FILE
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import ArtifactError, CheckpointError

CONFIG_FILE = "config.json"
# The model card, and the files that a donor's licence requires to accompany its weights.
PAPERS = (README_FILE, *LICENCE_FILES)
# All files of an artifact: these are fetched, copied or uploaded with it.
ARTIFACT_FILES = (CONFIG_FILE, SINGLE_FILE, *PAPERS, *(name for name in TOKENIZER_FILES if "/" not in name))
# Files that replacing an artifact may delete. A run that is killed just after the rename also leaves its lock.
REPLACEABLE_FILES = (*ARTIFACT_FILES, ".lock")
_HOW_TO_MAKE = "Make one with: surgeon extract MODEL --layer -1"


class LayerArtifact:
    """A layer artifact on disk.

    Attributes:
        path: The artifact's folder.
        config: The content of its config.json.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "LayerArtifact":
        """Open an artifact's folder. Reads config.json and the header of the weights, but no weights.

        Raises:
            ArtifactError: The folder is not a layer artifact, or the artifact is incomplete.
        """
        folder = Path(path)
        config = read_config(folder)
        artifact = cls(folder, config)
        names = {tensor.name for tensor in artifact.tensors()}
        missing = sorted(set(artifact.recorded) - names)
        if missing:
            raise ArtifactError(
                f"{folder} lacks the tensor {missing[0]!r}, which its config.json lists. {_HOW_TO_MAKE}"
            )
        return artifact

    def __repr__(self) -> str:
        return f"LayerArtifact({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """Indices of the layers in their model, counted from 0, in the order in which they run."""
        return tuple(self.config["layer_indices"])

    @property
    def num_bytes(self) -> int:
        """Total size of the tensors in bytes."""
        return sum(tensor.num_bytes for tensor in self.tensors())

    @cached_property
    def sha256(self) -> str:
        """sha256 of model.safetensors as hex: the recorded digest if config.json has one, computed otherwise."""
        if isinstance(self.config.get("sha256"), str):
            return str(self.config["sha256"])
        path = self.path / SINGLE_FILE
        with path.open("rb") as file:
            return range_sha256(file, 0, path.stat().st_size)

    @property
    def recorded(self) -> dict[str, Any]:
        """The record of each tensor in config.json: its name in the donor, dtype, shape and sha256."""
        return recorded_tensors(self.config)

    def tensors(self) -> list[TensorInfo]:
        """The tensors in model.safetensors.

        Raises:
            ArtifactError: The file is missing or damaged.
        """
        try:
            return list(read_local_header(self.path / SINGLE_FILE).values())
        except (OSError, CheckpointError) as error:
            raise ArtifactError(f"{self.path} is not a complete layer artifact: {error} {_HOW_TO_MAKE}") from error

    def verify(self) -> None:
        """Read all weights and compare them with the sha256 digests that were recorded during extraction.

        Raises:
            ArtifactError: A tensor or the file has changed (the message names the first one), or config.json has no
                digests.
        """
        recorded, path = self.recorded, self.path / SINGLE_FILE
        if not recorded:
            raise ArtifactError(
                f"{self.path / CONFIG_FILE} has no sha256 digests, so there is nothing to verify: the layer was not "
                "written by surgeon extract."
            )
        with path.open("rb") as file:
            for tensor in self.tensors():
                if range_sha256(file, tensor.offset, tensor.num_bytes) != recorded.get(tensor.name, {}).get("sha256"):
                    raise ArtifactError(
                        f"{path}: the sha256 of {tensor.name!r} differs from the one recorded during extraction. "
                        "The file was changed or damaged. Extract the layer again, with --force."
                    )
            if range_sha256(file, 0, path.stat().st_size) != self.sha256:
                raise ArtifactError(
                    f"The sha256 of {path} differs from the one recorded during extraction. "
                    "Extract the layer again, with --force."
                )


def recorded_tensors(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The record of each tensor in an artifact's config.json; an empty dict for each malformed record."""
    source = config.get("source")
    tensors = source.get("tensors") if isinstance(source, dict) else None
    if not isinstance(tensors, dict):
        return {}
    return {name: record if isinstance(record, dict) else {} for name, record in tensors.items()}


def is_artifact(folder: Path) -> bool:
    """Whether a folder has a config.json with the model_type of a layer artifact."""
    return read_object(folder / CONFIG_FILE).get("model_type") == LAYER


def artifact_files(folder: Path, patterns: Sequence[str] = ARTIFACT_FILES) -> list[Path]:
    """List the files of a folder that belong to a layer artifact. Other files in it are never passed on.

    Args:
        folder: The folder.
        patterns: Patterns of file names; case is ignored.

    Raises:
        ArtifactError: One of them is a link out of the folder.
    """
    lowered = [pattern.lower() for pattern in patterns]
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatchcase(path.name.lower(), pattern) for pattern in lowered)
    ]
    check_links(files, folder, ArtifactError)
    return files


def read_config(folder: Path) -> dict[str, Any]:
    """Read an artifact's config.json.

    Raises:
        ArtifactError: The file is missing, or is not the config of a layer artifact.
    """
    path = folder / CONFIG_FILE
    try:
        config = parse_json_object(read_json_bytes(path), str(path))
    except (OSError, ValueError, CheckpointError) as error:
        # Only a CheckpointError names the file.
        cause = getattr(error, "strerror", None) or error
        reason = str(error) if isinstance(error, CheckpointError) else f"{CONFIG_FILE}: {cause}."
        raise ArtifactError(f"{folder} is not a layer artifact: {reason} {_HOW_TO_MAKE}") from error
    if config.get("model_type") != LAYER:
        raise ArtifactError(
            f"{folder} is not a layer artifact: its model_type is {config.get('model_type')!r}, not {LAYER!r}. "
            f"{_HOW_TO_MAKE}"
        )
    indices = config.get("layer_indices")
    if (
        not isinstance(indices, list)
        or not indices
        or not all(type(index) is int for index in indices)
        or not isinstance(config.get("donor_config"), dict)
        or not isinstance(config.get("embeddings"), dict | None)
    ):
        raise ArtifactError(
            f"{path} needs a donor_config (an object) and layer_indices (a list of integers); embeddings, if there are "
            f"any, are an object. At least one is missing or malformed. {_HOW_TO_MAKE}"
        )
    return config


def range_sha256(file: BinaryIO, start: int, length: int) -> str:
    """Return the sha256 of `length` bytes of an open file as hex; of fewer if the file ends before."""
    digest = hashlib.sha256()
    file.seek(start)
    while length > 0 and (chunk := file.read(min(CHUNK_BYTES, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest()
