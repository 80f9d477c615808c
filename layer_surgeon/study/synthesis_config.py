"""The settings of `surgeon synthesize`; apart from what writes the texts, for the help must not wait for torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

from layer_surgeon._limits import MAX_BATCH, MAX_TEXTS, MAX_TOKENS, check_size
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.checked import check_types

_T = TypeVar("_T")


def _option(default: _T, text: str) -> _T:
    value: _T = field(default=default, metadata={"help": text})
    return value


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How texts are written.

    Raises:
        ConfigError: A value can't be used.
    """

    model: str = _option("gpt2", "Folder or repo id of a causal language model.")
    labels: tuple[str, ...] = _option((), "The labels.")
    prompt: str = _option(
        'The movie review in {label} sentiment is: "',
        "What the model continues; {label} stands for the label's words. Ends with \".",
    )
    prompts: Mapping[str, str] = field(default_factory=dict, metadata={"help": "A prompt of its own for a label."})
    per_label: int = _option(1000, "Texts of each label.")
    max_new_tokens: int = _option(40, "Longest text in tokens.")
    top_k: int = _option(40, "Each token is drawn from so many of the most probable ones; 0: from all.")
    top_p: float = _option(0.9, "Each token is drawn from the most probable ones that have this share together.")
    temperature: float = _option(1.0, "Above 1: bolder; below: more probable.")
    batch_size: int = _option(32, "Texts that are written at once.")
    seed: int = _option(2023, "Of the draws.")

    def __post_init__(self) -> None:
        check_types(self)
        check_size(self.per_label, MAX_TEXTS, "texts of each label", ConfigError)
        check_size(self.max_new_tokens, MAX_TOKENS, "tokens of a text", ConfigError)
        check_size(self.batch_size, MAX_BATCH, "texts at once", ConfigError)
        for name in ("per_label", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.top_p <= 1 or self.temperature <= 0 or self.top_k < 0:
            raise ConfigError("top_p must be above 0 and at most 1, temperature above 0, top_k at least 0.")
        unknown = sorted(set(self.prompts) - set(self.labels)) if self.labels else []
        if unknown:
            raise ConfigError(f"There is a prompt for {unknown[0]!r}, which is no label.")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """From what a plan says.

        Raises:
            ConfigError: A setting has an unknown name, or a value that can't be used.
        """
        known = [entry.name for entry in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ConfigError(f"There is no setting {unknown[0]!r} for writing texts. There are: {', '.join(known)}.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**values)
