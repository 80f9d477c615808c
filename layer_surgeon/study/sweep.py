"""Which layer, pair or site: one run for each of them and each seed, and the host alone (paper, figures 2 and 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from layer_surgeon._loading import load_config
from layer_surgeon.errors import ConfigError, LayerNotFoundError
from layer_surgeon.graft.config import EMBEDDINGS, ENCODER_OUTPUT
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.progress import Progress
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.hosts import host_source
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.prepare import open_donor

Candidates = Literal["layers", "pairs", "sites"]


def choose_layers(text: str, count: int) -> list[int]:
    """Layers from `all`, `0,4,8`, `-1`, or `0:32:4`; as indices from 0, each once, in order.

    Args:
        text: What was said.
        count: How many layers the donor has.

    Raises:
        ConfigError: It is none of these.
        LayerNotFoundError: The donor has no such layer.
    """
    layers: list[int] = []
    for piece in text.split(","):
        bounds = piece.strip().split(":")
        try:
            if piece.strip() == "all":
                layers += range(count)
            elif len(bounds) > 1:
                layers += range(count)[slice(*(int(bound) if bound else None for bound in bounds))]
            else:
                index = int(piece)
                if not -count <= index < count:
                    raise LayerNotFoundError(
                        f"There is no layer {index}: the donor has {count}, 0 to {count - 1}, or -{count} to -1."
                    )
                layers.append(index % count)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"layers is {text!r}; it must be all, numbers such as 0,4,8, or a range such as 0:32:4."
            ) from error
    if not layers:
        raise ConfigError(f"layers is {text!r}, which names none of the donor's {count} layers.")
    return sorted(set(layers))


def count_layers(donor: DonorSpec, folder: StudyFolder, progress: Progress) -> int:
    """How many layers a donor has; reads its config and headers.

    Raises:
        SourceError, CheckpointError: It can't be read.
    """
    return open_donor(donor.source, donor.revision, folder, progress).num_layers


def host_sites(host: str, folder: StudyFolder) -> list[str | int]:
    """Where a graft can sit in a host: behind its embeddings, behind each of its layers, and behind all of it.

    Behind the last layer by its number, the graft sees all tokens; as `encoder_output`, the vector that stands for the
    text.

    Args:
        host: What `surgeon graft` takes, or `packaged:NAME`. Only its config is read.
        folder: Where a host is unpacked that comes as an archive.

    Raises:
        SourceError: It can't be read.
    """
    with hub_errors(f"The host {host!r}"):
        config = load_config(host_source(host, folder))
    return [EMBEDDINGS, *range(config.get_text_config().num_hidden_layers), ENCODER_OUTPUT]


def with_layers(plan: Mapping[str, Any], layers: Sequence[int | Sequence[int]]) -> dict[str, Any]:
    """What `StudyPlan.from_dict` takes, as a sweep over these layers.

    Raises:
        ConfigError: The plan names no donor.
    """
    content = {key: value for key, value in plan.items() if key != "donors"}
    if not content.get("donor"):
        raise ConfigError("A sweep needs a donor: the large model whose layers are tried. Say: donor: MODEL.")
    donor = replace(DonorSpec.parse(content["donor"]), layers=(-1,))
    return {
        **content,
        "donor": donor,
        "arms": ["host", "graft"],
        "layers": [list(layer) if isinstance(layer, Sequence) else layer for layer in layers],
        "focus": None,
    }


def with_candidates(
    plan: Mapping[str, Any], layers: Sequence[int], candidates: Candidates, folder: StudyFolder
) -> dict[str, Any]:
    """What `StudyPlan.from_dict` takes, as a sweep over layers, pairs of neighbours among them, or sites of each.

    Args:
        plan: What YAML says.
        layers: Layers of the donor, in order.
        candidates: layers; pairs: each layer with the next of `layers`; sites: see `host_sites`.
        folder: As in `host_sites`.

    Raises:
        ConfigError: The plan names no donor; or there is no pair.
        SourceError: The host's config can't be read.
    """
    if candidates == "pairs":
        pairs = [list(pair) for pair in pairwise(layers)]
        if not pairs:
            raise ConfigError(f"Layer {layers[0]} alone makes no pair. Name two layers or more.")
        return with_layers(plan, pairs)
    content = with_layers(plan, layers)
    if candidates == "sites":
        sites = host_sites(str(content.get("host", "bert-base-uncased")), folder)
        grafts = [{"name": f"graft-{site}", "like": "graft", "graft": {"site": site}} for site in sites]
        content["arms"] = ["host", *grafts]
    return content
