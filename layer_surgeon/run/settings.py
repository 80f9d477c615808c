"""Settings of a run through a model's layers. Values are checked on creation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layer_surgeon._indices import select_indices
from layer_surgeon._settings import Settings, check_types, option
from layer_surgeon._workers import Executor
from layer_surgeon.errors import ConfigError, LayerNotFoundError

Pool = Literal["mean", "last", "none"]
Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
LongTexts = Literal["truncate", "refuse"]
DepthSelection = str | int | Sequence[int | str]


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Settings of one run.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    layers: DepthSelection = option(
        "all",
        "Which states to keep: those after so many layers (0: what enters the first layer; -1: after the last), such "
        "as 0,6,12 or 4:9 (4 to 8), or all.",
    )
    pool: Pool = option(
        "mean", "One state per text, the mean over its tokens or that of its last token; none: keep every token's."
    )
    batch_tokens: int = option(8192, "Most tokens in a batch, padding included. A longer text is a batch of its own.")
    dtype: Dtype | None = option(None, "Compute in this dtype. Default: the checkpoint's; for GGUF files float32.")
    device: Device = option("auto", "Device to compute on. Default: a GPU if there is one.")
    max_length: int | None = option(None, "Most tokens of a text. Default: as many as the model has positions for.")
    long_texts: LongTexts = option("truncate", "Texts with more tokens: truncate or refuse.")
    text_column: str | None = option(
        None, "Column with the text. Default: text, sentence, content or document, or the only column."
    )
    keep_layers: bool = option(False, "Keep each layer in the workspace as a layer artifact.")
    score: bool = option(False, "Also compute each token's log-likelihood, and the perplexity.")
    workers: int = option(1, "Share the texts out among so many processes. The states are the same.")
    executor: Executor = option("local", "Where processes run: on this machine or on a Ray cluster.")
    address: str | None = option(None, "Address of the Ray cluster.")

    def __post_init__(self) -> None:
        """Check the values."""
        check_types(self, skip=("layers",))
        for name in ("batch_tokens", "max_length", "workers"):
            value = getattr(self, name)
            self.check(name, value is None or value >= 1, "a whole number of at least 1")
        expected = "all, numbers of layers such as 0,6,12, or a slice such as 4:9"
        self.check("layers", isinstance(self.layers, str | int | Sequence), expected)

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
