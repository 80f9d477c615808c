"""What a comparison, and a study, comes to, in words. Nothing is called better that the test does not call so."""

from collections.abc import Sequence

from layer_surgeon.study.arms import is_called
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.tables import SHARES, Basis, Comparison, Table

_ONE_SEED = "for this one seed"
_SMALLEST = 0.001


def say_comparison(comparison: Comparison, plan: StudyPlan) -> str:
    """One phrase, such as `graft is better than host by 1.2 points (p = 0.003)`."""
    arm, against, delta = comparison.arm, comparison.against, comparison.mean
    size = difference_in_words(delta, plan.metric)
    p = comparison.p_holm
    if comparison.p is None or p is None:
        return f"{arm} and {against}: {size}; one seed without single examples can't be tested"
    chance = f"p {say_p(p) if p < _SMALLEST else f'= {say_p(p)}'}, {_basis(comparison)}"
    if not comparison.significant:
        return f"{arm} and {against}: the difference of {size} is not significant ({chance})"
    better = (delta > 0) == plan.higher_is_better
    return f"{arm} is {'better' if better else 'worse'} than {against} by {size.lstrip('+-')} ({chance})"


def difference_in_words(delta: float, metric: str) -> str:
    """A difference with its sign: in points, or as it is."""
    return f"{100 * delta:+.1f} points" if metric in SHARES else f"{delta:+.3g}"


def say_p(p: float) -> str:
    """A p-value for people."""
    return f"< {_SMALLEST}" if p < _SMALLEST else f"{p:.3f}"


def say_share(fraction: float) -> str:
    """`, 10 % of the data`, to follow the name of a data set; nothing for all of it."""
    return "" if fraction == 1 else f", {100 * fraction:g} % of the data"


def say_place(test: str, data: str, fraction: float = 1) -> str:
    """On what a model was tested, and on what it was trained where that is not plain."""
    trained = "" if test == data else f", trained on {data}"
    return f"{test}{trained}{say_share(fraction)}"


def _basis(comparison: Comparison) -> str:
    count = len(comparison.seeds)
    texts: dict[Basis | None, str] = {
        "seeds and examples": f"over {count} seeds and the test examples",
        "seeds": f"over {count} seeds",
        "examples": f"over the test examples, {_ONE_SEED}",
    }
    return texts[comparison.basis]


def say_study(tables: Sequence[Table], plan: StudyPlan, *, missing: int) -> str:
    """One sentence for the whole study, or two."""
    if not tables:
        return "Nothing is finished yet."
    rest = f" {missing} trainings are still missing." if missing else ""
    found = [(_place(table, tables), comparison) for table in tables for comparison in table.comparisons]
    if not found:
        return f"No two arms can be compared yet.{rest}"
    if plan.focus is not None:
        of_focus = [(place, c) for place, c in found if is_called(plan.focus, c.arm)]
        own = [(place, c) for place, c in of_focus if is_called(plan.reference, c.against)]
        if own:
            return _headline(own, plan.higher_is_better) + _controls(own, found, plan) + rest
    told = [(place, c) for place, c in found if c.significant]
    if not told:
        return f"Not significant: no arm can be told apart from another, in {len(found)} comparisons.{rest}"
    first = sorted(told, key=lambda entry: entry[1].p_holm or 0.0)[:3]
    sentences = "; ".join(f"{c.words}{place}" for place, c in first)
    more = f" {len(told)} of {len(found)} differences are significant." if len(told) > len(first) else ""
    return f"{sentences}.{more}{rest}"


def _headline(own: Sequence[tuple[str, Comparison]], higher: bool) -> str:
    if len(own) == 1:
        return f"{own[0][1].words}{own[0][0]}."
    names = f"{own[0][1].arm} and {own[0][1].against}"
    better = [c for _, c in own if c.significant and (c.mean > 0) == higher]
    worse = [c for _, c in own if c.significant and (c.mean > 0) != higher]
    if not better and not worse:
        return f"Not significant: on none of {len(own)} comparisons can {names} be told apart."
    return (
        f"{own[0][1].arm} is significantly better than {own[0][1].against} in {len(better)} of {len(own)} "
        f"comparisons, worse in {len(worse)}, and not to be told apart in {len(own) - len(better) - len(worse)}."
    )


def _controls(own: Sequence[tuple[str, Comparison]], found: Sequence[tuple[str, Comparison]], plan: StudyPlan) -> str:
    """Whether what the focus gains may be put down to the donor's knowledge: only if no control does as well."""
    rivals: dict[str, list[bool]] = {}
    for _, comparison in found:
        if not is_called(plan.focus, comparison.arm) or is_called(plan.reference, comparison.against):
            continue
        beaten = comparison.significant and (comparison.mean > 0) == plan.higher_is_better
        rivals.setdefault(comparison.against, []).append(beaten)
    standing = [name for name, beaten in rivals.items() if not any(beaten)]
    if not rivals:
        return ""
    if standing:
        return f" It is not shown to be better than {say_all(standing)}."
    if all(all(beaten) for beaten in rivals.values()):
        also = any(c.significant and (c.mean > 0) == plan.higher_is_better for _, c in own)
        return f" It is {'also ' if also else ''}better than {say_all(list(rivals))}."
    told = [f"{name} in {sum(beaten)} of {len(beaten)}" for name, beaten in rivals.items()]
    return f" It is better than {say_all(told)} comparisons."


def _place(table: Table, tables: Sequence[Table]) -> str:
    if len(tables) == 1:
        return f" on {table.test}"
    return f" on {say_place(table.test, table.data, table.fraction)}"


def say_all(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
