"""The tensors of one side of a comparison, by layer and name: of a checkpoint, or of a layer artifact."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from layer_surgeon._folders import expand_home
from layer_surgeon._model_types import ASSEMBLY_FILE, MAX_ASSEMBLY_CHARACTERS
from layer_surgeon._yaml import parse_yaml
from layer_surgeon.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from layer_surgeon.checkpoint.quantization import is_fp8
from layer_surgeon.checkpoint.sources import FolderSource, Source
from layer_surgeon.errors import SourceError, UnsupportedArchitectureError
from layer_surgeon.extract.artifact import LayerArtifact, is_artifact
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import plain_codec
from layer_surgeon.extract.fp8 import pair_scales, scale_block
from layer_surgeon.extract.plan import choose_codecs, has_fp8

SourceName = str | os.PathLike[str]
SideSource = SourceName | Sequence[SourceName] | Checkpoint
Hash = tuple[str | int, ...]


class Side(Protocol):
    """One side of a comparison."""

    name: str
    """The path, repo id or URL, without secrets."""

    source: Source
    """Where the tensors are read from."""

    layers: tuple[int, ...]
    """The layers that it has, in order."""

    is_whole: bool
    """Whether it is a whole model. If not, only its layers are compared."""

    def read_headers(self) -> None:
        """Read the headers of all files at once, which takes less time over a network than one after the other."""

    def tensors(self, layer: int | None) -> dict[str, TensorInfo]:
        """Return the tensors of a layer, or of the rest, by their names inside the layer or model."""

    def codecs(self, layer: int | None) -> Mapping[str, Codec]:
        """Return what converts the tensors of a layer, or of the rest, to numbers, by the same names."""

    def hashes(self, info: TensorInfo) -> set[Hash]:
        """Return the sha256s that are known without reading, each with the tensor's position in what was hashed.

        Those of a weight in FP8 also have its scale's, and how much of the weight one scale is for.
        """


def open_side(source: SideSource, *, revision: str | None = None, token: str | bool | None = None) -> Side:
    """Open one side of a comparison. Reads no weights.

    Args:
        source: What `open_checkpoint` takes, an open checkpoint, or the folder of a layer artifact.
        revision: As in `open_checkpoint`.
        token: As in `open_checkpoint`.

    Raises:
        ArtifactError: A layer artifact is incomplete.
        UnsupportedArchitectureError: The weights are packed, and can't be compared as numbers.
        LayerSurgeonError: Anything that `open_checkpoint` raises.
    """
    # A revision of a folder is refused by `open_checkpoint`.
    if revision is None and isinstance(source, str | os.PathLike) and is_artifact(Path(expand_home(source))):
        return _ArtifactSide(LayerArtifact.open(source), str(source))
    if not isinstance(source, Checkpoint):
        source = open_checkpoint(source, revision=revision, token=token)
    return _CheckpointSide(source)


class _CheckpointSide:
    is_whole = True

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.quantization is not None and not is_fp8(checkpoint.config):
            raise UnsupportedArchitectureError(
                f"{checkpoint.source.name} is quantised ({checkpoint.quantization}). Packed weights can't be compared "
                "as numbers: compare the unquantised models instead."
            )
        self.name, self.source = checkpoint.source.name, checkpoint.source
        self.layers = tuple(range(checkpoint.num_layers))
        self._checkpoint = checkpoint
        self._infos: dict[int | None, list[TensorInfo]] = {}
        self._scale_of: dict[str, TensorInfo] = {}

    def read_headers(self) -> None:
        if self.source.connections > 1:
            self._checkpoint.table.describe(self._checkpoint.table.files())

    def tensors(self, layer: int | None) -> dict[str, TensorInfo]:
        infos: Iterable[TensorInfo] = self._group(layer)
        if has_fp8(infos):
            pairs = pair_scales(infos)
            self._scale_of |= {info.name: scale for info, scale in pairs if scale is not None}
            infos = [info for info, _ in pairs]
        return {self._short_name(info, layer): info for info in infos}

    def codecs(self, layer: int | None) -> Mapping[str, Codec]:
        infos = self._group(layer)
        code = "F32" if has_fp8(infos) else None
        return {self._short_name(info, layer): codec for info, codec in choose_codecs(self._checkpoint, infos, code)}

    def hashes(self, info: TensorInfo) -> set[Hash]:
        scale = self._scale_of.get(info.name)
        if scale is None:
            return set(self._known(info))
        block = scale_block(self._checkpoint.config, info, scale)
        return {(*known, *of_scale, *block) for known in self._known(info) for of_scale in self._known(scale)}

    def _known(self, info: TensorInfo) -> set[tuple[str, int]]:
        hash_of_file, hash_of_tensor = self.source.sha256(info.file), self._recorded.get(info.name)
        hashes = {(hash_of_file, info.offset), (hash_of_tensor, 0)}
        return {(digest, position) for digest, position in hashes if isinstance(digest, str)}

    @cached_property
    def _recorded(self) -> Mapping[str, Any]:
        """The sha256 of each tensor of an assembled model, from its record; empty if there is none that can be read."""
        if ASSEMBLY_FILE not in self.source.list_files():
            return {}
        try:
            content = self.source.read_file(ASSEMBLY_FILE, MAX_ASSEMBLY_CHARACTERS).decode()
            record = parse_yaml(content, MAX_ASSEMBLY_CHARACTERS)
        except (SourceError, ValueError):
            # The tensors are then read, with the same result.
            return {}
        digests = record.get("sha256") if isinstance(record, dict) else None
        return digests if isinstance(digests, dict) else {}

    def _group(self, layer: int | None) -> list[TensorInfo]:
        if layer not in self._infos:
            table = self._checkpoint.table
            if layer is None:
                self._infos[layer] = table.tensors(self._checkpoint.names_outside_layers())
            else:
                self._infos[layer] = self._checkpoint.layer_tensors(layer)
        return self._infos[layer]

    def _short_name(self, info: TensorInfo, layer: int | None) -> str:
        if layer is not None:
            return info.name.removeprefix(self._checkpoint.layer_prefix(layer))
        # `model.norm.weight` of a whole model is `norm.weight` of its base model, whose layers are called `layers.0.`.
        stack = self._checkpoint.stack_prefix.rstrip(".")
        base, dot, _ = stack.rpartition(".")
        return info.name.removeprefix(base + dot)


class _ArtifactSide:
    is_whole = False

    def __init__(self, artifact: LayerArtifact, name: str) -> None:
        self.name = name
        self.source: Source = FolderSource(artifact.path, name=name)
        self.layers = artifact.layer_indices
        self._infos: dict[int | None, dict[str, TensorInfo]] = {index: {} for index in self.layers}
        for info in artifact.tensors():
            kind, _, numbered_name = info.name.partition(".")
            position, _, name_in_layer = numbered_name.partition(".")
            if kind == "layers" and position.isdecimal() and int(position) < len(self.layers):
                self._infos[self.layers[int(position)]][name_in_layer] = info
            elif kind == "embeddings":
                self._infos.setdefault(None, {})[numbered_name] = info
        self._digests = {tensor: record.get("sha256") for tensor, record in artifact.recorded.items()}

    def read_headers(self) -> None:
        pass  # The artifact's only file was opened.

    def tensors(self, layer: int | None) -> dict[str, TensorInfo]:
        return self._infos.get(layer, {})

    def codecs(self, layer: int | None) -> Mapping[str, Codec]:
        return {name: plain_codec(info.dtype, None) for name, info in self.tensors(layer).items()}

    def hashes(self, info: TensorInfo) -> set[Hash]:
        digest = self._digests.get(info.name)
        return {(digest, 0)} if isinstance(digest, str) else set()
