"""Numbers and tables of the page, as text. Every number is rounded here, and nowhere else."""

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.evidence_facts import Evidence, Gap, Study
from benchmarks.machine import table
from layer_surgeon.errors import ConfigError
from layer_surgeon.report.words import say_count
from layer_surgeon.study.tables import Row
from layer_surgeon.study.verdict import say_p

# Behind it, a number that lies between two prints is rounded up: versions of numpy differ in the last bits of a mean.
_TIE = 1e-9


def fixed(value: float, digits: int = 1, *, sign: bool = False) -> str:
    """A number with so many digits; nought has no sign."""
    text = f"{value + math.copysign(_TIE, value):{'+' if sign else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def three_digits(value: float) -> str:
    """A number with three digits that count: `0.0653`, `1,620`."""
    text = f"{value:.3g}"
    return f"{float(text):,.0f}" if abs(float(text)) >= 1000 else text


def per_cent(value: float) -> str:
    """A share: `84.5`."""
    return fixed(100 * value)


def points(value: float) -> str:
    """A difference: `+1.2`."""
    return fixed(100 * value, sign=True)


def say_interval(gap: Gap) -> str:
    """`-6.0 to -2.2`, or that there is none."""
    return "one run" if gap.interval is None else " to ".join(points(end) for end in gap.interval)


