"""Resolve a recipe to the layers of the new model: open its sources, and select, swap, scale and expand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from layer_surgeon._limits import MAX_LAYERS, check_size
from layer_surgeon.assemble.model_source import ModelSource, model_source
from layer_surgeon.assemble.recipe import AssemblyRecipe, LayerSlice, SourceRef
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.errors import ConfigError
from layer_surgeon.extract.plan import check_quantization
from layer_surgeon.extract.selection import select_part


@dataclass(frozen=True, kw_only=True)
class SelectedLayer:
    """A layer of the new model: its source, its index there, and how it is changed."""

    source: ModelSource
    layer: int
    silent: bool = False
    scale: float = 1.0


def open_sources(recipe: AssemblyRecipe, token: str | bool | None) -> tuple[dict[SourceRef, ModelSource], ModelSource]:
    """Open every source of a recipe once.

    Returns:
        The sources by the names in the recipe, the base first, and the source of the head.

    Raises:
        UnsupportedArchitectureError: A source can't be used.
        CheckpointError: A checkpoint is damaged.
        SourceError: A source can't be read.
    """
    first = recipe.slices[0].source
    head = recipe.base if recipe.head is None else recipe.head
    used = [recipe.base, *(part.source for part in recipe.slices)]
    used += [source for source, _ in recipe.replace.values()] + [head]
    checkpoints: dict[SourceRef, Checkpoint] = {}
    for reference in dict.fromkeys(used):
        revision = recipe.revision if reference == first else None
        checkpoints[reference] = (
            reference
            if isinstance(reference, Checkpoint)
            else open_checkpoint(reference, revision=revision, token=token)
        )
    names = _unique_names(list(checkpoints.values()))
    sources = {
        reference: model_source(number, name, checkpoint, text_only=recipe.text_only)
        for number, (name, (reference, checkpoint)) in enumerate(zip(names, checkpoints.items(), strict=True))
    }
    return sources, sources[head]


def _unique_names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Name each checkpoint: with its commit if others are of the same repo, and with a number if that is not enough."""
    plain = [checkpoint.source.name for checkpoint in checkpoints]
    names = [
        f"{name}@{checkpoint.commit[:12]}" if checkpoint.commit and plain.count(name) > 1 else name
        for name, checkpoint in zip(plain, checkpoints, strict=True)
    ]
    counts = [names[: index + 1].count(name) for index, name in enumerate(names)]
    return [name if count == 1 else f"{name} ({count})" for name, count in zip(names, counts, strict=True)]


def select(recipe: AssemblyRecipe, sources: Mapping[SourceRef, ModelSource]) -> tuple[SelectedLayer, ...]:
    """Resolve a recipe to the layers of the new model, in order.

    Raises:
        LayerNotFoundError: There is no such layer.
        ConfigError: A selection is malformed or selects nothing, or a position is beyond the new model.
        UnsupportedArchitectureError: A layer is quantised in an unsupported way, or FP8 without a dtype.
    """
    layers: list[SelectedLayer] = []
    for part in recipe.slices:
        layers += _slice_layers(part, sources[part.source])
        check_size(len(layers), MAX_LAYERS, "layers", ConfigError)
    if not layers:
        raise ConfigError("The recipe drops every layer, so the model would have none. Keep at least one layer.")
    for position, (reference, index) in recipe.replace.items():
        _check_position("replace", position, layers)
        source = sources[reference]
        layers[position] = SelectedLayer(source=source, layer=source.checkpoint.layer_index(index))
    for position, factor in recipe.scale.items():
        _check_position("scale", position, layers)
        layers[position] = replace(layers[position], scale=layers[position].scale * factor)
    if recipe.expand is not None:
        layers = _expand(layers, recipe.expand)
    check_size(len(layers), MAX_LAYERS, "layers", ConfigError)
    for source in sources.values():
        indices = sorted({layer.layer for layer in layers if layer.source is source})
        check_quantization(source.checkpoint, indices, recipe.dtype)
    return tuple(layers)


def _slice_layers(part: LayerSlice, source: ModelSource) -> list[SelectedLayer]:
    dropped = set(_indices(part.drop, source)) if part.drop else set()
    indices = [index for index in _indices(part.layers, source) if index not in dropped]
    return [SelectedLayer(source=source, layer=index, silent=part.silent, scale=part.scale) for index in indices]


def _indices(parts: str | int | Sequence[int | str], source: ModelSource) -> list[int]:
    indices: list[int] = []
    for part in parts if not isinstance(parts, int) else (parts,):
        selected = select_part(source.checkpoint, part)
        if not selected:
            raise ConfigError(
                f"{part!r} selects no layer of {source.name}. A slice is FIRST:END, and includes FIRST but not END."
            )
        indices += selected
        check_size(len(indices), MAX_LAYERS, "layers", ConfigError)
    return indices


def _check_position(name: str, position: int, layers: Sequence[SelectedLayer]) -> None:
    if not 0 <= position < len(layers):
        raise ConfigError(
            f"{name} names layer {position} of the new model, which has {len(layers)} layers. Choose 0 to "
            f"{len(layers) - 1}."
        )


def _expand(layers: Sequence[SelectedLayer], period: int) -> list[SelectedLayer]:
    if period > len(layers):
        raise ConfigError(
            f"expand inserts a copy after every {period} layers, but there are only {len(layers)}. Choose a number up "
            f"to {len(layers)}."
        )
    expanded: list[SelectedLayer] = []
    for count, layer in enumerate(layers, 1):
        expanded.append(layer)
        if count % period == 0:
            expanded.append(replace(layer, silent=True))
    return expanded
