"""What the rooms say to each other about tensors and bytes: plain data, and the one protocol that lists tensors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class TensorShape:
    """What one tensor is, and which file holds it.

    Attributes:
        name: The tensor's name in transformers' own naming, such as `model.layers.31.mlp.up_proj.weight`.
        dtype: The code of its element type in its file: `BF16`, `F32`, ... for safetensors, `Q4_K` ... for GGUF.
        shape: Its sizes, outermost first, as transformers has them.
        file: The file that holds it, as a POSIX path relative to the source.
        num_bytes: How many bytes of the file it takes.
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
        """How many numbers the tensor holds."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class TensorInfo(TensorShape):
    """What one tensor is, and where its bytes lie.

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
        """Absolute position one past its last byte."""
        return self.offset + self.num_bytes


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """`length` bytes of `file`, from the absolute position `start`."""

    file: str
    start: int
    length: int

    @property
    def end(self) -> int:
        """Absolute position one past the last byte."""
        return self.start + self.length


class TensorTable(Protocol):
    """What one checkpoint format knows about a checkpoint: its config and its tensors. Reads headers, never weights.

    Each format has one implementation; `Checkpoint` and everything behind it only know this protocol.
    """

    format: str
    """`safetensors`, `torch` or `gguf`; names the codec that `extract` copies the bytes with."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about this checkpoint before using it, in whole sentences."""

    @property
    def license(self) -> str | None:
        """The licence that the weights' own metadata state."""

    @property
    def packing(self) -> str | None:
        """How the format itself packs numbers, such as GGUF's `Q4_K_M`; None where they are plain."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config.json verbatim, or the same content made from the format's own metadata."""

    def files(self) -> Mapping[str, str]:
        """The file of every tensor, by tensor name, in the checkpoint's order."""

    def describe(self, names: Iterable[str]) -> Sequence[TensorShape]:
        """What the named tensors are, without finding out where each begins if that takes further reads.

        Raises:
            CheckpointError: As `tensors`.
        """

    def tensors(self, names: Iterable[str]) -> list[TensorInfo]:
        """Where the named tensors lie; reads the headers of the files that hold them, and no others.

        Raises:
            CheckpointError: A header is damaged, or lacks a tensor that `files` promised.
        """
