"""What the plots of a report are drawn from: text that is measured, scales, marks, and one drawing as SVG text.

Colours are classes (`c0` to `c7`, `ink`, `faint`, `rule`), which the page's style sheet fills for its light and its
dark theme. An arm has a colour and a shape, so that nobody needs the colour to tell it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

# Plots are drawn twice, since text that is scaled down to a phone can't be read; the style sheet shows one of them.
WIDE, NARROW = 860, 328
SIZE = 13
COLORS = 8
_SHAPES = 8
# Widths of DejaVu Sans, in parts of its size: the widest of the fonts that a system gives as its own.
_THIN, _SLIM, _BROAD = "ijl|.,:;'!", "fIJrt()[]/- ", "mwMW%@+=<>~"


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an arm is drawn, everywhere on the page: its colour (0 is neutral, 1 the accent) and its shape."""

    color: int
    shape: int


def look(index: int) -> Look:
    """That of the arm with this number; the first 64 differ."""
    return Look(color=index % COLORS, shape=(index + index // COLORS) % _SHAPES)


def text_width(text: str, size: float = SIZE) -> float:
    """At most how many pixels a text takes."""
    return size * sum(map(_character, text))


def _character(character: str) -> float:
    if character in _THIN:
        return 0.35
    if character in _SLIM:
        return 0.43
    if character in _BROAD:
        return 0.95
    if ord(character) > 0x2E7F:
        return 1.05
    return 0.72 if character.isupper() else 0.635


def shorten(text: str, room: float, size: float = SIZE) -> str:
    """The text, cut in its middle where it is wider than the room: names differ at both of their ends."""
    if text_width(text, size) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = (kept + 1) // 2
        short = f"{text[:head]}…{text[len(text) - kept + head :]}"
        if text_width(short, size) <= room:
            return short
    return "…"


def wrap(text: str, room: float, size: float = SIZE) -> list[str]:
    """The text in one line or two, broken where a name has its joints."""
    if text_width(text, size) <= room:
        return [text]
    breaks = [
        index
        for index in range(1, len(text))
        if (text[index] in "+@ ([" or text[index - 1] in "-_/,") and text_width(text[:index], size) <= room
    ]
    if not breaks:
        return [shorten(text, room, size)]
    return [text[: breaks[-1]].strip(), shorten(text[breaks[-1] :].strip(), room, size)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between two."""
    step = _step((high - low) / max(count, 1))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * (1 - 1e-9)))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to pixels; logarithmic where it says so."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def inside(self, value: float) -> float:
        """Where a value lies, or the nearer end of the scale."""
        return self(min(max(value, self.low), self.high))

    def holds(self, value: float) -> bool:
        """Whether the value lies on the scale."""
        return self.low <= value <= self.high


def span(values: Sequence[float], *, margin: float, least: float) -> tuple[float, float]:
    """The ends of a scale for these values, with a margin (as a share of their range), at least so far apart."""
    low, high = min(values), max(values)
    rest = max((high - low) * margin, (least - (high - low)) / 2, 1e-9)
    return low - rest, high + rest


@dataclass
class Drawing:
    """SVG text under way.

    Attributes:
        name: Unique on the page.
        width: In pixels; so is `height`, which may be set at the end.
        title: What is shown, for those who don't see it.
        text: What it comes to.
        narrow: It is the one for phones, or for a panel of that size.
    """

    name: str
    width: float
    title: str
    text: str
    narrow: bool = False
    height: float = 0
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str, width: float = 1) -> None:
        """A line from a point to another."""
        self.parts.append(
            f'<line class="{css}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="currentColor" '
            f'stroke-width="{width:g}"/>'
        )

    def label(
        self,
        x: float,
        y: float,
        text: str,
        css: str = "ink",
        anchor: str = "start",
        *,
        full: str = "",
        up: bool = False,
    ) -> None:
        """A text, its baseline at y; `full` is told on pointing at it, `up` turns it by a quarter to the left."""
        turned = f' transform="rotate(-90 {x:g} {y:g})"' if up else ""
        told = f"<title>{escape(full)}</title>" if full and full != text else ""
        self.parts.append(
            f'<text class="{css}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{turned}>{told}{escape(text)}</text>'
        )

    def area(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """A faint area."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polygon class="{css} band" points="{path}" fill="currentColor"/>')

    def path(self, points: Sequence[tuple[float, float]], css: str, *, dash: str = "") -> None:
        """A line through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline class="{css}" points="{path}" fill="none" stroke="currentColor" stroke-width="2" '
            f'stroke-linejoin="round"{dashed}/>'
        )

    def box(self, x: float, y: float, width: float, height: float, css: str, radius: float = 0, told: str = "") -> None:
        """A filled rectangle."""
        title = f"<title>{escape(told)}</title>" if told else ""
        self.parts.append(
            f'<rect class="{css}" x="{x:g}" y="{y:g}" width="{max(width, 0):g}" height="{height:g}" rx="{radius:g}" '
            f'fill="currentColor">{title}</rect>'
        )

    def mark(self, at: tuple[float, float], arm: Look, radius: float, *, told: str = "", hollow: bool = False) -> None:
        """The mark of an arm."""
        self.parts.append(mark(at, arm, radius, told=told, hollow=hollow))

    def dot(self, x: float, y: float, css: str, radius: float) -> None:
        """A faint dot: one seed."""
        self.parts.append(f'<circle class="{css} seed" cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="currentColor"/>')

    def ring(self, x: float, y: float, css: str, radius: float) -> None:
        """A ring around a mark."""
        self.parts.append(f'<circle class="{css} ring" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')

    def done(self) -> str:
        """The SVG element."""
        return (
            f'<svg class="plot" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-labelledby="{self.name}-t {self.name}-d"><title id="{self.name}-t">{escape(self.title)}</title>'
            f'<desc id="{self.name}-d">{escape(self.text)}</desc>{"".join(self.parts)}</svg>'
        )


def mark(at: tuple[float, float], arm: Look, radius: float, *, told: str = "", hollow: bool = False) -> str:
    """The mark of an arm, as an SVG element: its shape in its colour."""
    x, y = at
    css = f"c{arm.color} mark{' hollow' if hollow else ''}"
    title = f"<title>{escape(told)}</title>" if told else ""
    if arm.shape == 0:
        return f'<circle class="{css}" cx="{x:g}" cy="{y:g}" r="{radius:g}">{title}</circle>'
    points = " ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in _outline(arm.shape))
    return f'<polygon class="{css}" points="{points}">{title}</polygon>'


def _outline(shape: int) -> list[tuple[float, float]]:
    """Of shapes 1 to 7, all of about the same area: diamond, square, triangles, star, cross, hexagon."""
    if shape == 1:
        return [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)]
    if shape == 2:
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape in (3, 4):
        sign = 1 if shape == 3 else -1
        return [(0, -1.25 * sign), (1.2, 0.9 * sign), (-1.2, 0.9 * sign)]
    if shape == 5:
        turns = [(1.45 if index % 2 == 0 else 0.65, math.pi * (index / 5 - 0.5)) for index in range(10)]
        return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in turns]
    if shape == 6:
        arm, thick = 1.25, 0.45
        quarter = [(thick, -arm), (thick, -thick), (arm, -thick)]
        return [point for turn in range(4) for point in (_turned(corner, turn) for corner in quarter)]
    return [(1.15 * math.cos(math.pi * index / 3), 1.15 * math.sin(math.pi * index / 3)) for index in range(6)]


def _turned(point: tuple[float, float], quarters: int) -> tuple[float, float]:
    x, y = point
    for _ in range(quarters):
        x, y = -y, x
    return x, y
