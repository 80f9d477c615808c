"""The typed summary of a study: one table per test set, with a row per arm and the comparisons between them.

The fields are those of summary.json, in the same order; `summary` computes them, `records` reads and writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from layer_surgeon.study.arms import is_called
from layer_surgeon.study.paired import CrossedTest
from layer_surgeon.study.statistics import Interval

# Metrics from 0 to 1, which people read as per cent. A difference is then in points.
SHARES = ("accuracy", "macro_f1", "precision", "recall")
Basis = Literal["seeds and examples", "seeds", "examples"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm on a test set.

    Attributes:
        arm: Its name.
        seeds: The seeds whose trainings are done.
        by_seed: The metric of each of them.
        mean: Over the seeds.
        deviation: Standard deviation over the seeds; None with one seed.
        seed_interval: 95 %, by t over the seeds; None with one seed.
        example_interval: 95 %, by bootstrap over the test examples; None if single examples are not known.
        scores: Means of all metrics.
        training_seconds: Mean over the seeds.
        train_examples: How many examples each seed was trained on.
    """

    arm: str
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    mean: float
    deviation: float | None
    seed_interval: Interval | None
    example_interval: Interval | None
    scores: Mapping[str, float]
    training_seconds: float
    train_examples: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm minus another, over the seeds that both have.

    `p`, `p_holm`, `significant` and `words` are the verdict; the other numbers are shown next to it.

    Attributes:
        arm: The arm.
        against: The arm that is subtracted.
        seeds: The seeds that both have.
        mean: Of the paired differences.
        deviation: Of the paired differences; None with one seed.
        by_seed: The difference of each seed.
        t_test: p over the seeds alone; None with one seed.
        permutation: p over the seeds alone; None with one seed.
        effect_size: Mean by deviation (Cohen's d of pairs).
        seed_interval: 95 %, by bootstrap over the seeds.
        example_interval: 95 %, by bootstrap over the test examples.
        both_interval: 95 %, by bootstrap over both.
        crossed: The test with seeds and examples both drawn at random.
        basis: What the verdict is drawn from; None if no test is possible.
        p: Of the test that decides.
        p_holm: Corrected over all comparisons of the table.
        significant: `p_holm` is below alpha.
        words: The verdict as a phrase.
    """

    arm: str
    against: str
    seeds: tuple[int, ...]
    mean: float
    deviation: float | None
    by_seed: tuple[float, ...]
    t_test: float | None
    permutation: float | None
    effect_size: float | None
    seed_interval: Interval | None
    example_interval: Interval | None
    both_interval: Interval | None
    crossed: CrossedTest | None
    basis: Basis | None
    p: float | None
    p_holm: float | None
    significant: bool
    words: str

    @property
    def interval(self) -> Interval | None:
        """95 %, of the test that decides: over seeds and examples if both are known."""
        return self.crossed.interval if self.crossed else self.seed_interval or self.example_interval


@dataclass(frozen=True, kw_only=True)
class Table:
    """All arms on one test set.

    Attributes:
        data: What the arms were trained on.
        fraction: On which share of it.
        test: What they were tested on.
        examples: Size of the test set.
        rows: One per arm that has a finished training, in the plan's order.
        comparisons: Each arm against the reference, and the focus against each arm.
    """

    data: str
    fraction: float
    test: str
    examples: int
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """How many parameters a model has, and how many of them are trained."""

    total: int
    trained: int


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """What an arm is.

    Attributes:
        text: What it is for, in one sentence.
        kind: The built-in arm that it is, or that it is based on.
        host: Name of the host.
        donor: Name of the donor's layer, such as "Llama-3.1-8B-L31"; None without one.
        parameters: None before a training is done.
        training_seconds: Mean over its trainings; None before one is done.
    """

    text: str
    kind: str
    host: str
    donor: str | None
    parameters: ParameterCounts | None
    training_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class FailedCell:
    """A training that failed, and why."""

    id: str
    arm: str
    data: str
    fraction: float
    seed: int
    error: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CellCounts:
    """How many trainings are planned and done, how many have not run, and which failed."""

    planned: int
    done: int
    missing: int
    failed: tuple[FailedCell, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a study comes to.

    Attributes:
        name: Of the plan.
        title: Of the plan.
        task: What is learned.
        metric: By what the arms are compared.
        higher_is_better: Of the metric.
        reference: The arm that all are compared with.
        focus: The arm that is compared with all; None if there is none.
        alpha: Level of the tests.
        verdict: One or two sentences.
        cells: The trainings.
        arms: By name, finished or not.
        tables: One per data set, share and test set with a finished training.
    """

    name: str
    title: str
    task: str
    metric: str
    higher_is_better: bool
    reference: str
    focus: str | None
    alpha: float
    verdict: str
    cells: CellCounts
    arms: Mapping[str, ArmSummary]
    tables: tuple[Table, ...]

    @property
    def is_share(self) -> bool:
        """The metric goes from 0 to 1, and people read it as per cent."""
        return self.metric in SHARES

    def parameters(self, arm: str) -> ParameterCounts | None:
        """Of an arm; None before a training is done."""
        return self.arms[arm].parameters

    def is_reference(self, arm: str) -> bool:
        """Whether an arm is the reference, or the reference with another host."""
        return is_called(self.reference, arm)

    def against_reference(self, table: Table, arm: str) -> Comparison | None:
        """An arm's comparison with the reference of the same host."""
        own = (c for c in table.comparisons if c.arm == arm and self.is_reference(c.against))
        return next(own, None)

    def best(self, rows: tuple[Row, ...]) -> float | None:
        """The best mean."""
        return (max if self.higher_is_better else min)((row.mean for row in rows), default=None)

    def is_better(self, comparison: Comparison) -> bool:
        """Significant, and in the better direction."""
        return comparison.significant and (comparison.mean > 0) == self.higher_is_better

    def outcome(self, comparison: Comparison | None) -> str | None:
        """A comparison in one or two words, such as "better" or "not significant"; None if no test is possible."""
        if comparison is None or comparison.p_holm is None:
            return None
        if not comparison.significant:
            return "not significant"
        return "better" if self.is_better(comparison) else "worse"
