"""Writes training texts for each label with a causal language model (ZeroGen; paper, table 17)."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, set_seed

from layer_surgeon._loading import load_model, load_tokenizer
from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.models import quiet
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.data import write_rows
from layer_surgeon.study.synthesis_config import SynthesisConfig


@dataclass(frozen=True, kw_only=True)
class SynthesisResult:
    """The result of `synthesize`.

    Attributes:
        path: The file.
        counts: Label -> number of texts.
        left_out: Number of drawn texts that were dropped as empty, duplicate or surplus.
    """

    path: Path
    counts: Mapping[str, int]
    left_out: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"path": str(self.path), "counts": dict(self.counts), "left_out": self.left_out}


def synthesize(config: SynthesisConfig, *, output: Path, progress: Progress | None = None) -> SynthesisResult:
    """Write texts for each label to a JSON Lines file with the columns text and label.

    A text is the model's continuation of the prompt, up to a closing quotation mark or the end of the line. Empty and
    duplicate texts are drawn again. After ten times as many draws as requested texts, a label keeps the texts it has.

    Args:
        config: The settings.
        output: The file.
        progress: Receives an update for every batch of texts.

    Raises:
        ConfigError: There are fewer than two labels, a text could be longer than the model can write, or the model
            wrote no text for a label.
        SourceError: The model can't be loaded.
    """
    progress = progress or NullProgress()
    if len(config.labels) < 2:
        raise ConfigError(
            f"The labels are {', '.join(config.labels) or 'missing'}; at least two are needed. Name them with --labels."
        )
    prompts = {
        label: config.prompts.get(label, config.prompt).replace("{label}", label.replace("_", " "))
        for label in config.labels
    }
    write = _make_writer(config, prompts.values())
    set_seed(config.seed)
    rows: list[dict[str, str]] = []
    counts: dict[str, int] = {}
    drawn = 0
    for label, prompt in prompts.items():
        texts: dict[str, None] = {}
        progress.begin(f"Writing {label}", config.per_label, "texts")
        for _ in range(10 * -(-config.per_label // config.batch_size)):
            before = len(texts)
            drawn += config.batch_size
            texts.update(dict.fromkeys(text for text in map(_cut, write(prompt)) if text))
            progress.advance(min(len(texts), config.per_label) - min(before, config.per_label))
            if len(texts) >= config.per_label:
                break
        progress.end()
        if not texts:
            raise ConfigError(f"{config.model} wrote nothing after {prompt!r}. Choose another prompt or another model.")
        kept = list(texts)[: config.per_label]
        counts[label] = len(kept)
        rows += [{"text": text, "label": label} for text in kept]
    write_rows(output, rows)
    return SynthesisResult(path=output, counts=counts, left_out=drawn - len(rows))


def _cut(text: str) -> str:
    """Return the text up to a closing quotation mark, or up to the end of its line."""
    return text.split('"', 1)[0].strip().split("\n", 1)[0].strip()


def _make_writer(config: SynthesisConfig, prompts: Collection[str]) -> Callable[[str], list[str]]:
    """Return a function that writes texts for a prompt, after checking that the model has room for all prompts."""
    with quiet(), hub_errors(f"The model {config.model!r}"):
        try:
            model = load_model(AutoModelForCausalLM, config.model, dtype=torch.float32)
            tokenizer: Any = load_tokenizer(config.model)
        except (ValueError, KeyError) as error:
            first_line = str(error).strip().split("\n", 1)[0]
            raise ConfigError(f"{config.model} can't be loaded as a causal language model: {first_line}") from error
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    if positions is not None and longest + config.max_new_tokens > positions:
        raise ConfigError(
            f"The longest prompt has {longest} tokens and max_new_tokens is {config.max_new_tokens}, but "
            f"{config.model} has only {positions} positions. Use a shorter prompt or a lower max_new_tokens."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()

    def write(prompt: str) -> list[str]:
        inputs = tokenizer(prompt, return_tensors="pt").to(device)
        with torch.inference_mode(), quiet():
            tokens = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                top_k=config.top_k,
                top_p=config.top_p,
                temperature=config.temperature,
                max_new_tokens=config.max_new_tokens,
                num_return_sequences=config.batch_size,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        prompt_length = inputs["input_ids"].shape[1]
        return [str(text) for text in tokenizer.batch_decode(tokens[:, prompt_length:], skip_special_tokens=True)]

    return write
