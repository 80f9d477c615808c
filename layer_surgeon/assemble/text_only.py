"""Take the language model out of a vision-language checkpoint: its config, and the names of its tensors."""

from collections.abc import Callable, Mapping
from typing import Any

from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.stack import family_record, states_count, text_config
from layer_surgeon.errors import UnsupportedArchitectureError

_HEAD = "lm_head."
# Settings that many vision-language configs have only once, outside the section of the language model.
_SHARED_KEYS = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Whether a config has a section for the language model next to those of other parts."""
    return text_config(config) is not config


def text_model(checkpoint: Checkpoint) -> tuple[dict[str, Any], Callable[[str], str | None]]:
    """Return the config of the language model, and the function that renames its tensors.

    The function maps `language_model.model.layers.0.x` and `model.language_model.layers.0.x` to `model.layers.0.x`, the
    names in a checkpoint of the language model alone, and tensors of other parts to None.

    Raises:
        UnsupportedArchitectureError: transformers has no language model of this type on its own.
    """
    config = dict(text_config(checkpoint.config))
    family = family_record(checkpoint.model_type)
    stack = checkpoint.stack_prefix.rstrip(".")
    root = stack.removesuffix(f".{family['stack']}") if family is not None else stack
    if family is None or root == stack:
        raise UnsupportedArchitectureError(
            f"The language model of {checkpoint.source.name} ({checkpoint.model_type}) can't be taken out, because "
            "transformers has no causal language model of this type on its own. Use a checkpoint of only a language "
            "model."
        )
    base = f"{family['base_prefix']}." if family["base_prefix"] else ""

    def new_name(name: str) -> str | None:
        if name.startswith(f"{root}."):
            return f"{base}{name.removeprefix(f'{root}.')}"
        head = name.removeprefix("language_model.")
        return head if head.startswith(_HEAD) else None

    for key in _SHARED_KEYS:
        if key not in config and key in checkpoint.config:
            config[key] = checkpoint.config[key]
    config["tie_word_embeddings"] = has_tied_head(checkpoint)
    if not states_count(config):
        config[family["num_layers"]] = checkpoint.num_layers
    return config, new_name


def has_tied_head(checkpoint: Checkpoint) -> bool:
    """Whether the language head of a vision-language checkpoint is its table of tokens.

    transformers decides this by the outer config and not by the section of the language model, whose value may be
    another one. The default of the outer config depends on the family.
    """
    if (outer := checkpoint.config.get("tie_word_embeddings")) is not None:
        return bool(outer)
    has_head = any(name.removeprefix("language_model.").startswith(_HEAD) for name in checkpoint.table.files())
    return not has_head or bool(text_config(checkpoint.config).get("tie_word_embeddings", False))
