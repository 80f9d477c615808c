"""The plots of the results page, as SVG text: dots with intervals, lines, points.

Each function takes what is drawn and how wide the drawing is (`WIDE` or `NARROW`), and gives a finished drawing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.svg_drawing import (
    Drawing,
    Look,
    Scale,
    span,
    text_width,
    ticks,
    wrap,
)

Format = Callable[[float], str]
Pair = tuple[float, float]
_LANE, _LINE = 34, 16


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A measured value.

    Attributes:
        name: Whose.
        look: Of its mark.
        value: The mean.
        inner: The interval that is drawn as a broad bar; None: there is none.
        outer: That which is drawn as a thin line, up to the edges of the plot.
        singles: What it is the mean of.
        hollow: Draw the mark empty.
    """

    name: str
    look: Look
    value: float
    inner: Pair | None = None
    outer: Pair | None = None
    singles: tuple[float, ...] = ()
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values over places: means with bands, and the single values."""

    name: str
    look: Look
    places: tuple[float, ...]
    values: tuple[float, ...]
    bands: tuple[Pair, ...]
    singles: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What stands at the axes.

    Attributes:
        x, y: Their names.
        format: Text of a value on y.
        places: Texts of some places on x.
        least: How much y spans at least.
        ends: Between which values y goes at least.
    """

    x: str
    y: str
    format: Format
    places: tuple[tuple[float, str], ...] = ()
    least: float = 1e-6
    ends: Pair | None = None


def dots(drawing: Drawing, rows: Sequence[Dot], axis: Format, *, value: Format, least: float, zero: bool) -> Drawing:
    """Rows of dots with intervals over one axis.

    Args:
        drawing: What to draw on.
        rows: From top to bottom.
        axis: Text of a tick.
        value: Text of a row's value.
        least: How much the axis spans at least.
        zero: The axis holds zero, where a line stands.
    """
    narrow = drawing.narrow
    room = drawing.width - 64 if narrow else 250
    labels = [wrap(row.name, room) for row in rows]
    left = 10 if narrow else max(text_width(line) for lines in labels for line in lines) + 22
    right = drawing.width - (10 if narrow else max(text_width(value(row.value)) for row in rows) + 18)
    low, high = _ends(rows, least, zero=zero)
    scale = Scale(low=low, high=high, start=left + 8, end=right - 8)
    marks = ticks(low, high, 4 if narrow else 7)
    bottom = 8 + sum(_height(lines, narrow=narrow) for lines in labels)
    for tick in marks:
        drawing.line(scale(tick), 4, scale(tick), bottom, "ink zero" if zero and tick == 0 else "rule")
        if text_width(axis(tick)) / 2 <= min(scale(tick), drawing.width - scale(tick)):
            drawing.label(scale(tick), bottom + 18, axis(tick), "faint", "middle")
    y: float = 8
    for row, lines in zip(rows, labels, strict=True):
        height = _height(lines, narrow=narrow)
        if narrow:
            level = y + _LINE * len(lines) + 12
            places = [(0.0, y + 12 + _LINE * index) for index in range(len(lines))]
            drawing.label(drawing.width, y + 12, value(row.value), "ink value", "end")
        else:
            level = y + height / 2
            first = level + 4.5 - _LINE * (len(lines) - 1) / 2
            places = [(0.0, first + _LINE * index) for index in range(len(lines))]
            drawing.label(drawing.width, level + 4.5, value(row.value), "ink value", "end")
        for (x, base), line in zip(places, lines, strict=True):
            drawing.label(x, base, line, full=row.name)
        _dot(drawing, row, scale, level, value)
        y += height
    drawing.height = bottom + 26
    return drawing


def _height(lines: Sequence[str], *, narrow: bool) -> int:
    return _LINE * len(lines) + 30 if narrow else _LANE + _LINE * (len(lines) - 1) // 2


def _ends(rows: Sequence[Dot], least: float, *, zero: bool) -> Pair:
    """Where an axis begins and ends: all values and bars are in it, and the thin lines as far as they leave room."""
    solid = [v for row in rows for v in (row.value, *row.singles, *(row.inner or ()))] + ([0.0] if zero else [])
    low, high = span(solid, margin=0, least=least)
    wide = [v for row in rows for v in (row.outer or ())]
    room = high - low
    low, high = max(min([low, *wide]), low - room), min(max([high, *wide]), high + room)
    return span((low, high), margin=0.04, least=least)


