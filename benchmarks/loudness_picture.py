"""The picture of `benchmarks.loudness`: loss, loudness and movement of the weights by step, drawn as reports are."""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.svg_charts import Axes, Series, lines
from benchmarks.svg_drawing import WIDE, Drawing, look, mark, text_width

# Of one drawing: two beside each other, with a gap.
_WIDTH, _GAP, _TITLE, _LEGEND = 412.0, 36.0, 22.0, 34.0
# As in the reports' style sheet, in the light; a picture on a page of documentation has one set.
_STYLE = (
    "text{fill:currentColor}.ink{color:#1c2530}.faint{color:#55606c}.rule{color:#e4e7ea}.mark{fill:currentColor}"
    ".head{font-weight:600}"
    ".c0{color:#5b6672}.c1{color:#c8500a}.c2{color:#1f6fb5}.c3{color:#05996b}.c4{color:#9a80cf}.c5{color:#5a3c00}"
    ".c6{color:#8f0a4c}.c7{color:#2f2c7d}"
)
# More lines can't be followed; `quiet` and `folded-slow` run along `matched`. Ordered for their colours: the ninth has
# that of the first again.
_DRAWN = ("host", "graft", "matched", "folded", "random", "gated", "fast-projections", "fast-head", "wide-head")
# The mean of so many steps is one point: the loss of a batch of 32 jumps.
_MEAN = 3
# Half of the file otherwise; nobody can point at a mark in a picture on a page.
_TOLD = re.compile(r"<title>[^<]*</title>(?=</(?:circle|polygon)>)")
Read = Callable[[Mapping[str, list[float | None]]], Sequence[float | None] | None]


def draw(document: Mapping[str, Any]) -> str:
    """The picture as SVG text; the same for the same document."""
    panels: list[tuple[str, str, Read]] = [
        ("Loss of the batch", "loss", lambda series: series["loss"]),
        ("Loudness: RMS of u (host: of h)", "rms", lambda series: series.get("rms_out", series["rms_host"])),
        ("What a step changes in the logits", "RMS", lambda series: series["step_logits"]),
        ("Relative change of the host's weights", "per step", lambda series: series["update_host"]),
        ("Relative change of proj_in", "per step", lambda series: series.get("update_proj_in")),
        ("Relative change of proj_out", "per step", lambda series: series.get("update_proj_out")),
        ("Relative change of the head", "per step", lambda series: series["update_head"]),
        ("Saturated inputs of the head's GELU", "share", lambda series: series["saturated"]),
    ]
    training = {name: document["training"][name] for name in _DRAWN if name in document["training"]}
    looks = {name: look(index) for index, name in enumerate(training)}
    parts, top = [_legend(looks)], _LEGEND
    for index in range(0, len(panels), 2):
        heights = []
        for column, (title, unit, read) in enumerate(panels[index : index + 2]):
            found = {name: read(arm["series"]) for name, arm in training.items()}
            panel = _panel(f"panel-{index + column}", title, unit, found, looks)
            x = column * (_WIDTH + _GAP)
            parts.append(f'<text class="ink head" x="{x:g}" y="{top + 14:g}">{title}</text>')
            # Of a fixed size: a browser would otherwise fit it to the whole picture.
            place = f'<svg x="{x:g}" y="{top + _TITLE:g}" width="{_WIDTH:g}" height="{panel.height:g}" '
            parts.append(_TOLD.sub("", panel.done()).replace("<svg ", place, 1))
            heights.append(panel.height)
        top += _TITLE + max(heights) + 18
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -12 {WIDE + 24:g} {top + 24:g}" role="img" '
        'font-family="DejaVu Sans,Verdana,sans-serif" font-size="13">'
        f'<title>Loudness of grafts in training</title><style>{_STYLE}</style><rect x="-12" y="-12" '
        f'width="{WIDE + 24:g}" height="{top + 24:g}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _legend(looks: Mapping[str, Any]) -> str:
    parts, x = [], 6.0
    for name, arm in looks.items():
        parts.append(mark((x, 8), arm, 5))
        parts.append(f'<text class="ink" x="{x + 11:g}" y="12.5">{name}</text>')
        x += 11 + text_width(name) * 0.86 + 20
    return "".join(parts)


def _panel(
    name: str, title: str, unit: str, found: Mapping[str, Sequence[float | None] | None], looks: Mapping[str, Any]
) -> Drawing:
    """One plot over the steps; logarithmic, since arms differ by factors of hundreds, but for shares."""
    log = unit != "share"
    series = []
    for arm, values in found.items():
        points = _means(values or (), log=log)
        if points:
            series.append(
                Series(
                    name=arm,
                    look=looks[arm],
                    places=tuple(step for step, _ in points),
                    values=tuple(value for _, value in points),
                    bands=(),
                )
            )
    last = max(step for one in series for step in one.places)
    places = tuple((float(step), str(step)) for step in range(0, math.ceil(last) + 1, 10 if last > 20 else 1) if step)
    drawing = Drawing(name=name, width=_WIDTH, title=title, text=f"{title}, by arm and step", narrow=True)
    text = _power if log else (lambda value: f"{value:.0%}")
    return lines(drawing, series, Axes(x="step", y=unit, format=text, places=places, least=0.3 if log else 0.1))


def _power(value: float) -> str:
    number = 10**value
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _means(values: Sequence[float | None], *, log: bool) -> list[tuple[float, float]]:
    """Step and mean of every few steps; logarithms where it says so, zeros left out."""
    points = []
    for start in range(0, len(values), _MEAN):
        part = [value for value in values[start : start + _MEAN] if value is not None]
        if not part:
            continue
        mean = statistics.fmean(part)
        if log and mean <= 0:
            continue
        points.append((start + (len(part) + 1) / 2, math.log10(mean) if log else mean))
    return points
