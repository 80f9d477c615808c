"""Which layer, pair or site: one run for each of them and each seed, beside the host alone (paper, figures 2 and 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from layer_surgeon._io import new_file
from layer_surgeon._loading import load_config
from layer_surgeon.errors import ConfigError, LayerNotFoundError
from layer_surgeon.graft.config import EMBEDDINGS, ENCODER_OUTPUT
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.progress import Progress
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.hosts import host_source
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
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


def layer_rows(plan: StudyPlan, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table that are candidates: layers, site and row, in the order of the layers, then of the plan."""
    arms = {arm.name: (arm.donor, arm) for arm in plan.arms if arm.donor is not None and arm.kind == "graft"}
    rows = [
        {"layers": list(arms[row["arm"]][0].layers), "site": arms[row["arm"]][1].graft.get("site"), **row}
        for row in table["rows"]
        if row["arm"] in arms
    ]
    return sorted(rows, key=lambda row: row["layers"])


def _labels(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], str]:
    """What to write below each candidate, and below them all."""
    layers = ["+".join(map(str, row["layers"])) for row in rows]
    sites = [str(row["site"] if row["site"] is not None else ENCODER_OUTPUT).replace("_", "\n") for row in rows]
    if len(set(sites)) < 2:
        return layers, "layer of the donor (from 0)"
    if len(set(layers)) < 2:
        return sites, f"site of layer {layers[0]}: behind which layer of the host (from 0)"
    return [f"{layer}\n{site}" for layer, site in zip(layers, sites, strict=True)], "layer of the donor, and site"


def draw_sweep(summary: Mapping[str, Any], plan: StudyPlan, path: Path) -> None:
    """A picture of each table: mean and deviation over the seeds by layer, the host alone as a band.

    Args:
        summary: As in summary.json.
        plan: The sweep's plan.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    tables = [table for table in summary["tables"] if layer_rows(plan, table)]
    if not tables:
        return
    figure = Figure(figsize=(6.4, 3.6 * len(tables)), layout="constrained", dpi=150)
    axes = figure.subplots(len(tables), squeeze=False)[:, 0]
    for axis, table in zip(axes, tables, strict=True):
        rows = layer_rows(plan, table)
        places = list(range(len(rows)))
        means, bands = [row["mean"] for row in rows], [row["deviation"] or 0.0 for row in rows]
        axis.plot(places, means, marker="o", color="#2b6cb0", label="graft")
        lows = [mean - band for mean, band in zip(means, bands, strict=True)]
        highs = [mean + band for mean, band in zip(means, bands, strict=True)]
        axis.fill_between(places, lows, highs, color="#2b6cb0", alpha=0.2, linewidth=0)
        for place, row in zip(places, rows, strict=True):
            axis.scatter([place] * len(row["by_seed"]), row["by_seed"], s=8, color="#2b6cb0", alpha=0.5)
        host = next((row for row in table["rows"] if row["arm"] == plan.reference), None)
        if host is not None:
            axis.axhline(host["mean"], color="#718096", linestyle="--", label="host alone")
            band = host["deviation"] or 0.0
            axis.axhspan(host["mean"] - band, host["mean"] + band, color="#718096", alpha=0.15, linewidth=0)
        labels, what = _labels(rows)
        axis.set_xticks(places, labels, fontsize=8)
        axis.set_xlabel(what)
        axis.set_ylabel(summary["metric"])
        axis.set_title(f"{table['test']}: mean and deviation over the seeds", fontsize=10)
        axis.legend(frameon=False)
    with new_file(path) as file:
        figure.savefig(file, format="png")


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
