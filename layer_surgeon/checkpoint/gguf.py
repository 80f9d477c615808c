"""Read GGUF files: the tensors of a llama.cpp model with the names and shapes that transformers gives them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from layer_surgeon.checkpoint.gguf_families import (
    Layout,
    ModelTensor,
    describe_tensors,
    read_config,
    unread_rotary_scaling,
)
from layer_surgeon.checkpoint.gguf_header import GgufHeader, TensorEntry
from layer_surgeon.checkpoint.gguf_split import read_model_header
from layer_surgeon.checkpoint.gguf_table import gguf_table
from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import CheckpointError

__all__ = ["GgufTable", "GgufTensorInfo"]

_PLAIN_TYPES = ("F32", "F16", "BF16", "F64", "")


@dataclass(frozen=True, kw_only=True)
class GgufTensorInfo(TensorInfo):
    """A tensor of a GGUF file, with what is needed to turn its bytes into the tensor of transformers.

    Attributes:
        layout: How the file stores its numbers. `shape` has the sizes in transformers.
        heads: The number of attention heads, if the layout depends on it; otherwise 1.
    """

    layout: Layout
    heads: int


class GgufTable:
    """The tensors of a GGUF model that transformers loads into its own model.

    Tensors that transformers ignores are not listed. The constructor checks the shapes of all others, so an unusable
    file is refused before an extraction is planned.

    Args:
        source: The source to read from.
        files: The file of the model, any part of a split model, or all of its parts.

    Raises:
        CheckpointError: A file is damaged, truncated, or contradicts itself or the other parts.
        UnsupportedArchitectureError: transformers does not load such a model, or loads it in an unsupported way.
        SourceError: A file can't be read.
    """

    format = "gguf"

    def __init__(self, source: Source, *files: str) -> None:
        self._source = source
        self._header: GgufHeader = read_model_header(source, files)
        self._config = read_config(self._header)
        model_tensors = describe_tensors(self._header, self._config)
        self._tensor_of: dict[str, tuple[ModelTensor, TensorEntry]] = {
            model_tensors[stored.name].name: (model_tensors[stored.name], stored)
            for stored in self._header.tensors
            if stored.name in model_tensors
        }
        for tensor, stored in self._tensor_of.values():
            self._check_shape(tensor, stored)
        self._check_layers_are_whole(model_tensors)

    @property
    def config(self) -> Mapping[str, Any]:
        """The config from which `AutoConfig.from_pretrained(folder, gguf_file=...)` is built."""
        return self._config

    @property
    def license(self) -> str | None:
        """The licence that the file states, such as `apache-2.0` or `gemma`; None if it states none."""
        license_entry = self._header.metadata.get("general.license")
        return license_entry.value if license_entry is not None and isinstance(license_entry.value, str) else None

    @property
    def packing(self) -> str | None:
        """The quantisation that the file states, such as `Q4_K_M`, or else the type of most of its bytes."""
        file_type = self._header.metadata.get("general.file_type")
        name = gguf_table()["file_types"].get(str(file_type.value), "") if file_type is not None else ""
        kind = name.removeprefix("ALL_").removeprefix("MOSTLY_") if name != "GUESSED" else ""
        if not kind:
            sizes: Counter[str] = Counter()
            for tensor in self._header.tensors:
                sizes[tensor.dtype] += tensor.num_bytes
            kind = sizes.most_common(1)[0][0] if sizes else ""
        return None if kind in _PLAIN_TYPES else kind

    @property
    def notes(self) -> tuple[str, ...]:
        """Notices for the user about how transformers loads the file, in whole sentences."""
        unread = unread_rotary_scaling(self._header)
        if unread is None or self._config.get("rope_scaling") is not None:
            return ()
        return (
            f"{self._header.file} scales its rotary positions ({unread}), but transformers does not read this scaling "
            "from GGUF files. The layer will use unscaled positions. The model's safetensors checkpoint avoids this.",
        )

    def header_bytes(self) -> bytes:
        """Read the header again, as a GGUF file that has the metadata, such as the tokenizer, and no tensors.

        Raises:
            SourceError: The file can't be read.
        """
        header = self._source.read_range(self._header.file, 0, self._header.num_bytes)
        # Bytes 8 to 16 are the number of tensors. What describes them is after the metadata, and then ignored.
        return header[:8] + bytes(8) + header[16:]

    def files(self) -> Mapping[str, str]:
        """Return the file of every tensor, by tensor name, in the order of the model."""
        return {name: stored.file for name, (_, stored) in self._tensor_of.items()}

    def describe(self, names: Iterable[str]) -> list[TensorInfo]:
        """Describe the named tensors. The same as `tensors`, because the header already has the positions."""
        return self.tensors(names)

    def tensors(self, names: Iterable[str]) -> list[TensorInfo]:
        """Locate the named tensors. Reads no files.

        Raises:
            CheckpointError: The file has no such tensor.
        """
        infos: list[TensorInfo] = []
        for name in names:
            if name not in self._tensor_of:
                raise CheckpointError(
                    f"{self._header.file} has no tensor with the transformers name {name!r}. Check the name; it has, "
                    f"for example, {', '.join(list(self._tensor_of)[:3])}."
                )
            tensor, stored = self._tensor_of[name]
            infos.append(
                GgufTensorInfo(
                    name=name,
                    dtype=stored.dtype,
                    shape=tensor.shape,
                    file=stored.file,
                    offset=stored.offset,
                    num_bytes=stored.num_bytes,
                    layout=tensor.layout,
                    heads=tensor.heads,
                )
            )
        return infos

    def _check_shape(self, tensor: ModelTensor, stored: TensorEntry) -> None:
        if stored.shape != tensor.stored_shape:
            raise CheckpointError(
                f"In {stored.file} the tensor {stored.name!r} has the shape {list(stored.shape)}, but the metadata of "
                f"the file requires {list(tensor.stored_shape)} for {tensor.name}. The metadata or the tensor is "
                "wrong: get the file again, or convert the model again."
            )

    def _check_layers_are_whole(self, model_tensors: Mapping[str, ModelTensor]) -> None:
        for stored_name, tensor in model_tensors.items():
            if stored_name.startswith("blk.") and tensor.name not in self._tensor_of:
                raise CheckpointError(
                    f"{self._header.file} has no tensor {stored_name!r}, which the model needs as {tensor.name}. The "
                    "file is incomplete, or its metadata belongs to another model: get it again."
                )
