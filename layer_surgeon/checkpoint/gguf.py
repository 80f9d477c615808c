"""Read GGUF files: the tensors of a llama.cpp model with the names and shapes that transformers gives them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import gguf

from layer_surgeon.checkpoint.gguf_config import gguf_config, unread_rotary_scaling
from layer_surgeon.checkpoint.gguf_header import GgufHeader, TensorEntry
from layer_surgeon.checkpoint.gguf_names import NameMap, map_names, tensor_processor, try_processor
from layer_surgeon.checkpoint.gguf_split import read_model_header
from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import CheckpointError

__all__ = ["GgufTable", "GgufTensorInfo"]

_PLAIN_TYPES = ("F32", "F16", "BF16", "F64", "")


@dataclass(frozen=True, kw_only=True)
class GgufTensorInfo(TensorInfo):
    """A tensor of a GGUF file, with what is needed to turn its bytes into the tensor of transformers.

    Attributes:
        gguf_name: Its name in the file, such as `blk.17.attn_q.weight`.
        gguf_shape: Its sizes in the file, outermost first. `shape` has the sizes in transformers.
        architecture: GGUF's name of the model family, such as `llama`.
    """

    gguf_name: str
    gguf_shape: tuple[int, ...]
    architecture: str


class GgufTable:
    """The tensors of a GGUF model that transformers loads into its own model.

    Tensors that transformers ignores are not listed. The constructor checks the tensors of all layers, so a file with
    unusable layers is refused before an extraction is planned.

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
        self._header: GgufHeader = read_model_header(source, files)
        self._config = gguf_config(self._header)
        self._names: NameMap = map_names(self._header, self._config)
        self._tensor_of: dict[str, TensorEntry] = {
            self._names.name_of[tensor.name]: tensor
            for tensor in self._header.tensors
            if tensor.name in self._names.name_of
        }
        for name, tensor in self._tensor_of.items():
            self._check_shape(name, tensor)

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
        names = {kind.value: kind.name for kind in gguf.LlamaFileType}
        name = names.get(file_type.value, "") if file_type is not None and type(file_type.value) is int else ""
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

    def files(self) -> Mapping[str, str]:
        """Return the file of every tensor, by tensor name, in the order of the model."""
        return {name: tensor.file for name, tensor in self._tensor_of.items()}

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
            tensor = self._tensor_of.get(name)
            if tensor is None:
                raise CheckpointError(
                    f"{self._header.file} has no tensor with the transformers name {name!r}. Check the name; it has, "
                    f"for example, {', '.join(list(self._tensor_of)[:3])}."
                )
            infos.append(
                GgufTensorInfo(
                    name=name,
                    dtype=tensor.dtype,
                    shape=self._names.shape_of[name],
                    file=tensor.file,
                    offset=tensor.offset,
                    num_bytes=tensor.num_bytes,
                    gguf_name=tensor.name,
                    gguf_shape=tensor.shape,
                    architecture=self._header.architecture,
                )
            )
        return infos

    @cached_property
    def _processor(self) -> Any:
        return tensor_processor(self._header.architecture, self._config)

    def _check_shape(self, name: str, tensor: TensorEntry) -> None:
        expected_shape = self._names.shape_of[name]
        shape = tensor.shape
        # Only for layers: tensors outside of them are never extracted, and GPT-2's processor copies its output matrix.
        if prod(shape) == prod(expected_shape) and tensor.name.startswith("blk."):
            _, shape = try_processor(self._processor, tensor.name, shape)
        if shape != expected_shape and (tensor.name.startswith("blk.") or prod(shape) != prod(expected_shape)):
            raise CheckpointError(
                f"In {tensor.file} the tensor {tensor.name!r} has the shape {list(shape)}, but the metadata of the "
                f"file requires {list(expected_shape)} for {name}. The metadata or the tensor is wrong: get the file "
                "again, or convert the model again."
            )
