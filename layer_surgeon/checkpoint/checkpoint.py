"""`open_checkpoint` and `Checkpoint`: find out what a checkpoint contains. Reads its config and index, no weights."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from layer_surgeon.checkpoint.formats import open_table
from layer_surgeon.checkpoint.quantization import describe_packing, describe_quantization, without_quantization
from layer_surgeon.checkpoint.sources import Source, open_source
from layer_surgeon.checkpoint.sources.parts import join_parts
from layer_surgeon.checkpoint.stack import LayerStack, check_family, find_stack, text_config
from layer_surgeon.checkpoint.types import TensorInfo, TensorTable
from layer_surgeon.errors import LayerNotFoundError, SourceNotFoundError

SourceName = str | os.PathLike[str]


def open_checkpoint(
    source: SourceName | Sequence[SourceName], *, revision: str | None = None, token: str | bool | None = None
) -> "Checkpoint":
    """Open a checkpoint. Reads its config and index, but no weights.

    Args:
        source: A folder, a safetensors, PyTorch or GGUF file, a URL, a Hub repo id such as `meta-llama/Llama-3.1-8B`,
            or `packaged:NAME` (weights in Python packages). For a split GGUF model in one folder, give any part. If
            the parts are in different places, give a list of them.
        revision: Branch, tag or commit of a Hub repo. None means the main branch.
        token: Access token for a Hub repo. None uses the token of the current login.

    Raises:
        SourceError: The source can't be read. SourceNotFoundError and SourceAccessError are more specific.
        CheckpointError: There is no checkpoint in a known format, or its parts contradict each other.
        UnsupportedArchitectureError: The model has no decoder layers that can be extracted.
    """
    if isinstance(source, str | os.PathLike):
        opened_source = open_source(source, revision=revision, token=token)
    else:
        if not source:
            raise SourceNotFoundError("The list of parts is empty. List every part of the model.")
        opened_sources = [open_source(part, revision=revision, token=token) for part in source]
        opened_source = opened_sources[0] if len(opened_sources) == 1 else join_parts(opened_sources, source)
    return Checkpoint(opened_source, open_table(opened_source))


class Checkpoint:
    """A checkpoint, with its config and index already read.

    Attributes:
        source: The source it is read from.
        table: The table of its tensors.
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
        """The number of decoder layers."""
        return self._stack.num_layers

    @property
    def commit(self) -> str | None:
        """The commit that is read, as 40 hex digits, for a Hub repo or a snapshot of one; otherwise None."""
        return self.source.commit

    @property
    def repo_id(self) -> str | None:
        """The repo on the Hub, such as `owner/name` or `gpt2`; None for other sources."""
        return self.source.repo_id

    @property
    def format(self) -> str:
        """`safetensors`, `torch` or `gguf`."""
        return self.table.format

    @cached_property
    def quantization(self) -> str | None:
        """The quantisation method of the weights, such as `gptq, 4 bits`; None if they are not quantised."""
        names = (name for layer_names in self._stack.members.values() for name in layer_names)
        return describe_quantization(self.table.config) or describe_packing(names)

    @property
    def plain_config(self) -> dict[str, Any]:
        """The model's own config, without its quantisation if the weights are converted to plain numbers."""
        return without_quantization(self.config) if self.quantization else dict(self.config)

    def layer_index(self, layer: int) -> int:
        """Convert a layer index that may count from the end into one that counts from 0.

        Raises:
            LayerNotFoundError: The layer does not exist.
        """
        if not -self.num_layers <= layer < self.num_layers:
            raise LayerNotFoundError(
                f"{self.source.name} has {self.num_layers} layers, so there is no layer {layer}. "
                f"Choose 0 to {self.num_layers - 1}, or -1 to -{self.num_layers} to count from the end."
            )
        return layer % self.num_layers

    def layer_prefix(self, layer: int) -> str:
        """Return the prefix of the names of one layer's tensors, such as `model.layers.31.`."""
        return self._stack.layer_prefix(self.layer_index(layer))

    @property
    def stack_prefix(self) -> str:
        """The prefix that the names of all layers' tensors share, such as `model.layers.`."""
        return self.layer_prefix(0).removesuffix("0.")

    def names_outside_layers(self) -> tuple[str, ...]:
        """Return the names of all tensors that belong to no layer: embeddings, final norm, head."""
        in_layers = {name for layer in range(self.num_layers) for name in self.layer_names(layer)}
        return tuple(name for name in self.table.files() if name not in in_layers)

    def layer_names(self, layer: int) -> tuple[str, ...]:
        """Return the names of one layer's tensors. Reads no files."""
        return self._stack.members[self.layer_index(layer)]

    def layer_tensors(self, layer: int) -> list[TensorInfo]:
        """Locate the tensors of one layer. Reads the headers of the files that contain them.

        Args:
            layer: The layer's index. Negative indices count from the end.

        Raises:
            LayerNotFoundError: The layer does not exist.
            CheckpointError: A header is damaged.
            SourceError: A file can't be read.
        """
        return self.table.tensors(self.layer_names(layer))
