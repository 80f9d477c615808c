"""What a stranger's file may ask for, before anything is made of it: how much of it, and no code."""

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from layer_surgeon.errors import LayerSurgeonError

# The deepest models have some 130 layers, the widest classifiers some 20,000 classes, the largest mixtures 512 experts.
MAX_LAYERS = 10_000
MAX_EXPERTS = 10_000
MAX_LABELS = 100_000
# A study of as many trainings takes weeks even if each takes a minute; listing them takes a second.
MAX_TRAININGS = 100_000
# What a language model is to write: ZeroGen's largest set has 500,000 texts; contexts have up to 1,000,000 tokens.
MAX_TEXTS, MAX_TOKENS, MAX_BATCH = 1_000_000, 1_000_000, 10_000

_EXPERTS = frozenset({"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_shared_experts"})
_LAYERS = frozenset({"n_layer", "n_layers", "num_layers", "depth"})
# What is stored as a list or a table, and how long it may be.
_LISTED = {"layer_indices": MAX_LAYERS, "id2label": MAX_LABELS}


def check_size(size: int, most: int, what: str, error: type[LayerSurgeonError]) -> None:
    """Refuse a number that would take all memory, or hours.

    Args:
        size: The number.
        most: What it may be.
        what: Of what, such as `trainings`.
        error: What to raise.

    Raises:
        error: It is larger; the message has both numbers.
    """
    if size > most:
        raise error(f"{size:,} {what} are asked for; at most {most:,} are allowed.")


def check_config_sizes(config: Mapping[str, Any], name: str, error: type[LayerSurgeonError]) -> None:
    """Refuse a model's config.json whose numbers of layers, experts or labels no model has.

    A config class makes lists as long as these numbers, and a model as many modules, before any weight is looked at.

    Args:
        config: What config.json says, configs of parts of the model included.
        name: Of the model, for the message.
        error: What to raise.

    Raises:
        error: A number is too large; the message has it.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_config_sizes(value, name, error)
        if key in _LISTED and isinstance(value, Sized):
            check_size(len(value), _LISTED[key], f"entries of {key} in the config.json of {name}", error)
        most = _most(str(key))
        if most is not None and isinstance(value, int | float) and value > most:
            raise error(f"The config.json of {name} says {key} {value:,}; at most {most:,} are allowed.")


def check_no_code(config: Mapping[str, Any], name: str, error: type[LayerSurgeonError]) -> None:
    """Refuse a model's config.json that asks for code from the Hub.

    Args:
        config: As in `check_config_sizes`.
        name: Of the model, for the message.
        error: What to raise.

    Raises:
        error: An implementation is a repo of kernels; the message names it.
    """
    for key, value in _implementations(config):
        # transformers takes "owner/name" for a repo of compiled kernels, and loads and runs them.
        if any("/" in str(choice) for choice in (value.values() if isinstance(value, Mapping) else (value,))):
            raise error(
                f"The config.json of {name} says {key} {value!r}: code from the Hub, which is not run. Remove {key}."
            )


def _implementations(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if str(key).endswith(("attn_implementation", "experts_implementation")):
            yield key, value
        elif isinstance(value, Mapping):
            yield from _implementations(value)


def _most(key: str) -> int | None:
    if key == "num_labels":
        return MAX_LABELS
    if key in _EXPERTS:
        return MAX_EXPERTS
    return MAX_LAYERS if key in _LAYERS or key.endswith("_layers") else None
