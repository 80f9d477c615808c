"""Summarise a checkpoint for `surgeon inspect`, from its headers. Reads no weights."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from layer_surgeon.checkpoint.checkpoint import Checkpoint
from layer_surgeon.checkpoint.licence import licence_files, read_licence
from layer_surgeon.checkpoint.types import TensorShape


@dataclass(frozen=True, kw_only=True)
class TensorGroup:
    """The totals of a group of tensors.

    Attributes:
        num_tensors: The number of tensors.
        num_parameters: The number of their elements.
        num_bytes: Their size in bytes.
        dtypes: Their dtypes, the one with the most bytes first.
        files: The files that contain them.
    """

    num_tensors: int
    num_parameters: int
    num_bytes: int
    dtypes: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """The totals and the licence of a checkpoint.

    Attributes:
        whole: All tensors.
        layers: The tensors of each decoder layer.
        rest: The tensors outside the decoder layers: embeddings, final norm, head.
        licence: `license`, and `license_name` and `license_link` if the model card has them.
        licence_files: The names of the licence files next to the weights.
    """

    whole: TensorGroup
    layers: tuple[TensorGroup, ...]
    rest: TensorGroup
    licence: Mapping[str, str]
    licence_files: tuple[str, ...]


def summarize(checkpoint: Checkpoint) -> CheckpointSummary:
    """Count the tensors of a checkpoint. Reads the header of every file, and the model card.

    Raises:
        CheckpointError: A header is damaged.
        SourceError: A file can't be read.
    """
    infos = {info.name: info for info in checkpoint.table.describe(checkpoint.table.files())}
    layers = [[infos[name] for name in checkpoint.layer_names(index)] for index in range(checkpoint.num_layers)]
    layer_tensor_names = {info.name for layer in layers for info in layer}
    return CheckpointSummary(
        whole=_count(infos.values()),
        layers=tuple(_count(layer) for layer in layers),
        rest=_count(info for name, info in infos.items() if name not in layer_tensor_names),
        licence=read_licence(checkpoint),
        licence_files=tuple(licence_files(checkpoint)),
    )


def _count(tensors: Iterable[TensorShape]) -> TensorGroup:
    group = list(tensors)
    bytes_of_dtype: Counter[str] = Counter()
    for info in group:
        bytes_of_dtype[info.dtype] += info.num_bytes
    return TensorGroup(
        num_tensors=len(group),
        num_parameters=sum(info.num_elements for info in group),
        num_bytes=sum(info.num_bytes for info in group),
        dtypes=tuple(code for code, _ in bytes_of_dtype.most_common()),
        files=tuple(sorted({info.file for info in group})),
    )
