"""The best layer at a fraction of a sweep: successive halving over the same cells that a sweep has.

Rung 0    a probe without training (`probe`), of all candidates; the better half stays
Rung 1    one seed, a quarter of the training data
Rung 2    one seed, all of the data
Rung 3    all seeds

After each rung the better third stays, at least two until the last. What decides is the validation part alone: the test
part is looked at once, for the one that is left and the host alone.

Successive halving (Jamieson and Talwalkar, 2016) in its plain form: rungs of whole trainings in the folder of a study,
so that what was trained before is there, and a stopped selection goes on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layer_surgeon.errors import ConfigError, TrainingError
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.compare import StudyResult, run_study
from layer_surgeon.study.data import PreparedData
from layer_surgeon.study.layout import StudyFolder, locked, read_json, write_json
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.probe import probe_arm

SELECTION = "selection.json"
PROBES = "probes.json"
_PROBE_TEXTS = 512
_THIRD = 3


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One round.

    Attributes:
        name: What was done.
        scores: By arm: mean validation score, or the probe's accuracy.
        kept: The arms that go on, the best first.
        examples: Training examples seen in this rung, over all epochs: its cost.
    """

    name: str
    scores: Mapping[str, float]
    kept: tuple[str, ...]
    examples: float


@dataclass(frozen=True, kw_only=True)
class SelectionResult:
    """What was chosen.

    Attributes:
        best: The arm.
        layers: Its layers.
        rungs: How it came to that.
        cost: Examples trained on, as a share of what the whole sweep would take.
        study: The last rung's study: the chosen arm and the host alone, with statistics.
    """

    best: str
    layers: tuple[int, ...]
    rungs: tuple[Rung, ...]
    cost: float
    study: StudyResult

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "format": 1,
            "best": self.best,
            "layers": list(self.layers),
            "cost": self.cost,
            "rungs": [
                {"name": rung.name, "scores": dict(rung.scores), "kept": list(rung.kept), "examples": rung.examples}
                for rung in self.rungs
            ],
            "verdict": self.study.summary["verdict"],
            "path": str(self.study.path),
        }


def select_arm(
    plan: StudyPlan, output: Path, *, workers: int = 1, probe: bool = True, progress: Progress | None = None
) -> SelectionResult:
    """Find the best of the plan's grafts.

    Args:
        plan: The host alone, and the candidates; one data set.
        output: The study's folder; that of a sweep will do, whose cells are then used.
        workers: Local processes at a time.
        probe: Begin with the probe; without it, all candidates go into rung 1.
        progress: Told about every training.

    Raises:
        ConfigError: There is nothing to choose from.
        TrainingError: All candidates of a rung failed.
    """
    progress, folder = progress or NullProgress(), StudyFolder(root=output)
    candidates = [arm for arm in plan.arms if arm.donor is not None]
    if len(candidates) < 2 or len(plan.data) != 1 or plan.task != "text-classification":
        raise ConfigError(
            f"There are {len(candidates)} candidates, {len(plan.data)} data sets and the task {plan.task}; a selection "
            "is between at least two layers, on one data set, for text-classification."
        )
    rungs: list[Rung] = []
    trained: dict[str, float] = {}
    if probe and len(candidates) > 2:
        scores = _probes(candidates, plan, folder, progress)
        kept = _best(scores, max(2, math.ceil(len(candidates) / 2)), higher=True)
        rungs.append(Rung(name="probe without training", scores=scores, kept=kept, examples=0.0))
        candidates = [arm for name in kept for arm in candidates if arm.name == name]
    seeds = plan.seeds
    for name, fraction, of_seeds in (
        ("one seed, a quarter of the data", 0.25, seeds[:1]),
        ("one seed, all of the data", 1.0, seeds[:1]),
        (f"{len(seeds)} seeds, all of the data", 1.0, seeds),
    ):
        last = of_seeds == seeds and fraction == 1.0
        if len(candidates) == 1:
            break
        part = replace(plan, arms=tuple(candidates), fractions=(fraction,), seeds=of_seeds, focus=None)
        part = replace(part, reference=candidates[0].name)
        result = run_study(part, output, workers=workers, progress=progress)
        scores, examples = _validation(part, folder)
        trained |= examples
        if not scores:
            raise TrainingError(f"All candidates failed. {next(iter(result.failed.values()), '')}")
        count = 1 if last else max(2, math.ceil(len(candidates) / _THIRD))
        kept = _best(scores, min(count, len(scores)), higher=plan.higher_is_better)
        rungs.append(Rung(name=name, scores=scores, kept=kept, examples=sum(examples.values())))
        candidates = [arm for name in kept for arm in candidates if arm.name == name]
        if last:
            break
    # A rung of whole trainings takes over those that an earlier one did: each counts once.
    return _finish(plan, candidates[0], rungs, sum(trained.values()), output, workers=workers, progress=progress)


