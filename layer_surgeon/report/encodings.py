"""The pieces that the charts of a report share: data, tooltips, the looks of arms, axes.

Whatever people wrote is in data and titles, which Vega takes as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

LayeredChart = alt.LayerChart | alt.FacetChart
Span = tuple[float, float]
# Of a chart in files, which share a line with one or two others.
WIDTH, HALF, THIRD = 640, 300, 200


def inline_data(records: Sequence[Mapping[str, Any]]) -> alt.Data:
    """Records as they are; a layered chart has them once, for all of its layers."""
    return alt.Data(values=[dict(record) for record in records])  # type: ignore[no-untyped-call]


def tooltip_of(details: Sequence[Mapping[str, str]]) -> list[alt.Tooltip]:
    """The details of records; the fields of `detail_fields`."""
    titles = list(dict.fromkeys(title for entry in details for title in entry))
    return [alt.Tooltip(field=f"detail_{index}", type="nominal", title=title) for index, title in enumerate(titles)]


def detail_fields(entry: Mapping[str, str], details: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """One record's details, under the names that `tooltip_of` expects."""
    titles = dict.fromkeys(title for each in details for title in each)
    return {f"detail_{index}": entry.get(title, "") for index, title in enumerate(titles)}


def arm_color(looks: Sequence[str], legend: Sequence[str] | None = None) -> alt.Color:
    """The colour of an arm; `legend`: the looks to name."""
    shown = alt.Legend(values=list(legend)) if legend else None
    return alt.Color(field="look", type="nominal", scale=alt.Scale(domain=list(looks)), legend=shown)


def arm_shape(looks: Sequence[str], legend: Sequence[str] | None = None) -> alt.Shape:
    """The shape of an arm; `legend`: the looks to name."""
    shown = alt.Legend(values=list(legend)) if legend else None
    return alt.Shape(field="look", type="nominal", scale=alt.Scale(domain=list(looks)), legend=shown)


def x_value(field: str, title: str | None, domain: Span, **axis: Any) -> alt.X:
    """A value on the horizontal axis."""
    scale = alt.Scale(domain=list(domain), nice=False, zero=False)
    return alt.X(field=field, type="quantitative", title=title, scale=scale, axis=alt.Axis(tickCount=6, **axis))


def y_value(field: str, title: str | None, domain: Span, **axis: Any) -> alt.Y:
    """A value on the vertical axis."""
    scale = alt.Scale(domain=list(domain), nice=False, zero=False)
    # Above the axis, so that it takes no width from a phone.
    above: dict[str, Any] = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleY": -10, "titleX": 0}
    return alt.Y(
        field=field, type="quantitative", title=title, scale=scale, axis=alt.Axis(tickCount=5, **above, **axis)
    )


def axis_span(values: Sequence[float], least: float, margin: float = 0.06) -> Span:
    """Where an axis begins and ends: at least `least` long, since a plot of mere noise must not look like mountains."""
    low, high = min(values), max(values)
    missing = max(least - (high - low), 0.0)
    low, high = low - missing / 2, high + missing / 2
    return low - margin * (high - low), high + margin * (high - low)


def only(chart: alt.Chart, field: str, records: Sequence[Mapping[str, Any]]) -> list[alt.Chart]:
    """The chart of the records that have a field; no chart if none has it, since Vega warns of empty ones."""
    return [chart.transform_filter(f"datum.{field}")] if any(record[field] for record in records) else []


def marks(chart: alt.Chart, records: Sequence[Mapping[str, Any]], size: int) -> list[alt.Chart]:
    """Filled marks, and empty ones."""
    filled, empty = (chart.mark_point(filled=filled, size=size, opacity=1) for filled in (True, False))
    return [*only(filled, "filled", records), *only(empty, "empty", records)]


def singles(chart: alt.Chart, records: Sequence[Mapping[str, Any]], size: int) -> list[alt.Chart]:
    """The single values as faint dots; `chart` places the field `singles`."""
    dots = chart.transform_flatten(["singles"]).mark_point(filled=True, size=size, opacity=0.5, shape="circle")
    return [dots] if any(record["singles"] for record in records) else []
