"""`walk_layers`: take all texts through one layer after another, with the states of each depth on disk."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from layer_surgeon.donor import DonorLayer
from layer_surgeon.donor.entrance import DonorEntrance
from layer_surgeon.donor.exit import not_finite
from layer_surgeon.progress import Progress
from layer_surgeon.run.batches import Batch
from layer_surgeon.run.fetching import LayerFetcher
from layer_surgeon.run.state_files import DepthFiles


class LayerObserver(Protocol):
    """Sees the states of all tokens before and after each layer.

    `observe` is called once per batch of whole texts and layer, and `finish_layer` after the last batch of a layer.
    States are [tokens, donor_hidden], without padding, in the dtype of the computation, on its device. The tokens of a
    batch are in the same order at each depth. Observers must not modify states.
    """

    @property
    def history(self) -> int:
        """How many depths before the current one `earlier` can return; at least 1."""

    def observe(self, layer: int, before: Tensor, after: Tensor, earlier: Callable[[int], Tensor]) -> None:
        """Receive the states of a batch before and after a layer.

        Args:
            layer: Index of the layer.
            before: Its input.
            after: Its output.
            earlier: `earlier(n)` are the states of the same tokens n layers before `after`, so `earlier(1)` is
                `before`, for n up to `history` and up to `layer + 1`. They are read from the disk.
        """

    def finish_layer(self, layer: int) -> None:
        """Do what is to be done when all texts went through a layer."""


@dataclass(frozen=True, kw_only=True)
class TokenBatches:
    """The texts of a run.

    Attributes:
        ids: The token ids of each text.
        batches: The texts in batches.
        pad_id: The token at positions of padding.
    """

    ids: tuple[tuple[int, ...], ...]
    batches: tuple[Batch, ...]
    pad_id: int

    def input_ids(self, batch: Batch) -> Tensor:
        """Token ids of a batch, [batch, seq]."""
        rows = [self.ids[text] for text in batch.texts]
        return torch.tensor([[*row, *[self.pad_id] * (batch.width - len(row))] for row in rows])


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What a walk needs.

    Attributes:
        texts: The texts.
        files: Where the states of the depths are written and read.
        last_depth: The walk ends after so many layers.
        device: Where layers compute.
        progress: Receives the number of tokens that went through a layer.
        keep: Called with a depth, a batch and its states, [tokens, donor_hidden], at each depth from 0 on.
        finish_depth: Called when `keep` has received all states of a depth, before the depth counts as complete.
        observer: Sees the states before and after each layer.
    """

    texts: TokenBatches
    files: DepthFiles
    last_depth: int
    device: str
    progress: Progress
    keep: Callable[[int, Batch, Tensor], None] | None = None
    finish_depth: Callable[[int], None] | None = None
    observer: LayerObserver | None = None


def name_layers(last_depth: int) -> str:
    """Name the layers of a walk, for its progress."""
    return f"layers 0 to {last_depth - 1}" if last_depth else "embeddings"


def walk_layers(walk: Walk, entrance: DonorEntrance | None, fetcher: LayerFetcher) -> None:
    """Take all texts through the layers that are left.

    Depths that are complete on the disk are not computed again. An observer needs a walk from the start.

    Args:
        walk: What the walk needs.
        entrance: What acts before the first layer. None if the states that enter it are on the disk.
        fetcher: Fetches the layers.

    Raises:
        SourceError: A layer can't be read.
        UnsupportedArchitectureError: A layer can't be run by itself.
        CheckpointError: The states of a token are infinite or NaN.
    """
    done = [depth for depth in walk.files.depths() if depth <= walk.last_depth]
    first = done[-1] + 1 if done else 0
    num_tokens = walk.files.num_tokens
    walk.progress.begin(name_layers(walk.last_depth), num_tokens * walk.last_depth, "tokens")
    walk.progress.advance(num_tokens * max(first - 1, 0))
    for depth in range(first, walk.last_depth + 1):
        if depth == 0 and entrance is not None:
            _enter(walk, entrance)
        else:
            _run_layer(walk, depth, fetcher.load(depth - 1, walk.device), fetcher)
    walk.progress.end()


def _enter(walk: Walk, entrance: DonorEntrance) -> None:
    with torch.no_grad(), walk.files.write(0) as writer:
        for batch in walk.texts.batches:
            mask = None if batch.mask is None else batch.mask.to(walk.device)
            states = batch.unpad(entrance(walk.texts.input_ids(batch).to(walk.device), mask))
            _check_finite(states, "The embeddings")
            writer.add(states)
            if walk.keep is not None:
                walk.keep(0, batch, states)
        if walk.finish_depth is not None:
            walk.finish_depth(0)


def _run_layer(walk: Walk, depth: int, layer: DonorLayer, fetcher: LayerFetcher) -> None:
    files, observer = walk.files, walk.observer
    started, num_done = time.monotonic(), 0
    with torch.no_grad(), files.write(depth) as writer:
        for batch in walk.texts.batches:
            before = files.read(depth - 1, batch).to(walk.device)
            mask = None if batch.mask is None else batch.mask.to(walk.device)
            after = batch.unpad(layer(batch.pad(before), attention_mask=mask))
            _check_finite(after, f"After layer {depth - 1}, the states")
            writer.add(after)
            if walk.keep is not None:
                walk.keep(depth, batch, after)
            if observer is not None:
                observer.observe(depth - 1, before, after, _earlier(walk, depth, batch))
            num_done += batch.num_tokens
            walk.progress.advance(batch.num_tokens)
            speed = num_done / max(time.monotonic() - started, 1e-9)
            walk.progress.metrics({"layer": depth - 1, "tokens/s": speed, "read": fetcher.num_bytes})
        if walk.finish_depth is not None:
            walk.finish_depth(depth)
    if observer is not None:
        observer.finish_layer(depth - 1)
    history = 1 if observer is None else observer.history
    files.keep(range(depth - history + 1, depth + 1))


def _check_finite(states: Tensor, what: str) -> None:
    if not torch.isfinite(states).all():
        raise not_finite(what, states.dtype)


def _earlier(walk: Walk, depth: int, batch: Batch) -> Callable[[int], Tensor]:
    def read(distance: int) -> Tensor:
        return walk.files.read(depth - distance, batch).to(walk.device)

    return read


def needed_tokens(ids: Iterable[Iterable[int]], pad_id: int) -> Tensor:
    """The tokens that texts need, sorted, each once."""
    return torch.tensor(sorted({pad_id, *(token for text in ids for token in text)}))
