"""Plain data about tensors and byte ranges, and the protocol that lists the tensors of a checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class TensorShape:
    """The dtype, shape and file of a tensor.

    Attributes:
        name: The tensor's name in transformers, such as `model.layers.31.mlp.up_proj.weight`.
        dtype: The code of its element type in its file: `BF16`, `F32`, ... for safetensors, `Q4_K`, ... for GGUF.
        shape: Its sizes in transformers, outermost first.
        file: The file that contains it, as a POSIX path relative to the source.
        num_bytes: Its size in the file in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    num_bytes: int

    def __post_init__(self) -> None:
        if self.num_bytes < 0 or any(size < 0 for size in self.shape):
            raise ValueError(f"Tensor {self.name!r} has a negative size: {self}")

    @property
    def num_elements(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class TensorInfo(TensorShape):
    """The dtype and shape of a tensor, and the position of its bytes.

    Attributes:
        offset: Absolute position of its first byte in its file.
    """

    offset: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offset < 0:
            raise ValueError(f"Tensor {self.name!r} has a negative position: {self}")

    @property
    def end(self) -> int:
        """Absolute position after its last byte."""
        return self.offset + self.num_bytes


@dataclass(frozen=True, kw_only=True)
class PermutedTensorInfo(TensorInfo):
    """A tensor without gaps whose dimensions are stored in another order, such as a transposed matrix.

    Attributes:
        order: Its dimensions in file order, outermost first: (1, 0) for a transposed matrix.
    """

    order: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """`length` bytes of `file`, from the absolute position `start`."""

    file: str
    start: int
    length: int

    @property
    def end(self) -> int:
        """Absolute position after the last byte."""
        return self.start + self.length


class TensorTable(Protocol):
    """The config and the tensors of a checkpoint in one format. Reads headers, never weights.

    Each format has one implementation. `Checkpoint` and all later steps only use this protocol.
    """

    format: str
    """`safetensors`, `torch` or `gguf`. It selects the codec with which `extract` copies the bytes."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notices for the user about this checkpoint, in whole sentences."""

    @property
    def license(self) -> str | None:
        """The licence in the metadata of the weights; None if there is none."""

    @property
    def packing(self) -> str | None:
        """The quantisation of the format itself, such as GGUF's `Q4_K_M`; None if the numbers are plain."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config.json verbatim, or an equivalent built from the metadata of the format."""

    def files(self) -> Mapping[str, str]:
        """Return the file of every tensor, by tensor name, in the order of the checkpoint."""

    def describe(self, names: Iterable[str]) -> Sequence[TensorShape]:
        """Describe the named tensors. Their positions are left out if they would take further reads.

        Raises:
            CheckpointError: As for `tensors`.
            SourceError: A file can't be read.
        """

    def tensors(self, names: Iterable[str]) -> list[TensorInfo]:
        """Locate the named tensors. Reads only the headers of the files that contain them.

        Raises:
            CheckpointError: A header is damaged, or lacks a tensor that `files` lists.
            SourceError: A file can't be read.
        """
