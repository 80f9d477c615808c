"""Makes the figures of a report: panels with a title, a caption, and a text for readers who can't see them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from layer_surgeon._format import format_seconds
from layer_surgeon.report import words as say
from layer_surgeon.report.charts import Lane, Tile, cost_chart, heat_map, lane_chart
from layer_surgeon.report.curve_figures import learning_figures
from layer_surgeon.report.encodings import Span, axis_span
from layer_surgeon.report.figure_style import Figure, FigureStyle, Panel
from layer_surgeon.report.line_charts import Level, Point, line_chart
from layer_surgeon.report.load import StudyReport
from layer_surgeon.report.series import (
    LayerSweep,
    ShiftMatrix,
    layer_sweeps,
    learning_curves,
    place_of,
    shift_matrices,
)
from layer_surgeon.study.tables import Comparison, Row, Table
from layer_surgeon.study.verdict import say_share

_MINUS = "\N{MINUS SIGN}"


class Figures:
    """The figures of a report, except for the line plots in `curve_figures`."""

    def __init__(self, report: StudyReport) -> None:
        self.summary = report.summary
        self.sweeps = layer_sweeps(report.summary, report.plan)
        self.curves = learning_curves(report.plan, report.results)
        self.shifts = shift_matrices(report.summary, report.plan)
        self.style = FigureStyle(report, self.sweeps)

    def for_files(self) -> Iterator[tuple[str, Figure]]:
        """Yield the figures that are written to files, with their names."""
        tables = self.summary.tables
        costs = [figure for table in tables if (figure := self.costs(table))]
        kinds: Sequence[tuple[str, Sequence[Figure]]] = (
            ("scores", [self.scores(table) for table in tables]),
            ("layers", [self.sweep(sweep) for sweep in self.sweeps]),
            ("cost", costs),
            ("shift", self.domain_shift()),
            ("learning", [figure for _, figure in learning_figures(self.style, self.curves)]),
        )
        for name, figures in kinds:
            for number, figure in enumerate(figures, start=1):
                yield (f"{name}-{number}" if len(figures) > 1 else name), figure

    def scores(self, table: Table) -> Figure:
        """Return the figure of scores: every arm with its intervals and seeds."""
        lanes = [self._score_lane(table, row) for row in table.rows]
        captions = [f"Mark, below the name of its arm: mean {self.summary.metric.replace('_', ' ')}"]
        if any(lane.singles for lane in lanes):
            captions.append("faint dots: the single seeds")
        if any(lane.outer for lane in lanes):
            captions.append("thin line: 95 % interval of the mean over seeds (t), with an arrow if it is cut off")
        if any(lane.inner for lane in lanes):
            captions.append("broad bar: 95 % interval over test examples (bootstrap)")
        title = f"{self.style.metric} by arm on {place_of(table)}"
        return self._lanes_figure(title, f"{'; '.join(captions)}.", lanes, self.style.metric, within=self.style.within)

    def _score_lane(self, table: Table, row: Row) -> Lane:
        outcome = self.summary.outcome(self.summary.against_reference(table, row.arm))
        mean = say.say_mean(row, self.summary)
        outer = say.score_span(row.seed_interval, self.summary)
        by_seed = (f"{seed}: {say.say_score(v, self.summary)}" for seed, v in zip(row.seeds, row.by_seed, strict=True))
        return Lane(
            name=row.arm,
            value_text=f"{mean} · {outcome}" if outcome else mean,
            look=self.style.look_of[row.arm],
            mean=self.style.unit * row.mean,
            inner=self.style.scaled(row.example_interval),
            outer=self.style.scaled(outer),
            singles=self._singles(row.by_seed),
            details={
                "arm": row.arm,
                self.style.metric: mean,
                "95 % over seeds": say.say_span(outer, self.summary),
                "95 % over examples": say.say_span(row.example_interval, self.summary),
                "by seed": ", ".join(by_seed),
            },
        )

    def differences(self, table: Table) -> Figure:
        """Return the figure of differences: every comparison with its interval, and zero as a line."""
        lanes = [
            Lane(
                name=f"{comparison.arm} {_MINUS} {comparison.against}",
                value_text=f"{say.say_gain(comparison.mean, self.summary)} · "
                f"{self.summary.outcome(comparison) or 'no test'}",
                look=self.style.look_of[comparison.arm],
                mean=self.style.unit * comparison.mean,
                outer=self.style.scaled(comparison.interval),
                singles=self._singles(comparison.by_seed),
                filled=comparison.significant,
                details={"comparison": comparison.words, **self._interval_detail(comparison)},
            )
            for comparison in table.comparisons
        ]
        caption = (
            f"Mean paired difference in {self.style.gain_unit}, with the 95 % interval of the deciding test; faint "
            "dots: the single seeds. Full mark: significant after Holm's correction; empty mark: not significant."
        )
        title = f"Differences on {place_of(table)}, in {self.style.gain_unit}"
        return self._lanes_figure(title, caption, lanes, f"difference, {self.style.gain_unit}")

    def _singles(self, by_seed: Sequence[float]) -> tuple[float, ...]:
        """Return the values of the single seeds, or nothing if there is only one."""
        return tuple(self.style.unit * value for value in by_seed) if len(by_seed) > 1 else ()

    def _lanes_figure(
        self, title: str, caption: str, lanes: Sequence[Lane], axis: str, *, within: Span | None = None
    ) -> Figure:
        text = "; ".join(f"{lane.name}: {lane.value_text}" for lane in lanes)
        chart = lane_chart(lanes, self.style.looks, axis, least=self.style.least, within=within)
        return Figure(title=title, caption=caption, panels=(Panel(title=title, chart=chart, text=text),))

    def costs(self, table: Table) -> Figure | None:
        """Return the figure of gain against cost (trained parameters, seconds); None with fewer than two arms."""
        lanes = {row.arm: lane for row in table.rows if (lane := self._cost_lane(table, row)) is not None}
        seconds = {row.arm: row.training_seconds for row in table.rows}
        counts = {name: arm.parameters for name, arm in self.summary.arms.items()}
        trained = {arm: 0.0 if (count := counts[arm]) is None else float(count.trained) for arm in lanes}
        kinds: Sequence[tuple[str, Mapping[str, float], Callable[[float], str]]] = (
            ("trained parameters", trained, say.say_count),
            ("seconds of training", seconds, format_seconds),
        )
        panels = [
            self._cost_panel(name, [(lanes[arm], costs[arm]) for arm in lanes if costs[arm] > 0], words)
            for name, costs, words in kinds
        ]
        shown = tuple(panel for panel in panels if panel is not None)
        if not shown:
            return None
        better_direction = "up" if self.summary.higher_is_better else "down"
        return Figure(
            title=f"Cost against gain on {place_of(table)}",
            caption="Difference to the reference, which is at zero, with its 95 % interval. Costs are on a logarithmic "
            "axis, with equal costs side by side. Full mark: significant. The best arms are far "
            f"{better_direction} and to the left.",
            panels=shown,
            columns=2,
        )

    def _cost_lane(self, table: Table, row: Row) -> Lane | None:
        comparison = self.summary.against_reference(table, row.arm)
        if comparison is None and not self.summary.is_reference(row.arm):
            return None
        gain = 0.0 if comparison is None else comparison.mean
        details = {"arm": row.arm, "difference to the reference": say.say_gain(gain, self.summary)}
        return Lane(
            name=row.arm,
            value_text=say.say_gain(gain, self.summary),
            look=self.style.look_of[row.arm],
            mean=self.style.unit * gain,
            outer=None if comparison is None else self.style.scaled(comparison.interval),
            filled=comparison is None or comparison.significant,
            details=details if comparison is None else {**details, **self._interval_detail(comparison)},
        )

    def _cost_panel(
        self, name: str, costs: Sequence[tuple[Lane, float]], format_cost: Callable[[float], str]
    ) -> Panel | None:
        if len(costs) < 2:
            return None
        detailed_lanes = [(_with_detail(lane, name, format_cost(cost)), cost) for lane, cost in costs]
        legend = list(dict.fromkeys(lane.look for lane, _ in costs))
        axis = f"difference, {self.style.gain_unit}"
        chart = cost_chart(detailed_lanes, self.style.looks, (name, axis), least=self.style.least, legend=legend)
        text = "; ".join(f"{lane.name} {lane.value_text} at {format_cost(cost)}" for lane, cost in costs)
        return Panel(title=f"Gain against {name}", chart=chart, text=text)

    def sweep(self, sweep: LayerSweep) -> Figure:
        """Return the figure of a sweep: the score by donor layer or graft site, with the host alone as a band."""
        points = [
            Point(
                line="",
                look=self.style.look_of[point.row.arm],
                place=point.label,
                **self.style.around_mean(point.row),
                singles=self._singles(point.row.by_seed),
                ringed=point.best,
                filled=point.outcome not in ("not significant", "equivalent"),
                details={
                    sweep.axis: point.label,
                    self.style.metric: say.say_mean(point.row, self.summary),
                    "against the reference": point.outcome or "no test possible",
                },
            )
            for point in sweep.points
        ]
        level = None
        if sweep.reference is not None:
            level = Level(look=self.style.look_of[sweep.reference.arm], **self.style.around_mean(sweep.reference))
        values = [value for point in points for value in (point.low, point.high, *point.singles)]
        values += [level.low, level.high] if level else []
        domain = axis_span(values, self.style.least, within=self.style.within)
        chart = line_chart(
            points,
            self.style.looks,
            (sweep.axis, self.style.metric),
            domain=domain,
            level=level,
            legend=False,
            height=260,
        )
        kind = "layer " if sweep.varied == "layer" else ""
        best = " and ".join(f"{kind}{point.label}" for point in sweep.points if point.best)
        extreme = "Highest" if self.summary.higher_is_better else "Lowest"
        dashed = f"; dashed: {sweep.reference.arm}" if sweep.reference is not None else ""
        luck = "The best of many points is partly lucky: compare it with its neighbours."
        title = f"{self.style.metric} by {sweep.axis} on {place_of(sweep.table)}"
        text = "; ".join(f"{point.label}: {say.say_mean(point.row, self.summary)}" for point in sweep.points)
        return Figure(
            title=f"{sweep.donor} in {sweep.host}: {place_of(sweep.table)}",
            caption=f"Mean over the seeds with one standard deviation, the single seeds as faint dots{dashed}. Empty "
            f"mark: not significantly different from the reference. {extreme}: {best} (ringed). {luck}",
            panels=(Panel(title=title, chart=chart, text=text),),
        )

    def domain_shift(self) -> list[Figure]:
        """Return a figure per share of the data: each arm's score and gain by training set and test set."""
        gains = [gain.mean for shift in self.shifts for row in shift.gains for gain in row if gain is not None]
        # All arms have the same scale: the same colour must mean the same gain in every panel.
        largest = max((abs(self.style.unit * gain) for gain in gains if math.isfinite(gain)), default=0.0)
        figures = []
        for fraction in dict.fromkeys(shift.fraction for shift in self.shifts):
            panels = tuple(self._shift_panel(s, largest) for s in self.shifts if s.fraction == fraction)
            figures.append(
                Figure(
                    title=f"Domain shift{say_share(fraction)}",
                    caption=f"Large: difference to the reference in {self.style.gain_unit}; blue: better; brown: "
                    f"worse; bold: significant. Small: {self.style.metric}.",
                    panels=panels,
                    columns=2 if len(self.shifts[0].tested_on) < 5 else 1,
                )
            )
        return figures

    def _shift_panel(self, shift: ShiftMatrix, largest: float) -> Panel:
        tiles = [
            self._tile(data, test, mean, comparison)
            for data, means, gains in zip(shift.trained_on, shift.means, shift.gains, strict=True)
            for test, mean, comparison in zip(shift.tested_on, means, gains, strict=True)
            if mean is not None
        ]
        names = (shift.trained_on, shift.tested_on)
        text = "; ".join(f"{tile.row} → {tile.column}: {tile.second_text} {tile.text}".rstrip() for tile in tiles)
        chart = heat_map(tiles, names, ("tested on", "trained on"), largest=largest)
        return Panel(title=f"{shift.arm}{say_share(shift.fraction)}", chart=chart, text=text, arm=shift.arm)

    def _tile(self, data: str, test: str, mean: float, comparison: Comparison | None) -> Tile:
        signed_gain = (
            None
            if comparison is None
            else self.style.unit * comparison.mean * (1 if self.summary.higher_is_better else -1)
        )
        score = say.say_score(mean, self.summary)
        details = {"trained on": data, "tested on": test, self.style.metric: score}
        return Tile(
            row=data,
            column=test,
            value=signed_gain,
            text="" if comparison is None else say.say_gain(comparison.mean, self.summary),
            second_text=score,
            strong=comparison is not None and comparison.significant,
            details=details if comparison is None else {**details, "comparison": comparison.words},
        )

    def _interval_detail(self, comparison: Comparison) -> dict[str, str]:
        return {"95 % interval": say.say_gains(comparison.interval, self.summary)}


def _with_detail(lane: Lane, title: str, text: str) -> Lane:
    return Lane(**{**vars(lane), "details": {**lane.details, title: text}})
