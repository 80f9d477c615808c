"""The data of a report's plots, from the summary and the cells: layer sweeps, domain shift, learning curves."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layer_surgeon.graft.config import ENCODER_OUTPUT
from layer_surgeon.study.plan import StudyPlan, digest_of
from layer_surgeon.study.records import CellResult
from layer_surgeon.study.tables import Comparison, Row, Summary, Table
from layer_surgeon.study.verdict import say_place
from layer_surgeon.workspace import short_name

Varied = Literal["layer", "site", "layer and site"]
Spot = tuple[tuple[int, ...], str]


def place_of(table: Table) -> str:
    """Return the name of a table, such as "shops, trained on films, 10 % of the data"."""
    return say_place(table.test, table.data, table.fraction)


@dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """One point of a sweep. `label` is a layer, a pair or a site, such as "16", "15+16" or "embeddings"."""

    label: str
    row: Row
    best: bool
    outcome: str | None


@dataclass(frozen=True, kw_only=True)
class LayerSweep:
    """The layers of a donor, or one layer at several sites of the host, on one test set.

    Attributes:
        donor: Name of the donor.
        host: Name of the host.
        varied: What differs between the points.
        table: The table of the test set.
        axis: Title of the axis, such as "layer of llm (from 0)".
        points: The points, in the order of the layers.
        reference: The row of the host alone; None if it has no finished training.
    """

    donor: str
    host: str
    varied: Varied
    table: Table
    axis: str
    points: tuple[LayerPoint, ...]
    reference: Row | None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One epoch of an arm. `loss` and `score` (on the validation part) are (mean, lowest, highest) over the seeds."""

    epoch: float
    loss: tuple[float, float, float]
    score: tuple[float, float, float] | None


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """The learning curve of an arm on a share of a data set."""

    arm: str
    data: str
    fraction: float
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, kw_only=True)
class ShiftMatrix:
    """Domain shift of one arm: trained on each data set, tested on each.

    Attributes:
        arm: Name of the arm.
        fraction: Share of the training data.
        trained_on: Names of the rows.
        tested_on: Names of the columns.
        means: [trained_on][tested_on] mean over the seeds; None if it was not measured.
        gains: [trained_on][tested_on] comparison with the reference; None for the reference itself.
    """

    arm: str
    fraction: float
    trained_on: tuple[str, ...]
    tested_on: tuple[str, ...]
    means: tuple[tuple[float | None, ...], ...]
    gains: tuple[tuple[Comparison | None, ...], ...]


def shift_matrices(summary: Summary, plan: StudyPlan) -> tuple[ShiftMatrix, ...]:
    """Return a matrix of training sets x test sets for every arm; none if models are only tested on their own data."""
    tables = {(table.fraction, table.data, table.test): table for table in summary.tables}
    if all(data == test for _, data, test in tables):
        return ()
    trained_on = tuple(dict.fromkeys(data for _, data, _ in tables))
    tested_on = tuple(spec.name for spec in plan.data if any(spec.name == test for *_, test in tables))
    matrices = []
    for fraction, arm in itertools.product(plan.fractions, summary.arms):
        grid = [[tables.get((fraction, data, test)) for test in tested_on] for data in trained_on]
        means = tuple(tuple(_mean_of(table, arm) for table in line) for line in grid)
        if all(mean is None for line in means for mean in line):
            continue
        gains = tuple(
            tuple(None if table is None else summary.against_reference(table, arm) for table in line) for line in grid
        )
        matrices.append(
            ShiftMatrix(
                arm=arm, fraction=fraction, trained_on=trained_on, tested_on=tested_on, means=means, gains=gains
            )
        )
    return tuple(matrices)


def _mean_of(table: Table | None, arm: str) -> float | None:
    return next((row.mean for row in table.rows if row.arm == arm), None) if table is not None else None


