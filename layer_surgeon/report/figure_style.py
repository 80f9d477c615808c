"""The style that the figures of a report share: the looks of arms, and the scale of scores."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layer_surgeon.report import words as say
from layer_surgeon.report.encodings import UNBOUNDED, Span
from layer_surgeon.report.load import StudyReport
from layer_surgeon.report.series import LayerSweep
from layer_surgeon.study.arms import is_called
from layer_surgeon.study.tables import Row


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart of a figure.

    Attributes:
        title: The title.
        chart: The Altair chart.
        text: A description of the content, for readers who can't see the chart.
        arm: The arm of this panel, if the figure has one panel per arm.
    """

    title: str
    chart: Any
    text: str
    arm: str | None = None

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """The chart as Vega-Lite, without a theme."""
        # The tests validate all charts. Doing it again here would take most of the time of a report.
        spec: dict[str, Any] = self.chart.to_dict(validate=False)
        return {name: value for name, value in spec.items() if name not in ("config", "$schema")}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One or several charts that belong together.

    Attributes:
        title: The title.
        caption: An explanation of how to read the figure.
        panels: The charts.
        columns: Number of panels in a row.
    """

    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 1


class FigureStyle:
    """The looks of arms and the scale of scores.

    Attributes:
        summary: The summary of the study.
        look_of: Arm -> the arm whose look (colour and shape) it has.
        looks: The arms with their own look, in the order of the theme's colours and shapes.
        unit: The factor for scores: 100 for shares, which are shown as per cent.
        least: The smallest length of an axis of scores.
        within: The lowest and the highest score that is possible.
        metric: Name of the metric, with its unit.
        gain_unit: Unit of a difference.
    """

    def __init__(self, report: StudyReport, sweeps: Sequence[LayerSweep]) -> None:
        self.summary = report.summary
        self.look_of = _looks(report, sweeps)
        self.looks = list(dict.fromkeys(self.look_of.values()))
        self.unit = 100.0 if self.summary.is_share else 1.0
        self.least = 4.0 if self.summary.is_share else 1e-6
        self.within = (0.0, 100.0) if self.summary.is_share else UNBOUNDED
        self.metric = say.metric_name(self.summary).replace("_", " ")
        self.gain_unit = say.gain_unit(self.summary)

    def number_of(self, arm: str) -> int:
        """Return the number of an arm's look in the theme."""
        return self.looks.index(self.look_of[arm])

    def scaled(self, span: Sequence[float] | None) -> Span | None:
        """Return an interval, multiplied by `unit`."""
        return None if span is None else (self.unit * span[0], self.unit * span[1])

    def around_mean(self, row: Row) -> dict[str, float]:
        """Return a mean with one standard deviation over the seeds on each side, cut at the limits of a score."""
        mean, deviation = self.unit * row.mean, self.unit * (row.deviation or 0.0)
        low, high = max(mean - deviation, self.within[0]), min(mean + deviation, self.within[1])
        return {"mean": mean, "low": low, "high": high}


def _looks(report: StudyReport, sweeps: Sequence[LayerSweep]) -> dict[str, str]:
    """Assign looks to arms: the reference first, then the layers of a sweep, which share one look, then the focus."""
    summary = report.summary
    layers = [point.row.arm for sweep in sweeps for point in sweep.points] if report.kind != "compare" else []
    order = sorted(
        summary.arms,
        key=lambda arm: (not summary.is_reference(arm), arm not in layers, not is_called(summary.focus, arm)),
    )
    return {arm: layers[0] if arm in layers else arm for arm in order}
