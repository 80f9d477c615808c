"""Settings of a run through a model's layers. Values are checked on creation."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeVar, get_args

from layer_surgeon._indices import select_indices
from layer_surgeon._workers import Executor
from layer_surgeon.errors import ConfigError, LayerNotFoundError

Pool = Literal["mean", "last", "none"]
Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
LongTexts = Literal["truncate", "refuse"]
DepthSelection = str | int | Sequence[int | str]

_CHOICES = {"pool": Pool, "dtype": Dtype, "device": Device, "long_texts": LongTexts, "executor": Executor}
_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("layers", str | int | Sequence, "all, numbers of layers such as 0,6,12, or a slice such as 4:9"),
    ("text_column", str | None, "the name of a column"),
    ("address", str | None, "an address such as HOST:PORT"),
    ("keep_layers", bool, "true or false"),
    ("score", bool, "true or false"),
)
_T = TypeVar("_T")


def _option(default: _T, help_text: str) -> _T:
    value: _T = field(default=default, metadata={"help": help_text})
    return value


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of one run.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    layers: DepthSelection = _option(
        "all",
        "Which states to keep: those after so many layers (0: what enters the first layer; -1: after the last), such "
        "as 0,6,12 or 4:9 (4 to 8), or all.",
    )
    pool: Pool = _option(
        "mean", "One state per text, the mean over its tokens or that of its last token; none: keep every token's."
    )
    batch_tokens: int = _option(8192, "Most tokens in a batch, padding included. A longer text is a batch of its own.")
    dtype: Dtype | None = _option(None, "Compute in this dtype. Default: the checkpoint's; for GGUF files float32.")
    device: Device = _option("auto", "Device to compute on. Default: a GPU if there is one.")
    max_length: int | None = _option(None, "Most tokens of a text. Default: as many as the model has positions for.")
    long_texts: LongTexts = _option("truncate", "Texts with more tokens: truncate or refuse.")
    text_column: str | None = _option(
        None, "Column with the text. Default: text, sentence, content or document, or the only column."
    )
    keep_layers: bool = _option(False, "Keep each layer in the workspace as a layer artifact.")
    score: bool = _option(False, "Also compute each token's log-likelihood, and the perplexity.")
    workers: int = _option(1, "Share the texts out among so many processes. The states are the same.")
    executor: Executor = _option("local", "Where processes run: on this machine or on a Ray cluster.")
    address: str | None = _option(None, "Address of the Ray cluster.")

    def __post_init__(self) -> None:
        """Check the values."""
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(choices) and not (name == "dtype" and value is None):
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}.")
        for name in ("batch_tokens", "max_length", "workers"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        for name, kinds, expected in _KINDS:
            if not isinstance(getattr(self, name), kinds):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {expected}.")

    @classmethod
    def from_settings(cls, config: Self | None, settings: dict[str, Any]) -> Self:
        """Return `config`, or the defaults, with some fields replaced.

        Raises:
            ConfigError: There is no such field, or a value is invalid.
        """
        names = {field.name for field in fields(cls)}
        if unknown := sorted(settings.keys() - names):
            raise ConfigError(f"There is no setting {unknown[0]!r}. The settings are: {', '.join(sorted(names))}.")
        return replace(config or cls(), **settings)

    def depths(self, num_layers: int) -> tuple[int, ...]:
        """The depths whose states are kept, sorted: k is after k layers.

        Raises:
            LayerNotFoundError: The model has fewer layers.
            ConfigError: The selection can't be understood, or selects nothing.
        """
        if self.layers == "all":
            return tuple(range(num_layers + 1))
        selection = [self.layers] if isinstance(self.layers, str | int) else list(self.layers)
        parts = [part for item in selection for part in (item.split(",") if isinstance(item, str) else [item])]
        depths = {depth for part in parts for depth in _select(part, num_layers)}
        if not depths:
            raise ConfigError(f"layers is {self.layers!r}, which selects nothing. Write all, 0,6,12 or 4:9.")
        return tuple(sorted(depths))


def _select(part: str | int, num_layers: int) -> list[int]:
    depths = select_indices(part, num_layers + 1, lambda depth: _depth(depth, num_layers))
    if depths is None:
        raise ConfigError(
            f"layers has {part!r}; write all, numbers of layers such as 0,6,12 or -1, or a slice such as 4:9 (4 to 8)."
        )
    return depths


def _depth(depth: int, num_layers: int) -> int:
    if not -num_layers - 1 <= depth <= num_layers:
        raise LayerNotFoundError(
            f"The model has {num_layers} layers, so there are no states after {depth}. Choose 0 (what enters the "
            f"first layer) to {num_layers}, or -1 to -{num_layers + 1} to count from the end."
        )
    return depth % (num_layers + 1)
