"""The pictures of a report as PNG, for papers and slides: light, and to be told apart without colours.

Colours are those of Okabe and Ito (2008), which people with any form of colour blindness can tell apart; every arm has
a shape of its own as well. matplotlib is used through `Figure` alone, which needs no display.
"""

import functools
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from layer_surgeon._io import write_bytes
from layer_surgeon.study import report_text as say
from layer_surgeon.study.arms import is_called
from layer_surgeon.study.report_types import CostPoint, LayerSweep, LearningCurve, ShiftMatrix, StudyReport, Table
from layer_surgeon.study.verdict import say_share

_INK, _FAINT, _RULE, _REFERENCE = "#1d2733", "#5f6b78", "#e3e7eb", "#5f6b78"
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
_SHAPES = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
# Beside the font that comes with matplotlib: those that systems have for other scripts.
_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "WenQuanYi Micro Hei", "Microsoft YaHei"),
    *("PingFang SC", "Hiragino Sans GB", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
)
_NAME_WIDTH = 34
Picture = tuple[str, str, Any]


def save_pictures(report: StudyReport, folder: Path) -> dict[str, str]:
    """Write every picture, whole or not at all.

    Returns:
        File name -> what it shows.

    Raises:
        WorkspaceError: The folder can't be written.
    """
    import matplotlib as mpl

    saved = {}
    with mpl.rc_context({"font.family": list(_fonts()[0])}):
        for name, text, figure in draw_pictures(report):
            content = io.BytesIO()
            figure.savefig(content, format="png")
            write_bytes(folder / name, content.getvalue())
            saved[name] = text
    return saved


def draw_pictures(report: StudyReport) -> Iterator[Picture]:
    """Every picture of a report: file name, what it shows, matplotlib's figure."""
    many: list[tuple[str, Sequence[Any], Callable[[Any, StudyReport], Any], Callable[[Any], str]]] = [
        ("scores", report.tables, draw_scores, lambda table: f"{report.metric} by arm on {table.place}"),
        ("layers", report.sweeps, draw_layers, lambda sweep: f"{report.metric} by {sweep.varied} on {sweep.place}"),
        (
            "cost",
            [table for table in report.tables if len(table.costs) > 1],
            draw_costs,
            lambda table: f"what an arm costs and what it brings on {table.place}",
        ),
        ("shift", _by_share(report), draw_shift, lambda group: f"domain shift{say_share(group[0].fraction)}"),
        (
            "learning",
            _by_data(report),
            draw_learning,
            lambda group: f"learning curves on {group[0].data}{say_share(group[0].fraction)}",
        ),
    ]
    for name, entries, draw, text in many:
        for number, entry in enumerate(entries, start=1):
            yield f"{name}-{number}.png" if len(entries) > 1 else f"{name}.png", text(entry), draw(entry, report)


