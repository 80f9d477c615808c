"""Facts for model cards about the models that a model was made from, and how it is used."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer_surgeon._text import printable, without_secrets
from layer_surgeon.workspace import short_name

_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A model that weights come from.

    Attributes:
        part: The part that its weights are in: host, donor, or model for all of them.
        name: Repo id or path. If it has none, a description that can't be a repo id, such as `a bert model`.
        licence: The licence that its model card states; None if it states none.
    """

    part: str
    name: str
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class GraftedLayer:
    """The donor layer of a graft.

    Attributes:
        model: Name of its model, as in `SourceModel`.
        indices: Indices of the layers in that model.
        commit: The commit of that model.
        random: Whether it started from random weights.
        trained: Whether it is trained too.
        reads_text: Whether these are the first layers with the embeddings, which read the text.
    """

    model: str
    indices: tuple[int, ...]
    commit: str | None
    random: bool
    trained: bool
    reads_text: bool = False


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The models that a model was made from.

    Attributes:
        models: The models, the host first.
        layer: The donor layer; None for a model without one.
        is_graft: Whether the model needs the classes of layer_surgeon; true also for a host alone, as a control.
        has_head: Whether it has the head of a graft.
    """

    models: tuple[SourceModel, ...]
    layer: GraftedLayer | None = None
    is_graft: bool = False
    has_head: bool = False

    @property
    def metadata(self) -> dict[str, Any]:
        """The Hub's metadata about base models and licences."""
        base_models = repo_ids(model.name for model in self.models)
        fields: dict[str, Any] = {}
        if base_models:
            # Of the Hub's four relations, "merge" is the only one for a model with weights of two others.
            merged = repo_ids(model.name for model in self.models if model.part == "donor")
            fields = {"base_model": base_models, "base_model_relation": "merge" if merged else "finetune"}
        # The Hub allows one licence: two become `other`, with both names. If only some state one, the card states none.
        licences = [printable(model.licence or "", keep="") for model in self.models]
        names = list(dict.fromkeys(licences)) if all(licences) else []
        if len(names) > 1:
            return {**fields, "license": "other", "license_name": "-and-".join(names)}
        return {**fields, "license": names[0]} if names else fields


def repo_ids(names: Iterable[str | None]) -> list[str]:
    """Return the names that can be repo ids and are not local paths."""
    return [name for name in names if isinstance(name, str) and _REPO_ID.fullmatch(name) and not Path(name).exists()]


def shown_name(name: Any) -> str:
    """Return a repo id as it is, and only the last part of a local path, the only one with a meaning elsewhere."""
    name = without_secrets(str(name))
    return short_name(name) if Path(name).is_absolute() or os.path.lexists(name) else name
