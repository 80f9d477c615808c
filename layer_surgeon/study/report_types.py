"""All that a report shows, in the form in which every format shows it: plain values, nothing left to compute or read.

Names of arms, data sets and titles are what people wrote. They may hold `<`, `&`, `|`, `%` or line ends: whoever writes
a format escapes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layer_surgeon.study.verdict import SHARES

Kind = Literal["compare", "sweep", "select"]
Span = tuple[float, float]
Varied = Literal["layer", "site", "layer and site"]


@dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """What an arm is.

    Attributes:
        name, text: As in tables; and what it is for, in one sentence.
        kind: The built-in arm that it is, or is like.
        host: Name of the host.
        donor: Name of the donor's layer, such as "Llama-3.1-8B-L31"; None without one.
        total, trained: Parameters; None before a training is done.
        training_seconds: Mean over its trainings; None before one is done.
    """

    name: str
    text: str
    kind: str
    host: str
    donor: str | None
    total: int | None
    trained: int | None
    training_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm on a test set.

    Attributes:
        arm: Its name.
        seeds, by_seed: Which are finished, and the metric of each.
        mean, deviation: Over the seeds; the deviation is None with one seed.
        seed_interval: 95 %, by t over the seeds, within 0 to 1 where the score is a share; None with one seed.
        example_interval: 95 %, by bootstrap over the test examples; None where single examples are not known.
        scores: Means of all metrics.
        total, trained: Parameters; training_seconds: mean over the seeds; train_examples: how many were trained on.
        best: No other arm of the table has a better mean.
        verdict: Against the reference: "better", "worse", "not significant"; None for the reference itself, and where
            no test is possible.
    """

    arm: str
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    mean: float
    deviation: float | None
    seed_interval: Span | None
    example_interval: Span | None
    scores: Mapping[str, float]
    total: int | None
    trained: int | None
    training_seconds: float
    train_examples: int
    best: bool
    verdict: str | None

    @property
    def interval(self) -> Span | None:
        """The one to draw: over the seeds where there are several, else over the examples."""
        return self.seed_interval or self.example_interval


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One arm minus another.

    Attributes:
        arm, against: The arms.
        seeds, by_seed: The seeds that both have, and the difference of each.
        mean, deviation, effect_size: Of the paired differences; the last two are None with one seed.
        size: The mean for people, such as "+1.2 points".
        interval: 95 %, of the test that decides: over seeds and examples where both are known; None: there is none.
        seed_interval, example_interval, both_interval: Each beside it, where it can be had.
        t_test, permutation: p over the seeds alone; None with one seed.
        basis: What the verdict is drawn from: "seeds and examples", "seeds", "examples"; None: no test is possible.
        p, p_holm: Of the test that decides; p_holm is corrected over all comparisons of the table.
        significant: p_holm is below alpha.
        better: Significant, and in the direction that is better.
        words: The verdict in words.
    """

    arm: str
    against: str
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    mean: float
    deviation: float | None
    effect_size: float | None
    size: str
    interval: Span | None
    seed_interval: Span | None
    example_interval: Span | None
    both_interval: Span | None
    t_test: float | None
    permutation: float | None
    basis: str | None
    p: float | None
    p_holm: float | None
    significant: bool
    better: bool
    words: str

    @property
    def verdict(self) -> str | None:
        """In one or two words, such as "better" or "not significant"; None where no test is possible."""
        if self.p_holm is None:
            return None
        return "not significant" if not self.significant else "better" if self.better else "worse"


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """What an arm costs, and what it brings, on one test set.

    Attributes:
        arm, trained, total: Its name and parameters; None where they are not known.
        seconds: Of training, mean over the seeds.
        gain: Mean difference to the reference (with the same host); 0 for the reference itself.
        interval: 95 % of the gain; None for the reference.
        significant, is_reference: Whether the gain is significant; whether this is the reference.
    """

    arm: str
    trained: int | None
    total: int | None
    seconds: float
    gain: float
    interval: Span | None
    significant: bool
    is_reference: bool


@dataclass(frozen=True, kw_only=True)
class Table:
    """All arms on one test set.

    Attributes:
        data, fraction, test: Trained on which data set and which share of it, tested on which.
        place: The same for people, such as "shops, trained on films, 10 % of the data".
        examples: Size of the test part.
        rows: One per arm that has a finished training, in the plan's order.
        comparisons: What is compared.
        costs: One per arm that can be compared with the reference, and the reference.
    """

    data: str
    fraction: float
    test: str
    place: str
    examples: int
    rows: tuple[Row, ...]
    comparisons: tuple[Difference, ...]
    costs: tuple[CostPoint, ...]


@dataclass(frozen=True, kw_only=True)
class ShiftMatrix:
    """Domain shift of one arm: trained on each data set, tested on each.

    Attributes:
        arm, fraction: Its name, and the share of the training data.
        trained_on, tested_on: Names of the rows, and of the columns.
        means: [trained_on][tested_on] mean over the seeds; None: not measured.
    """

    arm: str
    fraction: float
    trained_on: tuple[str, ...]
    tested_on: tuple[str, ...]
    means: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One epoch of an arm: (mean, lowest, highest) over the seeds that reached it.

    Attributes:
        epoch: Passes over the training data; a fraction where a training ended inside one.
        loss: Training loss.
        score: The metric on the validation part; None where it is not measured.
    """

    epoch: float
    loss: tuple[float, float, float]
    score: tuple[float, float, float] | None


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """How an arm learned on one data set, of which it was given a share."""

    arm: str
    data: str
    fraction: float
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """One layer of a sweep, several, or a site: `label` is "16", "15+16", "embeddings"; the rest as in `Row`."""

    arm: str
    label: str
    by_seed: tuple[float, ...]
    mean: float
    deviation: float | None
    best: bool
    verdict: str | None


