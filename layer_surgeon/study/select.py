"""Finds the best layer, pair or site at a fraction of a sweep's cost: successive halving over the cells of a sweep.

Rung 0    a probe of all candidates without training (`probe`); the better half stays
Rung 1    one seed, a quarter of the training data
Rung 2    one seed, all of the data
Rung 3    all seeds

After each rung, the better third stays, but at least two candidates until the last rung. A rung that would drop no
candidate is skipped. Only the validation part decides. Trainings are also measured on the test part, as in any study.

This is successive halving (Jamieson and Talwalkar, 2016) in its plain form. Its rungs are complete trainings in the
folder of a study, so finished trainings are reused, and an interrupted selection can be resumed. Optuna has a pruner of
that name, but it decides trial by trial, and lets the first trials pass because there is nothing to compare them with.
With a dozen candidates, that is most of the cost.
"""

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from layer_surgeon._format import format_amount
from layer_surgeon._io import write_json
from layer_surgeon.errors import ConfigError, DataError, LayerSurgeonError, TrainingError
from layer_surgeon.graft.config import ENCODER_OUTPUT
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.data import PreparedData
from layer_surgeon.study.donor_layers import open_layer
from layer_surgeon.study.layout import PROBES, SELECTION, StudyFolder, locked, read_json
from layer_surgeon.study.plan import StudyPlan, digest_of
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.probe import FOLDS, Place, probe_arm
from layer_surgeon.study.records import as_json, read_cell
from layer_surgeon.study.selection_result import Margin, Rung, Selection
from layer_surgeon.tasks import TASKS, get_task

_PROBE_TEXTS = 512
_QUARTER = 0.25
_THIRD = 3
_LEAST = 2


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """The result of one training: validation score, training examples over all epochs, and duration."""

    score: float
    examples: float
    seconds: float


def select_arm(
    plan: StudyPlan, output: Path, *, workers: int = 1, probe: bool = True, progress: Progress | None = None
) -> Selection:
    """Find the best graft of a plan.

    Args:
        plan: A plan with the host alone, the candidates, and one data set.
        output: The study's folder. It can be the folder of a sweep, whose cells are then reused.
        workers: Number of local processes that run at the same time.
        probe: Whether to start with the probe. Without it, all candidates enter rung 1.
        progress: Receives an update for every training.

    Raises:
        ConfigError: The plan has fewer than two candidates, a candidate that is not a graft, or more than one data set
            or share of the data; or the probe would have to rate a donor that reads text.
        TrainingError: All candidates of a rung failed.
    """
    progress, folder = progress or NullProgress(), StudyFolder(root=output)
    candidates = [arm for arm in plan.arms if arm.donor is not None]
    probe = probe and len(candidates) > 2
    _check_plan(plan, candidates, probe=probe)
    folder.check()
    with locked(folder.lock, wait=False):
        prepare_study(plan, folder, progress)
    rungs: list[Rung] = []
    if probe:
        start_time = time.monotonic()
        scores = _probe_arms(candidates, plan, folder, progress)
        kept = _rank(scores, max(_LEAST, math.ceil(len(candidates) / 2)), higher=True)
        seconds = time.monotonic() - start_time
        rungs.append(Rung(name="probe without training", scores=scores, kept=kept, examples=0.0, seconds=seconds))
        candidates = _in_order(kept, candidates)
    trained: dict[str, _Trained] = {}
    margin = None
    for name, rung_plan in _plan_rungs(plan, folder):
        is_last = rung_plan.seeds == plan.seeds and rung_plan.fractions == plan.fractions
        if len(candidates) <= (1 if is_last else _LEAST):
            continue
        rung_plan = replace(rung_plan, arms=tuple(candidates), reference=candidates[0].name, focus=None)
        result = run_study(rung_plan, output, workers=workers, progress=progress)
        by_arm = _read_trainings(rung_plan, folder)
        trained |= {cell: training for cells in by_arm.values() for cell, training in cells.items()}
        if not by_arm:
            raise TrainingError(f"All candidates failed. {next(iter(result.failed.values()), '')}")
        scores = {arm: statistics.fmean(training.score for training in cells.values()) for arm, cells in by_arm.items()}
        ranking = _rank(scores, len(scores), higher=plan.higher_is_better)
        kept = ranking[: 1 if is_last else max(_LEAST, math.ceil(len(candidates) / _THIRD))]
        trainings = [training for cells in by_arm.values() for training in cells.values()]
        rungs.append(
            Rung(
                name=name,
                scores=scores,
                kept=kept,
                examples=sum(training.examples for training in trainings),
                seconds=sum(training.seconds for training in trainings),
            )
        )
        if is_last and len(ranking) > 1:
            margin = _margin(ranking[1], by_arm[ranking[0]], by_arm[ranking[1]], higher=plan.higher_is_better)
        candidates = _in_order(kept, candidates)
        if is_last:
            break
    return _finish(plan, candidates[0], rungs, margin, trained, output, workers=workers, progress=progress)


