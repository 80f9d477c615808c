"""Numbers as text. All formats of a report use the same text, and each format escapes it in its own way."""

from collections.abc import Sequence

from layer_surgeon._format import format_count, format_score
from layer_surgeon.study.tables import Comparison, Row, Summary
from layer_surgeon.study.verdict import say_p

Span = Sequence[float]


def metric_name(summary: Summary) -> str:
    """Return the title of a column of scores, such as `accuracy (%)`."""
    return f"{summary.metric} (%)" if summary.is_share else summary.metric


def say_score(value: float, summary: Summary, digits: int = 1) -> str:
    """Return a score; as per cent, without the sign %, if it is a share."""
    return f"{100 * value:.{digits}f}" if summary.is_share else format_score(value)


def say_mean(row: Row, summary: Summary) -> str:
    """Return mean and standard deviation over the seeds."""
    mean = say_score(row.mean, summary)
    return mean if row.deviation is None else f"{mean} ± {say_score(row.deviation, summary)}"


def say_span(span: Span | None, summary: Summary) -> str:
    """Return an interval of scores."""
    return "" if span is None else " to ".join(say_score(value, summary) for value in span)


def score_span(span: Span | None, summary: Summary) -> tuple[float, float] | None:
    """Return the interval of a mean. For a share it is cut at 0 and 1, because the t distribution has no bounds."""
    if span is None:
        return None
    low, high = span
    return (max(0.0, low), min(1.0, high)) if summary.is_share else (low, high)


def say_gain(value: float, summary: Summary, digits: int = 1) -> str:
    """Return a difference with its sign, in points if the score is a share."""
    return f"{100 * value:+.{digits}f}" if summary.is_share else format_score(value, "+.3g")


def say_gains(span: Span | None, summary: Summary) -> str:
    """Return an interval of differences."""
    return "" if span is None else " to ".join(say_gain(value, summary) for value in span)


def gain_unit(summary: Summary) -> str:
    """Return the unit of a difference, with a note if lower is better."""
    unit = "percentage points" if summary.is_share else summary.metric.replace("_", " ")
    return unit if summary.higher_is_better else f"{unit}; lower is better"


def say_optional_p(p: float | None) -> str:
    """Return a p-value; empty if no test is possible."""
    return "" if p is None else say_p(p)


def say_effect(comparison: Comparison) -> str:
    """Return the effect size: mean divided by standard deviation of the paired differences."""
    return "" if comparison.effect_size is None else f"{comparison.effect_size:+.2f}"


def say_count(count: float) -> str:
    """Return a rounded number, such as `23.2 M`."""
    return format_count(count, ".3g")


def say_setting(value: object) -> str:
    """Return the value of a setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def first_upper(text: str) -> str:
    """Return text with a capital first letter, for a heading."""
    return text[:1].upper() + text[1:]