@dataclass(frozen=True, kw_only=True)
class LayerSweep:
    """A donor's layers, or the places of one in the host, on one test set.

    Attributes:
        donor, host, varied: Their names, and what differs between the points.
        data, fraction, test, place: As in `Table`.
        axis: What the labels of the points are, such as "layer of llm (from 0)".
        points: In the order of the layers.
        reference: The host alone, with the same host; None where it has no finished training.
    """

    donor: str
    host: str
    varied: Varied
    data: str
    fraction: float
    test: str
    place: str
    axis: str
    points: tuple[LayerPoint, ...]
    reference: Row | None


@dataclass(frozen=True, kw_only=True)
class SelectionRung:
    """A round of a selection: validation scores by arm (or the probe's), and who stayed."""

    name: str
    scores: Mapping[str, float]
    kept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What `surgeon select` chose.

    Attributes:
        best, layers, site: The arm, the donor's layers, and where in the host they sit.
        cost: Examples trained on, as a share of what the whole sweep takes.
        margin: How far the chosen one is ahead of the next, in words; None: there was none left.
        rungs: How it came to that.
    """

    best: str
    layers: tuple[int, ...]
    site: str
    cost: float
    margin: str | None
    rungs: tuple[SelectionRung, ...]


@dataclass(frozen=True, kw_only=True)
class OpenCell:
    """A training that is not finished; `error`: how it failed, None: it has not run."""

    arm: str
    data: str
    fraction: float
    seed: int
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One training on one test set: nothing is averaged here.

    Attributes:
        arm, data, fraction, test, seed: Which.
        examples: Size of the test part.
        scores: All metrics on the test part.
        validation: The metrics on the validation part, at the kept epoch.
        total, trained: Parameters.
        train_examples, best_epoch: How many were trained on; the kept epoch, counted from 1.
        training_seconds, testing_seconds: Of all test sets together.
        device: Such as "cpu (1 threads)".
    """

    arm: str
    data: str
    fraction: float
    test: str
    seed: int
    examples: int
    scores: Mapping[str, float]
    validation: Mapping[str, float]
    total: int
    trained: int
    train_examples: int
    best_epoch: int
    training_seconds: float
    testing_seconds: float
    device: str


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """All that a report shows.

    Attributes:
        path, kind: The study's folder, and which command made it; name, title: of the plan.
        task, metric, higher_is_better: What is learned, and by what it is judged.
        reference, focus: The arm that all are compared with, and the one that is compared with all (or None).
        alpha: Level of the tests.
        verdict: One sentence, or two.
        planned, done: Trainings; failed, missing: those that are not done.
        seeds, fractions, arms: Of the plan, finished or not.
        tables: One per (data set, share, test set).
        shifts: Domain shift, one matrix per arm and share; empty where each data set has only its own test.
        curves: One per arm, data set and share.
        sweeps: Where several layers of a donor are compared.
        selection: Of `surgeon select`.
        measurements: Every training on every test set.
        plan: The plan, every default filled in, as study.yaml has it.
        settings: Of fine-tuning: those that all trainings share.
        versions: By package, as text; where trainings were done with several versions, all of them.
        machines: Devices on which trainings ran.
        started, finished: When the first and the last training ended, ISO 8601, UTC; None: none did.
        training_seconds: Of all trainings together.
        command: Repeats the study.
    """

    path: Path
    kind: Kind
    name: str
    title: str
    task: str
    metric: str
    higher_is_better: bool
    reference: str
    focus: str | None
    alpha: float
    verdict: str
    planned: int
    done: int
    failed: tuple[OpenCell, ...]
    missing: tuple[OpenCell, ...]
    seeds: tuple[int, ...]
    fractions: tuple[float, ...]
    arms: tuple[ArmFacts, ...]
    tables: tuple[Table, ...]
    shifts: tuple[ShiftMatrix, ...]
    curves: tuple[LearningCurve, ...]
    sweeps: tuple[LayerSweep, ...]
    selection: Selection | None
    measurements: tuple[Measurement, ...]
    plan: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    machines: tuple[str, ...]
    started: str | None
    finished: str | None
    training_seconds: float
    command: str

    @property
    def is_finished(self) -> bool:
        """Every planned training is done."""
        return self.done == self.planned

    @property
    def state(self) -> str:
        """For people: "All 12 trainings are done." or what is missing."""
        if self.is_finished:
            return f"All {self.planned} trainings are done."
        rest = f", {len(self.failed)} failed" if self.failed else ""
        rest += f", {len(self.missing)} are missing" if self.missing else ""
        return f"Not finished: {self.done} of {self.planned} trainings are done{rest}."

    @property
    def is_share(self) -> bool:
        """The metric goes from 0 to 1, and people read it as per cent."""
        return self.metric in SHARES
