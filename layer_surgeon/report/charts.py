"""The charts of a report, in Altair: each definition is drawn in the page, as SVG and as PNG.

A chart names no colours: arms have the colours and shapes of the theme, in the order of `looks`. Its width is that of
files; the page sets the width of its column instead.
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
_CLEAR_OF_VALUE = "max(90, width - 200)"


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A measured value in a lane of its own.

    Attributes:
        name: Written above it at the left.
        value_text: Written above it at the right.
        look: Whose colour and shape it has.
        mean: The value.
        inner: The interval that is drawn as a broad bar.
        outer: The interval that is drawn as a line, up to the edges of the plot.
        singles: The single values, drawn as faint dots.
        filled: Draw the mark filled.
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
    """A field of a heat map; `value` colours it, None: neutral."""

    row: str
    column: str
    value: float | None
    text: str
    second_text: str
    strong: bool
    details: Mapping[str, str]


def _lane_span(lanes: Sequence[Lane], least: float, *, zero: bool) -> Span:
    """All values and bars are inside, and the lines as far as they leave room for the rest."""
    solid = [v for lane in lanes for v in (lane.mean, *lane.singles, *(lane.inner or ()))] + ([0.0] if zero else [])
    low, high = axis_span(solid, least, margin=0)
    room = high - low
    wide = [end for lane in lanes for end in (lane.outer or ())]
    return axis_span((max(min([low, *wide]), low - room), min(max([high, *wide]), high + room)), least, margin=0.04)


def lane_chart(lanes: Sequence[Lane], looks: Sequence[str], title: str, *, least: float, zero: bool) -> LayeredChart:
    """Values with intervals, one below the other, over one axis.

    Args:
        lanes: From top to bottom.
        looks: All arms' looks.
        title: Of the axis.
        least: How much the axis spans at least.
        zero: The axis holds zero, where a line stands.
    """
    domain = _lane_span(lanes, least, zero=zero)
    details = [lane.details for lane in lanes]
    records = [_lane_record(index, lane, domain, details) for index, lane in enumerate(lanes)]
    names = alt.Chart().encode(y=alt.Y(field="lane", type="ordinal", axis=None))
    base = names.encode(color=arm_color(looks), tooltip=tooltip_of(details))
    # Twice: a halo in the colour of the page parts the text from lines behind it.
    texts = [
        names.mark_text(dy=-17, style=style, **look).encode(x=alt.value(x), text=alt.Text(field=field, type="nominal"))
        for style in ("halo", "text")
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
    if zero:
        # Not the first: the axes of a chart are those of its first layer.
        parts.append(alt.Chart().mark_rule(strokeDash=[5, 4]).encode(x=alt.datum(0)))
    layers = alt.layer(*parts, *texts, data=inline_data(records))
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
    """What is gained (up) against what it costs (to the right, logarithmic); equal costs stand side by side."""
    domain = _lane_span([lane for lane, _ in costs], least, zero=True)
    values = [cost for _, cost in costs]
    ends = (min(values) / 1.6, max(values) * 1.6)
    details = [lane.details for lane, _ in costs]
    records = [
        {**_lane_record(index, lane, domain, details), "cost": shown}
        for index, ((lane, _), shown) in enumerate(zip(costs, _apart(values, ends), strict=True))
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


def _apart(costs: Sequence[float], ends: Span) -> list[float]:
    """Costs moved by a few pixels: controls have as many parameters as what they control for, and would hide it."""
    pixel = (ends[1] / ends[0]) ** (1 / HALF)
    moved: list[float] = []
    for index, cost in enumerate(costs):
        same = [at for at, other in enumerate(costs) if abs(math.log(other / cost)) < 3 * math.log(pixel)]
        step = min(13.0, 30 / max(len(same) - 1, 1))
        moved.append(cost * pixel ** (step * (same.index(index) - (len(same) - 1) / 2)))
    return moved


def _cost_ticks(ends: Span) -> list[float]:
    share = ends[1] / ends[0]
    digits = (1.0,) if share > 100 else (1.0, 2.0, 5.0) if share > 12 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    return [tick for tick in ticks if ends[0] <= tick <= ends[1]] or [math.sqrt(ends[0] * ends[1])]


def heat_map(
    tiles: Sequence[Tile], names: tuple[Sequence[str], Sequence[str]], titles: tuple[str, str], *, largest: float
) -> LayeredChart:
    """Fields in colours that go two ways from zero, each with two lines of text.

    Args:
        tiles: Those that are measured.
        names: Of the rows and of the columns, in their order.
        titles: Of the horizontal and of the vertical axis.
        largest: The size of the value that has the strongest colour.
    """
    rows, columns = names
    details = [tile.details for tile in tiles]
    records = [
        {
            "row": tile.row,
            "column": tile.column,
            "value": tile.value or 0.0,
            "text": tile.text,
            "second": tile.second_text,
            "strong": tile.strong,
            **detail_fields(tile.details, details),
        }
        for tile in tiles
    ]
    steps = heat_steps()
    domain = [-(largest or 1.0) * (steps / (steps - 1)), (largest or 1.0) * (steps / (steps - 1))]

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
    side = 52
    layers: alt.LayerChart = alt.layer(fills, *parts, data=inline_data(records)).resolve_scale(
        color="independent", fill="independent"
    )
    return layers.properties(width=max(THIRD, 70 * len(columns)), height=side * len(rows))