def learning_curves(plan: StudyPlan, results: Sequence[CellResult]) -> tuple[LearningCurve, ...]:
    """Return a learning curve for every arm, data set and share with a finished training."""
    curves = []
    for data, fraction, arm in itertools.product(plan.tests, plan.fractions, plan.arms):
        arm_results = [r for r in results if (r.arm, r.data, r.fraction) == (arm.name, data, fraction)]
        epochs = sorted({epoch_record["epoch"] for result in arm_results for epoch_record in result.history})
        points = tuple(_curve_point(epoch, arm_results, plan.metric) for epoch in epochs)
        if arm_results:
            curves.append(LearningCurve(arm=arm.name, data=data, fraction=fraction, points=points))
    return tuple(curves)


def _curve_point(epoch: float, results: Sequence[CellResult], metric: str) -> CurvePoint:
    epoch_records = [
        epoch_record for result in results for epoch_record in result.history if epoch_record["epoch"] == epoch
    ]
    scores = [epoch_record[metric] for epoch_record in epoch_records if metric in epoch_record]
    losses = [epoch_record["training_loss"] for epoch_record in epoch_records]
    return CurvePoint(epoch=epoch, loss=_around(losses), score=_around(scores) if scores else None)


def _around(values: Sequence[float]) -> tuple[float, float, float]:
    return sum(values) / len(values), min(values), max(values)


def layer_sweeps(summary: Summary, plan: StudyPlan) -> tuple[LayerSweep, ...]:
    """Return a sweep per test set for every donor with several layers, or several sites of one layer."""
    groups: dict[tuple[str, str, str], dict[str, Spot]] = {}
    for arm in plan.arms:
        if arm.donor is not None and arm.kind == "graft":
            site = str(arm.graft.get("site", ENCODER_OUTPUT))
            # Arms are points of the same line only if nothing but the layer or the site differs.
            graft = {key: value for key, value in arm.graft.items() if key != "site"}
            donor = {**arm.donor.as_dict(), "layers": None}
            others = digest_of({**arm.as_dict(), "name": None, "donor": donor, "graft": graft})
            groups.setdefault((arm.donor.source, arm.host_name, others), {})[arm.name] = (arm.donor.layers, site)
    sweeps = (
        _sweep(table, summary, short_name(source), host, spots)
        for table in summary.tables
        for (source, host, _), spots in groups.items()
    )
    return tuple(sweep for sweep in sweeps if sweep is not None)


def _sweep(table: Table, summary: Summary, donor: str, host: str, spots: dict[str, Spot]) -> LayerSweep | None:
    # Sorting keeps the plan's order among the sites of a layer, from the first to the last.
    rows = sorted((row for row in table.rows if row.arm in spots), key=lambda row: _depth(spots[row.arm][0]))
    if len({spots[row.arm] for row in rows}) < 2:
        return None
    best = summary.best(tuple(rows))
    varied, axis, labels = _labels([spots[row.arm] for row in rows], donor, summary.arms[rows[0].arm].donor)
    references = [row for row in table.rows if summary.is_reference(row.arm) and summary.arms[row.arm].host == host]
    return LayerSweep(
        donor=donor,
        host=host,
        varied=varied,
        table=table,
        axis=axis,
        points=tuple(
            LayerPoint(
                label=label,
                row=row,
                best=row.mean == best,
                outcome=summary.outcome(summary.against_reference(table, row.arm)),
            )
            for label, row in zip(labels, rows, strict=True)
        ),
        reference=references[0] if references and references[0] not in rows else None,
    )


def _depth(layers: tuple[int, ...]) -> list[tuple[bool, int]]:
    """Return the sort key of layers. Layers that are counted from the end come last."""
    return [(layer < 0, layer) for layer in layers]


def _labels(spots: Sequence[Spot], donor: str, layer: str | None) -> tuple[Varied, str, list[str]]:
    """Return what differs between the points, the title of the axis, and the label of each point."""
    layers = ["+".join(map(str, layers)) for layers, _ in spots]
    sites = [site.replace("_", " ") for _, site in spots]
    if len(set(sites)) == 1:
        return "layer", f"layer of {donor} (from 0)", layers
    if len(set(layers)) == 1:
        return "site", f"site of {layer} in the host", sites
    labels = [f"{layer}, {site}" for layer, site in zip(layers, sites, strict=True)]
    return "layer and site", f"layer of {donor} (from 0) and site in the host", labels
