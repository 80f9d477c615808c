"""The figures of lines: how arms learned, and how they do with less data."""

from collections.abc import Mapping, Sequence

from layer_surgeon.report import words as say
from layer_surgeon.report.encodings import HALF, THIRD, axis_span
from layer_surgeon.report.figure_style import Figure, FigureStyle, Panel
from layer_surgeon.report.line_charts import Point, line_chart
from layer_surgeon.report.series import LearningCurve
from layer_surgeon.study.tables import Table
from layer_surgeon.study.verdict import say_place, say_share

# With more lines than this in one plot, each gets a panel of its own.
_TOGETHER = 5
# What is shown, the line of each arm, and how much its axis spans at least.
LineKind = tuple[str, Mapping[str, Sequence[Point]], float]


def learning_figures(style: FigureStyle, curves: Sequence[LearningCurve]) -> list[tuple[str, Figure]]:
    """How every arm learned, by data set and share: the training loss, and the score on the validation part."""
    groups: dict[tuple[str, float], list[LearningCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.data, curve.fraction), []).append(curve)
    figures = []
    for (data, fraction), group in groups.items():
        scored = all(point.score for curve in group for point in curve.points)
        losses = {curve.arm: _curve(style, curve, scored=False) for curve in group}
        scores = {curve.arm: _curve(style, curve, scored=True) for curve in group} if scored else {}
        place = f"{data}{say_share(fraction)}"
        kinds = [("training loss", losses, 1e-6)]
        kinds += [(f"validation {style.metric}", scores, style.least)] if scored else []
        figures.append((place, _together(style, f"Learning on {place}", "epoch", kinds)))
    return figures


def _curve(style: FigureStyle, curve: LearningCurve, *, scored: bool) -> list[Point]:
    unit = style.unit if scored else 1.0
    points = []
    for point in curve.points:
        mean, low, high = (unit * value for value in (point.score if scored and point.score else point.loss))
        details = {"arm": curve.arm, "epoch": f"{point.epoch:g}", "mean": f"{mean:.4g}"}
        details["lowest and highest seed"] = f"{low:.4g} to {high:.4g}"
        place, look = float(point.epoch), style.look_of[curve.arm]
        points.append(Point(line=curve.arm, look=look, place=place, mean=mean, low=low, high=high, details=details))
    return points


def share_figures(style: FigureStyle) -> list[tuple[str, Figure]]:
    """The score by how much of the training data was given, on each test set."""
    summary = style.summary
    figures = []
    for data, test in dict.fromkeys((table.data, table.test) for table in summary.tables):
        tables = [table for table in summary.tables if (table.data, table.test) == (data, test)]
        tables.sort(key=lambda table: table.fraction)
        lines = {arm: _share_line(style, arm, tables) for arm in summary.arms}
        several = {arm: line for arm, line in lines.items() if len(line) > 1}
        if several:
            place = say_place(test, data)
            kinds = [(style.metric, several, style.least)]
            figures.append((place, _together(style, f"With less data: {place}", "share of the training data", kinds)))
    return figures


def _share_line(style: FigureStyle, arm: str, tables: Sequence[Table]) -> list[Point]:
    return [
        Point(
            line=arm,
            look=style.look_of[arm],
            place=f"{100 * table.fraction:g} %",
            mean=style.unit * row.mean,
            low=style.unit * min(row.by_seed),
            high=style.unit * max(row.by_seed),
            details={"arm": arm, "share": f"{table.fraction:g}", style.metric: say.say_mean(row, style.summary)},
        )
        for table in tables
        for row in table.rows
        if row.arm == arm
    ]


def _together(style: FigureStyle, title: str, axis: str, kinds: Sequence[LineKind]) -> Figure:
    """Lines of all arms in one plot for each kind; if they are many, the last kind in one panel per arm."""
    panels = []
    for number, (name, lines, least) in enumerate(kinds, start=1):
        domain = axis_span([v for line in lines.values() for p in line for v in (p.low, p.high)], least)
        text = "; ".join(f"{arm}: {', '.join(f'{p.mean:.4g}' for p in line)}" for arm, line in lines.items())
        alike = len(lines) > _TOGETHER or len({style.look_of[arm] for arm in lines}) < len(lines)
        if not alike or number < len(kinds):
            points = [point for line in lines.values() for point in line]
            # A panel has a title, and needs none at its axis.
            titles = (axis, name if len(kinds) == 1 else None)
            chart = line_chart(points, style.looks, titles, domain=domain, legend=not alike, width=HALF, height=210)
            panels.append(Panel(title=say.first_upper(name), chart=chart, text=text))
            continue
        first = next(iter(lines.values()))
        for arm, line in lines.items():
            chart = line_chart(
                line, style.looks, (axis, name), domain=domain, behind=first, legend=False, width=THIRD, height=130
            )
            own = ", ".join(f"{point.mean:.4g}" for point in line)
            panels.append(Panel(title=f"{say.first_upper(name)}: {arm}", chart=chart, text=own, arm=arm))
    behind = f" Thin line: {next(iter(kinds[-1][1]))}." if any(panel.arm for panel in panels) else ""
    return Figure(
        title=title,
        caption=f"Mean over the seeds, with the lowest and the highest as a band.{behind}",
        panels=tuple(panels),
        columns=3 if behind else len(panels),
    )
