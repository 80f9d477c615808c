"""The tensors of the new model, and the files of weights that they are written to."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

from layer_surgeon.assemble.compatible import check_dtypes
from layer_surgeon.assemble.family_table import residual_outputs
from layer_surgeon.assemble.model_source import ModelSource
from layer_surgeon.assemble.scaled import Scaled
from layer_surgeon.assemble.selected_layers import SelectedLayer
from layer_surgeon.assemble.several_sources import joint_name, own_name
from layer_surgeon.checkpoint import TensorInfo
from layer_surgeon.checkpoint.safetensors import SINGLE_FILE
from layer_surgeon.errors import AssemblyError, UnsupportedArchitectureError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import CODE_OF_NAME
from layer_surgeon.extract.plan import (
    CopyPlan,
    PlannedTensor,
    choose_codecs,
    converted_bytes,
    cut_pieces,
    lay_out,
)

# What marks the names of tensors before the first layer, such as wte and word_embeddings_layernorm.
_EMBEDDING = re.compile(r"embed(?!_out|ding_norm)|wte|wpe")
# And those after the last one: norm, ln_f, final_layernorm, lm_head, embed_out, and the embedding_norm of LFM2.
_HEAD = re.compile(r"norm|ln_f|head|embed_out")
_HEAD_MATRIX = re.compile(r"head|embed_out")
_Content = tuple[TensorInfo, str, float]


@dataclass(frozen=True, kw_only=True)
class ModelTensor:
    """A tensor of the new model.

    Attributes:
        name: Its name in the new model.
        source: The tensor in the checkpoint. Its file is named as in `SeveralSources`.
        codec: Converts its bytes.
        factor: What its numbers are multiplied by; 0 writes zeros and reads nothing.
    """

    name: str
    source: TensorInfo
    codec: Codec
    factor: float = 1.0

    @property
    def content(self) -> _Content:
        """Identifies its bytes in the new model: equal for two copies of one layer, but not for views of one tensor."""
        return replace(self.source, name=""), self.codec.dtype, self.factor


@dataclass(frozen=True, kw_only=True)
class FilledTensor:
    """A tensor that is not read: zeros, or a copy of a tensor that the new model already has.

    Attributes:
        tensor: The tensor, with its position in its file.
        copy_of: Name of the tensor whose bytes are copied; None for zeros.
    """

    tensor: PlannedTensor
    copy_of: str | None


@dataclass(frozen=True, kw_only=True)
class ShardPlan(CopyPlan):
    """One file of weights.

    Attributes:
        file: Its name.
        filled: The tensors in it that are not read.
    """

    file: str
    filled: tuple[FilledTensor, ...]

    @cached_property
    def written(self) -> tuple[PlannedTensor, ...]:
        """All tensors of the file, in the order of their bytes."""
        tensors = [*self.planned, *(filled.tensor for filled in self.filled)]
        return tuple(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)))

    @property
    def num_out_bytes(self) -> int:
        """Size of the file in bytes, including its header."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.written)


def model_tensors(
    base: ModelSource, head: ModelSource, layers: Sequence[SelectedLayer], dtype: str | None
) -> tuple[list[ModelTensor], list[str]]:
    """List the tensors of the new model, in order, and notices for the user.

    Args:
        base: The source of everything before the first layer.
        head: The source of everything after the last layer.
        layers: The layers.
        dtype: The dtype to convert to; None keeps the bytes.

    Raises:
        AssemblyError: The sources name their tensors differently, or have different dtypes.
        UnsupportedArchitectureError: A family has no residual outputs to scale.
        CheckpointError: A header is damaged, or a tensor can't be converted.
        SourceError: A file can't be read.
    """
    code = None if dtype is None else CODE_OF_NAME[dtype]
    notes: list[str] = []
    other_names = _other_names(base, head)
    if base.extra_names:
        if [(layer.source, layer.layer) for layer in layers] == [
            (base, index) for index in range(base.checkpoint.num_layers)
        ]:
            other_names.append((base, list(base.extra_names)))
        else:
            notes.append(
                f"{base.name} has {len(base.extra_names)} tensors of layers beyond its last one, which predict several "
                "tokens ahead. They are left out."
            )
    if head is not base and stores_no_head(head):
        notes.append(
            f"{head.name} stores no head of its own, so only the norm after the last layer is taken from it. A head "
            f"that is tied to the embeddings uses those of {base.name}."
        )
    tensors = []
    for source, names in other_names:
        infos = source.checkpoint.table.tensors(names)
        for info, codec in choose_codecs(source.checkpoint, infos, code):
            name = source.new_name(info.name)
            assert name is not None
            tensors.append(ModelTensor(name=name, source=_joint(source, info), codec=codec))
    for position, layer in enumerate(layers):
        tensors += _layer_tensors(layer, f"{base.stack_prefix}{position}.", code)
    source_names = {source.number: source.name for source in (base, head, *(layer.source for layer in layers))}
    check_dtypes({source_names[number]: code for number, code in sorted(_main_codes(tensors).items())})
    return tensors, notes


def _main_codes(tensors: Iterable[ModelTensor]) -> dict[int, str]:
    """Return the dtype of most bytes of each source, by its number."""
    num_bytes: dict[int, Counter[str]] = defaultdict(Counter)
    for tensor in tensors:
        num_bytes[own_name(tensor.source.file)[0]][tensor.codec.dtype] += tensor.source.num_bytes
    return {number: counter.most_common(1)[0][0] for number, counter in num_bytes.items()}


