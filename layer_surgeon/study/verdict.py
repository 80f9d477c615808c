"""The result of a comparison, and of a study, in words. "Better" and "worse" always mean a significant difference."""

from collections.abc import Sequence
from math import isfinite

from layer_surgeon._format import format_amount, format_score
from layer_surgeon.study.arms import is_called
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.selection_result import Margin
from layer_surgeon.study.tables import Basis, Comparison, Table

_ONE_SEED = "for this one seed"
_SMALLEST = 0.001


def say_comparison(comparison: Comparison, plan: StudyPlan) -> str:
    """Return a comparison as one phrase, such as `graft is better than host by 1.2 points (corrected p = 0.003)`."""
    arm, against, delta = comparison.arm, comparison.against, comparison.mean
    size = difference_in_words(delta, is_share=plan.is_share)
    p = comparison.p_holm
    if comparison.p_equivalence is not None and comparison.equivalent and not comparison.significant:
        margin = say_equivalence(plan.equivalence, is_share=plan.is_share)
        reason = f"a difference of {size}, corrected {_p_is(comparison.p_equivalence)}, {_basis(comparison)}"
        return f"{arm} and {against} are equivalent within {margin} ({reason})"
    if p is None:
        if not isfinite(delta):
            reason = "a score is infinite, which"
        elif len(comparison.seeds) > 1:
            reason = "all seeds have the same difference, which"
        else:
            reason = "one seed without single examples"
        return f"{arm} and {against}: {size}; {reason} can't be tested"
    significance = f"corrected {_p_is(p)}, {_basis(comparison)}"
    if not comparison.significant:
        return f"{arm} and {against}: the difference of {size} is not significant ({significance})"
    better = (delta > 0) == plan.higher_is_better
    return f"{arm} is {'better' if better else 'worse'} than {against} by {size.lstrip('+-')} ({significance})"


def say_equivalence(margin: float | None, *, is_share: bool) -> str:
    """Return a margin of equivalence, such as `±1 point`."""
    unit = "" if not is_share else " point" if margin == 1 else " points"
    return f"±{margin or 0:g}{unit}"


def _p_is(p: float) -> str:
    return f"p {say_p(p)}" if p < _SMALLEST else f"p = {say_p(p)}"


def difference_in_words(delta: float, *, is_share: bool) -> str:
    """Return a difference with its sign, in points if the metric is a share."""
    return f"{100 * delta:+.1f} points" if is_share else format_score(delta, "+.3g")


def say_p(p: float) -> str:
    """Return a p-value for display."""
    return f"< {_SMALLEST}" if p < _SMALLEST else f"{p:.3f}"


def say_share(fraction: float) -> str:
    """Return a suffix for the name of a data set, such as `, 10 % of the data`; empty for all data."""
    return "" if fraction == 1 else f", {100 * fraction:g} % of the data"


def say_place(test: str, data: str, fraction: float = 1) -> str:
    """Return the test set of a model and, if they differ, its training set and share."""
    trained = "" if test == data else f", trained on {data}"
    return f"{test}{trained}{say_share(fraction)}"


def say_margin(margin: Margin, *, is_share: bool) -> str:
    """Return the margin of a chosen arm, such as "ahead of graft-L3 by 1.2 points, with one seed"."""
    size = difference_in_words(margin.difference, is_share=is_share).lstrip("+")
    if not margin.difference:
        ahead = f"level with {margin.runner_up}"
    elif float(size.split()[0]):
        ahead = f"ahead of {margin.runner_up} by {size}"
    else:
        ahead = f"ahead of {margin.runner_up} by less than {difference_in_words(0.001, is_share=is_share).lstrip('+')}"
    if margin.deviation is None:
        return f"{ahead}, with one seed"
    close = ": too close to call" if margin.difference <= margin.deviation else ""
    deviation = difference_in_words(margin.deviation, is_share=is_share).lstrip("+")
    return f"{ahead}, with a standard deviation of {deviation} over the seeds{close}"


def _basis(comparison: Comparison) -> str:
    count = len(comparison.seeds)
    texts: dict[Basis | None, str] = {
        "seeds and examples": f"over {count} seeds and the test examples",
        "seeds": f"over {count} seeds",
        "examples": f"over the test examples, {_ONE_SEED}",
        None: f"over {count} seeds",
    }
    return texts[comparison.basis]


