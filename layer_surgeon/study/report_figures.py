"""From what a report shows to its plots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape

from layer_surgeon.study.arms import is_called
from layer_surgeon.study.report_charts import Axes, Dot, Pair, Series, Tile, dots, heat_map, lines, scatter
from layer_surgeon.study.report_html import Pages, figure
from layer_surgeon.study.report_svg import NARROW
from layer_surgeon.study.report_text import say_count, say_time
from layer_surgeon.study.report_types import CostPoint, Difference, LayerSweep, LearningCurve, Row, ShiftMatrix, Table
from layer_surgeon.study.verdict import say_place, say_share

# More lines than this in one plot, and nobody finds theirs: each then has a panel of its own.
_TOGETHER = 5
_HALF = 408


def scores_plot(page: Pages, table: Table) -> str:
    """Every arm's score, with its intervals and seeds."""
    rows = [
        Dot(
            name=row.arm,
            look=page.looks[row.arm],
            value=row.mean,
            inner=row.example_interval,
            outer=row.seed_interval,
            singles=row.by_seed if len(row.by_seed) > 1 else (),
        )
        for row in table.rows
    ]
    text = "; ".join(f"{row.name} {page.score(row.value)}" for row in rows)
    drawn = page.plot(
        f"{page.metric.capitalize()} by arm on {table.place}",
        text,
        lambda drawing: dots(drawing, rows, page.tick, value=page.score, least=page.least, zero=False),
    )
    said = [f"Mark: mean {escape(page.metric)}"]
    if any(row.singles for row in rows):
        said.append("faint dots: the single seeds")
    if any(row.outer for row in rows):
        said.append("thin line: 95 % interval of the mean over seeds (t), an arrow where it goes on")
    if any(row.inner for row in rows):
        said.append("broad bar: 95 % interval over test examples (bootstrap)")
    return figure(drawn, f"{'; '.join(said)}.")


def differences_plot(page: Pages, table: Table) -> str:
    """Every comparison's difference with its interval, beside zero."""
    rows = [
        Dot(
            name=f"{entry.arm} \N{MINUS SIGN} {entry.against}",
            look=page.looks[entry.arm],
            value=entry.mean,
            outer=entry.interval,
            singles=entry.by_seed if len(entry.by_seed) > 1 else (),
            hollow=not entry.significant,
        )
        for entry in table.comparisons
    ]
    text = "; ".join(entry.words for entry in table.comparisons)
    drawn = page.plot(
        f"Differences on {table.place}, in {page.points}",
        text,
        lambda drawing: dots(drawing, rows, page.gain_tick, value=page.gain, least=page.least, zero=True),
    )
    return figure(
        drawn,
        f"Mean paired difference in {escape(page.points)}, with the 95 % interval of the test that decides; faint "
        "dots: the single seeds. Full mark: significant after Holm's correction; empty mark: not significant.",
    )


def costs_plot(page: Pages, table: Table) -> str:
    """What each arm brings against what it costs: trained parameters, and seconds."""
    trained = [(_cost_dot(page, point), float(point.trained)) for point in table.costs if point.trained]
    seconds = [(_cost_dot(page, point), point.seconds) for point in table.costs if point.seconds > 0]
    kinds = (("trained parameters", trained, say_count), ("seconds of training", seconds, say_time))
    drawn = [_cost_plot(page, table, points, name, say) for name, points, say in kinds if len(points) > 1]
    if not drawn:
        return ""
    names = [point.arm for point in table.costs]
    content = f'{page.legend(names)}<div class="pair">{"".join(drawn)}</div>'
    good = "up" if page.report.higher_is_better else "down"
    return figure(
        content,
        "Difference to the reference, which lies at zero, with its 95 % interval; costs on a logarithmic axis, "
        f"equal ones side by side. Full mark: significant. The best buy stands far {good} and to the left.",
    )


def _cost_plot(
    page: Pages, table: Table, points: Sequence[tuple[Dot, float]], name: str, say: Callable[[float], str]
) -> str:
    axes = Axes(x=name, y=page.points, format=page.gain_tick, least=page.least)
    plot = page.plot(
        f"Gain against {name} on {table.place}",
        "; ".join(f"{dot.name} {page.gain(dot.value)} at {say(cost)}" for dot, cost in points),
        lambda drawing: scatter(drawing, points, axes, x_format=say),
        widths=(_HALF, NARROW),
    )
    return f"<div><h4>Gain against {name}</h4>{plot}</div>"


