"""Numbers as the formats of a report say them."""

from collections.abc import Sequence

from layer_surgeon.study.report_types import Difference, Row, ShiftMatrix, Span, StudyReport, Table
from layer_surgeon.study.verdict import say_p


def metric_name(report: StudyReport) -> str:
    """`accuracy (%)`: the head of a column of scores."""
    return f"{report.metric} (%)" if report.is_share else report.metric


def say_score(value: float, report: StudyReport, digits: int = 1) -> str:
    """A score: per cent, without the sign, where it is a share."""
    return f"{100 * value:.{digits}f}" if report.is_share else f"{value:.4g}"


def say_mean(row: Row, report: StudyReport, digits: int = 1, plus_minus: str = "±") -> str:
    """Mean and deviation over the seeds."""
    mean = say_score(row.mean, report, digits)
    return mean if row.deviation is None else f"{mean} {plus_minus} {say_score(row.deviation, report, digits)}"


def say_span(span: Span | None, report: StudyReport, digits: int = 1) -> str:
    """An interval of scores."""
    return "" if span is None else " to ".join(say_score(value, report, digits) for value in span)


def say_gain(value: float, report: StudyReport, digits: int = 1) -> str:
    """A difference with its sign, in points where the score is a share."""
    return f"{100 * value:+.{digits}f}" if report.is_share else f"{value:+.3g}"


def say_gains(span: Span | None, report: StudyReport, digits: int = 1) -> str:
    """An interval of differences."""
    return "" if span is None else " to ".join(say_gain(value, report, digits) for value in span)


def say_holm(difference: Difference) -> str:
    """The p after Holm's correction; nothing where no test is possible."""
    return "" if difference.p_holm is None else say_p(difference.p_holm)


def say_effect(difference: Difference) -> str:
    """Mean by deviation of the paired differences."""
    return "" if difference.effect_size is None else f"{difference.effect_size:+.2f}"


def say_verdict(difference: Difference) -> str:
    """In one or two words."""
    return difference.verdict or "no test possible"


def say_count(count: float) -> str:
    """How many, for people: `23.2 M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"


def say_time(seconds: float) -> str:
    """A duration for people: `8.31 s`, `2 min 25 s`, `1 h 30 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"


def say_value(value: object) -> str:
    """A setting."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def other_metrics(table: Table, report: StudyReport) -> list[str]:
    """Metrics of a table beside the one that is compared, without the loss."""
    names = dict.fromkeys(name for row in table.rows for name in row.scores)
    return [name for name in names if name not in (report.metric, "loss")]


def shift_rows(matrix: ShiftMatrix, report: StudyReport, digits: int = 1) -> list[Sequence[str]]:
    """Rows of a matrix: what was trained on, and the means."""
    return [
        (name, *("" if mean is None else say_score(mean, report, digits) for mean in means))
        for name, means in zip(matrix.trained_on, matrix.means, strict=True)
    ]
