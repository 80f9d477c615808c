"""From cells to tables: means, paired differences, and what may be said of them.

summary.json:

    format, name, title, task, metric, higher_is_better, reference, focus, alpha
    verdict      one sentence
    cells        {"planned", "done", "missing", "failed": [{"id", "arm", "data", "fraction", "seed", "error"}]}
    arms         by name: text, kind, host, donor, parameters {"total", "trained"} (null before a cell is done),
                 training_seconds (mean)
    tables       one for each (data, fraction, test):
      data, fraction, test, examples
      rows         one per arm with a finished cell: arm, seeds, by_seed, mean, deviation, seed_interval (t; null with
                   one seed), example_interval (bootstrap; null without single examples), scores (means of all
                   metrics), training_seconds, train_examples
      comparisons  arm minus against, over the seeds that both have: arm, against, seeds, mean, deviation, by_seed,
                   t_test, permutation, effect_size, seed_interval, example_interval, both_interval, crossed
                   {"mean", "error", "df", "p", "interval"}, basis ("seeds and examples", "seeds", "examples"; null: no
                   test is possible), p, p_holm (over all comparisons of the table), significant, words

Of a comparison, p, p_holm, significant and words are the verdict; the other numbers are shown beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy import stats

from layer_surgeon.study.layout import FORMAT, StudyFolder, read_json
from layer_surgeon.study.paired import (
    ALPHA,
    Matrix,
    SeedVariance,
    bootstrap,
    compare_scores,
    crossed_test,
    holm,
    pooled_seed_variance,
    seed_interval_of_mean,
)
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.verdict import say_comparison, say_study

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def summarize(plan: StudyPlan, folder: StudyFolder) -> dict[str, Any]:
    """The tables of what is finished, as summary.json has them.

    Raises:
        WorkspaceError: A cell's file can't be read.
    """
    cells = plan.cells()
    # A cell's id has the arm's name as file names have it, so that cells can be older than the name of their arm.
    results = [
        read_json(folder.result(cell.id)) | {"arm": cell.arm.name} for cell in cells if folder.result(cell.id).exists()
    ]
    ids = {cell.id for cell in cells}
    failed = [failure for failure in folder.failures() if failure["id"] in ids]
    tables = [
        _table(plan, data, fraction, test, results)
        for data, tests in plan.tests.items()
        for fraction in plan.fractions
        for test in tests
    ]
    tables = [table for table in tables if table["rows"]]
    return {
        "format": FORMAT,
        "name": plan.name,
        "title": plan.title,
        "task": plan.task,
        "metric": plan.metric,
        "higher_is_better": plan.higher_is_better,
        "reference": plan.reference,
        "focus": plan.focus,
        "alpha": ALPHA,
        "verdict": say_study(tables, plan, missing=len(cells) - len(results)),
        "cells": {
            "planned": len(cells),
            "done": len(results),
            "missing": len(cells) - len(results) - len(failed),
            "failed": [
                {name: failure[name] for name in ("id", "arm", "data", "fraction", "seed", "error")}
                for failure in failed
            ],
        },
        "arms": {arm.name: _arm_facts(arm.name, plan, results) for arm in plan.arms},
        "tables": tables,
    }


def _arm_facts(name: str, plan: StudyPlan, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    arm = next(arm for arm in plan.arms if arm.name == name)
    mine = [result for result in results if result["arm"] == name]
    counts = mine[0]["parameters"] if mine else None
    return {
        "text": arm.text,
        "kind": arm.kind,
        "host": arm.host_name,
        "donor": None if arm.donor is None else arm.donor.name,
        "parameters": None if counts is None else {key: counts[key] for key in ("total", "trained")},
        "training_seconds": _mean([result["seconds"]["training"] for result in mine]) if mine else None,
    }


def _table(
    plan: StudyPlan, data: str, fraction: float, test: str, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    here = [r for r in results if r["data"] == data and r["fraction"] == fraction and plan.metric in _scores(r, test)]
    by_arm: dict[str, list[Mapping[str, Any]]] = {
        arm.name: sorted((r for r in here if r["arm"] == arm.name), key=lambda r: int(r["seed"])) for arm in plan.arms
    }
    by_arm = {name: mine for name, mine in by_arm.items() if mine}
    return {
        "data": data,
        "fraction": fraction,
        "test": test,
        "examples": here[0]["tests"][test]["examples"] if here else 0,
        "rows": [_row(name, test, mine, plan.metric) for name, mine in by_arm.items()],
        "comparisons": _comparisons(plan, test, by_arm),
    }


def _scores(result: Mapping[str, Any], test: str) -> Mapping[str, float]:
    return result["tests"][test]["scores"] if test in result["tests"] else {}


def _row(name: str, test: str, mine: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    values = [float(_scores(result, test)[metric]) for result in mine]
    bits = _bits(mine, test) if metric == "accuracy" else None
    return {
        "arm": name,
        "seeds": [result["seed"] for result in mine],
        "by_seed": values,
        "mean": _mean(values),
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seed_interval": _listed(seed_interval_of_mean(values)),
        "example_interval": None if bits is None else list(bootstrap(bits, "examples")),
        "scores": {key: _mean([_scores(result, test)[key] for result in mine]) for key in _scores(mine[0], test)},
        "training_seconds": _mean([result["seconds"]["training"] for result in mine]),
        "train_examples": mine[0]["train_examples"],
    }


def _comparisons(plan: StudyPlan, test: str, by_arm: Results) -> list[dict[str, Any]]:
    """Every arm against the reference with the same host, and the focus against every other arm."""
    everything: list[dict[str, Any]] = []
    done: set[tuple[str, str]] = set()
    pooled = _pooled(test, by_arm) if plan.metric == "accuracy" else {}
    against_reference = [(name, _partner(plan.reference, name, by_arm)) for name in by_arm]
    focused = [(focus, name) for name in by_arm if (focus := _partner(plan.focus, name, by_arm))]
    for arm, against in (*against_reference, *focused):
        if against is None or arm == against or (arm, against) in done or (against, arm) in done:
            continue
        done.add((arm, against))
        if (comparison := _compare(plan, test, (by_arm[arm], by_arm[against]), pooled)) is not None:
            everything.append(comparison)
    # All of a table are one family: a study makes one claim with all of its comparisons on a test set.
    tested = [comparison for comparison in everything if comparison["p"] is not None]
    for comparison, adjusted in zip(tested, holm([comparison["p"] for comparison in tested]), strict=True):
        comparison["p_holm"] = adjusted
        comparison["significant"] = adjusted < ALPHA
    return [comparison | {"words": say_comparison(comparison, plan)} for comparison in everything]


def _partner(wanted: str | None, arm: str, by_arm: Results) -> str | None:
    """The arm called `wanted`, or that with the same host."""
    if wanted is None or wanted in by_arm:
        return wanted
    _, at, host = arm.rpartition("@")
    name = f"{wanted}@{host}" if at else wanted
    return name if name in by_arm else None


def _pooled(test: str, by_arm: Results) -> dict[tuple[int, ...], SeedVariance | None]:
    """What seeds do to a difference, by seeds: from all arms that were trained with exactly these.

    None where fewer than two were, or where their numbers of test examples differ.
    """
    seeds = {name: tuple(int(result["seed"]) for result in mine) for name, mine in by_arm.items()}
    found: dict[tuple[int, ...], SeedVariance | None] = {}
    for common in set(seeds.values()):
        matrices = [_bits(by_arm[name], test) for name, own in seeds.items() if own == common]
        usable = [matrix for matrix in matrices if matrix is not None]
        found[common] = pooled_seed_variance(usable) if len({matrix.shape for matrix in usable}) == 1 else None
    return found


def _compare(
    plan: StudyPlan,
    test: str,
    pair: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    pooled: Mapping[tuple[int, ...], SeedVariance | None],
) -> dict[str, Any] | None:
    second, first = ({int(result["seed"]): result for result in side} for side in pair)
    arm, against = pair[0][0]["arm"], pair[1][0]["arm"]
    seeds = [seed for seed in second if seed in first]
    if not seeds:
        return None
    mine, theirs = [second[seed] for seed in seeds], [first[seed] for seed in seeds]
    scores = [[float(_scores(result, test)[plan.metric]) for result in side] for side in (theirs, mine)]
    found = {"arm": arm, "against": against, "seeds": seeds, **compare_scores(*scores)}
    bits = [_bits(side, test) for side in (mine, theirs)] if plan.metric == "accuracy" else [None, None]
    found |= {"example_interval": None, "both_interval": None, "crossed": None, "basis": None, "p": found["t_test"]}
    if bits[0] is not None and bits[1] is not None and bits[0].shape == bits[1].shape and bits[0].shape[1] > 1:
        differences = bits[0] - bits[1]
        found["example_interval"] = list(bootstrap(differences, "examples"))
        if len(seeds) > 1:
            crossed = crossed_test(differences, pooled.get(tuple(seeds)))
            found["both_interval"] = list(bootstrap(differences, "both"))
            found |= {"crossed": asdict(crossed) | {"interval": list(crossed.interval)}, "p": crossed.p}
            found["basis"] = "seeds and examples"
        else:
            spread = bool(differences.std() > 0)
            found["p"] = float(stats.ttest_1samp(differences[0], 0.0).pvalue) if spread else 1.0
            found["basis"] = "examples"
    elif found["p"] is not None:
        found["basis"] = "seeds"
    return found | {"p_holm": None, "significant": False}


def _bits(results: Sequence[Mapping[str, Any]], test: str) -> Matrix | None:
    """[seeds, examples] of 1 (right) and 0 (wrong); None where a cell has none, or another number."""
    texts = [result["tests"][test]["correct"] for result in results]
    if any(text is None for text in texts) or len({len(text) for text in texts}) != 1:
        return None
    return np.array([[float(digit) for digit in text] for text in texts])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(np.asarray(values, dtype=np.float64)))


def _listed(interval: Any) -> list[float] | None:
    return None if interval is None else list(interval)
