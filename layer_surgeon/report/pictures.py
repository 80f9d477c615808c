"""The figures of a report as PNG, for papers and slides: the charts of the page with titles, on a white background."""

from collections.abc import Sequence
from typing import Any

from layer_surgeon._charts import draw_png
from layer_surgeon.report.figure_style import Figure
from layer_surgeon.report.figures import Figures
from layer_surgeon.report.load import StudyReport

_LONGEST_TITLE = 84


def draw_pictures(report: StudyReport) -> dict[str, tuple[bytes, str]]:
    """Return file name -> (PNG, title) for every figure."""
    named = Figures(report).for_files()
    return {f"{name}.png": (_draw([figure]), figure.title) for name, figure in named}


def draw_sweep(report: StudyReport) -> bytes | None:
    """Return the picture of a sweep, with all of its tables one below the other; None if there is no sweep."""
    figures = Figures(report)
    drawn = [figures.sweep(sweep) for sweep in figures.sweeps]
    return _draw(drawn) if drawn else None


def _draw(figures: Sequence[Figure]) -> bytes:
    """Draw figures, one below the other."""
    if len(figures) == 1 and len(figures[0].panels) == 1:
        spec = {**figures[0].panels[0].spec, "title": _title(figures[0].title)}
    else:
        spec = {"vconcat": [_titled(figure) for figure in figures], "spacing": 34}
    return draw_png(spec)


def _titled(figure: Figure) -> dict[str, Any]:
    """Return a figure as Vega-Lite: its panels with their titles, `columns` of them in a row."""
    panels = [
        panel.spec if len(figure.panels) == 1 else {**panel.spec, "title": _title(panel.title, size=13)}
        for panel in figure.panels
    ]
    row_starts = range(0, len(panels), figure.columns)
    rows = [{"hconcat": panels[start : start + figure.columns], "spacing": 40} for start in row_starts]
    return {"title": _title(figure.title), "vconcat": rows, "spacing": 24}


def _title(text: str, size: int = 16) -> dict[str, Any]:
    line = " ".join(text.split())
    if len(line) > _LONGEST_TITLE:
        line = f"{line[: _LONGEST_TITLE // 2]}…{line[-_LONGEST_TITLE // 2 + 1 :]}"
    return {"text": line, "fontSize": size}
