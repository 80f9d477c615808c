"""`measure_layers`: what each layer and each block of layers does to the hidden states of texts."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import Tensor

from layer_surgeon._format import find_runs
from layer_surgeon.donor.exit import not_finite
from layer_surgeon.errors import ConfigError, DataError, WorkspaceError
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.run.batches import Batch
from layer_surgeon.run.fetching import ByteCounter
from layer_surgeon.run.inputs import SourceLike, prepare_run, walk_inputs
from layer_surgeon.run.layer_sums import BlockSums, LayerMeasure
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.states import HiddenStates, is_states
from layer_surgeon.run.text_list import TextsLike

DropBy = Literal["influence", "block"]

# Tokens that are read at a time from the states of an earlier run.
_BATCH_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class LayerMeasures:
    """Measures of all layers, and of all blocks of `block` neighbouring layers.

    Attributes:
        source: Name of the model.
        commit: Its commit, if it is on the Hub.
        num_texts: Number of texts.
        num_tokens: Number of their tokens.
        layers: The measures of each layer.
        block: The number of layers in a block.
        blocks: The measures of each block: of layers 0 to block - 1, 1 to block, ... Empty if there is no `block`.
    """

    source: str
    commit: str | None
    num_texts: int
    num_tokens: int
    layers: tuple[LayerMeasure, ...]
    block: int | None
    blocks: tuple[LayerMeasure, ...]

    def suggest_drop(self, count: int, by: DropBy = "influence") -> tuple[int, ...]:
        """Choose layers to drop.

        Args:
            count: How many.
            by: `influence` takes the layers with the smallest block influence, wherever they are (ShortGPT). `block`
                takes the neighbouring layers with the smallest angular distance (Gromov et al.).

        Returns:
            The layers, in order.

        Raises:
            ConfigError: There are not so many layers, or blocks of this length were not measured.
        """
        check_num_dropped(count, len(self.layers))
        if by == "influence":
            ranked = sorted(self.layers, key=lambda measure: measure.block_influence)
            return tuple(sorted(measure.layer for measure in ranked[:count]))
        blocks = self.layers if count == 1 else self.blocks if self.block == count else ()
        if not blocks:
            raise ConfigError(
                f"Blocks of {count} layers were not measured, but of {self.block or 'none'}. Measure with a block of "
                f"{count} layers."
            )
        first = min(blocks, key=lambda measure: measure.angular_distance).layer
        return tuple(range(first, first + count))


def check_num_dropped(count: int, num_layers: int) -> None:
    """Check that `count` of `num_layers` layers can be dropped.

    Raises:
        ConfigError: They can't.
    """
    if not 0 < count < num_layers:
        raise ConfigError(f"{count} of {num_layers} layers can't be dropped. Choose 1 to {num_layers - 1}.")


def measure_layers(
    source: SourceLike | HiddenStates,
    texts: TextsLike | None = None,
    *,
    block: int | None = None,
    linear: bool = True,
    config: RunConfig | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> LayerMeasures:
    """Measure what each layer does to the hidden states of texts, one layer of the model at a time.

    Args:
        source: A model, as in `run_layers`; or the states of an earlier run with `pool="none"` and all layers, or their
            folder.
        texts: As in `run_layers`. None for the states of an earlier run.
        block: Also measure each block of so many neighbouring layers.
        linear: Also fit a linear map from input to output. For a width of 4,096, this takes 0.5 GB of memory, and the
            same again for blocks.
        config: Settings of the run. `layers`, `pool` and `score` don't matter.
        revision: Branch, tag or commit of a Hub repo. None is its main branch.
        token: Access token for a Hub repo. None uses the one from `hf auth login`.
        progress: Reports the tokens that went through a layer.
        settings: Fields of `RunConfig` that override `config`.

    Raises:
        ConfigError: The model has fewer layers than a block, or the settings ask for several processes.
        DataError: There are no texts, or the states are not those of all tokens and layers.
        LayerSurgeonError: As `run_layers`.
    """
    if isinstance(source, HiddenStates) or (isinstance(source, str | os.PathLike) and is_states(source)):
        states = source if isinstance(source, HiddenStates) else HiddenStates.open(source)
        if texts is not None or config is not None or revision is not None or settings:
            raise ConfigError(
                f"{states.path} has the states of an earlier run, so texts, a revision and settings of a run can't be "
                "given. Leave them out, or name a model."
            )
        return _measure_states(states, block=block, linear=linear)
    if texts is None:
        raise DataError("Texts are missing. Name a file with texts, or the folder of an earlier run with pool none.")
    config, progress = RunConfig.from_settings(config, settings), progress or NullProgress()
    if config.workers != 1 or config.executor != "local":
        raise ConfigError(
            f"workers is {config.workers} and executor {config.executor}, but measuring takes one process. Run the "
            "model with several processes and pool none, and measure the states."
        )
    inputs = prepare_run(source, texts, config, revision=revision, token=token, progress=progress)
    num_layers = inputs.checkpoint.num_layers
    observer = MeasureObserver(num_layers, inputs.tokens.batches, block=block, linear=linear)
    with TemporaryDirectory(prefix="layer-surgeon-") as folder, _explain_full_disk(folder):
        walk_inputs(
            inputs,
            Path(folder),
            last_depth=num_layers,
            counter=ByteCounter(),
            progress=progress,
            observer=observer,
        )
    origin = inputs.checkpoint.source
    return observer.result(origin.name, origin.commit if origin.kind == "hub" else None)


@contextmanager
def _explain_full_disk(folder: str) -> Iterator[None]:
    """Say what to do if the temporary folder is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise WorkspaceError(
            f"The disk of the temporary folder {folder} is full. Name a folder on a larger one in the environment "
            "variable TMPDIR."
        ) from error