def _check_plan(plan: StudyPlan, candidates: Sequence[Arm], *, probe: bool) -> None:
    if len(candidates) < 2 or len(plan.data) != 1 or not get_task(plan.task).one_label_per_text:
        tasks = " or ".join(name for name, task in TASKS.items() if task.one_label_per_text)
        raise ConfigError(
            f"The plan has {len(candidates)} candidates, {len(plan.data)} data sets and the task {plan.task}. A "
            f"selection needs at least two layers, one data set, and the task {tasks}."
        )
    hosts = sorted({arm.host_name for arm in plan.arms})
    if len(hosts) > 1:
        raise ConfigError(
            f"The plan has arms with the hosts {', '.join(hosts)}. A selection compares grafts into one host with that "
            "host alone. Name one host."
        )
    blocks = [arm.name for arm in candidates if arm.grafts_nothing]
    if blocks:
        raise ConfigError(
            f"The plan has the arm {blocks[0]}, which is not a graft. A selection compares grafts. Leave the arm out."
        )
    if len(plan.fractions) != 1:
        raise ConfigError(
            f"fractions are {', '.join(f'{share:g}' for share in plan.fractions)}; a selection works with one share "
            "of the training data. Name only one."
        )
    if probe and any(arm.graft.get("donor_reads") == "text" for arm in candidates):
        raise ConfigError(
            "donor_reads is text, but the probe rates layers by what they make of the host's vectors. Leave the probe "
            "out with --no-probe (in Python: probe=False), or find the number of layers with surgeon select "
            "--candidates depth."
        )


