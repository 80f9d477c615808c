"""The hypotheses of docs/results/plan.md, judged by the rules that stand there, and by nothing else.

Yes: the difference is above nought, and p below 0.05 after Holm's correction, for at least one donor. No: for every
donor the interval excludes a gain of one point. Everything between can't be told.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from benchmarks.evidence_facts import ALPHA, Evidence, Gap, Study
from benchmarks.evidence_text import fixed, per_cent, points, say_chance, say_interval
from benchmarks.machine import table

Answer = Literal["yes", "no", "can't be told"]
UNKNOWN: Answer = "can't be told"
LITTLE, SWEEPS, DOMAINS = ("a-gemma", "a-qwen"), ("e-gemma", "e-qwen"), "d-domains"
_POINT, _HARMLESS = 0.01, 0.03
_NONE = "not run"


def hypotheses(evidence: Evidence) -> str:
    """H1 to H7 with what was found for each donor, and the answer."""
    rows = [
        ["H1", "graft > host", *_of_gaps(evidence, "host")],
        ["H2", "graft > random", *_of_gaps(evidence, "random")],
        ["H3", "graft > wide-head, projections-only", *_of_gaps(evidence, "wide-head", "projections-only")],
        ["H4", "graft > donor-trained", *_of_gaps(evidence, "donor-trained")],
        ["H5", "graft > host on other domains, and more than on the own", *_of_domains(evidence)],
        ["H6", "layers differ", *_of_sweeps(evidence, _layers_differ)],
        ["", "the last layer is within a deviation of the best", *_of_sweeps(evidence, _last_is_good)],
        ["H7", "gated is harmless", *_of_gate(evidence)],
    ]
    return table(["", "claim", "Gemma", "Qwen", "answer"], rows, left=5)


def judge(gap: Gap) -> Answer:
    """A claim that one arm is better than another."""
    if gap.significant and gap.mean > 0:
        return "yes"
    return "no" if gap.interval is not None and gap.interval[1] < _POINT else UNKNOWN


def judge_gate(gap: Gap) -> Answer:
    """A claim that an arm does no harm: the interval holds nought and is not wider than three points to each side."""
    if gap.interval is None:
        return UNKNOWN
    low, high = gap.interval
    if low > 0 or high < 0:
        return "no"
    return "yes" if high - low <= 2 * _HARMLESS else UNKNOWN


def together(answers: Sequence[Answer]) -> Answer:
    """One claim about several controls: all of them have to be beaten."""
    return "no" if "no" in answers else UNKNOWN if UNKNOWN in answers else "yes"


def for_one(answers: Sequence[Answer | None]) -> Answer:
    """One claim about several donors: one of them is enough; None: it was not run."""
    return "yes" if "yes" in answers else "no" if all(answer == "no" for answer in answers) else UNKNOWN


def _there(evidence: Evidence, names: Sequence[str]) -> list[Study | None]:
    return [evidence.studies[name] if name in evidence.plans and evidence.has(name) else None for name in names]


def _say(gap: Gap) -> str:
    return f"{points(gap.mean)} ({say_interval(gap)}), {say_chance(gap.p)}"


def _of_gaps(evidence: Evidence, *controls: str) -> list[str]:
    studies = _there(evidence, LITTLE)
    gaps = [
        [] if study is None else [study.gap("sst2", "sst2", "graft", control) for control in controls]
        for study in studies
    ]
    told = ["; ".join(map(_say, found)) or _NONE for found in gaps]
    return [*told, for_one([together([judge(gap) for gap in found]) if found else None for found in gaps])]


def _of_gate(evidence: Evidence) -> list[str]:
    found = [
        None if study is None else study.gap("sst2", "sst2", "gated", "host") for study in _there(evidence, LITTLE)
    ]
    told = [_NONE if gap is None else _say(gap) for gap in found]
    # Harmless is what it has to be with every donor.
    return [*told, together([UNKNOWN if gap is None else judge_gate(gap) for gap in found])]


def _of_domains(evidence: Evidence) -> list[str]:
    (study,) = _there(evidence, [DOMAINS])
    found = {} if study is None else study.domains()
    if "graft" not in found:
        return [_NONE, "", UNKNOWN]
    _, other, shift = found["graft"]
    told = f"{_say(other)}; other minus own: {_say(shift)}"
    answer = judge(other)
    return [told, "", UNKNOWN if answer == "yes" and shift.mean <= 0 else answer]


def _of_sweeps(evidence: Evidence, judged: Callable[[Study], tuple[str, Answer]]) -> list[str]:
    found = [
        (_NONE, None) if study is None or min(map(len, study.seeds.values())) < 2 else judged(study)
        for study in _there(evidence, SWEEPS)
    ]
    answers = dict.fromkeys(answer for _, answer in found if answer is not None)
    return [*(told for told, _ in found), " and ".join(answers) or UNKNOWN]


def _layers_differ(study: Study) -> tuple[str, Answer]:
    found = study.anova()
    told = f"F({found.between}, {found.within}) = {fixed(found.f, 2)}, {say_chance(found.p)}"
    return told, "yes" if found.p < ALPHA else UNKNOWN


def _last_is_good(study: Study) -> tuple[str, Answer]:
    layers = study.sweep().points
    behind = max(point.row.mean for point in layers) - layers[-1].row.mean
    deviation = study.anova().pooled_deviation
    told = f"{fixed(100 * behind)} points behind, deviation {per_cent(deviation)}"
    return told, "yes" if behind <= deviation else "no"
