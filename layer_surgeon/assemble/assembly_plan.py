"""Plan an assembly: the new config and every byte to read and write, before any weights are read."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from layer_surgeon.assemble.compatible import check_vocabularies
from layer_surgeon.assemble.layer_settings import LayerChoice, assembled_config
from layer_surgeon.assemble.model_source import ModelSource
from layer_surgeon.assemble.recipe import AssemblyRecipe, SourceRef
from layer_surgeon.assemble.recipe_files import read_recipe
from layer_surgeon.assemble.selected_layers import SelectedLayer, open_sources, select
from layer_surgeon.assemble.shards import ShardPlan, model_tensors, plan_shards
from layer_surgeon.checkpoint.quantization import without_quantization
from layer_surgeon.errors import ConfigError
from layer_surgeon.extract.plan import main_dtype

_RECIPE_SUFFIXES = (".yaml", ".yml")
_SIZE = re.compile(r"(?P<number>\d{1,9}(?:\.\d{1,9})?)\s*(?P<unit>[KMGT]?)B", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
Recipe = AssemblyRecipe | SourceRef


@dataclass(frozen=True, kw_only=True)
class AssembledLayer:
    """One layer of the new model.

    Attributes:
        source: Name of its source.
        layer: Its index there.
        silent: Whether it adds nothing to the hidden states at first.
        scale: Factor of what it adds to the hidden states.
    """

    source: str
    layer: int
    silent: bool
    scale: float


@dataclass(frozen=True, kw_only=True)
class AssemblyPlan:
    """What an assembly will read and write.

    Attributes:
        config: The new model's config.json.
        layers: Its layers, in order.
        sources: The sources. The first is that of the config, the tokenizer and everything before the first layer.
        head: The source of everything after the last layer.
        shards: The files of weights.
        dtype: The torch name of the dtype with the most bytes.
        notes: Notices for the user, in whole sentences.
        changed: Whether the model computes something else than its source, and so needs training.
    """

    config: dict[str, Any]
    layers: tuple[AssembledLayer, ...]
    sources: tuple[ModelSource, ...]
    head: ModelSource
    shards: tuple[ShardPlan, ...]
    dtype: str
    notes: tuple[str, ...]
    changed: bool

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of weights to read, without gaps between tensors. A layer that is used twice is read once."""
        return sum(shard.num_bytes for shard in self.shards)

    @cached_property
    def num_bytes_read(self) -> int:
        """Bytes that the requests ask for: the weights, and the gaps between them."""
        return sum(shard.num_bytes_read for shard in self.shards)

    @cached_property
    def num_requests(self) -> int:
        """Number of reads of weights. Planning itself already read the headers of the checkpoints' files."""
        return sum(shard.num_requests for shard in self.shards)

    @cached_property
    def num_out_bytes(self) -> int:
        """Size of the new model's files of weights in bytes, including their headers."""
        return sum(shard.num_out_bytes for shard in self.shards)

    @cached_property
    def num_parameters(self) -> int:
        """Number of elements of all tensors of the new model."""
        return sum(tensor.source.num_elements for shard in self.shards for tensor in shard.written)

    @cached_property
    def num_source_bytes(self) -> int | None:
        """Size of all files of weights of the sources in bytes; None if a source doesn't list sizes."""
        sizes: list[int | None] = []
        for source in self.sources:
            listed = source.checkpoint.source.list_files()
            sizes += [listed.get(file) for file in sorted(set(source.checkpoint.table.files().values()))]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


def as_recipe(recipe: Recipe, settings: dict[str, Any]) -> AssemblyRecipe:
    """Return the recipe that a caller means: a recipe, a YAML file, or a source with settings.

    Raises:
        ConfigError: The file or a setting is invalid, or a recipe and settings contradict each other.
    """
    if isinstance(recipe, str | os.PathLike):
        path = Path(recipe)
        if path.name.endswith(_RECIPE_SUFFIXES) and not path.is_dir():
            recipe = read_recipe(path)
    if not isinstance(recipe, AssemblyRecipe):
        return AssemblyRecipe.of(recipe, **settings)
    overrides = {name: value for name, value in settings.items() if value is not None}
    contradicting = sorted(set(overrides) - {"dtype", "text_only"})
    if contradicting:
        raise ConfigError(
            f"{contradicting[0]} can't be combined with a recipe. Write it into the recipe; only dtype and text_only "
            "can be given next to it."
        )
    return recipe.with_settings(**overrides)


def plan_assembly(
    recipe: Recipe,
    *,
    max_shard_size: int | str = "5GB",
    token: str | bool | None = None,
    **settings: Any,
) -> AssemblyPlan:
    """Plan an assembly. Reads configs and headers, but no weights.

    Args:
        recipe: A recipe, the YAML file of one, or a source with settings.
        max_shard_size: Largest size of a file of weights, in bytes or as text such as `5GB`. A larger tensor gets a
            file of its own.
        token: Access token for Hub repos. None uses the one from `hf auth login`.
        settings: For a source: `layers`, `keep` or `drop`, and the other settings of `AssemblyRecipe.of`.

    Raises:
        ConfigError: The recipe or a setting is invalid, or selects no layer.
        LayerNotFoundError: There is no such layer.
        AssemblyError: Layers of different sources don't fit together.
        UnsupportedArchitectureError: No config can describe the new model, or a source can't be used.
        CheckpointError: A checkpoint is damaged.
        SourceError: A source can't be read.
    """
    recipe = as_recipe(recipe, settings)
    shard_bytes = parse_size(max_shard_size)
    by_reference, head = open_sources(recipe, token)
    sources = tuple(by_reference.values())
    layers = select(recipe, by_reference)
    base = sources[0]
    config = assembled_config(
        base.config,
        [
            LayerChoice(config=layer.source.config, layer=layer.layer, silent=layer.silent, scale=layer.scale)
            for layer in layers
        ],
    )
    check_vocabularies(base, sources[1:])
    tensors, notes = model_tensors(base, head, layers, recipe.dtype)
    shards = plan_shards(tensors, [source.checkpoint.source.connections for source in sources], shard_bytes)
    dtype = main_dtype(tensor for shard in shards for tensor in shard.written)
    if recipe.dtype is not None or base.checkpoint.format == "gguf":
        config = _with_dtype(without_quantization(config), dtype)
    for source in sources:
        notes += source.checkpoint.table.notes
    return AssemblyPlan(
        config=config,
        layers=tuple(
            AssembledLayer(source=layer.source.name, layer=layer.layer, silent=layer.silent, scale=layer.scale)
            for layer in layers
        ),
        sources=sources,
        head=head,
        shards=shards,
        dtype=dtype,
        notes=tuple(dict.fromkeys(notes)),
        changed=head is not base or _is_changed(base, layers),
    )


def parse_size(size: int | str) -> int:
    """Parse a size such as `5GB` to bytes. Units are powers of 1000, as in transformers.

    Raises:
        ConfigError: It is not a positive size.
    """
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is not None:
        size = int(float(match["number"]) * _UNITS[match["unit"].upper()])
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"max_shard_size is {size!r}; it must be a size such as 5GB or 500MB.")
    return size


def _is_changed(base: ModelSource, layers: Sequence[SelectedLayer]) -> bool:
    audible = [(layer.source.number, layer.layer, layer.scale) for layer in layers if not layer.silent]
    return audible != [(base.number, layer, 1.0) for layer in range(base.checkpoint.num_layers)]


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with another dtype, under the key that it uses."""
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    return config | dict.fromkeys(keys, dtype)
