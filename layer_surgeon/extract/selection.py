"""Which layers are meant: numbers, negative numbers, and slices such as `30:32`."""

import re
from collections.abc import Sequence

from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.errors import ConfigError

LayerSelection = int | str | Sequence[int | str]

_NUMBER = re.compile(r"-?\d{1,9}")
_SLICE = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?")


def select_layers(checkpoint: Checkpoint, layer: LayerSelection) -> tuple[int, ...]:
    """The indices from 0 of the layers that are meant, in the order in which they are named.

    Args:
        checkpoint: The checkpoint that has the layers.
        layer: A number (negative counts from the end), a slice as text (`30:32` is 30 and 31, `-2:` the last two), or
            several of them.

    Raises:
        LayerNotFoundError: There is no such layer.
        ConfigError: None is named, one is named twice, or a text is neither a number nor a slice.
    """
    parts = [layer] if isinstance(layer, int | str) else list(layer)
    indices: list[int] = []
    for part in parts:
        indices += _select(checkpoint, part)
    if not indices or len(set(indices)) != len(indices):
        raise ConfigError(f"layer is {layer!r}; it must name at least one layer, and none twice.")
    return tuple(indices)


def _select(checkpoint: Checkpoint, part: int | str) -> list[int]:
    if isinstance(part, int):
        return [checkpoint.layer_index(part)]
    text = part.strip()
    if _NUMBER.fullmatch(text):
        return [checkpoint.layer_index(int(text))]
    match = _SLICE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"layer is {part!r}; it must be a number such as 31 or -1, or a slice such as 30:32 (30 and 31) or -2:"
        )
    begin, end = (None if bound is None else int(bound) for bound in match.groups())
    # A slice of a list forgives any bound; here a bound that is not there is a mistake.
    if begin is not None:
        checkpoint.layer_index(begin)
    if end is not None and end != checkpoint.num_layers:
        checkpoint.layer_index(end)
    return list(range(checkpoint.num_layers))[begin:end]
