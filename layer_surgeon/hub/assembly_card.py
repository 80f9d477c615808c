"""The model card of an assembled model, which names the origin of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layer_surgeon.hub.origin import Origin, SourceModel
from layer_surgeon.hub.rendering import render_card


@dataclass(frozen=True, kw_only=True)
class CardSource:
    """A model that layers or other parts come from.

    Attributes:
        name: Its repo id, path or URL.
        repo_id: Its repo on the Hub; None if it is not there.
        commit: Its commit.
        num_layers: Number of its layers.
        parts: What was taken from it, such as `layers 0-15`.
        licence: `license`, `license_name` and `license_link`, as far as it states them.
    """

    name: str
    repo_id: str | None
    commit: str | None
    num_layers: int
    parts: Sequence[str]
    licence: Mapping[str, str]

    @property
    def licence_name(self) -> str | None:
        """The name of its licence; None if it states none."""
        return self.licence.get("license_name") or self.licence.get("license")


@dataclass(frozen=True, kw_only=True)
class AssemblyCard:
    """Facts about an assembled model.

    Attributes:
        sources: The models that it consists of.
        layers: Source, index, whether it adds nothing at first, and scale of each layer, in order.
        family: Its model type.
        num_parameters: Number of parameters.
        dtype: The dtype of most tensors.
        licence_files: Names of the sources' licence files.
        changed: Whether it computes something else than its source.
    """

    sources: Sequence[CardSource]
    layers: Sequence[tuple[str, int, bool, float]]
    family: str
    num_parameters: int
    dtype: str
    licence_files: Sequence[str]
    changed: bool

    @property
    def has_several_licences(self) -> bool:
        """Whether the sources state different licences, or only some state one."""
        return len({source.licence_name for source in self.sources}) > 1

    def render(self) -> str:
        """Return the text of README.md."""
        models = tuple(
            SourceModel(
                part="donor" if number else "model",
                # No repo id has spaces.
                name=source.repo_id or f"the model {source.name}",
                licence=source.licence.get("license"),
            )
            for number, source in enumerate(self.sources)
        )
        metadata: dict[str, Any] = {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["layer-surgeon", "assembled-model"],
            **Origin(models=models).metadata,
        }
        if not self.has_several_licences:
            metadata |= dict(self.sources[0].licence)
        return render_card("assembly.md.jinja", metadata, card=self)
