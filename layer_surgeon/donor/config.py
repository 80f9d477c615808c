"""What a layer artifact's config.json says."""

from dataclasses import field
from typing import Any

from transformers import PretrainedConfig

from layer_surgeon._limits import MAX_LAYERS, check_size
from layer_surgeon.donor.family import family_config
from layer_surgeon.errors import ArtifactError


class SurgeonDonorConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped here
    """Config of a `DonorLayer`: the donor's own config, and which of its layers these are.

    Attributes:
        donor_config: The donor's config.json, verbatim.
        layer_indices: Indices of the layers in the donor, counted from 0, in the order in which they are applied.
            The same index may come twice; its weights are then stored twice.
        sha256: Of model.safetensors; None while there is no file.
        source: Where the weights came from, as `extract` wrote it.

    Raises:
        ArtifactError: The fields don't fit each other.
        UnsupportedArchitectureError: transformers has no decoder of the donor's family.
    """

    model_type = "surgeon_donor"

    donor_config: dict[str, Any] = field(default_factory=dict)
    layer_indices: list[int] | tuple[int, ...] = ()
    sha256: str | None = None
    source: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the fields where they are made."""
        super().__post_init__(**kwargs)
        check_size(len(self.layer_indices), MAX_LAYERS, "layer_indices of a layer artifact", ArtifactError)
        self.layer_indices = list(self.layer_indices)
        # transformers makes a config without arguments to learn the defaults; `DonorLayer` refuses such a one.
        if not self.donor_config and not self.layer_indices:
            return
        if not self.donor_config or not self.layer_indices:
            raise ArtifactError(
                f"A layer artifact's config needs donor_config and layer_indices, but has "
                f"{'no donor_config' if not self.donor_config else 'no layer_indices'}. Extract the layer again."
            )
        num_layers = self.family_config().num_hidden_layers
        for index in self.layer_indices:
            if not 0 <= index < num_layers:
                raise ArtifactError(
                    f"layer_indices has {index}, but the donor has {num_layers} layers, 0 to {num_layers - 1}. "
                    "Extract the layer again."
                )

    def family_config(self) -> PretrainedConfig:
        """A fresh config, of the family's own class, of the donor (or of a multimodal donor's text part)."""
        if not self.donor_config:
            raise ArtifactError(
                "This config has no donor_config, so it describes no layer. Make it with donor_config and "
                "layer_indices, or load it from a layer artifact."
            )
        return family_config(self.donor_config)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that the layers take and give."""
        return int(self.family_config().hidden_size)