def _dot(drawing: Drawing, row: Dot, scale: Scale, y: float, value: Format) -> None:
    css = f"c{row.look.color}"
    if row.inner is not None:
        first, last = (scale.inside(end) for end in row.inner)
        drawing.box(first, y - 6, last - first, 12, f"{css} bar", 6)
    if row.outer is not None:
        first, last = (scale.inside(end) for end in row.outer)
        drawing.line(first, y, last, y, css, 1.6)
        for end, place, side in ((row.outer[0], first, -1), (row.outer[1], last, 1)):
            if scale.holds(end):
                drawing.line(place, y - 5, place, y + 5, css, 1.6)
            else:
                drawing.path([(place - 5 * side, y - 4.5), (place, y), (place - 5 * side, y + 4.5)], css)
    for single in row.singles:
        drawing.dot(scale(single), y, css, 3.2)
    spread = row.outer or row.inner
    told = f"{row.name}: {value(row.value)}"
    told += f" ({value(spread[0])} to {value(spread[1])})" if spread else ""
    drawing.mark((scale(row.value), y), row.look, 6, told=told, hollow=row.hollow)


def lines(
    drawing: Drawing,
    series: Sequence[Series],
    axes: Axes,
    *,
    level: Series | None = None,
    behind: Series | None = None,
    rings: Sequence[int] = (),
) -> Drawing:
    """Lines with bands over places.

    Args:
        drawing: What to draw on.
        series: The lines.
        axes: Their texts.
        level: One more with a single value, which holds for all places: drawn as a dashed line.
        behind: One more for comparison, thin and without marks.
        rings: Places of the first series that are ringed.
    """
    narrow = drawing.narrow
    everything = [*series, *([level] if level else [])]
    ys = [v for one in everything for v in (*one.values, *(e for b in one.bands for e in b))]
    ys += [v for one in everything for singles in one.singles for v in singles]
    ys += axes.ends or ()
    xs = [x for one in series for x in one.places]
    low, high = span(ys, margin=0.06, least=axes.least)
    values = ticks(low, high, 5)
    left = max(text_width(axes.format(tick)) for tick in values) + 12
    height = 240 if narrow else 300
    y_scale = Scale(low=low, high=high, start=height - 52, end=26)
    first, last = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    inset = 18 if narrow else 28
    x_scale = Scale(low=first, high=last, start=left + inset, end=drawing.width - inset)
    for tick in values:
        drawing.line(left, y_scale(tick), drawing.width, y_scale(tick), "rule")
        drawing.label(left - 8, y_scale(tick) + 4.5, axes.format(tick), "faint", "end")
    drawing.label(0, 12, axes.y, "faint")
    _places(drawing, x_scale, axes, height)
    drawing.label((left + drawing.width) / 2, height - 6, axes.x, "faint", "middle")
    if level is not None:
        css, (bottom, top) = f"c{level.look.color}", level.bands[0]
        if top > bottom:
            drawing.box(left, y_scale(top), drawing.width - left, y_scale(bottom) - y_scale(top), f"{css} band")
        drawing.path([(left, y_scale(level.values[0])), (drawing.width, y_scale(level.values[0]))], css, dash="6 5")
    if behind is not None:
        trace = [(x_scale.inside(p), y_scale(v)) for p, v in zip(behind.places, behind.values, strict=True)]
        drawing.path(trace, f"c{behind.look.color} thin")
    for one in series:
        _line(drawing, one, x_scale, y_scale, axes)
    for index in rings:
        at = x_scale(series[0].places[index]), y_scale(series[0].values[index])
        drawing.ring(*at, f"c{series[0].look.color}", 11)
    drawing.height = height
    return drawing


def _places(drawing: Drawing, scale: Scale, axes: Axes, height: float) -> None:
    """Texts under the axis of x, as many as have room beside each other."""
    end = -math.inf
    for place, text in axes.places:
        half = text_width(text) / 2
        if scale(place) - half > end + 8:
            drawing.label(scale(place), height - 28, text, "faint", "middle")
            end = scale(place) + half