def plan_shards(tensors: Iterable[ModelTensor], connections: Sequence[int], max_bytes: int) -> tuple[ShardPlan, ...]:
    """Divide the tensors into files of at most `max_bytes`, and plan the reads of each file.

    Args:
        tensors: The tensors, in order.
        connections: How many ranges to read from each source in parallel.
        max_bytes: Largest size of a file. A larger tensor gets a file of its own.

    Raises:
        CheckpointError: A tensor is not a whole number of its codec's blocks.
    """
    groups: list[list[ModelTensor]] = [[]]
    size = 0
    for tensor in tensors:
        num_bytes = converted_bytes(tensor.source, tensor.codec)
        if groups[-1] and size + num_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += num_bytes
    first_of: dict[_Content, str] = {}
    shards = []
    for number, group in enumerate(groups, 1):
        file = SINGLE_FILE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        shards.append(_shard(file, group, connections, first_of))
    return tuple(shards)


def _shard(
    file: str,
    group: Sequence[ModelTensor],
    connections: Sequence[int],
    first_of: dict[_Content, str],
) -> ShardPlan:
    planned, header = lay_out((tensor.name, tensor.source, tensor.codec) for tensor in group)
    by_name = {tensor.name: tensor for tensor in group}
    to_read: list[PlannedTensor] = []
    filled: list[FilledTensor] = []
    for written in planned:
        tensor = by_name[written.name]
        if tensor.factor == 0:
            filled.append(FilledTensor(tensor=written, copy_of=None))
            continue
        first = first_of.setdefault(tensor.content, written.name)
        if first == written.name:
            to_read.append(written)
        else:
            filled.append(FilledTensor(tensor=written, copy_of=first))
    pieces = [
        piece
        for number, parallel in enumerate(connections)
        for piece in cut_pieces(tuple(t for t in to_read if own_name(t.source.file)[0] == number), parallel)
    ]
    return ShardPlan(file=file, planned=tuple(to_read), pieces=tuple(pieces), header=header, filled=tuple(filled))


def _layer_tensors(layer: SelectedLayer, prefix: str, code: str | None) -> Iterator[ModelTensor]:
    source = layer.source
    infos = source.layer_tensors(layer.layer)
    factor = 0.0 if layer.silent else layer.scale
    matrices = (source.inner_name(layer.layer, info.name) for info in infos if len(info.shape) > 1)
    outputs = residual_outputs(source.config, matrices) if factor != 1 else ()
    num_scaled = 0
    for info, codec in choose_codecs(source.checkpoint, infos, code):
        inner = source.inner_name(layer.layer, info.name)
        is_output = any(fnmatchcase(inner, pattern) for pattern in outputs)
        num_scaled += is_output
        scaled = Scaled(info, codec, factor) if is_output and factor else codec
        yield ModelTensor(
            name=f"{prefix}{inner}", source=_joint(source, info), codec=scaled, factor=factor if is_output else 1.0
        )
    if factor != 1 and not num_scaled:
        raise UnsupportedArchitectureError(
            f"Layer {layer.layer} of {source.name} ({source.checkpoint.model_type}) has none of the tensors that carry "
            f"what a layer adds ({', '.join(outputs)}) among its {len(infos)}, so it can't be scaled or silent. Leave "
            "the scale at 1."
        )


def _joint(source: ModelSource, info: TensorInfo) -> TensorInfo:
    return replace(info, file=joint_name(source.number, info.file))


def _other_names(base: ModelSource, head: ModelSource) -> list[tuple[ModelSource, list[str]]]:
    """Return the names of the tensors outside the layers, by source."""
    if head is base:
        return [(base, list(base.other_names))]
    if head.stack_prefix != base.stack_prefix:
        raise AssemblyError(
            f"{base.name} names its layers {base.stack_prefix}N, and {head.name} {head.stack_prefix}N, so embeddings "
            "of one and head of the other can't be combined. Take both from one source."
        )
    after = {source: [name for name in source.other_names if not _is_before(name, source)] for source in (base, head)}
    base_names, head_names = ({source.new_name(name) or name for name in after[source]} for source in (base, head))
    differing = sorted(base_names ^ head_names)
    if differing:
        raise AssemblyError(
            f"Only one of {base.name} and {head.name} has the tensor {differing[0]!r} after its layers, for example "
            "because only one of them ties its embeddings. Take embeddings and head from one source."
        )
    base_shapes, head_shapes = (_shapes(source, after[source]) for source in (base, head))
    for name in sorted(base_names):
        if base_shapes[name] != head_shapes[name]:
            raise AssemblyError(
                f"{name!r} has the shape {list(base_shapes[name])} in {base.name} and {list(head_shapes[name])} in "
                f"{head.name}, for example because one of them has more tokens. Take embeddings and head from one "
                "source."
            )
    return [(base, [name for name in base.other_names if name not in after[base]]), (head, after[head])]


def _shapes(source: ModelSource, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    infos = source.checkpoint.table.tensors(names)
    return {source.new_name(info.name) or info.name: tuple(info.shape) for info in infos}


def stores_no_head(source: ModelSource) -> bool:
    """Whether no tensor of a source is a head. The model may have none, or use its embeddings as one."""
    return not any(_HEAD_MATRIX.search(name) and not _EMBEDDING.search(name) for name in source.other_names)


def _is_before(name: str, source: ModelSource) -> bool:
    """Whether a tensor acts before the first layer, by its name."""
    if _EMBEDDING.search(name):
        return True
    if not _HEAD.search(name):
        raise AssemblyError(
            f"It is not clear whether {name!r} of {source.name} acts before the layers or after them, so embeddings "
            "and head can't come from different sources. Take both from one source, with `head` of our recipe format."
        )
    return False
