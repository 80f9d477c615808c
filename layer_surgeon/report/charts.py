"""The charts of a report, in Altair. The same definition is drawn on the page, as SVG and as PNG.

Charts don't name colours. Arms get the colours and shapes of the theme, in the order of `looks`. The width of a chart
is for files; on the page, it is as wide as its column.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from layer_surgeon._charts import heat_steps
from layer_surgeon.report.encodings import (
    HALF,
    THIRD,
    UNBOUNDED,
    WIDTH,
    LayeredChart,
    Span,
    arm_color,
    arm_shape,
    axis_span,
    detail_fields,
    inline_data,
    marks,
    only,
    singles,
    tooltip_of,
    x_value,
    y_value,
)

_LANE = 46
# The position of a lane's texts, from the middle of the lane.
_ABOVE = -17
_CLEAR_OF_VALUE = "max(90, width - 200)"


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A measured value in its own lane.

    Attributes:
        name: The text above the value, on the left.
        value_text: The text above the value, on the right.
        look: The arm whose colour and shape the mark has.
        mean: The value.
        inner: The interval that is drawn as a broad bar.
        outer: The interval that is drawn as a line, up to the edges of the plot.
        singles: The single values, which are drawn as faint dots.
        filled: Whether the mark is filled.
        details: Title -> text, for the tooltip.
    """

    name: str
    value_text: str
    look: str
    mean: float
    inner: Span | None = None
    outer: Span | None = None
    singles: tuple[float, ...] = ()
    filled: bool = True
    details: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A field of a heat map. `value` decides its colour; None is neutral."""

    row: str
    column: str
    value: float | None
    text: str
    second_text: str
    strong: bool
    details: Mapping[str, str]


def _lane_span(lanes: Sequence[Lane], least: float, within: Span | None) -> Span:
    """Return the limits of the axis: of scores `within` limits, or of differences (None), which include zero.

    All values and bars are inside. Lines may only widen the axis by its own length on each side, and are then cut.
    """
    inner_values = [v for lane in lanes for v in (lane.mean, *lane.singles, *(lane.inner or ()))]
    if within is None:
        inner_values, within = [*inner_values, 0.0], UNBOUNDED
    low, high = axis_span(inner_values, least, margin=0, within=within)
    room = high - low
    line_ends = [end for lane in lanes for end in (lane.outer or ())]
    return axis_span(
        (max(min([low, *line_ends]), low - room), min(max([high, *line_ends]), high + room)),
        least,
        margin=0.04,
        within=within,
    )


def lane_chart(
    lanes: Sequence[Lane], looks: Sequence[str], title: str, *, least: float, within: Span | None = None
) -> LayeredChart:
    """Draw values with intervals, one below the other, over a shared axis.

    Args:
        lanes: The lanes, from top to bottom.
        looks: The looks of all arms.
        title: Title of the axis.
        least: The smallest length of the axis.
        within: The lowest and the highest score that is possible. None for differences: the axis then includes zero,
            which is marked by a line.
    """
    domain = _lane_span(lanes, least, within)
    details = [lane.details for lane in lanes]
    records = [_lane_record(index, lane, domain, details) for index, lane in enumerate(lanes)]
    names = alt.Chart().encode(y=alt.Y(field="lane", type="ordinal", axis=None))
    base = names.encode(color=arm_color(looks), tooltip=tooltip_of(details))
    # The lines of the axis are interrupted where texts are.
    cover = names.mark_bar(style="cover", yOffset=_ABOVE, height=18).encode(
        x=alt.value(0), x2=alt.value(alt.expr("width"))
    )
    texts = [
        names.mark_text(dy=_ABOVE, **look).encode(x=alt.value(x), text=alt.Text(field=field, type="nominal"))
        for field, x, look in (
            ("name", 0, {"align": "left", "limit": alt.expr(_CLEAR_OF_VALUE)}),
            ("value_text", alt.expr("width"), {"align": "right", "fontWeight": 600}),
        )
    ]
    parts: list[alt.Chart] = []
    for name, drawn in (
        ("inner", base.mark_bar(height=12, opacity=0.28, cornerRadius=6)),
        ("outer", base.mark_rule(strokeWidth=1.8)),
    ):
        interval = drawn.encode(x=x_value(f"{name}_low", title, domain), x2=alt.X2(field=f"{name}_high"))
        parts += only(interval, f"has_{name}", records)
    for side, end in (("left", "low"), ("right", "high")):
        arrow = base.mark_point(shape=f"triangle-{side}", filled=True, size=45, opacity=1)
        parts += only(arrow.encode(x=x_value(f"outer_{end}", title, domain)), f"beyond_{side}", records)
    parts += singles(base.encode(x=x_value("singles", title, domain)), records, size=28)
    parts += marks(base.encode(x=x_value("mean", title, domain), shape=arm_shape(looks)), records, size=90)
    if within is None:
        # Not as the first layer, because that one defines the axes.
        parts.append(alt.Chart().mark_rule(strokeDash=[5, 4]).encode(x=alt.datum(0)))
    layers = alt.layer(*parts, cover, *texts, data=inline_data(records))
    return layers.properties(width=WIDTH, height=_LANE * len(lanes) + 8)


def _lane_record(index: int, lane: Lane, domain: Span, details: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    inner, outer = lane.inner or (lane.mean, lane.mean), lane.outer or (lane.mean, lane.mean)
    return {
        "lane": index,
        "name": lane.name,
        "value_text": lane.value_text,
        "look": lane.look,
        "mean": lane.mean,
        "inner_low": inner[0],
        "inner_high": inner[1],
        "outer_low": max(outer[0], domain[0]),
        "outer_high": min(outer[1], domain[1]),
        "beyond_left": outer[0] < domain[0],
        "beyond_right": outer[1] > domain[1],
        "has_inner": lane.inner is not None,
        "has_outer": lane.outer is not None,
        "filled": lane.filled,
        "empty": not lane.filled,
        "singles": list(lane.singles),
        **detail_fields(lane.details, details),
    }


def cost_chart(
    costs: Sequence[tuple[Lane, float]],
    looks: Sequence[str],
    titles: tuple[str, str],
    *,
    least: float,
    legend: Sequence[str],
) -> LayeredChart:
    """Draw gain (vertical) against cost (horizontal, logarithmic). Equal costs are drawn side by side."""
    domain = _lane_span([lane for lane, _ in costs], least, None)
    values = [cost for _, cost in costs]
    ends = (min(values) / 1.6, max(values) * 1.6)
    details = [lane.details for lane, _ in costs]
    records = [
        {**_lane_record(index, lane, domain, details), "cost": shown}
        for index, ((lane, _), shown) in enumerate(zip(costs, _move_apart(values, ends), strict=True))
    ]
    scale = alt.Scale(type="log", domain=list(ends), nice=False)
    axis = alt.Axis(format="~s", labelOverlap="greedy", grid=False, values=_cost_ticks(ends))
    x = alt.X(field="cost", type="quantitative", title=titles[0], scale=scale, axis=axis)
    base = alt.Chart().encode(x=x, color=arm_color(looks, legend))
    y = y_value("mean", titles[1], domain)
    zero = alt.Chart().mark_rule(strokeDash=[5, 4]).encode(y=alt.datum(0))
    lines = base.mark_rule(strokeWidth=1.8).encode(
        y=y_value("outer_low", titles[1], domain), y2=alt.Y2(field="outer_high"), tooltip=tooltip_of(details)
    )
    tipped = base.encode(y=y, shape=arm_shape(looks, legend), tooltip=tooltip_of(details))
    layers = alt.layer(lines, zero, *marks(tipped, records, size=90), data=inline_data(records))
    return layers.properties(width=HALF, height=250)


def _move_apart(costs: Sequence[float], ends: Span) -> list[float]:
    """Move equal costs apart by a few pixels: a control has as many parameters as its graft, and would hide it."""
    pixel = (ends[1] / ends[0]) ** (1 / HALF)
    moved: list[float] = []
    for index, cost in enumerate(costs):
        equal_costs = [at for at, other in enumerate(costs) if abs(math.log(other / cost)) < 3 * math.log(pixel)]
        step = min(13.0, 30 / max(len(equal_costs) - 1, 1))
        moved.append(cost * pixel ** (step * (equal_costs.index(index) - (len(equal_costs) - 1) / 2)))
    return moved


def _cost_ticks(ends: Span) -> list[float]:
    ratio = ends[1] / ends[0]
    digits = (1.0,) if ratio > 100 else (1.0, 2.0, 5.0) if ratio > 12 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    return [tick for tick in ticks if ends[0] <= tick <= ends[1]] or [math.sqrt(ends[0] * ends[1])]


def heat_map(
    tiles: Sequence[Tile], names: tuple[Sequence[str], Sequence[str]], titles: tuple[str, str], *, largest: float
) -> LayeredChart:
    """Draw a heat map with a diverging colour scale around zero, and two lines of text in each field.

    Args:
        tiles: The fields that have a value.
        names: Names of the rows and of the columns, in order.
        titles: Titles of the horizontal and of the vertical axis.
        largest: The absolute value that has the strongest colour, as have infinite values.
    """
    rows, columns = names
    largest = largest or 1.0
    details = [tile.details for tile in tiles]
    records = [
        {
            "row": tile.row,
            "column": tile.column,
            "value": 0.0 if tile.value is None or math.isnan(tile.value) else max(-largest, min(tile.value, largest)),
            "text": tile.text,
            "second": tile.second_text,
            "strong": tile.strong,
            **detail_fields(tile.details, details),
        }
        for tile in tiles
    ]
    steps = heat_steps()
    domain = [-largest * (steps / (steps - 1)), largest * (steps / (steps - 1))]

    def scale(name: str) -> alt.Scale:
        return alt.Scale(type="quantize", domain=domain, range=name)  # a range of the config

    limited: dict[str, Any] = {"labelLimit": 110, "labelOverlap": False}
    upright = max(map(len, columns)) > 9
    base = alt.Chart().encode(
        x=alt.X(
            field="column",
            type="nominal",
            sort=list(columns),
            title=titles[0],
            axis=alt.Axis(orient="top", labelAngle=-90 if upright else 0, **limited),
        ),
        y=alt.Y(field="row", type="nominal", sort=list(rows), title=titles[1], axis=alt.Axis(**limited)),
        tooltip=tooltip_of(details),
    )
    fills = base.mark_rect(cornerRadius=4, stroke=None).encode(
        color=alt.Color(field="value", type="quantitative", scale=scale("diverging"), legend=None)
    )
    text = base.mark_text(fontSize=12.5).encode(
        fill=alt.Fill(field="value", type="quantitative", scale=scale("ordinal"), legend=None)
    )
    parts = [
        chart.mark_text(fontSize=size, dy=dy, fontWeight=weight).encode(text=alt.Text(field=field, type="nominal"))
        for chart, field, size, dy, weight in (
            (text.transform_filter("datum.strong"), "text", 13, -7, 700),
            (text.transform_filter("!datum.strong"), "text", 13, -7, 400),
            (text, "second", 11, 10, 400),
        )
    ]
    tile_size = 52
    layers: alt.LayerChart = alt.layer(fills, *parts, data=inline_data(records)).resolve_scale(
        color="independent", fill="independent"
    )
    return layers.properties(width=max(THIRD, 70 * len(columns)), height=tile_size * len(rows))