def draw_scores(table: Table, report: StudyReport) -> Any:
    """Each arm's mean with its 95 % interval, the seeds as small rings, the reference as a line."""
    rows = table.rows
    figure, (axis,) = _figure(7.6, 1.35 + 0.52 * len(rows))
    unit = 100 if report.is_share else 1
    for place, row in enumerate(rows):
        color, shape = _look(row.arm, report)
        if row.interval is not None:
            axis.plot([unit * end for end in row.interval], [place, place], color=color, linewidth=2.2, zorder=2)
        singles = [unit * value for value in row.by_seed]
        axis.plot(
            singles, [place + 0.24] * len(singles), "o", markersize=4, markerfacecolor="white", color=color, alpha=0.8
        )
        axis.plot(
            [unit * row.mean],
            [place],
            shape,
            color=color,
            markersize=9,
            markeredgecolor="white",
            zorder=3,
            clip_on=False,
        )
        mark = {"better": "▲ better", "worse": "▼ worse", "not significant": "not significant"}.get(
            row.verdict or "", ""
        )
        axis.annotate(
            f"{say.say_mean(row, report)}  {mark}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=_INK if mark[:1] in "▲▼" and mark else _FAINT,
        )
        if row.verdict is None and row.arm in _references(report):
            axis.axvline(unit * row.mean, color=_REFERENCE, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    axis.set_yticks(range(len(rows)), [_name(row.arm) for row in rows])
    axis.set_ylim(len(rows) - 0.45, -0.6)
    axis.grid(axis="x", color=_RULE)
    axis.set_xlabel(_metric(report))
    _title(figure, table.place, f"mean, {_interval_words(report)}, and each seed")
    return figure


def draw_layers(sweep: LayerSweep, report: StudyReport) -> Any:
    """Mean by layer with a band of the deviation, the seeds as small rings, the host alone with its band."""
    figure, (axis,) = _figure(max(5.5, min(10.0, 2.8 + 0.36 * len(sweep.points))), 3.7)
    unit, color = 100 if report.is_share else 1, _COLORS[0]
    places = list(range(len(sweep.points)))
    means = [unit * point.mean for point in sweep.points]
    bands = [unit * (point.deviation or 0.0) for point in sweep.points]
    lows, highs = zip(*((m - b, m + b) for m, b in zip(means, bands, strict=True)), strict=True)
    if sweep.reference is not None:
        mean, band = unit * sweep.reference.mean, unit * (sweep.reference.deviation or 0.0)
        axis.axhspan(mean - band, mean + band, color=_REFERENCE, alpha=0.14, linewidth=0)
        axis.axhline(mean, color=_REFERENCE, linestyle=(0, (4, 3)), label=_name(sweep.reference.arm))
    axis.fill_between(places, lows, highs, color=color, alpha=0.16, linewidth=0)
    axis.plot(places, means, marker="o", color=color, linewidth=2, label=_text(f"with a layer of {sweep.donor}"))
    for place, point in zip(places, sweep.points, strict=True):
        singles = [unit * value for value in point.by_seed]
        axis.plot([place] * len(singles), singles, "o", markersize=3.5, markerfacecolor="white", color=color, alpha=0.7)
        if point.verdict == "better":
            axis.plot([place], [unit * point.mean], "o", markersize=11, markerfacecolor="none", color=_COLORS[1])
    if any(point.verdict == "better" for point in sweep.points):
        axis.plot([], [], "o", markersize=11, markerfacecolor="none", color=_COLORS[1], label="significantly better")
    labels = [point.label for point in sweep.points]
    every = math.ceil(len(labels) / 24)
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, labels)) > 6 else {}
    axis.set_xticks(places[::every], [_text(label) for label in labels[::every]], **turned)
    axis.set_xlabel(_name(sweep.axis, 70))
    axis.set_ylabel(_metric(report))
    axis.grid(axis="y", color=_RULE)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    spread = "mean and deviation over the seeds" if len(report.seeds) > 1 else "one seed"
    _title(figure, f"{sweep.donor} in {sweep.host}: {sweep.place}", spread)
    return figure


def draw_costs(table: Table, report: StudyReport) -> Any:
    """What each arm brings, against its trained parameters and its time."""
    from matplotlib.transforms import ScaledTranslation

    names = [cost.arm for cost in table.costs]
    figure, axes = _figure(8.4, 3.6 + 0.22 * math.ceil(len(names) / 3), columns=2, sharey=True)
    unit = 100 if report.is_share else 1
    ends = [unit * end for cost in table.costs for end in (cost.interval or (cost.gain, cost.gain))]
    rest = max(0.06 * (max(ends) - min(ends)), 1e-9)
    axes[0].set_ylim(min(ends) - rest, max(ends) + rest)
    sides: tuple[tuple[str, Callable[[CostPoint], float | None]], ...] = (
        ("trained parameters (millions)", lambda cost: None if cost.trained is None else cost.trained / 1e6),
        ("seconds of training", lambda cost: cost.seconds),
    )
    for axis, (label, of) in zip(axes, sides, strict=True):
        axis.axhline(0, color=_REFERENCE, linestyle=(0, (4, 3)), linewidth=1)
        values = [(cost, value) for cost in table.costs if (value := of(cost)) is not None and value > 0]
        for index, (cost, value) in enumerate(values):
            color, shape = _look(cost.arm, report)
            # Arms that cost the same would hide each other.
            aside = ScaledTranslation((index - (len(values) - 1) / 2) / 24, 0, figure.dpi_scale_trans)
            beside = axis.transData + aside
            if cost.interval is not None:
                ends = [unit * end for end in cost.interval]
                axis.plot([value, value], ends, color=color, linewidth=1.4, alpha=0.65, transform=beside)
            axis.plot(
                [value],
                [unit * cost.gain],
                shape,
                color=color,
                markersize=8,
                markerfacecolor=color if cost.significant or cost.is_reference else "white",
                markeredgewidth=1.6,
                label=_name(cost.arm) if axis is axes[0] else None,
                transform=beside,
                zorder=3,
            )
        numbers = [value for _, value in values]
        if numbers and max(numbers) > 20 * min(numbers):
            axis.set_xscale("log")
        else:
            axis.set_xlim(0, 1.12 * max(numbers, default=1))
        axis.set_xlabel(label)
        axis.grid(color=_RULE)
    unit_words = " (points)" if report.is_share else "" if report.higher_is_better else " (lower is better)"
    metric = _name(report.metric.replace("_", " "))
    axes[0].set_ylabel(f"{metric}: difference to {_name(report.reference, 20)}{unit_words}")
    figure.legend(
        loc="outside lower center", ncols=min(len(names), 4 if max(map(len, names)) < 18 else 2), frameon=False
    )
    _title(
        figure,
        f"Cost against gain: {table.place}",
        "95 % intervals; filled: significant; arms that cost the same stand side by side",
    )
    return figure


