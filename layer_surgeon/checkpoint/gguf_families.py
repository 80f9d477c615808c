"""What transformers makes of a GGUF file: its config, and the name, shape and layout of each tensor.

The rules are in `gguf_families.json`, so neither transformers nor torch is imported. The script
`tools/generate_gguf_families.py` generates that file by asking transformers, and tests compare it with the installed
version.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any

from layer_surgeon.checkpoint.gguf_header import GgufHeader
from layer_surgeon.checkpoint.gguf_table import gguf_table
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError

_TOKENS = "tokenizer.ggml.tokens"
# A header of 300 kB can name 4,000 layers. The deepest models in use have about 200.
_MAX_LAYERS = 512
_AGAIN = "Get the file again, or convert the model again."


class Layout(StrEnum):
    """How llama.cpp stores the numbers of a tensor."""

    SAME = "same"
    """As transformers does. A convolution lacks the dimension of its channels, which has size 1."""
    PLUS_ONE = "plus one"
    """weight + 1. The norms of Gemma and Nemotron multiply by that."""
    EXPONENT = "exponent"
    """-exp(weight). Mamba's decay is that."""
    TRANSPOSED = "transposed"
    """[out, in]. In transformers, the matrices of GPT-2 are [in, out]."""
    ROTARY = "rotary"
    """The rows of each attention head in the order (pair, half) instead of (half, pair)."""
    SPLIT_HEADS = "split heads"
    """All queries, all keys, all values, instead of the query, key and value of each head."""


# The rows of a head come in pairs, or are a query, a key and a value.
_GROUPS_OF_A_HEAD = {Layout.ROTARY: 2, Layout.SPLIT_HEADS: 3}


@dataclass(frozen=True, kw_only=True)
class ModelTensor:
    """A tensor of the transformers model.

    Attributes:
        name: Its name in transformers.
        shape: Its sizes in transformers, outermost first.
        layout: How the file stores it.
        heads: The number of attention heads, if the layout depends on it; otherwise 1.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    heads: int

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Its sizes in the file, outermost first."""
        if self.layout is Layout.TRANSPOSED:
            return self.shape[::-1]
        return (self.shape[0], self.shape[2]) if len(self.shape) == 3 else self.shape


def read_config(header: GgufHeader) -> dict[str, Any]:
    """Build the config that transformers makes of the file's metadata.

    Raises:
        UnsupportedArchitectureError: Layers of this architecture can't be extracted.
        CheckpointError: The metadata is impossible.
    """
    family = _family(header)
    num_layers = _num_layers(header)
    config: dict[str, Any] = {}
    for config_key, (pattern, value) in family["flags"].items():
        config[config_key] = value if any(re.search(pattern, tensor.name) for tensor in header.tensors) else not value
    config |= deepcopy(family["fixed"])
    for key, entry in header.metadata.items():
        config_key = family["metadata"].get(key)
        if config_key is None:
            continue
        value = entry.value
        if key == family.get("layer_types", {}).get("key"):
            config["layer_types"], value = _layer_types(header, num_layers, family["layer_types"])
        if isinstance(value, tuple) and len(value) == 1:
            value = value[0]
        if not isinstance(value, int | float):
            description = f"an array of {entry.count:,} values" if entry.count != 1 else repr(value)
            raise CheckpointError(
                f"In the metadata of {header.file}, {key!r} is {description}, but a number is expected. {_AGAIN}"
            )
        section, _, inner_key = config_key.rpartition(".")
        if section:
            config[section] = {**config[section], inner_key: value}
        else:
            config[config_key] = value
    if "vocab_size" not in config and _TOKENS in header.metadata:
        config["vocab_size"] = header.metadata[_TOKENS].count
    return config


def describe_tensors(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, ModelTensor]:
    """Return the tensors of the model that the file's config describes, by their names in the file.

    Raises:
        UnsupportedArchitectureError: Layers of this architecture can't be extracted.
        CheckpointError: The config lacks a size, or has an impossible one.
    """
    family = _family(header)
    sizes = _Sizes(header, config, family["defaults"])
    tensors: dict[str, ModelTensor] = {}
    for stored_name, rule in family["tensors"].items():
        for layer in range(_num_layers(header)) if "{}" in stored_name else (0,):
            if all(sizes.setting(key, layer) == value for key, value in rule.get("when", {}).items()):
                tensors[stored_name.format(layer)] = _model_tensor(rule, layer, sizes)
    return tensors


def unread_rotary_scaling(header: GgufHeader) -> str | None:
    """Return the name of the tensor or key that scales rotary positions; None if there is none.

    transformers (5.17 to 5.24) only reads it for gpt-oss. llama.cpp writes Llama 3.1's scaling as one tensor,
    `rope_freqs.weight`, Phi-3's as two tensors, and Gemma 3's (4B and above) as metadata.
    """
    tensors = [
        tensor.name for tensor in header.tensors if re.fullmatch(r"rope_(freqs|factors_\w+)\.weight", tensor.name)
    ]
    if tensors:
        return tensors[0]
    key = f"{header.architecture}.rope.scaling.type"
    scaling = header.metadata.get(key)
    return key if scaling is not None and scaling.value != "none" else None


