"""Read recipes from YAML files: our own format, and mergekit's with the merge method `passthrough`.

Ours:

    slices:
      - source: meta-llama/Llama-3.1-8B
        layers: 0:16
      - source: another/Llama-3.1-8B
        layers: 8:24
    dtype: bfloat16

mergekit's (https://github.com/arcee-ai/mergekit):

    slices:
      - sources:
          - model: meta-llama/Llama-3.1-8B
            layer_range: [0, 16]
      - sources:
          - model: another/Llama-3.1-8B
            layer_range: [8, 24]
    merge_method: passthrough
    dtype: bfloat16
"""

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from layer_surgeon._yaml import read_yaml
from layer_surgeon.assemble.recipe import AssemblyRecipe, LayerSlice
from layer_surgeon.errors import ConfigError

_SLICE_KEYS = tuple(item.name for item in fields(LayerSlice))
_RECIPE_KEYS = tuple(item.name for item in fields(AssemblyRecipe))
_MERGEKIT_KEYS = ("slices", "merge_method", "dtype")
# What to write instead of settings of mergekit that a recipe of ours can express.
_INSTEAD = {
    "parameters": "To scale what a layer adds, or to add silent copies, use `scale`, `silent` or `expand` of our own "
    "recipe format",
    "models": "List the layers under `slices`",
    "base_model": "The config and the embeddings come from the model of the first slice",
    "out_dtype": "Use dtype",
    "tokenizer_source": "The tokenizer comes from the model of the first slice",
    "tokenizer": "The tokenizer comes from the model of the first slice",
}
_DOCS = "docs/assemble.md lists what a recipe can hold."


def read_recipe(path: Path) -> AssemblyRecipe:
    """Read a recipe from a YAML file.

    Raises:
        ConfigError: It can't be read, or has an unknown key, an unsupported setting or an invalid value.
    """
    content = read_yaml(path)
    slices = content.get("slices")
    entries = slices if isinstance(slices, list) else []
    is_mergekit = "merge_method" in content or any(isinstance(entry, dict) and "sources" in entry for entry in entries)
    return _mergekit_recipe(content, path) if is_mergekit else _recipe(content, path)


def _recipe(content: Mapping[str, Any], path: Path) -> AssemblyRecipe:
    _check_keys(content, _RECIPE_KEYS, f"{path}")
    slices = tuple(LayerSlice(**entry) for entry in _entries(content, path, _SLICE_KEYS, "source"))
    settings = {name: value for name, value in content.items() if name != "slices" and value is not None}
    return AssemblyRecipe(slices=slices, **settings)


def _mergekit_recipe(content: Mapping[str, Any], path: Path) -> AssemblyRecipe:
    _check_keys(content, _MERGEKIT_KEYS, f"{path}")
    method = content.get("merge_method")
    if method != "passthrough":
        raise ConfigError(
            f"{path} has the merge_method {method!r}, but only passthrough is supported: it takes layers as they are, "
            f"while others compute new weights. {_DOCS}"
        )
    slices = []
    for entry in _entries(content, path, ("sources",), "sources"):
        sources = entry["sources"]
        if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
            raise ConfigError(f"{path} has a slice with sources {sources!r}; passthrough needs exactly one. {_DOCS}")
        slices.append(_mergekit_slice(sources[0], path))
    # mergekit takes what follows the last layer from the model of the last slice.
    head = slices[-1].source if slices else None
    return AssemblyRecipe(slices=tuple(slices), head=head, dtype=content.get("dtype"))


def _mergekit_slice(source: Mapping[str, Any], path: Path) -> LayerSlice:
    _check_keys(source, ("model", "layer_range"), f"A source in {path}")
    model, layer_range = source.get("model"), source.get("layer_range")
    if not isinstance(model, str) or not model:
        raise ConfigError(f"{path} has the model {model!r}; it must be a folder or a Hub repo id.")
    if not Path(model).exists():
        if "+" in model:
            raise ConfigError(
                f"{path} adds a LoRA to a model ({model}), which is not supported. Merge it first. {_DOCS}"
            )
        repo, at, revision = model.partition("@")
        model = f"hf://{repo}@{revision}" if at else model
    if not (isinstance(layer_range, list) and len(layer_range) == 2 and all(type(end) is int for end in layer_range)):
        raise ConfigError(f"{path} has the layer_range {layer_range!r}; it must be [first, end], such as [0, 16].")
    return LayerSlice(source=model, layers=f"{layer_range[0]}:{layer_range[1]}")


def _entries(content: Mapping[str, Any], path: Path, keys: Collection[str], required: str) -> list[dict[str, Any]]:
    slices = content.get("slices")
    if not isinstance(slices, list):
        raise ConfigError(f"{path} has no list of slices. {_DOCS}")
    for entry in slices:
        if not isinstance(entry, dict):
            raise ConfigError(f"{path} has the slice {entry!r}, which is not a mapping. {_DOCS}")
        _check_keys(entry, keys, f"A slice in {path}")
        if required not in entry:
            raise ConfigError(f"A slice in {path} has no {required}. {_DOCS}")
    return slices


def _check_keys(content: Mapping[str, Any], known: Collection[str], subject: str) -> None:
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        instead = _INSTEAD.get(unknown[0])
        advice = f" {instead}." if instead else ""
        raise ConfigError(f"{subject} has the key {unknown[0]!r}; known are {', '.join(known)}.{advice} {_DOCS}")