def _measure_states(states: HiddenStates, *, block: int | None, linear: bool) -> LayerMeasures:
    """Measure the states of an earlier run, a part of the texts at a time."""
    num_layers = int(states.info["num_layers"])
    if states.pool != "none" or states.layers != tuple(range(num_layers + 1)):
        raise DataError(
            f"{states.path} has the states after {format_layers(states.layers)} layers with pool {states.pool}. "
            f"Measuring needs all tokens after 0 to {num_layers} layers: run the model again with --pool none and "
            "without --layers."
        )
    batches = _batches_of(states)
    observer = MeasureObserver(num_layers, batches, block=block, linear=linear)
    for layer in range(num_layers):
        for batch in batches:
            tokens = slice(batch.start, batch.start + batch.num_tokens)

            def earlier(distance: int, depth: int = layer + 1, tokens: slice = tokens) -> Tensor:
                return states[depth - distance][tokens]

            after = earlier(0)
            if not after.isfinite().all():  # Earlier versions stored such states.
                raise not_finite("The states", after.dtype)
            observer.observe(layer, earlier(1), after, earlier)
        observer.finish_layer(layer)
    origin = states.info["source"]
    return observer.result(str(origin["name"]), origin["commit"] if origin["kind"] == "hub" else None)


def _batches_of(states: HiddenStates) -> tuple[Batch, ...]:
    """Cut the texts of a run, in their order, into batches of about `_BATCH_TOKENS` tokens."""
    offsets = [int(offset) for offset in states.offsets]
    batches: list[Batch] = []
    first = 0
    for last in range(1, len(offsets)):
        if offsets[last] - offsets[first] >= _BATCH_TOKENS or last == len(offsets) - 1:
            lengths = tuple(offsets[text + 1] - offsets[text] for text in range(first, last))
            batches.append(Batch(texts=tuple(range(first, last)), lengths=lengths, start=offsets[first]))
            first = last
    return tuple(batches)


class MeasureObserver:
    """Measures layers while texts go through them: a `LayerObserver` of a run.

    Args:
        num_layers: The model's number of layers.
        batches: The batches of texts, in the order in which they go through a layer.
        block: The number of layers in a block; None measures no blocks.
        linear: Whether to fit linear maps.

    Raises:
        ConfigError: The model doesn't have so many layers.
    """

    def __init__(
        self, num_layers: int, batches: Sequence[Batch], *, block: int | None = None, linear: bool = True
    ) -> None:
        if block is not None and not 1 < block <= num_layers:
            raise ConfigError(f"A block has {block} layers; it must have 2 to {num_layers}, the layers of the model.")
        self._batches, self._block, self._linear = batches, block, linear
        self._next_batch = 0
        self._sums: dict[int, BlockSums] = {}
        self._layers: list[LayerMeasure] = []
        self._blocks: list[LayerMeasure] = []

    @property
    def history(self) -> int:
        """How many depths before the current one are needed."""
        return self._block or 1

    def observe(self, layer: int, before: Tensor, after: Tensor, earlier: Callable[[int], Tensor]) -> None:
        """Add the next batch."""
        batch = self._batches[self._next_batch]
        self._next_batch += 1
        for length in (1, self._block):
            if length is None or layer + 1 < length:
                continue
            if length not in self._sums:
                self._sums[length] = BlockSums(layer + 1 - length, length, linear=self._linear)
            states = before if length == 1 else earlier(length)
            self._sums[length].add(batch.texts, batch.lengths, states, after)

    def finish_layer(self, layer: int) -> None:
        """Compute the measures of the layer, and of the block that ends with it."""
        for length, sums in self._sums.items():
            (self._layers if length == 1 else self._blocks).append(sums.measure())
        self._sums.clear()
        self._next_batch = 0

    def result(self, source: str, commit: str | None) -> LayerMeasures:
        """Return the measures of all layers of a model."""
        return LayerMeasures(
            source=source,
            commit=commit,
            num_texts=sum(len(batch.texts) for batch in self._batches),
            num_tokens=sum(batch.num_tokens for batch in self._batches),
            layers=tuple(self._layers),
            block=self._block,
            blocks=tuple(self._blocks),
        )


def format_layers(layers: Iterable[int]) -> str:
    """Write layers as `surgeon assemble --drop` takes them: `3,7,10:13`."""
    return ",".join(str(first) if first == last else f"{first}:{last + 1}" for first, last in find_runs(list(layers)))
