"""Fetch layers one after another: the next one while the current one computes.

Layers of a local checkpoint are read straight into memory. Meanwhile, the operating system is asked to read the next
one into its cache, which takes no memory of the process. Layers from elsewhere, and those that are kept, go through
`extract_layer` into a folder on the disk. An interrupted layer is therefore continued.
"""

import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from layer_surgeon._io import locked
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.safetensors import SINGLE_FILE
from layer_surgeon.checkpoint.sources import FolderSource
from layer_surgeon.checkpoint.sources.base import stoppable_pool
from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.donor.files import read_weights
from layer_surgeon.donor.tensors import split_by_layer
from layer_surgeon.errors import SourceError
from layer_surgeon.extract import LayerArtifact, extract_layer, plan_extraction
from layer_surgeon.extract.dtypes import NAME_OF_CODE
from layer_surgeon.extract.memory import read_tensors
from layer_surgeon.extract.plan import CopyPlan
from layer_surgeon.progress import NullProgress
from layer_surgeon.run.state_files import as_bytes
from layer_surgeon.workspace import Workspace, layer_name


class ByteCounter(NullProgress):
    """Counts bytes as they arrive, and can stop the reader."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.stopped = threading.Event()

    def advance(self, amount: int) -> None:
        """Count bytes.

        Raises:
            SourceError: After `stop`.
        """
        if self.stopped.is_set():
            raise SourceError("The run was stopped.")
        self.num_bytes += amount

    def stop(self) -> None:
        """Stop reading at the next bytes. What an extraction has read is kept, as after a network failure."""
        self.stopped.set()


def read_plan(checkpoint: Checkpoint, plan: CopyPlan, counter: ByteCounter) -> dict[str, Tensor]:
    """Read the tensors of a plan into memory, by name.

    Raises:
        SourceError: The source can't be read.
    """
    # Each tensor gets its own memory, because its alignment selects kernels; see donor/files.py.
    tensors = [torch.empty(planned.source.shape, dtype=torch_dtype(planned.codec.dtype)) for planned in plan.planned]
    read_tensors(checkpoint.source, plan, [as_bytes(tensor) for tensor in tensors], counter)
    return {planned.name: tensor for planned, tensor in zip(plan.planned, tensors, strict=True)}


def torch_dtype(code: str) -> torch.dtype:
    """The element type of a safetensors code, such as `BF16`."""
    dtype: torch.dtype = getattr(torch, NAME_OF_CODE[code])
    return dtype


def _no_donor() -> None:
    return None


class LayerFetcher:
    """Context manager that yields the layers of a checkpoint, in order.

    Args:
        checkpoint: The checkpoint.
        indices: The layers that will be asked for, in this order.
        dtype: As in `plan_extraction`.
        weights_dtype: The element type that layers compute in.
        folder: Where layers that don't come from this machine are put until they are loaded.
        workspace: Keep each layer as an artifact in this workspace. None: keep none.
        force: Replace other artifacts in that workspace.
        counter: Counts the bytes that are read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        indices: Sequence[int],
        *,
        dtype: str | None,
        weights_dtype: torch.dtype,
        folder: Path,
        workspace: Workspace | None,
        force: bool,
        counter: ByteCounter,
    ) -> None:
        self._checkpoint, self._dtype, self._folder, self._workspace = checkpoint, dtype, folder, workspace
        self._weights_dtype, self._counter, self._force = weights_dtype, counter, force
        self._next_of = dict(zip(indices, [*indices[1:], None], strict=False))
        self._is_direct = workspace is None and checkpoint.source.connections == 1
        self._pool = stoppable_pool(1, "fetch", counter.stopped)
        self._pending: dict[int, Future[LayerArtifact]] = {}
        self._last_donor: Callable[[], DonorLayer | None] = _no_donor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._counter.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that were read."""
        return self._counter.num_bytes

    def load(self, index: int, device: str) -> DonorLayer:
        """Load a layer, and begin to fetch the next one.

        Raises:
            SourceError: The source can't be read.
            ArtifactError: The layer doesn't match the config, or the disk is full.
            UnsupportedArchitectureError: The layer can't be run by itself.
        """
        if self._last_donor() is not None:
            # Modules of some families, such as mamba, are in reference cycles. Don't hold two layers.
            gc.collect()
        tensors = self._read(index) if self._is_direct else self._take(index)
        following = self._next_of.get(index)
        if following is not None:
            self._begin(following)
        config = SurgeonDonorConfig(donor_config=self._checkpoint.plain_config, layer_indices=[index])
        donor = DonorLayer.from_tensors(config, [tensors], dtype=self._weights_dtype)
        tensors.clear()
        donor.to(device)
        donor.probe(causal_only=True)
        self._last_donor = weakref.ref(donor)
        return donor

    def _read(self, index: int) -> dict[str, Tensor]:
        plan = plan_extraction(self._checkpoint, index, dtype=self._dtype)
        tensors = read_plan(self._checkpoint, plan, self._counter)
        return split_by_layer(tensors, [index])[0]

    def _take(self, index: int) -> dict[str, Tensor]:
        self._begin(index)
        artifact = self._pending.pop(index).result()
        with self._alone(artifact.path):
            tensors = split_by_layer(read_weights(artifact.path / SINGLE_FILE), [index])[0]
        if self._workspace is None:
            shutil.rmtree(artifact.path)
        return tensors

    def _alone(self, folder: Path) -> AbstractContextManager[None]:
        """Make other processes with shares of the texts wait, if they keep layers in the same folder."""
        return nullcontext() if self._workspace is None else locked(folder.with_name(f".{folder.name}.wait"), wait=True)

    def _begin(self, index: int) -> None:
        if self._is_direct:
            source = self._checkpoint.source
            if isinstance(source, FolderSource):
                source.will_need(
                    piece.range for piece in plan_extraction(self._checkpoint, index, dtype=self._dtype).pieces
                )
        elif index not in self._pending:
            self._pending[index] = self._pool.submit(self._extract, index)

    def _extract(self, index: int) -> LayerArtifact:
        if self._workspace is None:
            output = self._folder / f"layer-{index}"
        else:
            output = self._workspace.folder("layer", layer_name(self._checkpoint.source.name, [index]))
        with self._alone(output):
            return extract_layer(
                self._checkpoint, index, output, dtype=self._dtype, progress=self._counter, force=self._force
            )
