"""Charts as SVG text, to be embedded in an HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#5b6b7b", "#c2570c", "#2563a8", "#2e7d4f")
_INK, _FAINT, _RULE = "#1d2733", "#66727f", "#dfe4e9"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mean with its interval and the single values that it summarizes. All of them are shares from 0 to 1."""

    value: float
    low: float
    high: float
    singles: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line with a name and (x, y) points."""

    name: str
    color: str
    points: tuple[tuple[float, float], ...]


def interval_chart(rows: Sequence[str], series: Sequence[str], marks: Sequence[Sequence[Mark]]) -> str:
    """Draw rows of dots with intervals, one dot per series; `marks` is [row][series]."""
    left, width, lane = 190, 760, 24
    group = lane * len(series) + 22
    top, height = 34, 34 + group * len(rows) + 34
    low = min(min(mark.low, *mark.singles) for row in marks for mark in row)
    high = max(max(mark.high, *mark.singles) for row in marks for mark in row)
    start, end = max(0.0, _floor(low)), min(1.0, _ceil(high))
    scale = (width - left - 30) / max(end - start, 0.05)

    def x(value: float) -> float:
        return round(left + (value - start) * scale, 1)

    parts = [_open(width, height, "Accuracy by test set, with 95 % intervals")]
    ticks = [start + 0.05 * step for step in range(round((end - start) / 0.05) + 1)]
    for tick in ticks:
        parts.append(_line(x(tick), top - 8, x(tick), height - 30, _RULE))
        parts.append(_text(x(tick), height - 12, f"{tick:.0%}", anchor="middle", color=_FAINT))
    for index, name in enumerate(series):
        parts.append(f'<circle cx="{left + 150 * index + 6}" cy="12" r="5" fill="{COLORS[index]}"/>')
        parts.append(_text(left + 150 * index + 18, 16, name))
    for number, (row, values) in enumerate(zip(rows, marks, strict=True)):
        y = top + group * number + 14
        parts.append(_text(left - 16, y + lane * (len(series) - 1) / 2 + 4, row, anchor="end"))
        for index, mark in enumerate(values):
            level, color = y + lane * index, COLORS[index]
            parts.append(_line(x(mark.low), level, x(mark.high), level, color, 2))
            parts += [
                f'<circle cx="{x(single)}" cy="{level}" r="3.5" fill="#fff" stroke="{color}"/>'
                for single in mark.singles
            ]
            parts.append(
                f'<circle cx="{x(mark.value)}" cy="{level}" r="5.5" fill="{color}"><title>'
                f"{escape(f'{row}, {series[index]}: {mark.value:.1%}')}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def line_chart(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Draw lines over whole numbers, such as epochs. The y axis covers all points."""
    left, right, top, width, height = 62, 130, 14, 760, 230
    xs = [point[0] for line in lines for point in line.points]
    ys = [point[1] for line in lines for point in line.points]
    y_low, y_high = min(ys), max(ys)
    margin = max((y_high - y_low) * 0.1, 0.01)
    y_low, y_high = y_low - margin, y_high + margin
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)

    def position(point: tuple[float, float]) -> tuple[float, float]:
        x = left + (point[0] - x_low) / (x_high - x_low) * (width - left - right)
        y = top + (y_high - point[1]) / (y_high - y_low) * (height - top - 44)
        return round(x, 1), round(y, 1)

    parts = [_open(width, height, f"{y_label} by {x_label}")]
    for step in range(5):
        value = y_low + (y_high - y_low) * step / 4
        y = position((x_low, value))[1]
        parts += [_line(left, y, width - right, y, _RULE), _text(left - 8, y + 4, f"{value:.2f}", "end", _FAINT)]
    for value in sorted(set(xs)):
        parts.append(_text(position((value, y_low))[0], height - 26, f"{value:g}", "middle", _FAINT))
    parts.append(_text((left + width - right) / 2, height - 6, x_label, "middle", _FAINT))
    labels: list[float] = []
    for line in lines:
        points = [position(point) for point in line.points]
        path = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{line.color}"/>' for x, y in points]
        # Move the name down if another line ends close by, since the names would overlap.
        level = points[-1][1] + 4
        while any(abs(level - other) < 14 for other in labels):
            level += 14
        labels.append(level)
        parts.append(_text(points[-1][0] + 9, level, line.name, "start", line.color))
    return "".join([*parts, "</svg>"])


def _floor(value: float) -> float:
    return int(value * 20) / 20


def _ceil(value: float) -> float:
    return -int(-value * 20 // 1) / 20


def _open(width: float, height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
        f'style="font:13px system-ui,sans-serif;width:100%;height:auto">'
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = _INK) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
