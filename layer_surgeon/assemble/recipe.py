"""`AssemblyRecipe`: which layers of which sources a new model consists of."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any

from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.errors import ConfigError
from layer_surgeon.extract.dtypes import CODE_OF_NAME

SourceRef = str | os.PathLike[str] | Checkpoint
# `12=OTHER:12`. A source may have colons of its own, as in packaged:NAME.
_REPLACEMENT = re.compile(r"(?P<position>\d{1,5})=(?P<source>.+):(?P<layer>-?\d{1,5})", re.DOTALL)
_SCALE = re.compile(r"(?P<position>\d{1,5})=(?P<factor>.+)")
_EXPANSION = re.compile(r"(?:every:)?(?P<period>[1-9]\d{0,4})")


@dataclass(frozen=True, kw_only=True)
class LayerSlice:
    """Layers of one source, in order.

    Attributes:
        source: A folder, a Hub repo id, a URL, a checkpoint file, `packaged:NAME`, or an open checkpoint.
        layers: Layers and slices separated by commas, such as `0:16,20,-2:`, in the order in which they will run.
            Repeats are allowed. A sequence of these also works.
        drop: Layers to leave out of `layers`, in the same form.
        silent: Make copies that add nothing to the hidden states at first.
        scale: Factor of what the layers add to the hidden states.
    """

    source: SourceRef
    layers: str | int | Sequence[int | str] = ":"
    drop: str | int | Sequence[int | str] = ()
    silent: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_source(self.source, "source")
        object.__setattr__(self, "layers", as_parts(self.layers, "layers"))
        if not self.layers:
            raise ConfigError("layers is empty. Name at least one layer, such as 0:16, or : for all.")
        dropped = as_parts(self.drop, "drop")
        if not dropped and self.drop != ():
            raise ConfigError("drop is empty. Name at least one layer, such as 21:29, or leave it out.")
        object.__setattr__(self, "drop", dropped)
        if not isinstance(self.silent, bool):
            raise ConfigError(f"silent is {self.silent!r}; it must be true or false.")
        _check_factor(self.scale)


@dataclass(frozen=True, kw_only=True)
class AssemblyRecipe:
    """A new model, as layers of one or several sources.

    `replace`, `scale` and `expand` also accept the text forms of the command line: `12=OTHER:12`, `12=0.5`, `every:4`.

    Attributes:
        slices: The layers, in the order in which they will run.
        embeddings: The source of the config, the tokenizer, and everything before the first layer. Default: the source
            of the first slice.
        head: The source of everything after the last layer. Default: that of the embeddings.
        replace: Source and layer of layers to swap in, by their position in the new model.
        scale: Factor of what a layer adds to the hidden states, by its position in the new model.
        expand: After each `expand` layers, insert a copy of the last one that adds nothing at first (LLaMA-Pro,
            https://arxiv.org/abs/2401.02415). The positions in `replace` and `scale` don't count these copies.
        text_only: Take only the language model out of vision-language checkpoints.
        dtype: Convert to `float32`, `bfloat16` or `float16`. None keeps the bytes (a GGUF file's are dequantised to
            float32).
        revision: Branch, tag or commit of the first slice's source. For others, use `hf://owner/name@revision`.
    """

    slices: tuple[LayerSlice, ...]
    embeddings: SourceRef | None = None
    head: SourceRef | None = None
    replace: Mapping[int, tuple[SourceRef, int]] = field(default_factory=dict)
    scale: Mapping[int, float] = field(default_factory=dict)
    expand: int | None = None
    text_only: bool = False
    dtype: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        for name, parse in (("replace", _replacements), ("scale", _scales)):
            object.__setattr__(self, name, parse(getattr(self, name)))
        if self.expand is not None:
            object.__setattr__(self, "expand", _period(self.expand))
        if not self.slices:
            raise ConfigError("The recipe has no slices, so the model would have no layers. Name at least one layer.")
        for name in ("embeddings", "head"):
            if getattr(self, name) is not None:
                _check_source(getattr(self, name), name)
        if self.dtype not in (None, *CODE_OF_NAME):
            raise ConfigError(f"dtype is {self.dtype!r}; it must be one of {', '.join(CODE_OF_NAME)}.")
        if not isinstance(self.revision, str | None):
            raise ConfigError(f"revision is {self.revision!r}, which is not text. Put it in quotes.")
        if not isinstance(self.text_only, bool):
            raise ConfigError(f"text_only is {self.text_only!r}; it must be true or false.")
        for factor in self.scale.values():
            _check_factor(factor)

    @property
    def base(self) -> SourceRef:
        """The source of the config, the tokenizer and everything before the first layer."""
        return self.slices[0].source if self.embeddings is None else self.embeddings

    @classmethod
    def of(cls, source: SourceRef, **settings: Any) -> "AssemblyRecipe":
        """Make the recipe for layers of one source.

        Args:
            source: The source.
            settings: `layers`, `keep` or `drop` (at most one of them), and the fields `replace`, `scale`, `expand`,
                `text_only`, `dtype` and `revision`.

        Raises:
            ConfigError: A setting is unknown or has an invalid value.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        choices = {name: given.pop(name) for name in ("layers", "keep", "drop") if name in given}
        if len(choices) > 1:
            raise ConfigError(f"{' and '.join(choices)} can't be combined. Choose one of layers, keep and drop.")
        if "keep" in choices:
            choices = {"layers": choices["keep"]}
        unknown = sorted(set(given) - {item.name for item in fields(cls)} | set(given) & {"slices"})
        if unknown:
            raise ConfigError(f"There is no setting {unknown[0]!r} for a single source. See AssemblyRecipe.of.")
        return cls(slices=(LayerSlice(source=source, **choices),), **given)

    def with_settings(self, **settings: Any) -> "AssemblyRecipe":
        """Return the recipe with other fields. Settings that are None are ignored."""
        return replace(self, **{name: value for name, value in settings.items() if value is not None})


def as_parts(selection: Any, name: str) -> tuple[int | str, ...]:
    """Split a selection such as `0:16,20` into its parts.

    Raises:
        ConfigError: It is neither text nor numbers.
    """
    if isinstance(selection, str):
        return tuple(part.strip() for part in selection.split(",") if part.strip())
    if isinstance(selection, int) and not isinstance(selection, bool):
        return (selection,)
    if isinstance(selection, Sequence):
        parts: list[int | str] = []
        for part in selection:
            if not isinstance(part, int | str) or isinstance(part, bool):
                raise ConfigError(f"{name} has the entry {part!r}; it must be a number or a slice such as 0:16.")
            parts += [part] if isinstance(part, int) else as_parts(part, name)
        return tuple(parts)
    raise ConfigError(f"{name} is {selection!r}; it must be layers such as 0:16,20 or a list of numbers and slices.")


def _replacements(value: Any) -> dict[int, tuple[SourceRef, int]]:
    if isinstance(value, Mapping):
        pairs = [_pair(position, layer) for position, layer in value.items()]
    else:
        pairs = [_replacement(text) for text in (value if isinstance(value, list | tuple) else [value])]
    replacements = dict(pairs)
    if len(replacements) != len(pairs):
        raise ConfigError("replace names a position twice. Name each position once.")
    return replacements


def _pair(position: Any, layer: Any) -> tuple[int, tuple[SourceRef, int]]:
    if isinstance(layer, str):
        return _replacement(f"{position}={layer}")
    is_pair = isinstance(layer, Sequence) and len(layer) == 2 and type(layer[1]) is int
    if type(position) is not int or position < 0 or not is_pair:
        raise ConfigError(
            f"replace maps {position!r} to {layer!r}; it must map a position in the new model to a source and a layer "
            "of it, such as {12: OTHER:12}."
        )
    _check_source(layer[0], "replace")
    return position, (layer[0], layer[1])


def _replacement(text: Any) -> tuple[int, tuple[SourceRef, int]]:
    match = _REPLACEMENT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(
            f"replace is {text!r}; it must be POSITION=SOURCE:LAYER, such as 12=OTHER:12 (layer 12 of the new model "
            "becomes layer 12 of OTHER)."
        )
    return int(match["position"]), (match["source"], int(match["layer"]))


def _scales(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        pairs = []
        for text in value if isinstance(value, list | tuple) else [value]:
            match = _SCALE.fullmatch(text) if isinstance(text, str) else None
            if match is None:
                raise ConfigError(f"scale is {text!r}; it must be POSITION=FACTOR, such as 12=0.5.")
            pairs.append((int(match["position"]), _factor(match["factor"])))
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ConfigError("scale names a position twice. Name each position once.")
    for position in value:
        if type(position) is not int or position < 0:
            raise ConfigError(f"scale has the position {position!r}; it must be a number from 0.")
    return dict(value)


def _factor(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"scale has the factor {text!r}; it must be a number such as 0.5.") from error


def _period(value: Any) -> int:
    match = None if isinstance(value, bool) else _EXPANSION.fullmatch(str(value))
    if match is None:
        raise ConfigError(f"expand is {value!r}; it must be every:N with N from 1, such as every:4.")
    return int(match["period"])


def _check_factor(factor: Any) -> None:
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not isfinite(factor):
        raise ConfigError(f"scale has the factor {factor!r}; it must be a number such as 0.5.")


def _check_source(source: Any, name: str) -> None:
    if not isinstance(source, str | os.PathLike | Checkpoint) or source == "":
        raise ConfigError(f"{name} is {source!r}; it must be a folder, a Hub repo id, a URL or a checkpoint file.")
