"""Which tensors of a checkpoint act before layer 0, by the table of families."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.stack import family_record
from layer_surgeon.errors import CheckpointError, ConfigError, UnsupportedArchitectureError
from layer_surgeon.extract.plan import has_fp8

# In an artifact: `embeddings.<name in the family's model without a head>`.
PREFIX = "embeddings."


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The tensors that act before layer 0.

    Attributes:
        names: Their names in the checkpoint, by their names in the family's model without a head.
        token_table: Which of them has one row per token, and is all that the token ids are used for. None if there is
            no such tensor; the vocabulary can then not be replaced.
    """

    names: Mapping[str, str]
    token_table: str | None


def check_first_layers(indices: tuple[int, ...]) -> None:
    """Refuse layers that embeddings don't lead to.

    Raises:
        ConfigError: They are not 0, 1, 2, ...
    """
    if indices != tuple(range(len(indices))):
        listed = ", ".join(map(str, indices))
        raise ConfigError(
            f"With embeddings, the layers must be the first ones, without gaps and in order, but they are {listed}. "
            f"Use --layer 0:{max(indices) + 1} (in Python: layer=range({max(indices) + 1}))."
        )


def find_embeddings(checkpoint: Checkpoint) -> Embeddings:
    """Find what acts before layer 0 in a checkpoint.

    Raises:
        UnsupportedArchitectureError: It is not known for the family.
        CheckpointError: A tensor is missing.
    """
    family = checkpoint.model_type
    record = family_record(family) or {}
    names: list[str] | None = record.get("embeddings")
    if names is None:
        reason = record.get("embeddings_refused", "the table of families doesn't have it")
        raise UnsupportedArchitectureError(
            f"What acts before layer 0 of {family} is not known ({reason}), so its embeddings can't be extracted. "
            "Extract the layers without --embeddings, or use a model of another family."
        )
    outside = checkpoint.names_outside_layers()
    root = checkpoint.stack_prefix.removesuffix(f"{record['stack']}.")
    stored_names = {}
    for name in names:
        stored = _find(name, record.get("stored_as", {}).get(name, name), root, outside)
        if stored is not None:
            stored_names[name] = stored
        elif name not in record.get("optional_embeddings", ()):
            raise CheckpointError(
                f"{checkpoint.source.name} has no tensor {root}{name}, which acts before layer 0 of {family}. "
                f"Outside of its layers it has {', '.join(outside[:3]) or 'none'}. Get the checkpoint again, or leave "
                "out --embeddings."
            )
    if has_fp8(checkpoint.table.tensors(stored_names.values())):
        raise UnsupportedArchitectureError(
            f"The embeddings of {checkpoint.source.name} are 8-bit floats, which are not supported before the layers. "
            "Extract from the unquantised model instead."
        )
    return Embeddings(names=stored_names, token_table=record["token_table"])


def find_table(embeddings: Embeddings | None, family: str) -> tuple[str, str]:
    """Return the name of the table that another vocabulary replaces, and its name in the checkpoint.

    Raises:
        ConfigError: No embeddings are extracted.
        UnsupportedArchitectureError: The family has no such table.
    """
    if embeddings is None:
        raise ConfigError("A vocabulary needs embeddings, because it replaces the table of tokens: add --embeddings.")
    if embeddings.token_table is None:
        raise UnsupportedArchitectureError(
            f"In {family}, token ids are used for more than the rows of one table, such as for positions, so another "
            "vocabulary can't be used. Extract without --vocabulary, or use a model of another family."
        )
    return embeddings.token_table, embeddings.names[embeddings.token_table]


def _find(name: str, stored_as: str, root: str, outside: Sequence[str]) -> str | None:
    """The name in the checkpoint. Of multimodal models, the decoder's tensors have the same prefix as its layers."""
    for candidate in (root + stored_as, root + name):
        if candidate in outside:
            return candidate
    matches = [candidate for candidate in outside if candidate == name or candidate.endswith(f".{name}")]
    return matches[0] if len(matches) == 1 else None
