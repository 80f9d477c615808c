"""Which layer: one run for each layer and seed, beside the host alone (paper, figures 2 and 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layer_surgeon.errors import ConfigError, LayerNotFoundError
from layer_surgeon.progress import Progress
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import open_donor

PICTURE = "sweep.png"


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


def count_layers(donor: DonorSpec, folder: Path, progress: Progress) -> int:
    """How many layers a donor has; reads its config and headers.

    Raises:
        SourceError, CheckpointError: It can't be read.
    """
    return open_donor(donor.source, donor.revision, StudyFolder(root=folder), progress).num_layers


def layer_rows(plan: StudyPlan, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table that are layers of the donor: layer and row, in the order of the layers."""
    donors = {arm.name: arm.donor for arm in plan.arms if arm.donor is not None and arm.kind == "graft"}
    rows = [{"layers": list(donors[row["arm"]].layers), **row} for row in table["rows"] if row["arm"] in donors]
    return sorted(rows, key=lambda row: row["layers"])


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
        axis.set_xticks(places, ["+".join(map(str, row["layers"])) for row in rows])
        axis.set_xlabel("layer of the donor (from 0)")
        axis.set_ylabel(summary["metric"])
        axis.set_title(f"{table['test']}: mean and deviation over the seeds", fontsize=10)
        axis.legend(frameon=False)
    figure.savefig(path)


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
