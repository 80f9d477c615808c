"""The best layer, pair or site at a fraction of a sweep: successive halving over the same cells that a sweep has.

Rung 0    a probe without training (`probe`), of all candidates; the better half stays
Rung 1    one seed, a quarter of the training data
Rung 2    one seed, all of the data
Rung 3    all seeds

After each rung the better third stays, at least two until the last; a rung that would drop none is left out. What
decides is the validation part alone: the test part is looked at once, for the one that is left and the host alone.

Successive halving (Jamieson and Talwalkar, 2016) in its plain form: rungs of whole trainings in the folder of a study,
so that what was trained before is there, and a stopped selection goes on. Optuna's pruner of that name decides trial by
trial, and lets the first ones pass, before there is anything to compare them with; with a dozen candidates that is most
of the cost.
"""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from layer_surgeon._io import write_json
from layer_surgeon.errors import ConfigError, LayerSurgeonError, TrainingError
from layer_surgeon.graft.config import ENCODER_OUTPUT
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.data import PreparedData
from layer_surgeon.study.layout import PROBES, StudyFolder, locked, read_json
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.probe import Place, probe_arm
from layer_surgeon.study.records import read_cell, write_selection
from layer_surgeon.study.selection import Margin, Rung, Selection

_PROBE_TEXTS = 512
_QUARTER = 0.25
_THIRD = 3
_LEAST = 2


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What one training came to."""

    score: float
    examples: float
    seconds: float


def select_arm(
    plan: StudyPlan, output: Path, *, workers: int = 1, probe: bool = True, progress: Progress | None = None
) -> Selection:
    """Find the best of the plan's grafts.

    Args:
        plan: The host alone, and the candidates; one data set.
        output: The study's folder; that of a sweep will do, whose cells are then used.
        workers: Local processes at a time.
        probe: Begin with the probe; without it, all candidates go into rung 1.
        progress: Told about every training.

    Raises:
        ConfigError: There is nothing to choose from, or more than one share of the data.
        TrainingError: All candidates of a rung failed.
    """
    progress, folder = progress or NullProgress(), StudyFolder(root=output)
    candidates = [arm for arm in plan.arms if arm.donor is not None]
    if len(candidates) < 2 or len(plan.data) != 1 or plan.task != "text-classification":
        raise ConfigError(
            f"There are {len(candidates)} candidates, {len(plan.data)} data sets and the task {plan.task}; a selection "
            "is between at least two layers, on one data set, for text-classification."
        )
    if len(plan.fractions) != 1:
        raise ConfigError(
            f"fractions are {', '.join(f'{share:g}' for share in plan.fractions)}; a selection is made with one share "
            "of the training data. Name one."
        )
    folder.check()
    with locked(folder.lock, wait=False):
        prepare_study(plan, folder, progress)
    rungs: list[Rung] = []
    if probe and len(candidates) > 2:
        began = time.monotonic()
        scores = _probes(candidates, plan, folder, progress)
        kept = _best(scores, max(_LEAST, math.ceil(len(candidates) / 2)), higher=True)
        seconds = time.monotonic() - began
        rungs.append(Rung(name="probe without training", scores=scores, kept=kept, examples=0.0, seconds=seconds))
        candidates = _in_order(kept, candidates)
    trained: dict[str, _Trained] = {}
    margin = None
    for name, part in _parts(plan, folder):
        last = part.seeds == plan.seeds and part.fractions == plan.fractions
        if len(candidates) <= (1 if last else _LEAST):
            continue
        part = replace(part, arms=tuple(candidates), reference=candidates[0].name, focus=None)
        result = run_study(part, output, workers=workers, progress=progress)
        found = _validation(part, folder)
        trained |= {cell: one for cells in found.values() for cell, one in cells.items()}
        if not found:
            raise TrainingError(f"All candidates failed. {next(iter(result.failed.values()), '')}")
        scores = {arm: statistics.fmean(one.score for one in cells.values()) for arm, cells in found.items()}
        order = _best(scores, len(scores), higher=plan.higher_is_better)
        kept = order[: 1 if last else max(_LEAST, math.ceil(len(candidates) / _THIRD))]
        ones = [one for cells in found.values() for one in cells.values()]
        rungs.append(
            Rung(
                name=name,
                scores=scores,
                kept=kept,
                examples=sum(one.examples for one in ones),
                seconds=sum(one.seconds for one in ones),
            )
        )
        if last and len(order) > 1:
            margin = _margin(order[1], found[order[0]], found[order[1]], higher=plan.higher_is_better)
        candidates = _in_order(kept, candidates)
        if last:
            break
    return _finish(plan, candidates[0], rungs, margin, trained, output, workers=workers, progress=progress)


def _parts(plan: StudyPlan, folder: StudyFolder) -> list[tuple[str, StudyPlan]]:
    """The rungs of trainings: what each is called, and the plan with its seeds and share of the data."""
    finetune = dict(plan.finetune)
    counts = PreparedData.open(folder.data(plan.data[0].name)).examples
    there = counts["train"] * (1.0 if "validation" in counts else 1 - float(finetune.get("validation_fraction", 0.2)))
    (share,) = plan.fractions
    # The share is one of what is there, of which max_train_samples may take less than a quarter.
    used = min(share, float(finetune.get("max_train_samples") or there) / there)
    if finetune.get("max_steps") is not None:
        finetune["max_steps"] = max(1, round(_QUARTER * finetune["max_steps"]))
    one = plan.seeds[:1]
    part = "the data" if share == 1 else f"{100 * share:g} % of the data"
    whole = "all of the data" if share == 1 else part
    return [
        (f"one seed, a quarter of {part}", replace(plan, fractions=(_QUARTER * used,), seeds=one, finetune=finetune)),
        (f"one seed, {whole}", replace(plan, seeds=one)),
        (f"{len(plan.seeds)} seeds, {whole}", plan),
    ]


def _finish(
    plan: StudyPlan,
    best: Arm,
    rungs: Sequence[Rung],
    margin: Margin | None,
    trained: Mapping[str, _Trained],
    output: Path,
    *,
    workers: int,
    progress: Progress,
) -> Selection:
    hosts = [arm for arm in plan.arms if arm.donor is None]
    final = replace(plan, arms=(*hosts, best), focus=best.name, reference=hosts[0].name if hosts else best.name)
    folder = StudyFolder(root=output)
    study = run_study(final, output, workers=workers, progress=progress)
    whole = list(_validation(replace(final, arms=(best,), reference=best.name), folder).get(best.name, {}).values())
    count = len([arm for arm in plan.arms if arm.donor is not None]) * len(plan.seeds)
    # A rung of whole trainings takes over those that an earlier one did: each counts once.
    examples = sum(one.examples for one in trained.values())
    seconds = sum(one.seconds for one in trained.values()) + sum(rung.seconds for rung in rungs if not rung.examples)
    result = Selection(
        best=best.name,
        layers=() if best.donor is None else best.donor.layers,
        site=best.graft.get("site", ENCODER_OUTPUT),
        rungs=tuple(rungs),
        margin=margin,
        cost=examples / (count * max(one.examples for one in whole)) if whole else 0.0,
        time=seconds / (count * statistics.fmean(one.seconds for one in whole)) if whole else 0.0,
        verdict=study.summary.verdict,
        path=str(study.path),
    )
    write_selection(folder, result)
    return result


def _probes(arms: Sequence[Arm], plan: StudyPlan, folder: StudyFolder, progress: Progress) -> dict[str, float]:
    """The probe's accuracy of each arm, on training texts; kept in the folder.

    An arm that can't be built is said and left out.

    Raises:
        TrainingError: None can be built.
    """
    name = plan.data[0].name
    path = folder.path(PROBES)
    known: dict[str, Any] = read_json(path) if path.is_file() else {"format": 1}
    rows = PreparedData.open(folder.data(name)).rows("train")
    rows = _share(rows, _PROBE_TEXTS)
    texts = [(row["text"], row["text_pair"]) if "text_pair" in row else row["text"] for row in rows]
    labels = [str(row["label"]) for row in rows]
    place: Place = "donor"
    if any(arm.graft.get("site", ENCODER_OUTPUT) != ENCODER_OUTPUT for arm in arms):
        place = "head"
    vectors: dict[tuple[str, str], Tensor] = {}
    length = int(plan.finetune.get("max_length", 100))
    scores: dict[str, float] = {}
    reason = ""
    progress.begin("Probing", len(arms), "candidates")
    for arm in arms:
        key = json.dumps([arm.as_dict(), name, plan.seeds, len(rows), place], sort_keys=True)
        try:
            if not _is_score(known.get(key)):
                known[key] = probe_arm(
                    arm, texts, labels, folder, seeds=plan.seeds, max_length=length, place=place, known=vectors
                )
                write_json(path, known)
            scores[arm.name] = float(known[key])
        except LayerSurgeonError as error:
            reason = f"{arm.name}: {error}"
            progress.notice(reason)
        progress.advance(1)
    progress.end()
    if not scores:
        raise TrainingError(f"No candidate can be built. {reason}")
    return scores


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _share(rows: list[dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
    """At most `wanted` rows, spread evenly over the set."""
    if len(rows) <= wanted:
        return rows
    return [rows[index * len(rows) // wanted] for index in range(wanted)]


def _validation(plan: StudyPlan, folder: StudyFolder) -> dict[str, dict[str, _Trained]]:
    """By arm, of those all of whose cells are done: what each cell came to, by its id, in the order of the seeds."""
    found: dict[str, dict[str, _Trained]] = {}
    for arm in plan.arms:
        cells = [cell for cell in plan.cells() if cell.arm == arm]
        if all(folder.result(cell.id).exists() for cell in cells):
            results = [read_cell(folder.result(cell.id)) for cell in cells]
            found[arm.name] = {
                result.id: _Trained(
                    score=float(result.validation.scores[plan.metric]),
                    examples=float(result.train_examples * result.history[-1]["epoch"]),
                    seconds=float(result.seconds.all),
                )
                for result in results
            }
    return found


def _margin(runner_up: str, best: Mapping[str, _Trained], other: Mapping[str, _Trained], *, higher: bool) -> Margin:
    sign = 1 if higher else -1
    pairs = zip(best.values(), other.values(), strict=True)
    differences = [sign * (one.score - two.score) for one, two in pairs]
    return Margin(
        runner_up=runner_up,
        difference=statistics.fmean(differences),
        deviation=statistics.stdev(differences) if len(differences) > 1 else None,
    )


def _in_order(names: Sequence[str], arms: Sequence[Arm]) -> list[Arm]:
    return [arm for name in names for arm in arms if arm.name == name]


def _best(scores: Mapping[str, float], count: int, *, higher: bool) -> tuple[str, ...]:
    order = sorted(scores, key=lambda name: scores[name], reverse=higher)
    return tuple(order[:count])