def draw_shift(matrices: Sequence[ShiftMatrix], report: StudyReport) -> Any:
    """A heat map for each arm, on one scale."""
    unit = 100 if report.is_share else 1
    first = matrices[0]
    columns = min(len(matrices), 3)
    lines = math.ceil(len(matrices) / columns)
    width = 1.5 + 0.78 * len(first.tested_on)
    height = 1.2 + 0.55 * len(first.trained_on)
    figure, axes = _figure(1 + columns * width, 0.6 + lines * height, columns=columns, lines=lines)
    values = [unit * mean for matrix in matrices for means in matrix.means for mean in means if mean is not None]
    low, high = min(values), max(values)
    picture = None
    for axis, matrix in zip(axes, matrices, strict=False):
        grid = [[math.nan if mean is None else unit * mean for mean in means] for means in matrix.means]
        picture = axis.imshow(grid, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        for row, means in enumerate(grid):
            for column, value in enumerate(means):
                if not math.isnan(value):
                    dark = value < (low + high) / 2
                    text = f"{value:.1f}" if report.is_share else f"{value:.3g}"
                    axis.text(column, row, text, ha="center", va="center", color="white" if dark else "#111111")
        axis.set_xticks(range(len(matrix.tested_on)), [_name(name, 12) for name in matrix.tested_on])
        axis.set_yticks(range(len(matrix.trained_on)), [_name(name, 12) for name in matrix.trained_on])
        axis.set_title(_name(matrix.arm), fontsize=10, color=_INK)
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    for axis in axes[len(matrices) :]:
        axis.set_visible(False)
    figure.colorbar(picture, ax=axes, label=_metric(report), shrink=0.85).outline.set_visible(False)
    figure.supxlabel("tested on", fontsize=10, color=_INK)
    figure.supylabel("trained on", fontsize=10, color=_INK)
    _title(figure, f"Domain shift{say_share(first.fraction)}", "")
    return figure


def draw_learning(curves: Sequence[LearningCurve], report: StudyReport) -> Any:
    """Training loss and validation score by epoch: mean, and a band from the lowest to the highest seed."""
    scored = any(point.score is not None for curve in curves for point in curve.points)
    names = [curve.arm for curve in curves]
    figure, axes = _figure(8.4, 3.5 + 0.22 * math.ceil(len(names) / 3), columns=2 if scored else 1)
    unit = 100 if report.is_share else 1
    for curve in curves:
        color, shape = _look(curve.arm, report)
        series = [[(point.epoch, point.loss) for point in curve.points]]
        if scored:
            series.append([(point.epoch, _times(point.score, unit)) for point in curve.points if point.score])
        for axis, points in zip(axes, series, strict=True):
            epochs = [epoch for epoch, _ in points]
            lows, highs = [values[1] for _, values in points], [values[2] for _, values in points]
            axis.fill_between(epochs, lows, highs, color=color, alpha=0.12, linewidth=0)
            axis.plot(
                epochs,
                [values[0] for _, values in points],
                marker=shape,
                color=color,
                linewidth=1.8,
                markersize=5.5,
                label=_name(curve.arm) if axis is axes[0] else None,
            )
    for axis, label in zip(axes, ("training loss", f"validation {_metric(report)}"), strict=False):
        axis.set_ylabel(label)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=max(p.epoch for c in curves for p in c.points) >= 2)
        axis.grid(color=_RULE)
    figure.legend(
        loc="outside lower center", ncols=min(len(names), 4 if max(map(len, names)) < 18 else 2), frameon=False
    )
    band = "mean, and lowest to highest seed" if len(report.seeds) > 1 else "one seed"
    _title(figure, f"Learning on {curves[0].data}{say_share(curves[0].fraction)}", band)
    return figure


