"""Resolve layer selections: indices, negative indices, and slices such as `30:32`."""

from collections.abc import Iterable, Sequence

from layer_surgeon._indices import select_indices
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.errors import ConfigError

LayerSelection = int | str | Sequence[int | str]


def select_layers(checkpoint: Checkpoint, layer: LayerSelection) -> tuple[int, ...]:
    """Resolve a selection to layer indices, counted from 0, in the order of the selection.

    Args:
        checkpoint: The checkpoint that has the layers.
        layer: An index (negative numbers count from the end), a slice as a string (`30:32` means 30 and 31, `-2:` the
            last two layers), or several of these.

    Raises:
        LayerNotFoundError: There is no such layer.
        ConfigError: No layer is named, one is named twice, or a string is neither a number nor a slice.
    """
    parts = list(layer) if isinstance(layer, Iterable) and not isinstance(layer, str) else [layer]
    indices: list[int] = []
    for part in parts:
        indices += select_part(checkpoint, part)
    if not indices or len(set(indices)) != len(indices):
        raise ConfigError(f"layer is {layer!r}; it must name at least one layer, and no layer twice.")
    return tuple(indices)


def select_part(checkpoint: Checkpoint, part: int | str) -> list[int]:
    """Resolve one index or slice to layer indices, counted from 0.

    Raises:
        LayerNotFoundError: There is no such layer.
        ConfigError: A string is neither a number nor a slice.
    """
    indices = select_indices(part, checkpoint.num_layers, checkpoint.layer_index)
    if indices is None:
        raise ConfigError(
            f"layer is {part!r}; it must be a number such as 31 or -1, or a slice such as 30:32 (30 and 31) or -2:"
        )
    return indices
