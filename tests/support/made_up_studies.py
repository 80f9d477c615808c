"""Whole study folders in a moment: made-up cells, written and summarised by the product's own functions."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from layer_surgeon._io import write_json
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.records import as_json
from layer_surgeon.study.summary import summarize

# What would break a page, a table or a program that takes names as they come.
HOSTILE = '<script>alert("1")</script> & a_b 100% $x^2$ {c} | #1 \\d ~ naïve 层'
# What the file of a cell holds besides its name and its tests.
OTHER_FIELDS = {
    "host": "bert",
    "donor": None,
    "validation": {"examples": 20, "scores": {"accuracy": 0.5}},
    "history": [],
    "best_epoch": 1,
    "parameters": {"total": 10, "trained": 5, "frozen": 5},
    "train_examples": 100,
    "seconds": {"training": 1.0, "testing": 0.5, "all": 2.0},
    "device": "cpu",
    "config": {},
    "versions": {},
    "finished": "2026-01-02T03:04:05+00:00",
}
VERSIONS = {"layer_surgeon": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"}


def made_up_study(
    folder: Path,
    shares: Mapping[Any, float],
    *,
    examples: int = 400,
    skip: Collection[tuple[str, int]] = (),
    fail: Collection[tuple[str, int]] = (),
    summary: bool = True,
    **changes: Any,
) -> StudyPlan:
    """Write a study whose arms are right on a share of the test examples.

    Args:
        folder: Where.
        shares: By arm, in the plan's order (or by the name that the plan gives it): share of right answers.
        examples: Of each test set.
        skip, fail: (arm, seed) that are missing, or failed.
        summary: Write summary.json too.
        changes: Of the plan.
    """
    content = {"host": "a/bert", "donor": "b/llm", "arms": list(shares), "data": ["films"], "seeds": [1, 2, 3]}
    plan = StudyPlan.from_dict({**content, **changes})
    place, rng = StudyFolder(root=folder), np.random.default_rng(0)
    hard = {entry.name: rng.random(examples) for entry in plan.data}
    plan.write(place.plan)
    head = {"format": 1, "finished": "2026-01-02T03:04:05+00:00"}
    for number, cell in enumerate(plan.cells()):
        names = {"id": cell.id, "arm": cell.arm.name, "data": cell.data, "fraction": cell.fraction, "seed": cell.seed}
        if (cell.arm.name, cell.seed) in skip:
            continue
        if (cell.arm.name, cell.seed) in fail:
            error = {"type": "TrainingError", "message": "the loss is nan | <b>"}
            write_json(place.failure(cell.id), head | names | {"error": error})
            continue
        share = list(shares.values())[number % len(plan.arms)] * (0.6 + 0.4 * cell.fraction)
        write_json(place.result(cell.id), head | names | _result(cell, share, hard, rng))
    if summary:
        write_json(place.summary, as_json(summarize(plan, place)))
    return plan


def _result(cell: Cell, share: float, hard: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    share += rng.normal(0, 0.01)
    tests = {}
    for test in cell.tests:
        right = hard[test] + rng.normal(0, 0.05, len(hard[test])) < share - 0.1 * (test != cell.data)
        accuracy = float(right.mean())
        scores = {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "loss": 1 - accuracy}
        tests[test] = {
            "examples": len(right),
            "scores": scores,
            "correct": "".join("1" if value else "0" for value in right),
        }
    reached = [share * (1 - 0.3 * 0.4**epoch) + rng.normal(0, 0.005) for epoch in range(1, 4)]
    history = [
        {"epoch": float(epoch), "step": 20 * epoch, "training_loss": 1.1 - score, "accuracy": score, "macro_f1": score}
        for epoch, score in enumerate(reached, start=1)
    ]
    donor = cell.arm.donor
    trained = 22_713_986 + (491_520 if donor else 0) + (40_000_000 if "trained" in cell.arm.kind else 0)
    return {
        "host": cell.arm.host_name,
        "donor": None if donor is None else donor.name,
        "tests": tests,
        "validation": {"examples": 100, "scores": {"accuracy": reached[-1], "macro_f1": reached[-1]}},
        "history": history,
        "best_epoch": 3,
        "parameters": {"total": trained + 5_573_632, "trained": trained, "frozen": 5_573_632},
        "train_examples": round(640 * cell.fraction),
        "seconds": {"training": 8.0 + (5 if donor else 0) + float(rng.random()), "testing": 2.0, "all": 12.0},
        "device": "cpu (1 threads)",
        "config": {"task": cell.task, "num_epochs": 3.0, "learning_rate": 5e-5, "seed": cell.seed},
        "versions": dict(VERSIONS),
    }
