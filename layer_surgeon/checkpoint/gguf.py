"""GGUF files: the tensors of a llama.cpp model under the names and in the shapes that transformers gives them."""

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

_PLAIN = ("F32", "F16", "BF16", "F64", "")


@dataclass(frozen=True, kw_only=True)
class GgufTensorInfo(TensorInfo):
    """A tensor of a GGUF file, with what is needed to make transformers' tensor of its bytes.

    Attributes:
        gguf_name: Its name in the file, such as `blk.17.attn_q.weight`.
        gguf_shape: Its sizes in the file, outermost first; `shape` is what transformers makes of them.
        architecture: GGUF's name of the model family, such as `llama`.
    """

    gguf_name: str
    gguf_shape: tuple[int, ...]
    architecture: str


class GgufTable:
    """The tensors of a GGUF model that transformers' model takes.

    Tensors that transformers leaves aside are not listed. The layers' ones are all checked here, so that a file whose
    layers can't be had is refused before anything is planned.

    Args:
        source: Where the model lies.
        files: The path of its file there, of any part of a split model, or of all its parts.

    Raises:
        CheckpointError: A file is damaged, truncated, or contradicts itself or the other parts.
        UnsupportedArchitectureError: transformers does not load such a model, or in a way that is not followed here.
        SourceError: A file can't be read.
    """

    format = "gguf"

    def __init__(self, source: Source, *files: str) -> None:
        self._header: GgufHeader = read_model_header(source, files)
        self._config = gguf_config(self._header)
        self._names: NameMap = map_names(self._header, self._config)
        self._entries: dict[str, TensorEntry] = {
            self._names.name_of[entry.name]: entry
            for entry in self._header.tensors
            if entry.name in self._names.name_of
        }
        for name, entry in self._entries.items():
            self._check_shape(name, entry)

    @property
    def config(self) -> Mapping[str, Any]:
        """The config that `AutoConfig.from_pretrained(folder, gguf_file=...)` is made of."""
        return self._config

    @property
    def license(self) -> str | None:
        """The licence that the file states, such as `apache-2.0` or `gemma`; None where it states none."""
        entry = self._header.metadata.get("general.license")
        return entry.value if entry is not None and isinstance(entry.value, str) else None

    @property
    def packing(self) -> str | None:
        """The mixture of quantisations that the file says it is, such as `Q4_K_M`, or the type that most bytes have."""
        entry = self._header.metadata.get("general.file_type")
        names = {kind.value: kind.name for kind in gguf.LlamaFileType}
        name = names.get(entry.value, "") if entry is not None and type(entry.value) is int else ""
        kind = name.removeprefix("ALL_").removeprefix("MOSTLY_") if name != "GUESSED" else ""
        if not kind:
            sizes: Counter[str] = Counter()
            for tensor in self._header.tensors:
                sizes[tensor.dtype] += tensor.num_bytes
            kind = sizes.most_common(1)[0][0] if sizes else ""
        return None if kind in _PLAIN else kind

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about what transformers makes of the file, a sentence each."""
        unread = unread_rotary_scaling(self._header)
        if unread is None or self._config.get("rope_scaling") is not None:
            return ()
        return (
            f"{self._header.file} scales its rotary positions ({unread}), which transformers does not read from GGUF "
            "files: the layer will compute with unscaled ones. The model's safetensors checkpoint has no such gap.",
        )

    def files(self) -> Mapping[str, str]:
        """The file of every tensor, by its name, in the model's order."""
        return {name: entry.file for name, entry in self._entries.items()}

    def describe(self, names: Iterable[str]) -> list[TensorInfo]:
        """The same as `tensors`: a header tells everything at once."""
        return self.tensors(names)

    def tensors(self, names: Iterable[str]) -> list[TensorInfo]:
        """Where the named tensors lie; reads nothing more.

        Raises:
            CheckpointError: There is no such tensor.
        """
        infos: list[TensorInfo] = []
        for name in names:
            entry = self._entries.get(name)
            if entry is None:
                raise CheckpointError(
                    f"{self._header.file} has no tensor that transformers calls {name!r}. It has, for example, "
                    f"{', '.join(list(self._entries)[:3])}."
                )
            infos.append(
                GgufTensorInfo(
                    name=name,
                    dtype=entry.dtype,
                    shape=self._names.shape_of[name],
                    file=entry.file,
                    offset=entry.offset,
                    num_bytes=entry.num_bytes,
                    gguf_name=entry.name,
                    gguf_shape=entry.shape,
                    architecture=self._header.architecture,
                )
            )
        return infos

    @cached_property
    def _processor(self) -> Any:
        return tensor_processor(self._header.architecture, self._config)

    def _check_shape(self, name: str, entry: TensorEntry) -> None:
        wanted = self._names.shape_of[name]
        shape = entry.shape
        # Tensors outside of the layers are listed, not taken: GPT-2's processor would copy its whole output matrix.
        if prod(shape) == prod(wanted) and entry.name.startswith("blk."):
            _, shape = try_processor(self._processor, entry.name, shape)
        if shape != wanted and (entry.name.startswith("blk.") or prod(shape) != prod(wanted)):
            raise CheckpointError(
                f"{entry.file}: the tensor {entry.name!r} has the sizes {list(shape)}, but the model that the "
                f"metadata describes wants {list(wanted)} for {name}. The metadata or the tensor is wrong: "
                "get the file again, or convert the model again."
            )
