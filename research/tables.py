"""The tables of the pages, in Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import table
from layer_surgeon.errors import ConfigError
from layer_surgeon.report.words import say_count
from layer_surgeon.study.verdict import say_p
from research.evidence import Evidence, Gap, Study
from research.numbers import fixed, interval_points, p_values, percent, points, three_digits


def seeds_text(study: Study, data: str | None = None) -> str:
    """`3 of 5 seeds`: of a data set, or of all; `0 to 3 of 5 seeds` if they have different numbers."""
    done = {len(seeds) for name, seeds in study.seeds.items() if data in (None, name)}
    planned = len(study.plan.seeds)
    if done == {planned}:
        return f"{planned} seeds"
    return f"{' to '.join(str(number) for number in sorted({min(done), max(done)}))} of {planned} seeds"


def _mean(row: Mapping[str, Any]) -> str:
    deviation = "" if row["deviation"] is None else f" ± {percent(row['deviation'])}"
    return f"{percent(row['mean'])}{deviation}"


def _size(gap: Gap) -> str:
    """Bold if significant after a correction; a mean over data sets has none."""
    size = f"**{points(gap.mean)}**" if gap.significant and gap.raw_p is not None else points(gap.mean)
    return f"{size} ({interval_points(gap.interval)})"


def _cells(gap: Gap | None) -> tuple[str, str]:
    if gap is None:
        return "", ""
    if gap.p is None:
        return _size(gap), ""
    return _size(gap), say_p(gap.p) if gap.raw_p is None else f"{say_p(gap.raw_p)}; {say_p(gap.p)}"


def scores_table(study: Study, data: str, test: str) -> str:
    """All arms on a test set, compared with the host and with the arm that the study is about."""
    content, gaps = study.table(data, test), study.gaps(data, test)
    reference, focus = study.plan.reference, study.plan.focus
    head = ["arm", "accuracy, %", "trained", f"minus {reference}, points", "p; corrected"]
    has_focus = any(reference not in pair for pair in gaps)
    if has_focus:
        head += [f"{focus} minus it, points", "p; corrected"]
    rows = []
    for row in content["rows"]:
        arm = row["arm"]
        trained = say_count(study.arms[arm]["parameters"]["trained"])
        line = [f"`{arm}`", _mean(row), trained, *_cells(gaps.get((arm, reference)))]
        rows.append([*line, *_cells(gaps.get((focus, arm)) if arm != reference else None)] if has_focus else line)
    tested = f"{content['examples']:,} of {test}{'' if test == data else ' (another data set)'}"
    trained_on = f"{content['rows'][0]['train_examples']:,} examples of {data} ({_steps_text(study, data)})"
    return f"Trained on {trained_on}, tested on {tested}; {seeds_text(study, data)}:\n\n{table(head, rows)}"


def _steps_text(study: Study, data: str) -> str:
    """The number of steps of the trainings on a data set, or the least and the most."""
    steps = sorted({cell["history"][-1]["step"] for cell in study.whole_cells(data)})
    return " to ".join(f"{number:,}" for number in dict.fromkeys((steps[0], steps[-1]))) + " steps"


def _tested(study: Study) -> list[str]:
    """The data sets on which every arm is trained with at least one seed."""
    return [spec.name for spec in study.plan.data if study.seeds.get(spec.name)]


def contrasts_table(evidence: Evidence, study: Study, pairs: Sequence[tuple[str, str]]) -> str:
    """Differences of pairs of arms on each data set; and over all of them, with the seeds that all have.

    If the plan has a margin of equivalence, the table also says whether each difference is within it.
    """
    tested, margin = _tested(study), study.plan.equivalence
    rows = []
    for data in tested:
        gaps = [study.gap(data, data, *pair) for pair in pairs]
        cells = (cell for gap in gaps for cell in _cells_with_margin(gap, margin))
        rows.append([data, str(len(study.seeds[data])), *cells])
    if len(tested) > 1:
        tables = [(study.name, data) for data in tested]
        means = [evidence.average_gap(tables, *pair) for pair in pairs]
        cells = (cell for gap in means for cell in _cells_with_margin(gap, margin))
        rows.append(["mean of these, p not corrected", str(len(means[0].by_seed)), *cells])
    head = ["trained and tested on", "seeds"]
    for arm, against in pairs:
        head += [f"{arm} minus {against}, points", "p; corrected"]
        head += [] if margin is None else [f"within ±{margin:g}; p corrected"]
    return table(head, rows)


def _cells_with_margin(gap: Gap, margin: float | None) -> tuple[str, ...]:
    if margin is None:
        return _cells(gap)
    p = gap.p_equivalence
    return (*_cells(gap), "" if p is None else f"{'**yes**' if gap.equivalent else 'not shown'}; {say_p(p)}")


def sweep_table(study: Study, gains: Mapping[str, float]) -> str:
    """The layers of a sweep and the host; with how many times its input each layer adds, where that is known."""
    sweep, gaps = study.sweep, study.gaps(study.sweep.data, study.sweep.data)
    head = ["layer", *(["adds, times its input"] if gains else []), "accuracy, %", "minus host, points", "p; corrected"]
    rows = [["none (host)", *([""] if gains else []), _mean(sweep.host), "", ""]]
    for arm, label in sweep.labels.items():
        gain = [three_digits(gains[arm])] if gains else []
        rows.append([label, *gain, _mean(sweep.rows[arm]), *_cells(gaps[arm, study.plan.reference])])
    return f"Layer of {sweep.donor} (from 0); {seeds_text(study)}:\n\n{table(head, rows)}"


def shift_table(study: Study, arm: str, against: str) -> str:
    """Differences of two arms, by training set (rows) and test set (columns)."""
    names = [spec.name for spec in study.plan.data]
    rows = []
    for data in names:
        gaps = [study.gap(data, test, arm, against) for test in names]
        rows.append([data, *(f"{_size(gap)}, {p_values(gap.raw_p, gap.p)}" for gap in gaps)])
    head = f"{arm} minus {against} in points, by training set (rows) and test set (columns); {seeds_text(study)}:"
    return f"{head}\n\n{table(['trained on', *names], rows)}"


def domains_table(study: Study) -> str:
    """Every arm against the host: on its own domain, on the others, and the second minus the first."""
    rows = [
        [f"`{arm}`", *(cell for gap in gaps.values() for cell in _cells(gap))] for arm, gaps in study.domains.items()
    ]
    p = "p; corrected"
    head = ["minus host, points", "own domain", p, "other domains", p, "other minus own", p]
    return f"Means over the test sets; {seeds_text(study)}:\n\n{table(head, rows)}"


def gains_table(evidence: Evidence) -> str:
    """Every arm of every study that is above its host with p below 0.05, on any test set."""
    rows = [
        [study.name, data, test, f"`{gap.arm}`", *_cells(gap)]
        for study in evidence.studies.values()
        for data, test in study.tables
        for gap in study.gaps(data, test).values()
        if gap.against == study.plan.reference and gap.ahead
    ]
    head = ["study", "trained on", "tested on", "arm", "minus host, points", "p; corrected"]
    return table(head, rows, left=4) if rows else "None."


def selection_table(evidence: Evidence, name: str, sweep_name: str) -> str:
    """The layer that a selection chose, and its rank in the sweep."""
    if name not in evidence.selections:
        raise ConfigError(f"There is no selection {name}. There are: {', '.join(evidence.selections) or 'none'}.")
    chosen, means = evidence.selections[name], evidence.study(sweep_name).sweep.means
    label = "+".join(map(str, chosen["layers"]))
    if label not in means:
        raise ConfigError(f"{name} chose layer {label}, which {sweep_name} does not have: {', '.join(means)}.")
    ranking = sorted(means, key=means.__getitem__, reverse=True)
    lag = max(means.values()) - means[label]
    head = ["chosen layer", "in the sweep, %", "rank", "behind the best, points", "share of the sweep's examples"]
    rank = f"{ranking.index(label) + 1} of {len(ranking)}"
    return table(head, [[label, percent(means[label]), rank, fixed(100 * lag), f"{fixed(100 * chosen['cost'], 0)} %"]])


def missing_list(evidence: Evidence) -> str:
    """What was planned and is not done."""
    lines = []
    for name, plan in evidence.plans.items():
        study, planned = evidence.studies.get(name), len(plan.cells())
        if study is None:
            lines.append(f"- `{name}` ({plan.title}): not run; {planned} trainings.")
        elif len(study.cells) < planned:
            unused = sum(cell["seed"] not in study.seeds[cell["data"]] for cell in study.cells)
            note = f", {unused} of them with seeds that some arms lack, and not in the tables" if unused else ""
            done = f"{len(study.cells)} of {planned} trainings"
            lines.append(f"- `{name}` ({plan.title}): {seeds_text(study)}; {done}{note}.")
    return "\n".join(lines) or "Nothing: every planned training was run."


def loudness_table(content: Mapping[str, Any]) -> str:
    """The size of the vectors before training, by donor and arm."""
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


def price_rows(evidence: Evidence, study: Study) -> list[Mapping[str, Any]]:
    """What `research.costs` counted of each arm of a study, the one with the least work per text first.

    Raises:
        ConfigError: It was not counted.
    """
    counted = evidence.measured.get("costs", {"rows": []})["rows"]
    rows = [row for row in counted if row["study"] == study.name]
    if {row["arm"] for row in rows} != set(study.arms):
        raise ConfigError(f"The costs of {study.name} were not counted. Run python -m research.costs: see its help.")
    return sorted(rows, key=lambda row: row["macs"])


def price_table(evidence: Evidence, study: Study) -> str:
    """The accuracy of each arm on each data set, with its 95 % interval over the seeds, and what the arm costs."""
    tested = _tested(study)
    rows = []
    for cost in price_rows(evidence, study):
        arm_rows = [study.row(data, data, cost["arm"]) for data in tested]
        rows.append(
            [
                f"`{cost['arm']}`",
                *(f"{percent(row['mean'])} ({_interval_percent(row['seed_interval'])})" for row in arm_rows),
                f"{fixed(cost['macs'] / 1e9, 2)}",
                say_count(cost["parameters_total"]),
                say_count(cost["parameters_trained"]),
                f"{fixed(cost['macs_training'] / 1e9, 2)}",
                " of ".join(f"{fixed(seconds, 0)} s" for seconds in training_seconds(study, tested[0], cost["arm"])),
                f"{fixed(cost['disk_bytes'] / 1e6, 0)} MB",
            ]
        )
    head = ["arm", *(f"{data}, % ({seeds_text(study, data)})" for data in tested)]
    head += [
        "GMACs per text",
        "weights",
        "trained",
        "GMACs per trained text",
        f"steps of a training on {tested[0]}",
        "disk",
    ]
    return table(head, rows)


def training_seconds(study: Study, data: str, arm: str) -> tuple[float, float]:
    """The median times of an arm's trainings on a data set: of the steps alone, and of everything but testing.

    The median, since seeds of one study ran on several days, and a training can be paused. Without testing, since a
    donor reads the test texts once for all seeds.
    """
    seconds = [cell["seconds"] for cell in study.whole_cells(data) if cell["arm"] == arm]
    without_testing = [each["all"] - each["testing"] for each in seconds]
    return statistics.median(each["training"] for each in seconds), statistics.median(without_testing)


def _interval_percent(interval: Sequence[float] | None) -> str:
    return "one seed" if interval is None else " to ".join(percent(end) for end in interval)


def efficiency_table(content: Mapping[str, Any]) -> str:
    """The cost of each arm, as `research.efficiency` measured it."""
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
