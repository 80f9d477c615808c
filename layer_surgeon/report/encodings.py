"""The parts that the charts of a report share: data, tooltips, the looks of arms, axes.

Text from users only appears in data and titles, which Vega does not interpret.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

LayeredChart = alt.LayerChart | alt.FacetChart
Span = tuple[float, float]
# Widths of charts in files: alone, or with one or two others in a row.
WIDTH, HALF, THIRD = 640, 300, 200
UNBOUNDED: Span = (-math.inf, math.inf)
# The room in pixels for marks at the ends of an axis.
_EDGE = 6


def inline_data(records: Sequence[Mapping[str, Any]]) -> alt.Data:
    """Return records as inline data, which all layers of a chart share."""
    return alt.Data(values=[dict(record) for record in records])  # type: ignore[no-untyped-call]


def tooltip_of(details: Sequence[Mapping[str, str]]) -> list[alt.Tooltip]:
    """Return the tooltip of a chart, made of the fields of `detail_fields`."""
    titles = list(dict.fromkeys(title for record in details for title in record))
    return [alt.Tooltip(field=f"detail_{index}", type="nominal", title=title) for index, title in enumerate(titles)]


def detail_fields(own_details: Mapping[str, str], details: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the details of one record, under the names that `tooltip_of` expects."""
    titles = dict.fromkeys(title for record in details for title in record)
    return {f"detail_{index}": own_details.get(title, "") for index, title in enumerate(titles)}


def arm_color(looks: Sequence[str], legend: Sequence[str] | None = None) -> alt.Color:
    """Return the encoding of arms by colour, with the looks in `legend` in the legend."""
    shown = alt.Legend(values=list(legend)) if legend else None
    return alt.Color(field="look", type="nominal", scale=alt.Scale(domain=list(looks)), legend=shown)


def arm_shape(looks: Sequence[str], legend: Sequence[str] | None = None) -> alt.Shape:
    """Return the encoding of arms by shape, with the looks in `legend` in the legend."""
    shown = alt.Legend(values=list(legend)) if legend else None
    return alt.Shape(field="look", type="nominal", scale=alt.Scale(domain=list(looks)), legend=shown)


def x_value(field: str, title: str | None, domain: Span, **axis: Any) -> alt.X:
    """Return the encoding of a value on the horizontal axis."""
    scale = alt.Scale(domain=list(domain), nice=False, zero=False, padding=_EDGE)
    return alt.X(field=field, type="quantitative", title=title, scale=scale, axis=alt.Axis(tickCount=6, **axis))


def y_value(field: str, title: str | None, domain: Span, **axis: Any) -> alt.Y:
    """Return the encoding of a value on the vertical axis."""
    scale = alt.Scale(domain=list(domain), nice=False, zero=False, padding=_EDGE)
    # The title is above the axis, where it takes no width on a phone.
    above_axis: dict[str, Any] = {
        "titleAngle": 0,
        "titleAlign": "left",
        "titleAnchor": "end",
        "titleY": -10,
        "titleX": 0,
    }
    return alt.Y(
        field=field, type="quantitative", title=title, scale=scale, axis=alt.Axis(tickCount=5, **above_axis, **axis)
    )


def axis_span(values: Sequence[float], least: float, margin: float = 0.06, within: Span = UNBOUNDED) -> Span:
    """Return the limits of an axis.

    Args:
        values: The values that it shows.
        least: Its smallest length, since noise must not look like a large effect.
        margin: The room at each end, as a share of the length.
        within: The lowest and the highest value that is possible, such as 0 and 100 %.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    missing = max(least - (high - low), 0.0)
    low, high = low - missing / 2, high + missing / 2
    shift = max(within[0] - low, 0.0) - max(high - within[1], 0.0)
    low, high = low + shift, high + shift
    return max(low - margin * (high - low), within[0]), min(high + margin * (high - low), within[1])


def only(chart: alt.Chart, field: str, records: Sequence[Mapping[str, Any]]) -> list[alt.Chart]:
    """Return the chart of the records with a true field; no chart if there are none, since Vega warns about those."""
    return [chart.transform_filter(f"datum.{field}")] if any(record[field] for record in records) else []


def marks(chart: alt.Chart, records: Sequence[Mapping[str, Any]], size: int) -> list[alt.Chart]:
    """Return the charts of filled and of empty marks."""
    filled, empty = (chart.mark_point(filled=filled, size=size, opacity=1) for filled in (True, False))
    return [*only(filled, "filled", records), *only(empty, "empty", records)]


def singles(chart: alt.Chart, records: Sequence[Mapping[str, Any]], size: int) -> list[alt.Chart]:
    """Return the chart of single values as faint dots; `chart` encodes the field `singles`."""
    dots = chart.transform_flatten(["singles"]).mark_point(filled=True, size=size, opacity=0.5, shape="circle")
    return [dots] if any(record["singles"] for record in records) else []
