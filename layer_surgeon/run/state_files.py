"""The files of a run: the states of each depth while it runs, and the file of kept states.

    .NAME.partial/depth-4.bin         all tokens after 4 layers, batch after batch; complete if it exists
    .NAME.partial/states.safetensors  of its final size from the start; each depth is written to its place

A depth's states are in states.safetensors before its depth-<k>.bin exists. After a kill, the run goes on after the last
such file.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from layer_surgeon._io import new_file
from layer_surgeon.extract.copy import write_all
from layer_surgeon.run.batches import Batch

STATES_FILE = "states.safetensors"
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, kw_only=True)
class DepthFiles:
    """The states of all tokens at several depths.

    Attributes:
        folder: Where the files are.
        num_tokens: Number of tokens of all texts.
        width: Width of the states.
        dtype: Their element type.
    """

    folder: Path
    num_tokens: int
    width: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the states of one depth."""
        return self.num_tokens * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def depths(self) -> list[int]:
        """The depths whose states are complete, sorted."""
        files = {int(path.stem.removeprefix("depth-")): path for path in self.folder.glob("depth-*.bin")}
        return sorted(depth for depth, path in files.items() if path.stat().st_size == self.num_bytes)

    def read(self, depth: int, batch: Batch) -> Tensor:
        """Read the states of a batch, [tokens, width] without padding."""
        states = torch.empty(batch.num_tokens, self.width, dtype=self.dtype)
        with self._path(depth).open("rb") as file:
            file.seek(batch.start * self._row_bytes)
            count = file.readinto(as_bytes(states))
        if count != states.nbytes:
            raise OSError(f"{self._path(depth)} ends too early.")
        return states

    @contextmanager
    def write(self, depth: int) -> Iterator["DepthWriter"]:
        """Yield a writer for the states of a depth. They appear when all batches are written."""
        with new_file(self._path(depth)) as file:
            yield DepthWriter(file)

    def keep(self, depths: Iterable[int]) -> None:
        """Delete the states of all other depths."""
        kept = {self._path(depth) for depth in depths}
        for path in self.folder.glob("depth-*.bin"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, depth: int) -> Path:
        return self.folder / f"depth-{depth}.bin"


class DepthWriter:
    """Writes the states of one depth, batch after batch."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, states: Tensor) -> None:
        """Write the states of the next batch, [tokens, width] without padding."""
        self._file.write(as_bytes(states.cpu().contiguous()))


class KeptStates:
    """states.safetensors of a run, whose header and size are known from the start.

    Args:
        path: The file. It is created, or opened if an earlier run left it.
        shapes: The tensors by name: dtype and shape.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._header, self._offsets, self.num_bytes = lay_out(shapes)
        self._shapes = shapes
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        os.ftruncate(self._descriptor, self.num_bytes)
        write_all(self._descriptor, self._header, 0)

    def add(self, name: str, row: int, values: Tensor) -> None:
        """Write rows of a tensor, from `row` on."""
        dtype, shape = self._shapes[name]
        offset = self._offsets[name] + row * prod(shape[1:]) * dtype.itemsize
        write_all(self._descriptor, as_bytes(values.to(dtype).cpu().contiguous()), offset)

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def lay_out(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[bytes, dict[str, int], int]:
    """Make the header of a safetensors file: its bytes, the absolute offset of each tensor, and the file's size."""
    # Wide elements first, as the safetensors library does, so that each tensor is aligned to its element size.
    ordered = sorted(shapes.items(), key=lambda item: -item[1][0].itemsize)
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position, starts = 0, {}
    for name, (dtype, shape) in ordered:
        end = position + prod(shape) * dtype.itemsize
        fields[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        starts[name], position = position, end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}, len(header) + position