def _line(drawing: Drawing, one: Series, x: Scale, y: Scale, axes: Axes) -> None:
    css = f"c{one.look.color}"
    places = [x(place) for place in one.places]
    if any(high > low for low, high in one.bands):
        upper = [(place, y(band[1])) for place, band in zip(places, one.bands, strict=True)]
        lower = [(place, y(band[0])) for place, band in zip(places, one.bands, strict=True)]
        drawing.area([*upper, *reversed(lower)], css)
    drawing.path([(place, y(value)) for place, value in zip(places, one.values, strict=True)], css)
    for place, singles in zip(places, one.singles, strict=False):
        for single in singles:
            drawing.dot(place, y(single), css, 2.6)
    names = dict(axes.places)
    radius = 5 if len(places) <= 12 else 3.5
    for at, place, value in zip(one.places, places, one.values, strict=True):
        told = f"{one.name}, {axes.x} {names.get(at, f'{at:g}')}: {axes.format(value)}"
        drawing.mark((place, y(value)), one.look, radius, told=told)


def scatter(drawing: Drawing, points: Sequence[tuple[Dot, float]], axes: Axes, *, x_format: Format) -> Drawing:
    """Points with intervals: what is gained (up) against what it costs (to the right, logarithmic).

    Args:
        drawing: What to draw on.
        points: Each with its cost, above zero.
        axes: The texts.
        x_format: Text of a cost.
    """
    narrow = drawing.narrow
    height = 260 if narrow else 320
    low, high = _ends([point for point, _ in points], axes.least, zero=True)
    values = ticks(low, high, 5)
    left = max(text_width(axes.format(tick)) for tick in values) + 12
    y_scale = Scale(low=low, high=high, start=height - 52, end=28)
    costs = [cost for _, cost in points]
    ends = (min(costs) / 1.6, max(costs) * 1.6)
    x_scale = Scale(low=ends[0], high=ends[1], start=left, end=drawing.width, log=True)
    for tick in values:
        css = "ink zero" if tick == 0 else "rule"
        drawing.line(left, y_scale(tick), drawing.width, y_scale(tick), css)
        drawing.label(left - 8, y_scale(tick) + 4.5, axes.format(tick), "faint", "end")
    drawing.label(0, 12, axes.y, "faint")
    drawing.label((left + drawing.width) / 2, height - 6, axes.x, "faint", "middle")
    _costs(drawing, x_scale, height, x_format)
    for (point, cost), x in zip(points, _apart([x_scale(cost) for cost in costs]), strict=True):
        css = f"c{point.look.color}"
        if point.outer is not None:
            first, last = (y_scale.inside(end) for end in point.outer)
            drawing.line(x, first, x, last, css, 1.6)
        told = f"{point.name}: {axes.format(point.value)}, {x_format(cost)}"
        drawing.mark((x, y_scale(point.value)), point.look, 6, told=told, hollow=point.hollow)
    drawing.height = height
    return drawing


def _apart(places: Sequence[float]) -> list[float]:
    """Places that would lie on each other, side by side: controls have as many parameters as what they control for.

    Nothing is moved by more than 15 pixels.
    """
    moved: list[float] = []
    for place in places:
        same = [index for index, other in enumerate(places) if abs(other - place) < 3]
        step = min(13.0, 30 / max(len(same) - 1, 1))
        moved.append(place + step * (same.index(len(moved)) - (len(same) - 1) / 2))
    return moved


def _costs(drawing: Drawing, scale: Scale, height: float, text: Format) -> None:
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    share = scale.high / scale.low
    digits = (1.0,) if share > 100 else (1.0, 2.0, 5.0) if share > 12 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    values = [digit * 10.0**power for power in powers for digit in digits]
    inside = [value for value in values if scale.holds(value)]
    end = -math.inf
    for value in inside or [math.sqrt(scale.low * scale.high)]:
        half = text_width(text(value)) / 2
        x = scale(value)
        drawing.line(x, height - 52, x, height - 47, "faint")
        if x - half > end + 8 and x + half <= drawing.width:
            drawing.label(x, height - 30, text(value), "faint", "middle")
            end = x + half