def say_chance(p: float | None) -> str:
    """`p = 0.003`."""
    if p is None:
        return "no test"
    text = say_p(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def say_gap(gap: Gap) -> str:
    """`-4.1 points (-6.0 to -2.2; p = 0.003)`."""
    return f"{points(gap.mean)} points ({say_interval(gap)}; {say_chance(gap.p)})"


def say_seeds(study: Study, data: str | None = None) -> str:
    """`3 of 5 seeds`: of a data set, or of the one that has fewest."""
    done = len(study.seeds[data]) if data is not None else min(map(len, study.seeds.values()))
    planned = len(study.plan.seeds)
    return f"{planned} seeds" if done == planned else f"{done} of {planned} seeds"


def _mean(row: Row) -> str:
    return per_cent(row.mean) if row.deviation is None else f"{per_cent(row.mean)} ± {per_cent(row.deviation)}"


def _cells(gap: Gap | None) -> tuple[str, str]:
    if gap is None:
        return "", ""
    size = f"**{points(gap.mean)}**" if gap.significant else points(gap.mean)
    return f"{size} ({say_interval(gap)})", "" if gap.p is None else say_p(gap.p)


def scores_table(study: Study, data: str, test: str) -> str:
    """All arms on a test set, beside the host and the arm that the study is about."""
    found = study.table(data, test)
    gaps = {(entry.arm, entry.against) for entry in found.comparisons}
    reference, focus = study.plan.reference, study.plan.focus

    def gap(arm: str | None, against: str) -> Gap | None:
        known = (arm, against) in gaps or (against, arm) in gaps
        return study.gap(data, test, arm, against) if arm is not None and known else None

    head = ["arm", "accuracy, %", "trained", f"minus {reference}, points", "p"]
    focused = focus is not None and any(against != reference for _, against in gaps)
    rows = []
    for row in found.rows:
        counts = study.summary.parameters(row.arm)
        trained = "" if counts is None else say_count(counts.trained)
        line = [f"`{row.arm}`", _mean(row), trained, *_cells(gap(row.arm, reference))]
        if focused:
            line += _cells(gap(focus, row.arm) if row.arm not in (reference, focus) else None)
        rows.append(line)
    where = f"{found.examples:,} of {test}" if test == data else f"{found.examples:,} of {test} (another data set)"
    said = (
        f"Trained on {found.rows[0].train_examples:,} examples of {data}, tested on {where}; {say_seeds(study, data)}:"
    )
    return f"{said}\n\n{table([*head, f'{focus} minus it, points', 'p'] if focused else head, rows)}"


def sweep_table(study: Study, gains: Mapping[str, float]) -> str:
    """The layers of a sweep, beside the host; with how loud each is, by arm, where that is known."""
    sweep = study.sweep()
    rows = (
        [] if sweep.reference is None else [["none (host)", *([""] if gains else []), _mean(sweep.reference), "", ""]]
    )
    for point in sweep.points:
        spread = "" if point.row.deviation is None else f" ± {per_cent(point.row.deviation)}"
        gap = study.gap(sweep.table.data, sweep.table.test, point.row.arm, study.plan.reference)
        gain = [three_digits(gains[point.row.arm])] if gains else []
        rows.append([point.label, *gain, f"{per_cent(point.row.mean)}{spread}", *_cells(gap)])
    head = ["layer", *(["adds, times its input"] if gains else []), "accuracy, %", "minus host, points", "p"]
    axis = sweep.axis.replace("packaged-", "")
    return f"{axis[0].upper()}{axis[1:]}; {say_seeds(study)}:\n\n{table(head, rows)}"


def shift_table(study: Study, arm: str, against: str) -> str:
    """Differences of two arms: trained on (rows), tested on (columns)."""
    tests = list(dict.fromkeys(found.test for found in study.tables))
    tests.sort(key=[entry.name for entry in study.plan.data].index)
    rows = []
    for data in study.seeds:
        line = [data]
        for test in tests:
            gap = study.gap(data, test, arm, against)
            size, chance = _cells(gap)
            line.append(f"{size}, p {chance}" if chance.startswith("<") else f"{size}, p = {chance}")
        rows.append(line)
    said = (
        f"{arm} minus {against} in points, by what was trained on (rows) and tested on (columns); {say_seeds(study)}:"
    )
    return f"{said}\n\n{table(['trained on', *tests], rows)}"


def domains_table(study: Study) -> str:
    """Every arm against the host: on its own test sets, on those of other domains, and the second minus the first."""
    rows = []
    for arm, gaps in study.domains().items():
        line = [f"`{arm}`"]
        for gap in gaps:
            line += _cells(gap)
        rows.append(line)
    head = ["minus host, points", "own domain", "p", "other domains", "p", "other minus own", "p"]
    return f"Means over the test sets; {say_seeds(study)}:\n\n{table(head, rows)}"


def ahead_table(evidence: Evidence) -> str:
    """Every arm of every study that is above its host with p below 0.05, on any test set."""
    rows = [
        [study.name, found.data, found.test, f"`{row.arm}`", *_cells(gap)]
        for study in evidence.studies.values()
        for found in study.tables
        for row in found.rows
        if row.arm != study.plan.reference
        and (gap := study.gap(found.data, found.test, row.arm, study.plan.reference)).significant
        and gap.mean > 0
    ]
    head = ["study", "trained on", "tested on", "arm", "minus host, points", "p"]
    return table(head, rows, left=4) if rows else "None."


def selection_table(evidence: Evidence, name: str, sweep_name: str) -> str:
    """What a selection chose, and where that stands in the sweep."""
    if name not in evidence.selections:
        raise ConfigError(f"There is no selection {name}. There are: {', '.join(evidence.selections) or 'none'}.")
    chosen = evidence.selections[name]["selection"]
    sweep = evidence.study(sweep_name).sweep()
    means = {point.label: point.row.mean for point in sweep.points}
    label = "+".join(map(str, chosen["layers"]))
    if label not in means:
        raise ConfigError(f"{name} chose layer {label}, which {sweep_name} does not have: {', '.join(means)}.")
    order = sorted(means, key=lambda key: means[key], reverse=True)
    lost = max(means.values()) - means[label]
    head = ["chosen layer", "in the sweep, %", "place", "behind the best, points", "share of the sweep's examples"]
    place = f"{order.index(label) + 1} of {len(order)}"
    line = [label, per_cent(means[label]), place, fixed(100 * lost), f"{fixed(100 * chosen['cost'], 0)} %"]
    return table(head, [line])


def studies_table(evidence: Evidence) -> str:
    """Every planned study, and how much of it is done."""
    rows = []
    for name, plan in evidence.plans.items():
        study = evidence.studies.get(name)
        planned = len(plan.cells())
        done = 0 if study is None else len(study.cells)
        file = "" if study is None else f"[JSON](results/evidence/{name}.json)"
        seeds = "0" if study is None else str(min(map(len, study.seeds.values())))
        rows.append([f"[{name}](results/plans/{name}.yaml)", plan.title, seeds, f"{done} of {planned}", file])
    return table(["study", "what", "whole seeds", "trainings", "evidence"], rows, left=2)


def missing_list(evidence: Evidence) -> str:
    """What was planned and is not done."""
    lines = []
    for name, plan in evidence.plans.items():
        study = evidence.studies.get(name)
        planned = {cell.id for cell in plan.cells()}
        there = set() if study is None else planned & {cell["id"] for cell in study.cells}
        if not there:
            lines.append(f"- `{name}` ({plan.title}): not run; {len(planned)} trainings.")
        elif len(there) < len(planned) and study is not None:
            used = sum(cell.id in there and cell.seed in study.seeds[cell.data] for cell in plan.cells())
            rest = f", {len(there) - used} of them of seeds that not all arms have, and not in the tables"
            lines.append(
                f"- `{name}` ({plan.title}): {say_seeds(study)}; {len(there)} of {len(planned)} trainings"
                f"{rest if used < len(there) else ''}."
            )
    return "\n".join(lines) or "Nothing: every planned training was run."


def loudness_table(content: Mapping[str, Any]) -> str:
    """How large the vectors are before training, by donor and arm."""
    names = {
        "rms_host": "host's vector",
        "rms_inside": "into the layer",
        "rms_added": "added by the layer",
        "rms_out": "out of the graft",
        "loss": "loss",
    }
    rows = [
        [f"`{arm}`, {donor}", *("" if numbers.get(key) is None else three_digits(numbers[key]) for key in names)]
        for donor, arms in content["start"].items()
        for arm, numbers in arms.items()
    ]
    return table(["before training", *names.values()], rows)


def efficiency_table(content: Mapping[str, Any]) -> str:
    """What each arm costs, as `benchmarks.efficiency` measured it."""
    rows = []
    for row in content["rows"]:
        low, high = row["step_ratio_100_range"]
        disk = row["disk_bytes_trained"] + (row["disk_bytes_donor"] or 0)
        rows.append(
            [
                f"`{row['arm']}`, {row['host']}, {row['donor']}",
                say_count(row["parameters_trained"]),
                say_count(row["parameters_total"]),
                fixed(row["macs"] / 1e9),
                fixed(row["macs_training"] / 1e9),
                f"{fixed(row['step_seconds_100'], 2)} s",
                f"{fixed(row['step_ratio_100'], 2)} ({fixed(low, 2)} to {fixed(high, 2)})",
                f"{fixed(row['peak_memory_bytes'] / 1e6, 0)} MB",
                f"{fixed(disk / 1e6, 0)} MB",
            ]
        )
    head = [
        "arm, host, donor",
        "trained",
        "all",
        "GMACs forward",
        "GMACs of a step",
        "step",
        "to host",
        "memory",
        "disk",
    ]
    return table(head, rows)
