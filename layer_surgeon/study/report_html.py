"""The pieces of a report's page: text that is safe, tables that sort, plots for desks and phones, legends."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from layer_surgeon.study import report_text as say
from layer_surgeon.study.arms import is_called
from layer_surgeon.study.report_svg import NARROW, WIDE, Drawing, Look, look, mark
from layer_surgeon.study.report_types import Span, StudyReport

Draw = Callable[[Drawing], Drawing]
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """Of a table: its head, whether it holds numbers, and whether its cells are sentences."""

    name: str
    number: bool = False
    words: bool = False


@dataclass(frozen=True, kw_only=True)
class Field:
    """Of a table: HTML, and by what it is sorted; None: it has no value and is sorted last."""

    html: str
    value: float | None = None
    css: str = ""


@dataclass
class Pages:
    """What the pieces of one page share: how each arm looks, how numbers are said, which ids are taken."""

    report: StudyReport
    looks: Mapping[str, Look] = field(init=False)
    _drawn: int = 0

    def __post_init__(self) -> None:
        self.looks = _looks(self.report)

    def score(self, value: float) -> str:
        """A score for people."""
        return f"{say.say_score(value, self.report)}{' %' if self.report.is_share else ''}".replace("-", _MINUS)

    def tick(self, value: float) -> str:
        """A score at an axis."""
        return f"{round(100 * value, 6):g} %" if self.report.is_share else self.score(value)

    def gain(self, value: float) -> str:
        """A difference for people: with its sign, in points where the score is a share."""
        return say.say_gain(value, self.report).replace("-", _MINUS)

    def gain_tick(self, value: float) -> str:
        """A difference at an axis."""
        text = f"{round(100 * value, 6):+g}" if self.report.is_share else f"{value:+.3g}"
        return "0" if value == 0 else text.replace("-", _MINUS)

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.report.metric.replace("_", " ")

    @property
    def points(self) -> str:
        """What a difference is counted in, and which way is better."""
        unit = "percentage points" if self.report.is_share else self.metric
        return unit if self.report.higher_is_better else f"{unit}; lower is better"

    @property
    def least(self) -> float:
        """How much an axis of scores spans at least: a plot of nothing but noise must not look like mountains."""
        return 0.04 if self.report.is_share else 1e-6

    def arm(self, name: str) -> str:
        """An arm with its mark."""
        return f'<span class="arm">{key(self.looks[name])}<span>{escape(name)}</span></span>'

    def legend(self, names: Iterable[str]) -> str:
        """Which mark is which arm."""
        return f'<ul class="legend">{"".join(f"<li>{self.arm(name)}</li>" for name in names)}</ul>'

    def plot(self, title: str, text: str, draw: Draw, *, widths: tuple[int, int] = (WIDE, NARROW)) -> str:
        """A drawing, for desks and for phones: the style sheet shows one, and nobody hears the other."""
        self._drawn += 1
        kinds = (("wide", widths[0], widths[0] < WIDE / 2.5), ("narrow", widths[1], True))
        drawings = [
            (css, draw(Drawing(name=f"{css}-{self._drawn}", width=width, title=title, text=text, narrow=narrow)))
            for css, width, narrow in kinds
        ]
        return "".join(f'<div class="{css}">{drawing.done()}</div>' for css, drawing in drawings)

    def panel(self, title: str, text: str, draw: Draw) -> str:
        """A small drawing, of which several stand side by side."""
        self._drawn += 1
        drawing = Drawing(name=f"panel-{self._drawn}", width=276, title=title, text=text, narrow=True)
        return draw(drawing).done()


def _looks(report: StudyReport) -> dict[str, Look]:
    """The reference is neutral and what the study is about has the accent; the layers of a sweep look alike."""
    names = [arm.name for arm in report.arms]
    layers = {point.arm for sweep in report.sweeps for point in sweep.points} if report.kind != "compare" else set()
    first = [name for name in names if is_called(report.reference, name)]
    focus = [name for name in names if is_called(report.focus, name) and name not in first]
    rest = [name for name in names if name not in first and name not in focus]
    order = [*first, *focus, *(name for name in rest if name not in layers)]
    return {name: look(index) for index, name in enumerate(order)} | dict.fromkeys(layers, look(1))


def figure(content: str, caption: str) -> str:
    """A plot with its explanation, which is HTML."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def key(arm: Look) -> str:
    """The mark of an arm within a line of text; its name stands beside it."""
    return f'<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{mark((0, 0), arm, 6)}</svg>'


def table(columns: Sequence[Column], rows: Iterable[Sequence[Field]], caption: str) -> str:
    """A table that can be sorted; it scrolls inside its box. The first field of a row is its head."""
    heads = "".join(f'<th scope="col"{_css(column, "")}>{escape(column.name)}</th>' for column in columns)
    lines = []
    for row in rows:
        fields = []
        for index, (column, entry) in enumerate(zip(columns, row, strict=True)):
            tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
            value = f' data-v="{"" if entry.value is None else repr(entry.value)}"' if column.number else ""
            fields.append(f"<{tag}{scope}{_css(column, entry.css)}{value}>{entry.html}</{tag}>")
        lines.append(f"<tr>{''.join(fields)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="sorts">'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _css(column: Column, more: str) -> str:
    names = " ".join(name for name in ("n" if column.number else "", "words" if column.words else "", more) if name)
    return f' class="{names}"' if names else ""


def words(text: str) -> Field:
    """A field with text that people wrote."""
    return Field(html=escape(text))


def number(value: float | None, text: Callable[[float], str], css: str = "") -> Field:
    """A field with a number; empty without one."""
    return Field(html="" if value is None else escape(text(value)), value=value, css=css)


def interval(span: Span | None, text: Callable[[float], str]) -> str:
    """Two ends for people; a unit that both have is said once."""
    if span is None:
        return ""
    low, high = map(text, span)
    return f"{low.removesuffix(' %')} to {high}"