def _cost_dot(page: Pages, point: CostPoint) -> Dot:
    return Dot(
        name=point.arm,
        look=page.looks[point.arm],
        value=point.gain,
        outer=point.interval,
        hollow=not (point.significant or point.is_reference),
    )


def shift_plots(page: Pages) -> str:
    """For every arm beside the reference: its gain for each training set on each test set."""
    gains = {
        (table.fraction, table.data, table.test, entry.arm): entry
        for table in page.report.tables
        for entry in table.comparisons
        if is_called(page.report.reference, entry.against)
    }
    fields = [(shift, _tiles(page, shift, gains)) for shift in page.report.shifts]
    # One scale for all arms: what one gains must not look like what another loses by a tenth of it.
    largest = max((abs(tile.value) for _, tiles in fields for line in tiles for tile in line if tile), default=0.0)
    return "".join(
        _shift_plot(page, shift, tiles, largest)
        for shift, tiles in fields
        if any(tile for line in tiles for tile in line)
    )


def _tiles(
    page: Pages, shift: ShiftMatrix, gains: Mapping[tuple[float, str, str, str], Difference]
) -> list[list[Tile | None]]:
    tiles: list[list[Tile | None]] = []
    for data, means in zip(shift.trained_on, shift.means, strict=True):
        line: list[Tile | None] = []
        for test, mean in zip(shift.tested_on, means, strict=True):
            entry = gains.get((shift.fraction, data, test, shift.arm))
            if entry is None or mean is None:
                line.append(None)
                continue
            told = f"{data} → {test}: {page.score(mean)}; {entry.words}"
            better = entry.mean if page.report.higher_is_better else -entry.mean
            line.append(Tile(value=better, text=page.gain(entry.mean), marked=entry.significant, told=told))
        tiles.append(line)
    return tiles


def _shift_plot(page: Pages, shift: ShiftMatrix, tiles: Sequence[Sequence[Tile | None]], largest: float) -> str:
    share = say_share(shift.fraction)
    axes = Axes(x="tested on", y="trained on", format=page.gain_tick)
    names = (shift.trained_on, shift.tested_on)
    drawn = page.plot(
        f"{shift.arm}: difference to the reference{share}, in {page.points}",
        "; ".join(tile.told for line in tiles for tile in line if tile),
        lambda drawing: heat_map(drawing, names, tiles, axes, largest=largest),
    )
    said = f"Difference to the reference in {escape(page.points)}. Blue: better; brown: worse; bold: significant."
    return f"<h3>{page.arm(shift.arm)}{escape(share)}</h3>{figure(drawn, said)}"


def sweep_plot(page: Pages, sweep: LayerSweep) -> str:
    """The score by the donor's layer, or by its place in the host; the host alone as a band."""
    looks = page.looks[sweep.points[0].arm]
    series = Series(
        name=sweep.donor,
        look=looks,
        places=tuple(range(len(sweep.points))),
        values=tuple(point.mean for point in sweep.points),
        bands=tuple(_band(point.mean, point.deviation) for point in sweep.points),
        singles=tuple(point.by_seed if len(point.by_seed) > 1 else () for point in sweep.points),
    )
    level = None if sweep.reference is None else _level(page, sweep.reference)
    axes = Axes(
        x=sweep.axis,
        y=page.metric,
        format=page.tick,
        places=tuple((float(index), point.label) for index, point in enumerate(sweep.points)),
        least=page.least,
    )
    best = [index for index, point in enumerate(sweep.points) if point.best]
    text = "; ".join(f"{point.label}: {page.score(point.mean)}" for point in sweep.points)
    drawn = page.plot(
        f"{page.metric.capitalize()} by {sweep.axis} on {sweep.place}",
        text,
        lambda drawing: lines(drawing, [series], axes, level=level, rings=best),
    )
    kind = "layer " if sweep.varied == "layer" else ""
    found = " and ".join(f"{kind}{sweep.points[index].label}" for index in best)
    said = f"Highest: {found}" if page.report.higher_is_better else f"Lowest: {found}"
    beside = f"; dashed: {escape(sweep.reference.arm)}" if sweep.reference is not None else ""
    return figure(
        drawn,
        f"Mean over the seeds with one standard deviation, the single seeds as faint dots{beside}. {escape(said)} "
        "(ringed). The best of many is so by luck too: look at how far its neighbours lie.",
    )


def _band(mean: float, deviation: float | None) -> Pair:
    return mean - (deviation or 0), mean + (deviation or 0)


