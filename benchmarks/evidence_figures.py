"""The figures of the page: drawn by what draws the reports of studies, as SVG files that stand by themselves."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from benchmarks.evidence_facts import Evidence, Gap, Study
from benchmarks.evidence_layers import gains
from benchmarks.evidence_text import per_cent, points, three_digits
from benchmarks.svg_charts import Axes, Dot, Series, dots, lines, scatter
from benchmarks.svg_drawing import Drawing, Look, mark, text_width

Figure = tuple[str, str]
_WIDTH, _MARGIN, _HEAD = 700, 18, 34
_LEAST = 0.04
HOST, GEMMA, QWEN = Look(color=0, shape=2), Look(color=1, shape=0), Look(color=2, shape=1)
_LITTLE = ("graft", "random", "wide-head", "gated")
# The report's own style in its light colours, on white: a file that is shown as an image knows no theme of its page.
_STYLE = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','Liberation Sans',Arial,sans-serif;"
    "fill:currentColor}.head{font-weight:600}.value{font-weight:600}.ink{color:#1c2530}.faint{color:#55606c}"
    ".rule{color:#e4e7ea}.zero{opacity:.55}.band{fill-opacity:.13}.seed{fill-opacity:.5}.bar{fill-opacity:.22}"
    ".mark{fill:currentColor;stroke:#fff;stroke-width:1.5}.mark.hollow{fill:#fff;stroke:currentColor;stroke-width:2}"
    ".c0{color:#5b6672}.c1{color:#c8500a}.c2{color:#1f6fb5}.c3{color:#05996b}"
)


def figures(evidence: Evidence) -> dict[str, Figure]:
    """Those that can be drawn from what is there: name -> (SVG file, text for those who don't see it)."""
    drawn = {name: draw(evidence) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _studies(evidence: Evidence, *names: str) -> list[Study]:
    return [evidence.studies[name] for name in names if name in evidence.plans and evidence.has(name)]


def draw_little(evidence: Evidence) -> Figure | None:
    """Little data: arms against the host, both donors; and what becomes of the graft with matched projections."""
    found = [study for study in _studies(evidence, "a-gemma", "a-qwen") if study.name in evidence.studies]
    rows = [
        _dot(f"{arm}, {_short(study)}", _look(study), study.gap("sst2", "sst2", arm, "host"))
        for study in found
        for arm in _LITTLE
    ]
    for study in _studies(evidence, "u-loud", "u-qwen"):
        rows += [
            _dot(f"{arm}, {_short(study)}", _look(study), study.gap("sst2", "sst2", arm, "host"))
            for arm in ("matched", "matched-random")
        ]
    return _differences("little", "SST-2, 692 examples: difference to the host alone, points", rows)


def draw_why(evidence: Evidence) -> Figure | None:
    """What was tried against the loud donor."""
    rows = []
    for study in _studies(evidence, "u-loud", "u-qwen", "u-rates", "u-epochs"):
        arms = [arm.name for arm in study.plan.arms if arm.name != study.plan.reference]
        told = {"u-rates": ", 3 seeds", "u-epochs": ", 10 epochs"}.get(study.name, "")
        rows += [
            _dot(f"{arm}, {_short(study)}{told}", _look(study), study.gap("sst2", "sst2", arm, "host"))
            for arm in arms
            if (study.name, arm) not in (("u-rates", "graft"), ("u-rates", "matched"))
        ]
    return _differences("why", "SST-2, 692 examples: difference to the host alone, points", rows)


def draw_domains(evidence: Evidence) -> Figure | None:
    """Own and other domains."""
    rows = []
    for study in _studies(evidence, "d-domains"):
        for arm, (own, other, _) in study.domains().items():
            rows += [_dot(f"{arm}, own domain", GEMMA, own), _dot(f"{arm}, other domains", QWEN, other)]
    return _differences("domains", "Three domains: difference to the host alone, points", rows)


def draw_sweep(evidence: Evidence) -> Figure | None:
    """Accuracy by layer, both donors, with the host's level."""
    found = _studies(evidence, "e-gemma", "e-qwen")
    if not found:
        return None
    series = []
    for study in found:
        layers = [point.row for point in study.sweep().points]
        series.append(
            Series(
                name=_short(study),
                look=_look(study),
                places=tuple(float(point.label) for point in study.sweep().points),
                values=tuple(row.mean for row in layers),
                bands=tuple((row.mean - (row.deviation or 0), row.mean + (row.deviation or 0)) for row in layers),
            )
        )
    host = found[0].sweep().reference
    level = None
    if host is not None:
        band = (host.mean - (host.deviation or 0), host.mean + (host.deviation or 0))
        level = Series(name="host alone", look=HOST, places=(0.0,), values=(host.mean,), bands=(band,))
    numbers = sorted({place for one in series for place in one.places})
    axes = Axes(
        x="layer of the donor (from 0)",
        y="accuracy, %",
        format=per_cent_tick,
        places=tuple((place, f"{place:g}") for place in numbers),
        least=_LEAST,
    )
    told = [f"{one.name}: {', '.join(per_cent(value) for value in one.values)}" for one in series]
    told += [] if level is None else [f"host alone: {per_cent(level.values[0])}"]
    title = "SST-2, 692 examples: mean and deviation by layer"
    drawing = Drawing(name="sweep", width=_WIDTH, title=title, text="; ".join(told))
    legend = [(one.name, one.look) for one in series] + ([] if level is None else [(level.name, level.look)])
    return _standalone(lines(drawing, series, axes, level=level), legend), _alternative(title, told)


def draw_layers(evidence: Evidence) -> Figure | None:
    """What each layer does to the host, against how loud it is."""
    shown, legend = [], []
    for study in _studies(evidence, "e-gemma", "e-qwen"):
        loud = gains(evidence, study.name)
        if not loud:
            continue
        sweep = study.sweep()
        legend.append((_short(study), _look(study)))
        for point in sweep.points:
            gap = study.gap(sweep.table.data, sweep.table.test, point.row.arm, study.plan.reference)
            shown.append((_dot(f"{_short(study)} {point.label}", _look(study), gap), loud[point.row.arm]))
    if not shown:
        return None
    title = "SST-2, 692 examples: a layer's graft against how loud the layer is"
    told = [f"{dot.name} (adds {three_digits(gain)} times its input) {points(dot.value)}" for dot, gain in shown]
    drawing = Drawing(name="layers", width=_WIDTH, title=title, text="; ".join(told))
    axes = Axes(
        x="what the layer adds, times what it is given, before training",
        y="difference to the host alone, points",
        format=_points_tick,
        least=_LEAST,
    )
    return _standalone(scatter(drawing, shown, axes, x_format=three_digits), legend), _alternative(title, told)


FIGURES: Mapping[str, Callable[[Evidence], Figure | None]] = {
    "little": draw_little,
    "sweep": draw_sweep,
    "layers": draw_layers,
    "domains": draw_domains,
    "why": draw_why,
}


def per_cent_tick(value: float) -> str:
    """A share at an axis."""
    return f"{round(100 * value, 6):g}"


def _points_tick(value: float) -> str:
    return "0" if value == 0 else f"{round(100 * value, 6):+g}"


def _short(study: Study) -> str:
    return "Qwen" if "qwen" in study.name else "Gemma"


def _look(study: Study) -> Look:
    return QWEN if "qwen" in study.name else GEMMA


def _dot(name: str, look: Look, gap: Gap) -> Dot:
    return Dot(
        name=name,
        look=look,
        value=gap.mean,
        outer=gap.interval,
        singles=gap.by_seed if gap.seeds > 1 else (),
        hollow=not gap.significant,
    )


def _differences(name: str, title: str, rows: Sequence[Dot]) -> Figure | None:
    if not rows:
        return None
    told = [f"{row.name} {points(row.value)}" for row in rows]
    drawing = Drawing(name=name, width=_WIDTH, title=title, text="; ".join(told))
    drawn = dots(drawing, rows, _points_tick, value=points, least=_LEAST, zero=True)
    return _standalone(drawn), _alternative(title, told)


def _alternative(title: str, told: Sequence[str]) -> str:
    return f"{title}: {'; '.join(told)}".replace("[", "(").replace("]", ")")


def _standalone(drawing: Drawing, legend: Sequence[tuple[str, Look]] = ()) -> str:
    """A file with a white ground, a heading, and its legend beside that."""
    width, height = drawing.width + 2 * _MARGIN, drawing.height + 2 * _MARGIN + _HEAD
    head = [f'<text class="ink head" x="0" y="{12 - _HEAD:g}">{escape(drawing.title)}</text>']
    x = drawing.width
    for name, look in reversed(legend):
        x -= text_width(name)
        head.append(f'<text class="ink" x="{x:g}" y="{12 - _HEAD:g}">{escape(name)}</text>')
        head.append(mark((x - 12, 8 - _HEAD), look, 5))
        x -= 34
    ground = f'<rect x="{-_MARGIN}" y="{-_MARGIN - _HEAD}" width="{width:g}" height="{height:g}" rx="8" fill="#fff"/>'
    box = f'viewBox="{-_MARGIN} {-_MARGIN - _HEAD} {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    content = drawing.done().replace(
        f'<svg class="plot" viewBox="0 0 {drawing.width:g} {drawing.height:g}"',
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}',
    )
    first, end, rest = content.partition("</desc>")
    return f"{first}{end}<style>{_STYLE}</style>{ground}{''.join(head)}{rest}\n"
