"""The line plots of a report: learning curves, and scores with less training data."""

import math
from collections.abc import Mapping, Sequence

from layer_surgeon._format import format_score
from layer_surgeon.report import words as say
from layer_surgeon.report.encodings import HALF, THIRD, Span, axis_span
from layer_surgeon.report.figure_style import Figure, FigureStyle, Panel
from layer_surgeon.report.line_charts import Point, line_chart
from layer_surgeon.report.series import LearningCurve
from layer_surgeon.study.tables import Table
from layer_surgeon.study.verdict import say_place, say_share

# With more lines than this, each line gets its own panel.
_TOGETHER = 5
# The name of the plotted value, the line of each arm, the smallest length of the axis, and the limits of the value.
LineKind = tuple[str, Mapping[str, Sequence[Point]], float, Span]


def learning_figures(style: FigureStyle, curves: Sequence[LearningCurve]) -> list[tuple[str, Figure]]:
    """Return the learning curves of all arms, by data set and share: training loss and validation score."""
    groups: dict[tuple[str, float], list[LearningCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.data, curve.fraction), []).append(curve)
    figures = []
    for (data, fraction), group in groups.items():
        scored = all(point.score for curve in group for point in curve.points)
        losses = {curve.arm: _curve_points(style, curve, scored=False) for curve in group}
        scores = {curve.arm: _curve_points(style, curve, scored=True) for curve in group} if scored else {}
        data_text = f"{data}{say_share(fraction)}"
        kinds = [("training loss", losses, 1e-6, (0.0, math.inf))]
        kinds += [(f"validation {style.metric}", scores, style.least, style.within)] if scored else []
        figures.append((data_text, _combine_lines(style, f"Learning on {data_text}", "epoch", kinds)))
    return figures


def _curve_points(style: FigureStyle, curve: LearningCurve, *, scored: bool) -> list[Point]:
    unit = style.unit if scored else 1.0
    points = []
    for point in curve.points:
        mean, low, high = (unit * value for value in (point.score if scored and point.score else point.loss))
        details = {"arm": curve.arm, "epoch": f"{point.epoch:g}", "mean": format_score(mean)}
        details["lowest and highest seed"] = f"{format_score(low)} to {format_score(high)}"
        position, look = float(point.epoch), style.look_of[curve.arm]
        points.append(Point(line=curve.arm, look=look, place=position, mean=mean, low=low, high=high, details=details))
    return points


def share_figures(style: FigureStyle) -> list[tuple[str, Figure]]:
    """Return the scores on each test set by the share of the training data."""
    summary = style.summary
    figures = []
    for data, test in dict.fromkeys((table.data, table.test) for table in summary.tables):
        tables = [table for table in summary.tables if (table.data, table.test) == (data, test)]
        tables.sort(key=lambda table: table.fraction)
        lines = {arm: _share_points(style, arm, tables) for arm in summary.arms}
        longer_lines = {arm: line for arm, line in lines.items() if len(line) > 1}
        if longer_lines:
            test_text = say_place(test, data)
            kinds = [(style.metric, longer_lines, style.least, style.within)]
            title, labels = f"With less data: {test_text}", [_label_of_share(table) for table in tables]
            figures.append((test_text, _combine_lines(style, title, "share of the training data", kinds, labels)))
    return figures


def _label_of_share(table: Table) -> str:
    return f"{100 * table.fraction:g} %"


def _share_points(style: FigureStyle, arm: str, tables: Sequence[Table]) -> list[Point]:
    return [
        Point(
            line=arm,
            look=style.look_of[arm],
            place=_label_of_share(table),
            mean=style.unit * row.mean,
            low=style.unit * min(row.by_seed),
            high=style.unit * max(row.by_seed),
            details={"arm": arm, "share": f"{table.fraction:g}", style.metric: say.say_mean(row, style.summary)},
        )
        for table in tables
        for row in table.rows
        if row.arm == arm
    ]


def _combine_lines(
    style: FigureStyle, title: str, axis: str, kinds: Sequence[LineKind], labels: Sequence[str] = ()
) -> Figure:
    """Draw one plot for each kind, with the lines of all arms. With many lines, the last kind has a panel per arm."""
    panels = []
    for number, (name, lines, least, within) in enumerate(kinds, start=1):
        domain = axis_span([v for line in lines.values() for p in line for v in (p.low, p.high)], least, within=within)
        text = "; ".join(f"{arm}: {', '.join(format_score(p.mean) for p in line)}" for arm, line in lines.items())
        hard_to_tell_apart = len(lines) > _TOGETHER or len({style.look_of[arm] for arm in lines}) < len(lines)
        if not hard_to_tell_apart or number < len(kinds):
            points = [point for line in lines.values() for point in line]
            # The panel's title already names the value, so the axis needs no title.
            titles = (axis, name if len(kinds) == 1 else None)
            legend = not hard_to_tell_apart
            chart = line_chart(
                points, style.looks, titles, domain=domain, labels=labels, legend=legend, width=HALF, height=210
            )
            panels.append(Panel(title=say.first_upper(name), chart=chart, text=text))
            continue
        first_line = next(iter(lines.values()))
        for arm, line in lines.items():
            chart = line_chart(
                line,
                style.looks,
                (axis, name),
                domain=domain,
                labels=labels,
                behind=first_line,
                legend=False,
                width=THIRD,
                height=130,
            )
            means = ", ".join(format_score(point.mean) for point in line)
            panels.append(Panel(title=f"{say.first_upper(name)}: {arm}", chart=chart, text=means, arm=arm))
    behind_text = f" Thin line: {next(iter(kinds[-1][1]))}." if any(panel.arm for panel in panels) else ""
    return Figure(
        title=title,
        caption=f"Mean over the seeds, with the lowest and the highest as a band.{behind_text}",
        panels=tuple(panels),
        columns=3 if behind_text else len(panels),
    )
