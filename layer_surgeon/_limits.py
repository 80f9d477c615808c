"""Limits on what an untrusted file may ask for: sizes, and no code. They are checked before anything is built."""

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from layer_surgeon.errors import LayerSurgeonError

# The deepest models have some 130 layers, the widest classifiers some 20,000 classes, the largest mixtures 512 experts.
MAX_LAYERS = 10_000
MAX_EXPERTS = 10_000
MAX_LABELS = 100_000
# The largest vocabularies have a million tokens.
MAX_VOCABULARY = 10_000_000
# A study of this many trainings takes weeks even if each takes a minute; listing them takes a second.
MAX_TRAININGS = 100_000
# numpy takes no larger seed.
MAX_SEED = 2**32 - 1
# Limits for generated data: ZeroGen's largest set has 500,000 texts; contexts have up to 1,000,000 tokens.
MAX_TEXTS, MAX_TOKENS, MAX_BATCH = 1_000_000, 1_000_000, 10_000

_EXPERTS = frozenset({"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_shared_experts"})
_LAYERS = frozenset({"n_layer", "n_layers", "num_layers", "depth"})
_SIZES = frozenset(
    {"hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_attention_heads", "num_key_value_heads"}
)
# The largest number of entries of keys that hold a list or a mapping.
_MAX_LENGTHS = {"layer_indices": MAX_LAYERS, "id2label": MAX_LABELS}


def check_size(size: int, limit: int, noun: str, error: type[LayerSurgeonError]) -> None:
    """Refuse a size that would take all memory, or hours.

    Args:
        size: The size.
        limit: The largest allowed size.
        noun: The counted things, such as `trainings`, for the message.
        error: The exception type to raise.

    Raises:
        error: The size is above the limit; the message has both numbers.
    """
    if size > limit:
        raise error(f"{size:,} {noun} were requested; at most {limit:,} are allowed.")


def check_config_sizes(config: Mapping[str, Any], name: str, error: type[LayerSurgeonError]) -> None:
    """Refuse a model's config.json with more layers, experts or labels than any model has, or with a negative size.

    A config class makes lists of these lengths, and a model as many modules, before any weight is read.

    Args:
        config: The content of config.json. Nested configs are checked too.
        name: The model's name, for the message.
        error: The exception type to raise.

    Raises:
        error: A number is too large or negative; the message has it.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_config_sizes(value, name, error)
        if key in _MAX_LENGTHS and isinstance(value, Sized) and len(value) > _MAX_LENGTHS[key]:
            raise error(
                f"{key} in the config.json of {name} has {len(value):,} entries; at most {_MAX_LENGTHS[key]:,} are "
                "allowed."
            )
        limit = _limit(str(key))
        if limit is not None and isinstance(value, int | float) and value > limit:
            raise error(f"The config.json of {name} sets {key} to {value:,}; at most {limit:,} are allowed.")
        if key in _SIZES and isinstance(value, int) and value < 0:
            raise error(f"The config.json of {name} sets {key} to {value:,}, which is negative.")


def check_no_code(config: Mapping[str, Any], name: str, error: type[LayerSurgeonError]) -> None:
    """Refuse a model's config.json that asks for code from the Hub.

    Args:
        config: As in `check_config_sizes`.
        name: The model's name, for the message.
        error: The exception type to raise.

    Raises:
        error: An implementation is a repo of kernels; the message names it.
    """
    for key, value in _implementations(config):
        # transformers treats "owner/name" as a repo of compiled kernels, and loads and runs them.
        if any("/" in str(choice) for choice in (value.values() if isinstance(value, Mapping) else (value,))):
            raise error(
                f"The config.json of {name} sets {key} to {value!r}, which is code from the Hub. Such code is not run; "
                f"remove {key}."
            )


def _implementations(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if str(key).endswith(("attn_implementation", "experts_implementation")):
            yield key, value
        elif isinstance(value, Mapping):
            yield from _implementations(value)


def _limit(key: str) -> int | None:
    if key == "num_labels":
        return MAX_LABELS
    if key in _EXPERTS:
        return MAX_EXPERTS
    return MAX_LAYERS if key in _LAYERS or key.endswith("_layers") else None
