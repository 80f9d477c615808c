"""From summary.json and the cells to the tables and series of a report."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from layer_surgeon.graft.config import ENCODER_OUTPUT
from layer_surgeon.study.arms import is_called
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.report_types import (
    CostPoint,
    CurvePoint,
    Difference,
    LayerPoint,
    LayerSweep,
    LearningCurve,
    Row,
    ShiftMatrix,
    Span,
    Table,
    Varied,
)
from layer_surgeon.study.verdict import SHARES, difference_in_words, say_place
from layer_surgeon.workspace import short_name


def read_table(table: Mapping[str, Any], summary: Mapping[str, Any], plan: StudyPlan) -> Table:
    """A table of summary.json, with what the arms cost."""
    comparisons = tuple(_difference(entry, plan) for entry in table["comparisons"])
    means = [row["mean"] for row in table["rows"]]
    best = (max if plan.higher_is_better else min)(means, default=None)
    rows = tuple(_row(row, summary, comparisons, plan, best=row["mean"] == best) for row in table["rows"])
    return Table(
        data=table["data"],
        fraction=table["fraction"],
        test=table["test"],
        place=say_place(table["test"], table["data"], table["fraction"]),
        examples=table["examples"],
        rows=rows,
        comparisons=comparisons,
        costs=_costs(rows, comparisons, plan),
    )


def _row(
    row: Mapping[str, Any],
    summary: Mapping[str, Any],
    comparisons: Sequence[Difference],
    plan: StudyPlan,
    *,
    best: bool,
) -> Row:
    counts = summary["arms"][row["arm"]]["parameters"] or {}
    own = _against_reference(row["arm"], comparisons, plan)
    return Row(
        arm=row["arm"],
        seeds=tuple(row["seeds"]),
        by_seed=tuple(row["by_seed"]),
        mean=row["mean"],
        deviation=row["deviation"],
        seed_interval=_interval_of_mean(row["seed_interval"], plan.metric),
        example_interval=_span(row["example_interval"]),
        scores=row["scores"],
        total=counts.get("total"),
        trained=counts.get("trained"),
        training_seconds=row["training_seconds"],
        train_examples=row["train_examples"],
        best=best,
        verdict=None if own is None else own.verdict,
    )


def _difference(entry: Mapping[str, Any], plan: StudyPlan) -> Difference:
    crossed = entry["crossed"]
    decides = crossed["interval"] if crossed else entry["seed_interval"] or entry["example_interval"]
    return Difference(
        arm=entry["arm"],
        against=entry["against"],
        seeds=tuple(entry["seeds"]),
        by_seed=tuple(entry["by_seed"]),
        mean=entry["mean"],
        deviation=entry["deviation"],
        effect_size=entry["effect_size"],
        size=difference_in_words(entry["mean"], plan.metric),
        interval=_span(decides),
        seed_interval=_span(entry["seed_interval"]),
        example_interval=_span(entry["example_interval"]),
        both_interval=_span(entry["both_interval"]),
        t_test=entry["t_test"],
        permutation=entry["permutation"],
        basis=entry["basis"],
        p=entry["p"],
        p_holm=entry["p_holm"],
        significant=entry["significant"],
        better=entry["significant"] and (entry["mean"] > 0) == plan.higher_is_better,
        words=entry["words"],
    )


def _against_reference(arm: str, comparisons: Sequence[Difference], plan: StudyPlan) -> Difference | None:
    own = (entry for entry in comparisons if entry.arm == arm and is_called(plan.reference, entry.against))
    return next(own, None)


def _costs(rows: Sequence[Row], comparisons: Sequence[Difference], plan: StudyPlan) -> tuple[CostPoint, ...]:
    points = []
    for row in rows:
        own = _against_reference(row.arm, comparisons, plan)
        if own is None and not is_called(plan.reference, row.arm):
            continue
        points.append(
            CostPoint(
                arm=row.arm,
                trained=row.trained,
                total=row.total,
                seconds=row.training_seconds,
                gain=0.0 if own is None else own.mean,
                interval=None if own is None else own.interval,
                significant=own is not None and own.significant,
                is_reference=own is None,
            )
        )
    return tuple(points)


def shift_matrices(tables: Sequence[Table], plan: StudyPlan) -> tuple[ShiftMatrix, ...]:
    """Trained on each x tested on each, for every arm; none where each data set has only its own test part."""
    if all(table.data == table.test for table in tables):
        return ()
    means = {(row.arm, table.fraction, table.data, table.test): row.mean for table in tables for row in table.rows}
    trained_on = tuple(dict.fromkeys(table.data for table in tables))
    named = [entry.name for entry in plan.data]
    tested_on = tuple(sorted({table.test for table in tables}, key=named.index))
    return tuple(
        ShiftMatrix(
            arm=arm.name,
            fraction=fraction,
            trained_on=trained_on,
            tested_on=tested_on,
            means=tuple(
                tuple(means.get((arm.name, fraction, data, test)) for test in tested_on) for data in trained_on
            ),
        )
        for fraction in plan.fractions
        for arm in plan.arms
        if any((arm.name, fraction, data, test) in means for data in trained_on for test in tested_on)
    )


def learning_curves(plan: StudyPlan, results: Sequence[Mapping[str, Any]]) -> tuple[LearningCurve, ...]:
    """One for every arm, data set and share that has a finished training."""
    curves = []
    for data, fraction, arm in itertools.product(plan.tests, plan.fractions, plan.arms):
        mine = [r for r in results if (r["arm"], r["data"], r["fraction"]) == (arm.name, data, fraction)]
        if not mine:
            continue
        epochs = sorted({entry["epoch"] for result in mine for entry in result["history"]})
        points = tuple(_curve_point(epoch, mine, plan.metric) for epoch in epochs)
        curves.append(LearningCurve(arm=arm.name, data=data, fraction=fraction, points=points))
    return tuple(curves)


def _curve_point(epoch: float, results: Sequence[Mapping[str, Any]], metric: str) -> CurvePoint:
    entries = [entry for result in results for entry in result["history"] if entry["epoch"] == epoch]
    scores = [entry[metric] for entry in entries if metric in entry]
    return CurvePoint(
        epoch=epoch,
        loss=_around([entry["training_loss"] for entry in entries]),
        score=_around(scores) if scores else None,
    )


def sweeps_of(tables: Sequence[Table], plan: StudyPlan) -> tuple[LayerSweep, ...]:
    """Where a donor stands in grafts with several layers, or in several places, on each test set."""
    groups: dict[tuple[str, str, str], dict[str, tuple[tuple[int, ...], str]]] = {}
    hosts = {arm.name: arm.host_name for arm in plan.arms}
    for arm in plan.arms:
        if arm.donor is not None and arm.kind == "graft":
            site = str(arm.graft.get("site", ENCODER_OUTPUT))
            # An arm that is trained in another way is no point on the line of those that differ by layer or site alone.
            graft = {key: value for key, value in arm.graft.items() if key != "site"}
            rest = repr([arm.donor.revision, arm.donor.dtype, sorted(graft.items()), sorted(arm.finetune.items())])
            groups.setdefault((arm.donor.source, arm.host_name, rest), {})[arm.name] = (arm.donor.layers, site)
    found = []
    for table in tables:
        for (source, host, _), known in groups.items():
            # Sorting keeps the plan's order among the sites of a layer, from the first to the last.
            rows = sorted((row for row in table.rows if row.arm in known), key=lambda row: _depth(known[row.arm][0]))
            if len({known[row.arm] for row in rows}) < 2:
                continue
            own = [row for row in table.rows if is_called(plan.reference, row.arm) and hosts[row.arm] == host]
            places = [known[row.arm] for row in rows]
            varied, axis, labels = _labels(places, short_name(source))
            found.append(
                LayerSweep(
                    donor=short_name(source),
                    host=host,
                    varied=varied,
                    data=table.data,
                    fraction=table.fraction,
                    test=table.test,
                    place=table.place,
                    axis=axis,
                    points=_layer_points(rows, labels, higher=plan.higher_is_better),
                    reference=own[0] if own and own[0] not in rows else None,
                )
            )
    return tuple(found)


def _depth(layers: tuple[int, ...]) -> list[tuple[bool, int]]:
    """What layers are sorted by: those counted from the end come last."""
    return [(layer < 0, layer) for layer in layers]


def _labels(places: Sequence[tuple[tuple[int, ...], str]], donor: str) -> tuple[Varied, str, list[str]]:
    """What differs, what stands below the axis, and what below each point: layers, sites, or both."""
    layers = ["+".join(map(str, layers)) for layers, _ in places]
    sites = [site.replace("_", " ") for _, site in places]
    if len(set(sites)) == 1:
        return "layer", f"layer of {donor} (from 0)", layers
    if len(set(layers)) == 1:
        return "site", f"where layer {layers[0]} of {donor} sits in the host", sites
    both = [f"{layer}, {site}" for layer, site in zip(layers, sites, strict=True)]
    return "layer and site", f"layer of {donor} (from 0), and where it sits", both


def _layer_points(rows: Sequence[Row], labels: Sequence[str], *, higher: bool) -> tuple[LayerPoint, ...]:
    best = (max if higher else min)(row.mean for row in rows)
    return tuple(
        LayerPoint(
            arm=row.arm,
            label=label,
            by_seed=row.by_seed,
            mean=row.mean,
            deviation=row.deviation,
            best=row.mean == best,
            verdict=row.verdict,
        )
        for row, label in zip(rows, labels, strict=True)
    )


def _around(values: Sequence[float]) -> tuple[float, float, float]:
    return sum(values) / len(values), min(values), max(values)


def _interval_of_mean(interval: Sequence[float] | None, metric: str) -> Span | None:
    """The t distribution knows no bounds, and a share has two: what lies beyond them is no possible mean."""
    span = _span(interval)
    return (max(0.0, span[0]), min(1.0, span[1])) if span is not None and metric in SHARES else span


def _span(interval: Sequence[float] | None) -> Span | None:
    return None if interval is None else (interval[0], interval[1])
