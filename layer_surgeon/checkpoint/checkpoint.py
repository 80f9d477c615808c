"""`open_checkpoint`: from the place where a checkpoint lies to what it holds. Reads config and index, no weights."""

import os
from collections.abc import Mapping
from typing import Any

from layer_surgeon.checkpoint import safetensors, torch_table
from layer_surgeon.checkpoint.quantization import describe_quantization
from layer_surgeon.checkpoint.sources import FileSource, Source, open_source
from layer_surgeon.checkpoint.stack import LayerStack, check_family, find_stack, text_config
from layer_surgeon.checkpoint.types import TensorInfo, TensorTable
from layer_surgeon.errors import CheckpointError, LayerNotFoundError, SourceNotFoundError

CONFIG_FILE = "config.json"
# The longest config.json in use (a mixture of experts with its quantisation's list of modules) has 200 kB.
_MAX_CONFIG_BYTES = 16_000_000


def open_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> "Checkpoint":
    """Open a checkpoint: read its config and index, and no weights.

    Args:
        source: A folder, a safetensors, PyTorch or GGUF file, or a Hub repo id such as `meta-llama/Llama-3.1-8B`.
        revision: Branch, tag or commit of a Hub repo; None is its main branch.
        token: Access token for a Hub repo; None takes the one that is logged in.

    Raises:
        SourceError: The place can't be read (SourceNotFoundError, SourceAccessError say why).
        CheckpointError: There is no checkpoint in a known format, or it contradicts itself.
        UnsupportedArchitectureError: The model has no decoder layers that can be taken out.
    """
    place = open_source(source, revision=revision, token=token)
    return Checkpoint(place, _open_table(place))


class Checkpoint:
    """A checkpoint whose config and index are known.

    Attributes:
        source: The place it is read from.
        table: Its tensors.
    """

    def __init__(self, source: Source, table: TensorTable) -> None:
        self.source = source
        self.table = table
        check_family(table.config)
        self._stack: LayerStack = find_stack(table.files(), table.config)

    def __repr__(self) -> str:
        return f"Checkpoint({self.source.name!r}, {self.model_type}, {self.num_layers} layers, {self.format})"

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config.json, verbatim."""
        return self.table.config

    @property
    def model_type(self) -> str:
        """The family of the language model, such as `llama`."""
        return str(text_config(self.table.config)["model_type"])

    @property
    def num_layers(self) -> int:
        """How many decoder layers there are."""
        return self._stack.num_layers

    @property
    def commit(self) -> str | None:
        """The 40-hex commit that is read, for a Hub repo or a snapshot of one."""
        return self.source.commit

    @property
    def format(self) -> str:
        """`safetensors`, `torch` or `gguf`."""
        return self.table.format

    @property
    def quantization(self) -> str | None:
        """The method by which the weights were quantised, in words; None where they are plain numbers."""
        return describe_quantization(self.table.config)

    def layer_index(self, layer: int) -> int:
        """The index from 0 of a layer that may be counted from the end.

        Raises:
            LayerNotFoundError: There is no such layer.
        """
        if not -self.num_layers <= layer < self.num_layers:
            raise LayerNotFoundError(
                f"{self.source.name} has {self.num_layers} layers, so there is no layer {layer}. "
                f"Choose 0 to {self.num_layers - 1}, or -1 to -{self.num_layers} to count from the end."
            )
        return layer % self.num_layers

    def layer_prefix(self, layer: int) -> str:
        """What the names of one layer's tensors begin with, such as `model.layers.31.`."""
        return self._stack.layer_prefix(self.layer_index(layer))

    def layer_names(self, layer: int) -> tuple[str, ...]:
        """The names of one layer's tensors; reads nothing."""
        return self._stack.members[self.layer_index(layer)]

    def layer_tensors(self, layer: int) -> list[TensorInfo]:
        """Where the tensors of one layer lie; reads the headers of the files that hold them.

        Args:
            layer: The layer's index; negative counts from the end.

        Raises:
            LayerNotFoundError: There is no such layer.
            CheckpointError: A header is damaged.
            SourceError: A file can't be read.
        """
        return self.table.tensors(self.layer_names(layer))