def _family(header: GgufHeader) -> dict[str, Any]:
    table, architecture = gguf_table(), header.architecture
    name = header.metadata.get("general.name")
    # transformers reads a `llama` file with the exact name `mistral` as another architecture.
    if name is not None and name.value == "mistral" and "llama" in architecture:
        architecture = "mistral"
    family: dict[str, Any] | None = table["families"].get(architecture)
    if family is None:
        reason = table["refused"].get(architecture, f"transformers {table['transformers']} has no rules for it")
        raise UnsupportedArchitectureError(
            f"{header.file} is a GGUF file of the architecture {architecture!r}, whose layers can't be extracted: "
            f"{reason}. Use the model's safetensors checkpoint."
        )
    return family


def _num_layers(header: GgufHeader) -> int:
    key = f"{header.architecture}.block_count"
    count = header.metadata[key].value if key in header.metadata else None
    if type(count) is not int or not 0 < count <= min(len(header.tensors), _MAX_LAYERS):
        raise CheckpointError(
            f"{header.file} states {count!r} layers ({key!r}) and has {len(header.tensors)} tensors. Expected are 1 to "
            f"{_MAX_LAYERS} layers, and at least one tensor per layer. {_AGAIN}"
        )
    return count


def _layer_types(header: GgufHeader, num_layers: int, rule: Mapping[str, str]) -> tuple[list[str], int]:
    """Return the type of each layer, by its number of key heads, and the largest of these numbers."""
    value = header.metadata[rule["key"]].value
    counts = [count for count in value if isinstance(count, int)] if isinstance(value, tuple) else []
    if len(counts) != num_layers:
        raise CheckpointError(
            f"In the metadata of {header.file}, {rule['key']!r} must be a number for each of the {num_layers} layers, "
            f"but is not. {_AGAIN}"
        )
    return [rule["some"] if count else rule["none"] for count in counts], max(counts)


class _Sizes:
    """Evaluates the formulas of the table with the settings of one config."""

    def __init__(self, header: GgufHeader, config: Mapping[str, Any], defaults: Mapping[str, int | str]) -> None:
        self._header = header
        self._config = config
        self._defaults = defaults

    def has(self, *keys: str) -> bool:
        """Whether the config states all these settings."""
        return all(self._config.get(key) is not None for key in keys)

    def setting(self, key: str, layer: int) -> Any:
        """Return a setting of the config. If there is one for each layer, return that of the layer."""
        value = self._config.get(key)
        if value is None:
            raise self.unusable(f"has no {key}")
        return value[layer] if isinstance(value, list) else value

    def size(self, formula: str | int) -> int:
        """Evaluate a number, a config key, or a formula such as `2 * n_head * head_dim + 3`."""
        if isinstance(formula, int) or formula.isdigit():
            return int(formula)
        if " + " in formula:
            return sum(map(self.size, formula.split(" + ")))
        if " * " in formula:
            return prod(map(self.size, formula.split(" * ")))
        if " // " in formula:
            dividend, divisor = map(self.size, formula.split(" // "))
            if dividend < divisor:
                raise self.unusable(f"has a size of zero ({formula} is {dividend} // {divisor})")
            return dividend // divisor
        if formula in self._defaults and not self.has(formula):
            return self.size(self._defaults[formula])
        value = self.setting(formula, 0)
        if type(value) is not int or value <= 0:
            raise self.unusable(f"has {value!r} as {formula}")
        return value

    def unusable(self, problem: str) -> CheckpointError:
        """Build the error for an impossible config."""
        return CheckpointError(f"The config in the metadata of {self._header.file} {problem}. {_AGAIN}")


def _model_tensor(rule: Mapping[str, Any], layer: int, sizes: _Sizes) -> ModelTensor:
    name = rule["name"].format(layer)
    shape = tuple(map(sizes.size, rule["shape"]))
    layout, heads = Layout(rule.get("layout", Layout.SAME)), 1
    # Without these two numbers, transformers leaves the rows in the order of the file.
    if layout is Layout.ROTARY and not sizes.has("num_attention_heads", "num_key_value_heads"):
        layout = Layout.SAME
    if layout in _GROUPS_OF_A_HEAD:
        heads = sizes.size(rule["heads"])
        if shape[0] % (heads * _GROUPS_OF_A_HEAD[layout]):
            raise sizes.unusable(f"has {heads} heads for the {shape[0]:,} rows of {name}")
    return ModelTensor(name=name, shape=shape, layout=layout, heads=heads)
