"""`open_checkpoint`: from the place where a checkpoint lies to what it holds. Reads config and index, no weights."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from layer_surgeon.checkpoint.formats import open_table
from layer_surgeon.checkpoint.quantization import describe_packing, describe_quantization
from layer_surgeon.checkpoint.sources import Source, open_source
from layer_surgeon.checkpoint.sources.parts import join_parts
from layer_surgeon.checkpoint.stack import LayerStack, check_family, find_stack, text_config
from layer_surgeon.checkpoint.types import TensorInfo, TensorTable
from layer_surgeon.errors import LayerNotFoundError, SourceNotFoundError

Named = str | os.PathLike[str]


def open_checkpoint(
    source: Named | Sequence[Named], *, revision: str | None = None, token: str | bool | None = None
) -> "Checkpoint":
    """Open a checkpoint: read its config and index, and no weights.

    Args:
        source: A folder, a safetensors, PyTorch or GGUF file, or a Hub repo id such as `meta-llama/Llama-3.1-8B`. Of
            a split GGUF model any part names all that lie beside it; a list names the parts wherever they lie.
        revision: Branch, tag or commit of a Hub repo; None is its main branch.
        token: Access token for a Hub repo; None takes the one that is logged in.

    Raises:
        SourceError: The place can't be read (SourceNotFoundError, SourceAccessError say why).
        CheckpointError: There is no checkpoint in a known format, or it contradicts itself.
        UnsupportedArchitectureError: The model has no decoder layers that can be taken out.
    """
    if isinstance(source, str | os.PathLike):
        place = open_source(source, revision=revision, token=token)
    else:
        if not source:
            raise SourceNotFoundError("The list of parts is empty. Name every part of the model.")
        places = [open_source(part, revision=revision, token=token) for part in source]
        place = places[0] if len(places) == 1 else join_parts(places, source)
    return Checkpoint(place, open_table(place))


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
        return describe_quantization(self.table.config) or describe_packing(self.layer_names(-1))

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
