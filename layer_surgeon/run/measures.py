"""`measure_layers`: what each layer and each block of layers does to the hidden states of texts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from layer_surgeon.errors import ConfigError
from layer_surgeon.run.batches import Batch
from layer_surgeon.run.layer_sums import BlockSums, LayerMeasure

DropBy = Literal["influence", "block"]


@dataclass(frozen=True, kw_only=True)
class LayerMeasures:
    """Measures of all layers, and of all blocks of `block` neighbouring layers.

    Attributes:
        source: Name of the model, or of the folder of states.
        num_texts: Number of texts.
        num_tokens: Number of their tokens.
        layers: The measures of each layer.
        block: The number of layers in a block.
        blocks: The measures of each block: of layers 0 to block - 1, 1 to block, ... Empty if there is no `block`.
    """

    source: str
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
        if not 0 < count < len(self.layers):
            raise ConfigError(
                f"{count} of {len(self.layers)} layers can't be dropped. Choose 1 to {len(self.layers) - 1}."
            )
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


class MeasureObserver:
    """Measures layers while texts go through them: a `LayerObserver` of a run.

    Args:
        num_layers: The model's number of layers.
        block: The number of layers in a block; None measures no blocks.
        linear: Whether to fit linear maps.

    Raises:
        ConfigError: The model doesn't have so many layers.
    """

    def __init__(self, num_layers: int, *, block: int | None = None, linear: bool = True) -> None:
        if block is not None and not 1 < block <= num_layers:
            raise ConfigError(f"A block has {block} layers; it must have 2 to {num_layers}, the layers of the model.")
        self._block, self._linear = block, linear
        self._sums: dict[int, BlockSums] = {}
        self.layers: list[LayerMeasure] = []
        self.blocks: list[LayerMeasure] = []

    @property
    def history(self) -> int:
        """How many depths before the current one are needed."""
        return self._block or 1

    def observe(
        self, layer: int, batch: Batch, before: Tensor, after: Tensor, earlier: Callable[[int], Tensor]
    ) -> None:
        """Add a batch."""
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
            (self.layers if length == 1 else self.blocks).append(sums.measure())
        self._sums.clear()


def format_layers(layers: Iterable[int]) -> str:
    """Write layers as `surgeon assemble --drop` takes them: `3,7,10:13`."""
    return ",".join(
        str(first) if first == last else f"{first}:{last + 1}" for first, last in _runs_of_neighbours(list(layers))
    )


def _runs_of_neighbours(layers: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = None
    for index, layer in enumerate(layers):
        if first is None:
            first = layer
        if index + 1 == len(layers) or layers[index + 1] != layer + 1:
            yield first, layer
            first = None
