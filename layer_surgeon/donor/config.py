"""`SurgeonDonorConfig`, the config.json of a layer artifact."""

from dataclasses import field
from typing import Any

from transformers import PretrainedConfig

from layer_surgeon._limits import MAX_LAYERS, MAX_VOCABULARY, check_size
from layer_surgeon._model_types import LAYER
from layer_surgeon.donor.family import family_config
from layer_surgeon.errors import ArtifactError


class SurgeonDonorConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """Config of a `DonorLayer`: the donor's own config, and the indices of its layers.

    Attributes:
        donor_config: The donor's config.json, verbatim.
        layer_indices: Indices of the layers in the donor, counted from 0, in the order in which they are applied.
            An index may occur twice; its weights are then stored twice.
        sha256: Digest of model.safetensors, or None if there is no file yet.
        source: The source of the weights, as `extract` recorded it.
        embeddings: What acts before layer 0, if the artifact holds it: `token_table`, the name of the weight with one
            row per token, and `vocabulary`, what the rows stand for if they are not the donor's own tokens. None for
            layers without embeddings.

    Raises:
        ArtifactError: The fields contradict each other.
        UnsupportedArchitectureError: transformers has no decoder for the donor's family.
    """

    model_type = LAYER

    donor_config: dict[str, Any] = field(default_factory=dict)
    layer_indices: list[int] | tuple[int, ...] = ()
    sha256: str | None = None
    source: dict[str, Any] | None = None
    embeddings: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Validate the fields."""
        super().__post_init__(**kwargs)
        check_size(len(self.layer_indices), MAX_LAYERS, "layer_indices of a layer artifact", ArtifactError)
        self.layer_indices = list(self.layer_indices)
        # transformers creates a config without arguments to find the defaults. `DonorLayer` rejects such a config.
        if not self.donor_config and not self.layer_indices:
            return
        if not self.donor_config or not self.layer_indices:
            raise ArtifactError(
                f"A layer artifact's config needs donor_config and layer_indices, but this one has "
                f"{'no donor_config' if not self.donor_config else 'no layer_indices'}. Extract the layer again."
            )
        num_layers = self.family_config().num_hidden_layers
        for index in self.layer_indices:
            if not 0 <= index < num_layers:
                raise ArtifactError(
                    f"layer_indices has {index}, but the donor has {num_layers} layers, 0 to {num_layers - 1}. "
                    "Extract the layer again."
                )
        if self.embeddings is not None:
            _check_embeddings(self.embeddings, self.layer_indices)

    def family_config(self) -> PretrainedConfig:
        """Make a new config of the family's own class for the donor, or for the text part of a multimodal donor."""
        if not self.donor_config:
            raise ArtifactError(
                "This config has no donor_config, so it doesn't describe a layer. Pass donor_config and "
                "layer_indices, or load the config from a layer artifact."
            )
        return family_config(self.donor_config)

    @property
    def vocabulary(self) -> dict[str, Any] | None:
        """What the rows of the token table stand for: name, size, sha256, rule; None: the donor's own tokens."""
        return None if self.embeddings is None else self.embeddings.get("vocabulary")

    @property
    def hidden_size(self) -> int:
        """Width of the layers' input and output."""
        return int(self.family_config().hidden_size)


def _check_embeddings(embeddings: Any, layer_indices: list[int]) -> None:
    if layer_indices != list(range(len(layer_indices))):
        raise ArtifactError(
            f"The config has embeddings, and layer_indices {layer_indices}. What the embeddings give only enters layer "
            "0, so the layers must be 0, 1, 2, ... Extract them again, such as with --layer 0:9 --embeddings."
        )
    vocabulary = embeddings.get("vocabulary") if isinstance(embeddings, dict) else None
    size = vocabulary.get("size") if isinstance(vocabulary, dict) else None
    if not isinstance(embeddings, dict) or (vocabulary is not None and (type(size) is not int or size < 1)):
        raise ArtifactError(
            f"The config's embeddings must be an object whose vocabulary is null or has a size, not {embeddings!r}. "
            "Extract the layers again with --embeddings."
        )
    check_size(size or 0, MAX_VOCABULARY, "tokens of a vocabulary", ArtifactError)
