"""Lines with bands over epochs or labels, in Altair: learning curves, shares of the data, and the layers of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from layer_surgeon.report.encodings import (
    WIDTH,
    LayeredChart,
    Span,
    arm_color,
    arm_shape,
    detail_fields,
    inline_data,
    marks,
    only,
    singles,
    tooltip_of,
    y_value,
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a line, with a band.

    Attributes:
        line: Name of the line.
        look: The arm whose colour and shape the line has.
        place: The position on the horizontal axis: a number or a label.
        mean: The value.
        low: Lower end of the band.
        high: Upper end of the band.
        singles: The single values, which are drawn as faint dots.
        ringed: Whether the mark has a ring.
        filled: Whether the mark is filled.
        details: Title -> text, for the tooltip.
    """

    line: str
    look: str
    place: str | float
    mean: float
    low: float
    high: float
    singles: tuple[float, ...] = ()
    ringed: bool = False
    filled: bool = True
    details: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A value for the whole horizontal axis, drawn as a dashed line with a band."""

    look: str
    mean: float
    low: float
    high: float


def line_chart(
    points: Sequence[Point],
    looks: Sequence[str],
    titles: tuple[str, str | None],
    *,
    domain: Span,
    labels: Sequence[str] = (),
    level: Level | None = None,
    behind: Sequence[Point] = (),
    legend: bool = True,
    width: int = WIDTH,
    height: int = 230,
) -> LayeredChart:
    """Draw lines with bands.

    Args:
        points: The points of all lines.
        looks: The looks of all arms.
        titles: Titles of the horizontal and of the vertical axis.
        domain: Limits of the vertical axis.
        labels: The labels of the horizontal axis, in order. By default, the order is that of the points.
        level: A value for the whole horizontal axis.
        behind: Another line for comparison, which is thin and has no marks.
        legend: Whether to draw a legend.
        width: Width in files.
        height: Height of the plot.
    """
    details = [point.details for point in points]
    records = [_point_record(point, details) for point in points]
    x = _horizontal_axis(points, labels, titles[0])
    shown = list(dict.fromkeys([point.look for point in points] + ([level.look] if level else []))) if legend else None
    base = alt.Chart().encode(x=x, color=arm_color(looks, shown), detail=alt.Detail(field="line", type="nominal"))
    y = y_value("mean", titles[1], domain)
    band = {"y": y_value("low", titles[1], domain), "y2": alt.Y2(field="high")}
    parts = _level_parts(level, looks, titles[1], domain, shown) if level else []
    if behind:
        trace = alt.Chart(inline_data([_point_record(point, details) for point in behind]))
        parts.append(trace.mark_line(strokeWidth=1.5, opacity=0.6).encode(x=x, y=y, color=arm_color(looks)))
    tipped = base.encode(y=y, shape=arm_shape(looks, shown), tooltip=tooltip_of(details))
    parts += [
        base.mark_area(opacity=0.15, line=False).encode(**band),
        base.mark_line(strokeWidth=2).encode(y=y),
        *singles(base.encode(y=y_value("singles", titles[1], domain)), records, size=18),
        *marks(tipped, records, size=55),
        *only(base.mark_point(shape="circle", size=330, strokeWidth=1.5, opacity=1).encode(y=y), "ringed", records),
    ]
    return alt.layer(*parts, data=inline_data(records)).properties(width=width, height=height)


def _point_record(point: Point, details: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "line": point.line,
        "look": point.look,
        "place": point.place,
        "mean": point.mean,
        "low": point.low,
        "high": point.high,
        "ringed": point.ringed,
        "filled": point.filled,
        "empty": not point.filled,
        "singles": list(point.singles),
        **detail_fields(point.details, details),
    }


def _horizontal_axis(points: Sequence[Point], labels: Sequence[str], title: str) -> alt.X:
    numbers = sorted({point.place for point in points if isinstance(point.place, float)})
    if numbers:
        tick_values = (
            [float(number) for number in {round(number) for number in numbers}] if len(numbers) > 1 else numbers
        )
        axis = alt.Axis(values=tick_values, format="~g", labelOverlap="greedy", grid=False)
        scale = alt.Scale(zero=False, nice=False, padding=20)
        return alt.X(field="place", type="quantitative", title=title, scale=scale, axis=axis)
    labels = list(labels or dict.fromkeys(str(point.place) for point in points))
    angle = -40 if max(map(len, labels)) > 7 else 0
    axis = alt.Axis(labelAngle=angle, labelOverlap="greedy", labelLimit=110)
    return alt.X(field="place", type="ordinal", title=title, sort=labels, axis=axis)


def _level_parts(
    level: Level, looks: Sequence[str], title: str | None, domain: Span, legend: Sequence[str] | None
) -> list[alt.Chart]:
    record = {"look": level.look, "mean": level.mean, "low": level.low, "high": level.high}
    base = alt.Chart(inline_data([record])).encode(color=arm_color(looks, legend))
    return [
        base.mark_rect(opacity=0.15).encode(y=y_value("low", title, domain), y2=alt.Y2(field="high")),
        base.mark_rule(strokeDash=[6, 5], strokeWidth=2).encode(y=y_value("mean", title, domain)),
    ]
