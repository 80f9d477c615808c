"""What `surgeon inspect` tells about a checkpoint: counted from headers, no weights read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from layer_surgeon.checkpoint.checkpoint import Checkpoint
from layer_surgeon.checkpoint.licence import licence_files, read_licence
from layer_surgeon.checkpoint.types import TensorShape


@dataclass(frozen=True, kw_only=True)
class TensorGroup:
    """Some tensors of a checkpoint, counted.

    Attributes:
        num_tensors: How many there are.
        num_parameters: How many numbers they hold.
        num_bytes: How many bytes of the checkpoint they take.
        dtypes: The codes of their dtypes, the one with most bytes first.
        files: The files that hold them.
    """

    num_tensors: int
    num_parameters: int
    num_bytes: int
    dtypes: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """A checkpoint, counted.

    Attributes:
        whole: All tensors.
        layers: The tensors of each decoder layer.
        rest: What belongs to no decoder layer: embeddings, final norm, head.
        licence: `license`, and `license_name` and `license_link` where the model card has them.
        licence_files: The names of the licence files beside the weights.
    """

    whole: TensorGroup
    layers: tuple[TensorGroup, ...]
    rest: TensorGroup
    licence: Mapping[str, str]
    licence_files: tuple[str, ...]


def summarize(checkpoint: Checkpoint) -> CheckpointSummary:
    """Count a checkpoint's tensors; reads the header of every file, and the model card.

    Raises:
        CheckpointError: A header is damaged.
        SourceError: A file can't be read.
    """
    infos = {info.name: info for info in checkpoint.table.describe(checkpoint.table.files())}
    layers = [[infos[name] for name in checkpoint.layer_names(index)] for index in range(checkpoint.num_layers)]
    taken = {info.name for layer in layers for info in layer}
    return CheckpointSummary(
        whole=_count(infos.values()),
        layers=tuple(_count(layer) for layer in layers),
        rest=_count(info for name, info in infos.items() if name not in taken),
        licence=read_licence(checkpoint),
        licence_files=tuple(licence_files(checkpoint)),
    )


def _count(infos: Iterable[TensorShape]) -> TensorGroup:
    listed = list(infos)
    by_dtype: Counter[str] = Counter()
    for info in listed:
        by_dtype[info.dtype] += info.num_bytes
    return TensorGroup(
        num_tensors=len(listed),
        num_parameters=sum(info.num_elements for info in listed),
        num_bytes=sum(info.num_bytes for info in listed),
        dtypes=tuple(code for code, _ in by_dtype.most_common()),
        files=tuple(sorted({info.file for info in listed})),
    )