def _open_table(source: Source) -> TensorTable:
    files = source.list_files()
    if isinstance(source, FileSource):
        candidates = [source.file]
    else:
        candidates = [file for file in files if "/" not in file]
    gguf = [file for file in candidates if file.lower().endswith(".gguf")]
    tensors = [file for file in candidates if file.endswith(".safetensors")]
    if safetensors.SINGLE_FILE in tensors or len(tensors) == 1:
        single = safetensors.SINGLE_FILE if safetensors.SINGLE_FILE in tensors else tensors[0]
        return safetensors.SafetensorsTable(source, _read_config(source, files), single_file=single)
    if safetensors.INDEX_FILE in candidates:
        raw = source.read_file(safetensors.INDEX_FILE, safetensors.MAX_INDEX_BYTES)
        shard_of = safetensors.parse_index(raw, safetensors.INDEX_FILE, files)
        return safetensors.SafetensorsTable(source, _read_config(source, files), shard_of=shard_of)
    pickles = [file for file in candidates if file.endswith(torch_table.SUFFIXES)]
    if torch_table.SINGLE_FILE in pickles:
        return torch_table.TorchZipTable(source, _read_config(source, files), single_file=torch_table.SINGLE_FILE)
    if torch_table.INDEX_FILE in candidates:
        raw = source.read_file(torch_table.INDEX_FILE, safetensors.MAX_INDEX_BYTES)
        shard_of = safetensors.parse_index(raw, torch_table.INDEX_FILE, files, suffix=".bin")
        return torch_table.TorchZipTable(source, _read_config(source, files), shard_of=shard_of)
    if len(gguf) == 1 and not tensors:
        # Only a GGUF file needs the tables of gguf and transformers: 1 s that others need not pay.
        from layer_surgeon.checkpoint.gguf import GgufTable

        return GgufTable(source, gguf[0])
    if len(pickles) == 1 and not tensors and not gguf:
        # Last, since training leaves pickles of other things beside the weights.
        return torch_table.TorchZipTable(source, _read_config(source, files), single_file=pickles[0])
    raise CheckpointError(_what_is_there(source, tensors, gguf, candidates))


def _read_config(source: Source, files: Mapping[str, int | None]) -> Mapping[str, Any]:
    if CONFIG_FILE not in files:
        raise CheckpointError(
            f"{source.name} has weights but no {CONFIG_FILE}, which says what they compute. "
            "Put the model's config.json beside them."
        )
    return safetensors.parse_json_object(source.read_file(CONFIG_FILE, _MAX_CONFIG_BYTES), CONFIG_FILE)


def _what_is_there(source: Source, tensors: list[str], gguf: list[str], candidates: list[str]) -> str:
    if tensors:
        return (
            f"{source.name} has {len(tensors)} safetensors files, but no {safetensors.INDEX_FILE} that says which "
            "holds what. Get the index, or name one file."
        )
    if gguf:
        return f"{source.name} has several GGUF files: {', '.join(gguf)}. Name one of them."
    pickles = [file for file in candidates if file.endswith(torch_table.SUFFIXES)]
    if pickles:
        return (
            f"{source.name} has {len(pickles)} PyTorch files ({', '.join(pickles[:3])}), but no "
            f"{torch_table.SINGLE_FILE} and no {torch_table.INDEX_FILE}. Get the index, or name one file."
        )
    if not candidates:
        raise SourceNotFoundError(f"{source.name} is empty. Name a folder or repo that holds a checkpoint.")
    return (
        f"{source.name} holds no checkpoint: no *.safetensors, no {torch_table.SINGLE_FILE} and no *.gguf file. "
        f"It has {', '.join(candidates[:5])}{' and more' if len(candidates) > 5 else ''}. Check the name."
    )
