"""The settings of `surgeon synthesize`. They have their own module, so `--help` does not have to import torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layer_surgeon._limits import MAX_BATCH, MAX_SEED, MAX_TEXTS, MAX_TOKENS, check_size
from layer_surgeon._settings import Settings, check, check_types, option
from layer_surgeon.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig(Settings):
    """The settings for writing texts.

    Raises:
        ConfigError: A value is invalid.
    """

    model: str = option("gpt2", "Folder or repo id of a causal language model.")
    labels: tuple[str, ...] = option((), "The labels.")
    prompt: str = option(
        'The movie review in {label} sentiment is: "',
        "The text that the model continues; {label} stands for the label's words. Ends with \".",
    )
    prompts: Mapping[str, str] = field(default_factory=dict, metadata={"help": "Label -> its own prompt."})
    per_label: int = option(1000, "Number of texts for each label.")
    max_new_tokens: int = option(40, "Longest text in tokens.")
    top_k: int = option(40, "Draw each token from this many of the most probable tokens; 0 for all tokens.")
    top_p: float = option(0.9, "Draw each token from the most probable tokens that together have this probability.")
    temperature: float = option(1.0, "Values above 1 make the texts more varied, values below 1 more predictable.")
    batch_size: int = option(32, "Number of texts that are written at the same time.")
    seed: int = option(2023, "Seed of the random draws.")

    def __post_init__(self) -> None:
        labels: Any = self.labels
        if isinstance(labels, list):
            object.__setattr__(self, "labels", tuple(labels))
        check_types(self)
        check_size(self.per_label, MAX_TEXTS, "texts of each label", ConfigError)
        check_size(self.max_new_tokens, MAX_TOKENS, "tokens of a text", ConfigError)
        check_size(self.batch_size, MAX_BATCH, "texts at once", ConfigError)
        for name in ("per_label", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.top_p <= 1 or self.temperature <= 0 or self.top_k < 0:
            raise ConfigError(
                f"top_p is {self.top_p}, temperature is {self.temperature} and top_k is {self.top_k}. top_p must be "
                "above 0 and at most 1, temperature above 0, and top_k at least 0."
            )
        self.check("seed", 0 <= self.seed <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}")
        unknown = sorted(set(self.prompts) - set(self.labels)) if self.labels else []
        if unknown:
            raise ConfigError(
                f"There is a prompt for {unknown[0]!r}, which is not a label. The labels are: {', '.join(self.labels)}."
            )


def check_synthetic(settings: Mapping[str, Any]) -> None:
    """Check what an arm of a study says about its synthetic texts: settings for writing them, or their file.

    `prepare_synthetic` checks that a model is named, since an arm with a file needs none.

    Raises:
        ConfigError: A setting has an unknown name, or an invalid value.
    """
    path = settings.get("file")
    check(path is None or (isinstance(path, str) and bool(path)), "file of synthetic texts", path, "a path")
    SynthesisConfig.from_settings(None, {name: value for name, value in settings.items() if name != "file"})