def _plan_rungs(plan: StudyPlan, folder: StudyFolder) -> list[tuple[str, StudyPlan]]:
    """Return the rungs of trainings: the name of each rung, and the plan with its seeds and its share of the data."""
    finetune = dict(plan.finetune)
    counts = PreparedData.open(folder.data(plan.data[0].name)).examples
    available = counts["train"] * (
        1.0 if "validation" in counts else 1 - float(finetune.get("validation_fraction", 0.2))
    )
    (share,) = plan.fractions
    # The share is of the available examples, and max_train_samples may already use less than a quarter of them.
    used_share = min(share, float(finetune.get("max_train_samples") or available) / available)
    if finetune.get("max_steps") is not None:
        finetune["max_steps"] = max(1, round(_QUARTER * finetune["max_steps"]))
    first_seed = plan.seeds[:1]
    data_text = "the data" if share == 1 else f"{100 * share:g} % of the data"
    all_data_text = "all of the data" if share == 1 else data_text
    return [
        (
            f"one seed, a quarter of {data_text}",
            replace(plan, fractions=(_QUARTER * used_share,), seeds=first_seed, finetune=finetune),
        ),
        (f"one seed, {all_data_text}", replace(plan, seeds=first_seed)),
        (f"{format_amount(len(plan.seeds), 'seed')}, {all_data_text}", plan),
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
    best_trainings = list(
        _read_trainings(replace(final, arms=(best,), reference=best.name), folder).get(best.name, {}).values()
    )
    count = len([arm for arm in plan.arms if arm.donor is not None]) * len(plan.seeds)
    # A rung reuses the trainings of earlier rungs, so each training counts once.
    examples = sum(training.examples for training in trained.values())
    seconds = sum(training.seconds for training in trained.values()) + sum(
        rung.seconds for rung in rungs if not rung.examples
    )
    result = Selection(
        best=best.name,
        layers=_layers_of(best, folder),
        site=best.graft.get("site", ENCODER_OUTPUT),
        rungs=tuple(rungs),
        margin=margin,
        cost=examples / (count * max(training.examples for training in best_trainings)) if best_trainings else 0.0,
        time=seconds / (count * statistics.fmean(training.seconds for training in best_trainings))
        if best_trainings
        else 0.0,
        verdict=study.summary.verdict,
        path=str(study.path),
    )
    write_json(folder.path(SELECTION), as_json(result))
    return result


def _layers_of(arm: Arm, folder: StudyFolder) -> tuple[int, ...]:
    """Return the layers of an arm, counted from 0."""
    if arm.donor is None:
        return ()
    return open_layer(arm.donor, folder).layer_indices if arm.donor.form == "layers" else arm.donor.layers


def _probe_arms(arms: Sequence[Arm], plan: StudyPlan, folder: StudyFolder, progress: Progress) -> dict[str, float]:
    """Return the probe's accuracy for each arm on training texts, and store it in the folder.

    An arm that can't be built is skipped with a notice.

    Raises:
        DataError: All classes have too few texts.
        TrainingError: No arm can be built.
    """
    path = folder.path(PROBES)
    stored_scores: dict[str, Any] = read_json(path) if path.is_file() else {"format": 1}
    rows = PreparedData.open(folder.data(plan.data[0].name)).rows("train")
    rows = spread_rows(rows, _PROBE_TEXTS)
    texts = [(row["text"], row["text_pair"]) if "text_pair" in row else row["text"] for row in rows]
    labels = [str(row["label"]) for row in rows]
    if (most := max(Counter(labels).values())) < FOLDS:
        raise DataError(
            f"The probe reads {len(rows):,} training texts of {plan.data[0].name}; no class has more than {most} of "
            f"them. It needs {FOLDS}. Use more texts, or leave the probe out with --no-probe."
        )
    place: Place = "donor"
    if any(arm.graft.get("site", ENCODER_OUTPUT) != ENCODER_OUTPUT for arm in arms):
        place = "head"
    vectors: dict[tuple[str, str], Tensor] = {}
    length = int(plan.finetune.get("max_length", 100))
    data_key = digest_of(rows)
    scores: dict[str, float] = {}
    reason = ""
    progress.begin("Probing", len(arms), "candidates")
    for arm in arms:
        key = json.dumps([arm.as_dict(), plan.seeds, place, length, data_key], sort_keys=True)
        try:
            if not _is_score(stored_scores.get(key)):
                stored_scores[key] = probe_arm(
                    arm,
                    texts,
                    labels,
                    folder,
                    task=plan.task,
                    seeds=plan.seeds,
                    max_length=length,
                    place=place,
                    known=vectors,
                )
                write_json(path, stored_scores)
            scores[arm.name] = float(stored_scores[key])
        except LayerSurgeonError as error:
            reason = f"{arm.name}: {error}"
            progress.notice(reason)
        progress.advance(1)
    progress.end()
    if not scores:
        raise TrainingError(f"No candidate can be built. The last reason was: {reason}")
    return scores


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def spread_rows(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return at most `count` rows, spread evenly over the set."""
    if len(rows) <= count:
        return rows
    return [rows[index * len(rows) // count] for index in range(count)]


def _read_trainings(plan: StudyPlan, folder: StudyFolder) -> dict[str, dict[str, _Trained]]:
    """Return arm -> cell id -> result, in the order of the seeds, for the arms whose cells are all finished."""
    by_arm: dict[str, dict[str, _Trained]] = {}
    for arm in plan.arms:
        cells = [cell for cell in plan.cells() if cell.arm == arm]
        if all(folder.result(cell.id).exists() for cell in cells):
            results = [read_cell(folder.result(cell.id)) for cell in cells]
            by_arm[arm.name] = {
                result.id: _Trained(
                    score=float(result.validation.scores[plan.metric]),
                    examples=float(result.train_examples * result.history[-1]["epoch"]),
                    seconds=float(result.seconds.all),
                )
                for result in results
            }
    return by_arm


def _margin(runner_up: str, best: Mapping[str, _Trained], other: Mapping[str, _Trained], *, higher: bool) -> Margin:
    sign = 1 if higher else -1
    pairs = zip(best.values(), other.values(), strict=True)
    differences = [sign * (best_training.score - other_training.score) for best_training, other_training in pairs]
    return Margin(
        runner_up=runner_up,
        difference=statistics.fmean(differences),
        deviation=statistics.stdev(differences) if len(differences) > 1 else None,
    )


def _in_order(names: Sequence[str], arms: Sequence[Arm]) -> list[Arm]:
    return [arm for name in names for arm in arms if arm.name == name]


def _rank(scores: Mapping[str, float], count: int, *, higher: bool) -> tuple[str, ...]:
    ranking = sorted(scores, key=lambda name: scores[name], reverse=higher)
    return tuple(ranking[:count])