def _finish(
    plan: StudyPlan,
    best: Arm,
    rungs: Sequence[Rung],
    spent: float,
    output: Path,
    *,
    workers: int,
    progress: Progress,
) -> SelectionResult:
    hosts = [arm for arm in plan.arms if arm.donor is None]
    final = replace(plan, arms=(*hosts, best), focus=best.name, reference=hosts[0].name if hosts else best.name)
    study = run_study(final, output, workers=workers, progress=progress)
    folder = StudyFolder(root=output)
    all_arms = [arm for arm in plan.arms if arm.donor is not None]
    done = [folder.result(cell.id) for cell in final.cells() if folder.result(cell.id).exists()]
    one = max((_examples(read_json(path)) for path in done), default=0.0)
    result = SelectionResult(
        best=best.name,
        layers=() if best.donor is None else best.donor.layers,
        rungs=tuple(rungs),
        cost=spent / (one * len(all_arms) * len(plan.seeds)) if one else 0.0,
        study=study,
    )
    write_json(output / SELECTION, result.as_dict())
    return result


def _probes(arms: Sequence[Arm], plan: StudyPlan, folder: StudyFolder, progress: Progress) -> dict[str, float]:
    """The probe's accuracy of each arm, on training texts; kept in the folder."""
    with locked(folder.root / "study.lock", wait=False):
        prepare_study(plan, folder, progress)
    seed, name = plan.seeds[0], plan.data[0].name
    path = folder.root / PROBES
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"format": 1}
    rows = PreparedData.open(folder.data(name)).rows("train")
    rows = _share(rows, _PROBE_TEXTS)
    texts = [(row["text"], row["text_pair"]) if "text_pair" in row else row["text"] for row in rows]
    labels = [str(row["label"]) for row in rows]
    scores: dict[str, float] = {}
    progress.begin("Probing", len(arms), "layers")
    for arm in arms:
        key = json.dumps([arm.as_dict(), name, seed, len(rows)], sort_keys=True)
        if key not in known:
            length = int(plan.finetune.get("max_length", 100))
            known[key] = probe_arm(arm, texts, labels, folder, seed=seed, max_length=length)
            write_json(path, known)
        scores[arm.name] = float(known[key])
        progress.advance(1)
    progress.end()
    return scores


def _share(rows: list[dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
    """At most `wanted` rows, spread evenly over the set."""
    if len(rows) <= wanted:
        return rows
    return [rows[index * len(rows) // wanted] for index in range(wanted)]


def _validation(plan: StudyPlan, folder: StudyFolder) -> tuple[dict[str, float], dict[str, float]]:
    """Mean validation score by arm, of arms all of whose cells are done; and the examples that each cell trained on."""
    scores: dict[str, float] = {}
    examples: dict[str, float] = {}
    for arm in plan.arms:
        paths = [folder.result(cell.id) for cell in plan.cells() if cell.arm == arm]
        found = [read_json(path) for path in paths if path.exists()]
        examples |= {cell["id"]: _examples(cell) for cell in found}
        if found and len(found) == len(paths):
            scores[arm.name] = sum(cell["validation"]["scores"][plan.metric] for cell in found) / len(found)
    return scores, examples


def _examples(cell: Mapping[str, Any]) -> float:
    return float(cell["train_examples"] * cell["history"][-1]["epoch"])


def _best(scores: Mapping[str, float], count: int, *, higher: bool) -> tuple[str, ...]:
    order = sorted(scores, key=lambda name: scores[name], reverse=higher)
    return tuple(order[:count])
