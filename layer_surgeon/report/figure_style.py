"""What the figures of a report share: the looks of arms, and the scale of scores."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layer_surgeon.report import words as say
from layer_surgeon.report.encodings import Span
from layer_surgeon.report.load import StudyReport
from layer_surgeon.report.series import LayerSweep
from layer_surgeon.study.arms import is_called
from layer_surgeon.study.tables import Row


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart of a figure; `arm`: whose it is, if the panels of a figure are one per arm; `text` says what it shows."""

    title: str
    chart: Any
    text: str
    arm: str | None = None

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """The chart as Vega-Lite, without a theme."""
        # Valid by its tests: to validate it here again would take most of the time of a report.
        spec: dict[str, Any] = self.chart.to_dict(validate=False)
        return {name: value for name, value in spec.items() if name not in ("config", "$schema")}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One or several charts that belong together.

    Attributes:
        title: What is shown.
        caption: How to read it.
        panels: The charts.
        columns: How many stand side by side.
    """

    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 1


class FigureStyle:
    """The looks of arms and the scale of scores.

    Attributes:
        summary: Of the study.
        look_of: Arm -> the arm whose look it has.
        looks: The arms that have a look of their own, in the order of the theme's colours and shapes.
        unit: What a score is multiplied by: 100 for shares, which are shown as per cent.
        least: How much an axis of scores spans at least.
        metric: Name of the metric, with its unit.
        gain_unit: Of a difference.
    """

    def __init__(self, report: StudyReport, sweeps: Sequence[LayerSweep]) -> None:
        self.summary = report.summary
        self.look_of = _looks(report, sweeps)
        self.looks = list(dict.fromkeys(self.look_of.values()))
        self.unit = 100.0 if self.summary.is_share else 1.0
        self.least = 4.0 if self.summary.is_share else 1e-6
        self.metric = say.metric_name(self.summary).replace("_", " ")
        self.gain_unit = say.gain_unit(self.summary)

    def number_of(self, arm: str) -> int:
        """The number of an arm's look in the theme."""
        return self.looks.index(self.look_of[arm])

    def scaled(self, span: Sequence[float] | None) -> Span | None:
        """An interval as charts have it."""
        return None if span is None else (self.unit * span[0], self.unit * span[1])

    def around_mean(self, row: Row) -> dict[str, float]:
        """A mean with one standard deviation over the seeds."""
        deviation = row.deviation or 0.0
        low, high = self.unit * (row.mean - deviation), self.unit * (row.mean + deviation)
        return {"mean": self.unit * row.mean, "low": low, "high": high}


def _looks(report: StudyReport, sweeps: Sequence[LayerSweep]) -> dict[str, str]:
    """The reference comes first, then what the study is about. The layers of a sweep look alike; all others differ."""
    summary = report.summary
    layers = [point.row.arm for sweep in sweeps for point in sweep.points] if report.kind != "compare" else []
    order = sorted(
        summary.arms,
        key=lambda arm: (not summary.is_reference(arm), arm not in layers, not is_called(summary.focus, arm)),
    )
    return {arm: layers[0] if arm in layers else arm for arm in order}