def say_study(tables: Sequence[Table], plan: StudyPlan, *, missing: int) -> str:
    """Return one or two sentences about the whole study."""
    if not tables:
        return "Nothing is finished yet."
    missing_words = "1 training is" if missing == 1 else f"{missing} trainings are"
    missing_text = f" {missing_words} still missing." if missing else ""
    comparisons = [(_describe_test(table, tables), c) for table in tables for c in table.comparisons]
    if not comparisons:
        return f"No two arms can be compared yet.{missing_text}"
    if plan.focus is not None:
        headline = [
            (test_set, c)
            for test_set, c in comparisons
            if is_called(plan.focus, c.arm) and is_called(plan.reference, c.against)
        ]
        if headline:
            sentences = _headline(headline, plan) + _controls(headline, comparisons, plan)
            return sentences + missing_text
    significant = [(test_set, c) for test_set, c in comparisons if c.significant]
    count = len(comparisons)
    if not significant:
        compared = format_amount(count, "comparison")
        equal = _equivalences([c for _, c in comparisons], plan)
        return f"No difference is significant, in {compared}{equal}.{missing_text}"
    smallest = sorted(significant, key=lambda item: item[1].p_holm or 0.0)[:3]
    phrases = "; ".join(f"{c.words}{test_set}" for test_set, c in smallest)
    total = f" {len(significant)} of {count} differences are significant." if len(significant) > len(smallest) else ""
    return f"{phrases}.{total}{missing_text}"


def _headline(comparisons: Sequence[tuple[str, Comparison]], plan: StudyPlan) -> str:
    test_set, first = comparisons[0]
    if len(comparisons) == 1:
        return f"{first.words}{test_set}."
    better = sum(c.significant and (c.mean > 0) == plan.higher_is_better for _, c in comparisons)
    worse = sum(c.significant and (c.mean > 0) != plan.higher_is_better for _, c in comparisons)
    count = len(comparisons)
    equal = _equivalences([c for _, c in comparisons], plan)
    # The plan's names, because with several hosts each comparison has the names of its own host.
    if not better and not worse:
        return f"None of {count} differences between {plan.focus} and {plan.reference} is significant{equal}."
    return (
        f"{plan.focus} is significantly better than {plan.reference} in {better} of {count} comparisons, worse in "
        f"{worse}, and not significantly different in {count - better - worse}{equal}."
    )


def _equivalences(comparisons: Sequence[Comparison], plan: StudyPlan) -> str:
    """Return a clause about how many of several comparisons show equivalence; empty if it is not tested."""
    tested = [comparison for comparison in comparisons if comparison.p_equivalence is not None]
    if not tested:
        return ""
    number = sum(comparison.equivalent and not comparison.significant for comparison in tested)
    margin = say_equivalence(plan.equivalence, is_share=plan.is_share)
    return f"; {number} of {len(tested)} are equivalent within {margin}"


def _controls(
    headline: Sequence[tuple[str, Comparison]], comparisons: Sequence[tuple[str, Comparison]], plan: StudyPlan
) -> str:
    """Return a sentence about the focus and the controls.

    A gain is only due to the donor's knowledge if the focus is better than every control.
    """
    rivals: dict[str, list[bool]] = {}
    losses: dict[str, int] = {}
    for _, comparison in comparisons:
        if not is_called(plan.focus, comparison.arm) or is_called(plan.reference, comparison.against):
            continue
        is_better = (comparison.mean > 0) == plan.higher_is_better
        rivals.setdefault(comparison.against, []).append(comparison.significant and is_better)
        if comparison.significant and not is_better:
            losses[comparison.against] = losses.get(comparison.against, 0) + 1
    not_beaten = [name for name, beaten in rivals.items() if not any(beaten) and name not in losses]
    if not rivals:
        return ""
    if losses:
        names = [
            name if lost == len(rivals[name]) else f"{name} (in {lost} of {len(rivals[name])} comparisons)"
            for name, lost in losses.items()
        ]
        unclear = f", and not shown to be better than {say_all(not_beaten)}" if not_beaten else ""
        return f" It is significantly worse than {say_all(names)}{unclear}."
    if not_beaten:
        return f" It is not shown to be better than {say_all(not_beaten)}."
    if all(all(beaten) for beaten in rivals.values()):
        also = any(c.significant and (c.mean > 0) == plan.higher_is_better for _, c in headline)
        return f" It is {'also ' if also else ''}better than {say_all(list(rivals))}."
    counts = [f"{name} in {sum(beaten)} of {len(beaten)}" for name, beaten in rivals.items()]
    return f" It is better than {say_all(counts)} comparisons."


def _describe_test(table: Table, tables: Sequence[Table]) -> str:
    if len(tables) == 1:
        return f" on {table.test}"
    return f" on {say_place(table.test, table.data, table.fraction)}"


def say_all(names: Sequence[str]) -> str:
    """Return names as `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
