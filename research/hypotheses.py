"""The hypotheses of research/plan.md, judged by its rules and by nothing else.

H1 to H5, yes: the difference is positive, and p is below 0.05 after Holm's correction, for at least one donor. No: the
interval excludes a gain of one point for every donor. Everything between is inconclusive. H6 and H7 have other rules.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from benchmarks.machine import table
from layer_surgeon.study.paired import ALPHA
from research.evidence import Evidence, Gap, Study
from research.numbers import fixed, interval_points, p_value, percent, points

Answer = Literal["yes", "no", "inconclusive"]
LITTLE_DATA, SWEEPS, DOMAINS = ("a-gemma", "a-qwen"), ("e-gemma", "e-qwen"), "d-domains"
_POINT, _HARMLESS = 0.01, 0.03
_NOT_RUN = "not run"


def hypotheses_table(evidence: Evidence) -> str:
    """H1 to H7 with the result for each donor, and the answer."""
    rows = [
        ["H1", "graft > host", *_better_than(evidence, "host")],
        ["H2", "graft > random", *_better_than(evidence, "random")],
        ["H3", "graft > wide-head, projections-only", *_better_than(evidence, "wide-head", "projections-only")],
        ["H4", "graft > donor-trained", *_better_than(evidence, "donor-trained")],
        ["H5", "graft > host on other domains, and more than on its own", *_domains(evidence)],
        ["H6", "layers differ", *_sweeps(evidence, _layers_differ)],
        ["", "the last layer is within a deviation of the best", *_sweeps(evidence, _last_is_good)],
        ["H7", "gated is harmless", *_gate(evidence)],
    ]
    return table(["", "claim", "Gemma", "Qwen", "answer"], rows, left=5)


def judge_gain(gap: Gap) -> Answer:
    """Judge the claim that one arm is better than another."""
    if gap.ahead:
        return "yes"
    return "no" if gap.interval is not None and gap.interval[1] < _POINT else "inconclusive"


def judge_gate(gap: Gap) -> Answer:
    """Judge the claim that an arm is harmless: the interval contains zero, and is at most six points wide."""
    if gap.interval is None:
        return "inconclusive"
    low, high = gap.interval
    if low > 0 or high < 0:
        return "no"
    return "yes" if high - low <= 2 * _HARMLESS else "inconclusive"


def for_all(answers: Sequence[Answer]) -> Answer:
    """The answer to a claim that has to hold for all: "no" if one is no."""
    return "no" if "no" in answers else "inconclusive" if "inconclusive" in answers else "yes"


def for_any(answers: Iterable[Answer | None]) -> Answer:
    """The answer to a claim that has to hold for one; None: that one was not run."""
    answers = list(answers)
    return "yes" if "yes" in answers else "no" if all(answer == "no" for answer in answers) else "inconclusive"


def _studies(evidence: Evidence, names: Sequence[str]) -> list[Study | None]:
    return [evidence.studies[name] if name in evidence.plans and evidence.has(name) else None for name in names]


def _text(gap: Gap) -> str:
    return f"{points(gap.mean)} ({interval_points(gap.interval)}), {p_value(gap.p)}"


def _better_than(evidence: Evidence, *controls: str) -> list[str]:
    by_donor = [
        [study.gap("sst2", "sst2", "graft", control) for control in controls] if study else []
        for study in _studies(evidence, LITTLE_DATA)
    ]
    texts = ["; ".join(map(_text, gaps)) or _NOT_RUN for gaps in by_donor]
    return [*texts, for_any(for_all([judge_gain(gap) for gap in gaps]) if gaps else None for gaps in by_donor)]


def _gate(evidence: Evidence) -> list[str]:
    studies = _studies(evidence, LITTLE_DATA)
    gaps = [study.gap("sst2", "sst2", "gated", "host") if study else None for study in studies]
    texts = [_text(gap) if gap else _NOT_RUN for gap in gaps]
    answers = dict.fromkeys(judge_gate(gap) if gap else "inconclusive" for gap in gaps)
    return [*texts, " and ".join(answers)]


def _domains(evidence: Evidence) -> list[str]:
    (study,) = _studies(evidence, [DOMAINS])
    if study is None:
        return [_NOT_RUN, "", "inconclusive"]
    other, shift = study.domains["graft"]["other"], study.domains["graft"]["shift"]
    answer = judge_gain(other)
    text = f"{_text(other)}; other minus own: {_text(shift)}"
    return [text, "", "inconclusive" if answer == "yes" and shift.mean <= 0 else answer]


def _sweeps(evidence: Evidence, judge: Callable[[Study], tuple[str, Answer]]) -> list[str]:
    results = [
        judge(study) if study and min(map(len, study.seeds.values())) > 1 else (_NOT_RUN, None)
        for study in _studies(evidence, SWEEPS)
    ]
    answers = dict.fromkeys(answer for _, answer in results if answer is not None)
    return [*(text for text, _ in results), " and ".join(answers) or "inconclusive"]


def anova_text(study: Study) -> str:
    """`F(17, 36) = 1.69, p = 0.093`, for the layers of a sweep."""
    anova = study.sweep.anova
    return f"F({anova['between']}, {anova['within']}) = {fixed(anova['f'], 2)}, {p_value(anova['p'])}"


def _layers_differ(study: Study) -> tuple[str, Answer]:
    return anova_text(study), "yes" if study.sweep.anova["p"] < ALPHA else "inconclusive"


def _last_is_good(study: Study) -> tuple[str, Answer]:
    lag, deviation = study.sweep.lag, study.sweep.anova["deviation"]
    text = f"{fixed(100 * lag)} points behind, deviation {percent(deviation)}"
    return text, "yes" if lag <= deviation else "no"
