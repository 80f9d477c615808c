"""The model card of a grafted model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layer_surgeon.hub.origin import Origin
from layer_surgeon.hub.rendering import render_card
from layer_surgeon.tasks import Task


@dataclass(frozen=True, kw_only=True)
class GraftCard:
    """Facts about a grafted model.

    Attributes:
        origin: The models it was made from.
        task: The task, which says how the model is loaded and called.
        parts: Number of parameters of each part: (all, trained).
        settings: The graft's settings by name.
        labels: Names of the labels; empty for a task without labels.
    """

    origin: Origin
    task: Task
    parts: Mapping[str, tuple[int, int]]
    settings: Mapping[str, Any]
    labels: Sequence[str]

    @property
    def total(self) -> tuple[int, int]:
        """Number of parameters of the whole model: (all, trained)."""
        return sum(count for count, _ in self.parts.values()), sum(trained for _, trained in self.parts.values())

    def render(self) -> str:
        """Return the text of README.md."""
        metadata = {
            "library_name": "transformers",
            "pipeline_tag": self.task.pipeline_tag,
            "tags": ["layer-surgeon"],
            **self.origin.metadata,
        }
        return render_card("graft.md.jinja", metadata, card=self, origin=self.origin)
