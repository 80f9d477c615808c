"""Sweeps: one training per seed for every layer, pair or site, and for the host alone (paper, figures 2 and 3)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from layer_surgeon._indices import select_indices
from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.errors import ConfigError, LayerNotFoundError
from layer_surgeon.graft.config import EMBEDDINGS, ENCODER_OUTPUT
from layer_surgeon.graft.hosts import load_host_config
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.plan_parts import listed

Candidates = Literal["layers", "pairs", "sites"]


def choose_layers(text: str, count: int) -> list[int]:
    """Read layer numbers from text: `all`, `0,4,8`, `-1`, or `0:32:4`.

    Args:
        text: The text.
        count: Number of layers of the donor.

    Returns:
        Indices from 0, sorted and without duplicates.

    Raises:
        ConfigError: The text does not have one of these forms, or selects no layer.
        LayerNotFoundError: The donor does not have such a layer.
    """
    layers: list[int] = []
    for item in map(str.strip, text.split(",")):
        part, _, step = item.rpartition(":") if item.count(":") == 2 else (item, "", "1")
        selected = [*range(count)] if part == "all" else select_indices(part, count, lambda i: _layer_index(i, count))
        if selected is None or not re.fullmatch(r"[1-9]\d{0,8}", step):
            raise ConfigError(f"layers is {text!r}; it must be all, numbers such as 0,4,8, or a range such as 0:32:4.")
        layers += selected[:: int(step)]
    if not layers:
        raise ConfigError(
            f"layers is {text!r}, which selects none of the donor's {count} layers. Choose from 0 to {count - 1}."
        )
    return sorted(set(layers))


def _layer_index(index: int, count: int) -> int:
    if not -count <= index < count:
        raise LayerNotFoundError(
            f"There is no layer {index}: the donor has {count} layers. Choose from 0 to {count - 1}, or from -{count} "
            "to -1."
        )
    return index % count


def count_layers(donor: DonorSpec) -> int:
    """Return the number of a donor's layers. Only its config and headers are read.

    Raises:
        SourceError, CheckpointError: The donor can't be read.
    """
    return open_checkpoint(donor.source, revision=donor.revision).num_layers


def host_sites(host: str) -> list[str | int]:
    """Return the possible sites of a graft in a host: after the embeddings, after each layer, and after the whole host.

    The number of the last layer and `encoder_output` are different sites. With the number, the graft sees all tokens;
    with `encoder_output`, it sees the pooled vector of the text.

    Args:
        host: A host that `surgeon graft` takes. Only its config is read.

    Raises:
        SourceError: The host can't be read.
        GraftError: Its family is not known.
    """
    with hub_errors(f"The host {host!r}"):
        config = load_host_config(host)
    return [EMBEDDINGS, *range(config.get_text_config().num_hidden_layers), ENCODER_OUTPUT]


def with_layers(plan: Mapping[str, Any], layers: Sequence[int | Sequence[int]]) -> dict[str, Any]:
    """Turn a plan into a sweep over layers, for `StudyPlan.from_dict`.

    Raises:
        ConfigError: The plan does not have a donor, or the donor reads text and has no layers to compare.
    """
    content = {key: value for key, value in plan.items() if key != "donors"}
    if not content.get("donor"):
        raise ConfigError(
            "A sweep needs a donor, the large model whose layers are compared. Add a line to the plan: donor: MODEL."
        )
    candidates = [tuple(layer) if isinstance(layer, Sequence) else (layer,) for layer in layers]
    graft = content.get("graft")
    reads_text = isinstance(graft, Mapping) and graft.get("donor_reads") == "text"
    if reads_text and any(candidate != tuple(range(len(candidate))) for candidate in candidates):
        raise ConfigError(
            "donor_reads is text, so the donor is its first layers together, and single layers can't be compared. Find "
            "their number with surgeon select --candidates depth."
        )
    donor = replace(DonorSpec.parse(content["donor"]), layers=(-1,))
    return {
        **content,
        "donor": donor,
        "arms": ["host", "graft"],
        "layers": [list(candidate) if len(candidate) > 1 else candidate[0] for candidate in candidates],
        "reference": None,
        "focus": None,
    }


def with_candidates(
    plan: Mapping[str, Any], layers: Sequence[int | Sequence[int]], candidates: Candidates
) -> dict[str, Any]:
    """Turn a plan into a sweep over layers, pairs of layers, or sites, for `StudyPlan.from_dict`.

    Args:
        plan: The content of the plan's YAML file.
        layers: Layers of the donor, in order; for sites, also layers that are grafted together.
        candidates: What is compared. layers: the layers; pairs: each layer together with the next one in `layers`;
            sites: every layer at every site, see `host_sites`.

    Raises:
        ConfigError: The plan does not have a donor, a single layer is to make pairs, or sites are compared in several
            hosts.
        SourceError: The host's config can't be read.
    """
    if candidates == "pairs":
        pairs: list[Any] = [list(pair) for pair in pairwise(layers)]
        if not pairs:
            raise ConfigError(f"Layer {layers[0]} alone can't make a pair. Name at least two layers.")
        return with_layers(plan, pairs)
    content = with_layers(plan, layers)
    if candidates == "sites":
        hosts = listed(content, "hosts", [content.get("host", "bert-base-uncased")])
        if len(hosts) > 1:
            raise ConfigError(
                f"The plan has {len(hosts)} hosts, and each host has its own sites. Name one of them with --host."
            )
        sites = host_sites(str(hosts[0]))
        grafts = [{"name": f"graft-{site}", "like": "graft", "graft": {"site": site}} for site in sites]
        content["arms"] = ["host", *grafts]
    return content