def _level(page: Pages, row: Row) -> Series:
    return Series(
        name=row.arm,
        look=page.looks[row.arm],
        places=(0.0,),
        values=(row.mean,),
        bands=(_band(row.mean, row.deviation),),
    )


def curves_plots(page: Pages) -> str:
    """How every arm learned: together where they are few, in panels of their own where they are many."""
    groups: dict[tuple[str, float], list[LearningCurve]] = {}
    for curve in page.report.curves:
        groups.setdefault((curve.data, curve.fraction), []).append(curve)
    drawn = []
    for (data, fraction), curves in groups.items():
        share = say_share(fraction)
        title = f"<h3>{escape(data)}{escape(share)}</h3>" if len(groups) > 1 else ""
        scored = all(point.score for curve in curves for point in curve.points)
        name = f"validation {page.metric}" if scored else "training loss"
        series = [_curve(page, curve, scored=scored) for curve in curves]
        axes = Axes(
            x="epoch",
            y=name,
            format=page.tick if scored else lambda value: f"{value:.3g}",
            places=tuple((place, f"{place:g}") for place in sorted({place for one in series for place in one.places})),
            least=page.least if scored else 1e-6,
        )
        drawn.append(f"{title}{together(page, series, axes, f'Learning on {data}{share}')}")
    return "".join(drawn)


def _curve(page: Pages, curve: LearningCurve, *, scored: bool) -> Series:
    points = [(point.score if scored and point.score else point.loss) for point in curve.points]
    return Series(
        name=curve.arm,
        look=page.looks[curve.arm],
        places=tuple(point.epoch for point in curve.points),
        values=tuple(mean for mean, _, _ in points),
        bands=tuple((low, high) for _, low, high in points),
    )


def together(page: Pages, series: Sequence[Series], axes: Axes, title: str) -> str:
    """Lines in one plot with a legend, or each in a panel, all with the same axes."""
    text = "; ".join(f"{one.name}: {', '.join(map(axes.format, one.values))}" for one in series)
    said = f"{escape(axes.y.capitalize())}: mean over the seeds, with the lowest and the highest as a band."
    # The layers of a sweep look alike.
    if len(series) <= _TOGETHER and len({one.look for one in series}) == len(series):
        drawn = page.plot(title, text, lambda drawing: lines(drawing, series, axes))
        return figure(page.legend(one.name for one in series) + drawn, said)
    ends = tuple(end for one in series for band in one.bands for end in band)
    axes = replace(axes, ends=(min(ends), max(ends)))
    panels = "".join(
        f"<div><h4>{page.arm(one.name)}</h4>{_panel(page, one, series[0], axes, title)}</div>" for one in series
    )
    behind = f" Thin line: {escape(series[0].name)}."
    return figure(f'<div class="panels">{panels}</div>', said + behind)


def _panel(page: Pages, one: Series, behind: Series, axes: Axes, title: str) -> str:
    values = ", ".join(map(axes.format, one.values))
    return page.panel(f"{title}: {one.name}", values, lambda drawing: lines(drawing, [one], axes, behind=behind))


def shares_plots(page: Pages) -> str:
    """The score by how much of the training data was given, on each test set."""
    report = page.report
    if len(report.fractions) < 2:
        return ""
    drawn = []
    for data, test in dict.fromkeys((table.data, table.test) for table in report.tables):
        tables = sorted((t for t in report.tables if (t.data, t.test) == (data, test)), key=lambda t: t.fraction)
        if len(tables) < 2:
            continue
        places = {table.fraction: float(index) for index, table in enumerate(tables)}
        series = [one for arm in report.arms if len((one := _share_series(page, arm.name, tables, places)).places) > 1]
        axes = Axes(
            x="share of the training data",
            y=page.metric,
            format=page.tick,
            places=tuple((place, f"{100 * fraction:g} %") for fraction, place in places.items()),
            least=page.least,
        )
        place = say_place(test, data)
        if series:
            drawn.append(f"<h3>{escape(place)}</h3>{together(page, series, axes, f'{page.metric} on {place}')}")
    return "".join(drawn)


def _share_series(page: Pages, arm: str, tables: Sequence[Table], places: Mapping[float, float]) -> Series:
    rows = [(places[table.fraction], row) for table in tables for row in table.rows if row.arm == arm]
    return Series(
        name=arm,
        look=page.looks[arm],
        places=tuple(place for place, _ in rows),
        values=tuple(row.mean for _, row in rows),
        bands=tuple((min(row.by_seed), max(row.by_seed)) for _, row in rows),
    )