def _times(score: tuple[float, float, float] | None, unit: int) -> tuple[float, float, float]:
    mean, low, high = score or (math.nan, math.nan, math.nan)
    return unit * mean, unit * low, unit * high


def _by_share(report: StudyReport) -> list[list[ShiftMatrix]]:
    groups = [[matrix for matrix in report.shifts if matrix.fraction == fraction] for fraction in report.fractions]
    return [group for group in groups if group]


def _by_data(report: StudyReport) -> list[list[LearningCurve]]:
    keys = dict.fromkeys((curve.data, curve.fraction) for curve in report.curves)
    return [[curve for curve in report.curves if (curve.data, curve.fraction) == key] for key in keys]


def _interval_words(report: StudyReport) -> str:
    return f"95 % interval over the {'seeds' if len(report.seeds) > 1 else 'examples'}"


def _metric(report: StudyReport) -> str:
    return _text(say.metric_name(report).replace("_", " "))


def _references(report: StudyReport) -> list[str]:
    return [arm.name for arm in report.arms if is_called(report.reference, arm.name)]


def _look(arm: str, report: StudyReport) -> tuple[str, str]:
    """Colour and shape, the same in all pictures: the reference is grey, the focus has the first colour."""
    references = _references(report)
    if arm in references:
        return _REFERENCE, "o"
    rest = [entry.name for entry in report.arms if entry.name not in references]
    focus = [name for name in rest if is_called(report.focus, name)]
    index = [*focus, *(name for name in rest if name not in focus)].index(arm)
    return _COLORS[index % len(_COLORS)], _SHAPES[(index + 1) % len(_SHAPES)]


def _figure(width: float, height: float, *, columns: int = 1, lines: int = 1, **settings: Any) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(
        figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, wspace=0.04), dpi=160, facecolor="white"
    )
    axes = list(figure.subplots(lines, columns, squeeze=False, **settings).flat)
    for axis in axes:
        axis.set_facecolor("white")
        axis.set_axisbelow(True)
        axis.tick_params(colors=_FAINT, labelcolor=_INK, length=0)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.spines["bottom"].set_color("#b8c0c8")
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set_color(_INK)
    return figure, axes


def _title(figure: Any, text: str, more: str) -> None:
    title = _name(text, 80)
    figure.suptitle(f"{title}\n{more}" if more else title, fontsize=11, color=_INK, x=0.01, ha="left")


def _name(text: str, width: int = _NAME_WIDTH) -> str:
    line = " ".join(text.split())
    if len(line) > width:
        line = f"{line[: width // 2]}…{line[-(width // 2 - 1) :]}"
    return _text(line)


def _text(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar begins no formula, and what no font has becomes its code."""
    known = _fonts()[1]
    return "".join(
        r"\$" if char == "$" else char if ord(char) in known or char == "\n" else f"U+{ord(char):04X}" for char in text
    )


@functools.cache
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """Names of the fonts to draw with, and the characters that they have; the system's for other scripts among them."""
    from matplotlib import font_manager

    present = {font.name: font.fname for font in font_manager.fontManager.ttflist if font.name in _FONTS}
    paths = (font_manager.findfont("DejaVu Sans"), *present.values())
    letters = frozenset(code for path in paths for code in font_manager.get_font(path).get_charmap())
    return ("DejaVu Sans", *(name for name in _FONTS if name in present)), letters
