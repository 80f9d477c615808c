"""The model card of a layer artifact, which names the layer's origin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layer_surgeon.hub.rendering import render_card


@dataclass(frozen=True, kw_only=True)
class LayerCard:
    """Facts about a layer artifact.

    Attributes:
        model: Name of the donor: a repo id, path or URL.
        base_model: Repo id of the donor; None if it is not on the Hub.
        commit: The donor's commit.
        licence: `license`, `license_name` and `license_link`, as far as the donor states them.
        licence_files: Names of the donor's licence files.
        layer_indices: The layers, in their order.
        num_layers: Number of layers of the donor.
        family: The donor's model type.
        num_tensors: Number of tensors.
        num_parameters: Number of parameters.
        dtype: The tensors' dtype.
        files: The donor's files that were read.
        format: Their format.
        has_embeddings: Whether it also has what acts before layer 0, and reads text.
        vocabulary: The host that its table of tokens is made for; None: the donor's own tokens.
    """

    model: str
    base_model: str | None
    commit: str | None
    licence: Mapping[str, str]
    licence_files: Sequence[str]
    layer_indices: Sequence[int]
    num_layers: int
    family: str
    num_tensors: int
    num_parameters: int
    dtype: str
    files: Sequence[str]
    format: str
    has_embeddings: bool = False
    vocabulary: str | None = None

    @property
    def kind(self) -> str:
        """The tag on the Hub."""
        return "donor-stack" if self.has_embeddings else "donor-layer"

    def render(self) -> str:
        """Return the text of README.md."""
        metadata: dict[str, Any] = {"library_name": "layer_surgeon", "tags": ["layer-surgeon", self.kind]}
        if self.base_model is not None:
            metadata["base_model"] = self.base_model
        return render_card("layer.md.jinja", metadata | dict(self.licence), card=self)
