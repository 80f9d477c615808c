"""The typed summary of a study: one table per test set, with a row per arm and the comparisons between them.

The fields are those of summary.json, in the same order. `summary` computes them, and `records` reads and writes them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from layer_surgeon.study.arms import is_called
from layer_surgeon.study.paired import CrossedTest, Interval, seed_interval_of_mean
from layer_surgeon.tasks import TASKS

Basis = Literal["seeds and examples", "seeds", "examples"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of an arm on a test set.

    Attributes:
        arm: Name of the arm.
        seeds: The seeds whose trainings are finished.
        by_seed: The metric for each of these seeds.
        mean: Mean of the metric over the seeds.
        deviation: Standard deviation over the seeds; None with one seed.
        seed_interval: 95 % interval by the t distribution over the seeds; None with one seed.
        example_interval: 95 % interval by bootstrap over the test examples; None without results for single examples.
        scores: Metric -> mean over the seeds, for all metrics.
        training_seconds: Mean over the seeds.
        train_examples: Number of training examples for each seed.
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
    """The comparison of two arms, over the seeds that both have.

    `p`, `p_holm`, `significant` and `words` are the verdict; the other numbers are shown next to it.

    Attributes:
        arm: The first arm.
        against: The second arm, whose score is subtracted.
        seeds: The seeds that both arms have.
        mean: Mean of the paired differences.
        deviation: Standard deviation of the paired differences; None with one seed.
        by_seed: The difference for each seed.
        t_test: p of the paired t-test over the seeds; None with one seed, or if all differences are equal.
        permutation: p of the paired permutation test over the seeds; None with one seed.
        effect_size: Mean divided by deviation (Cohen's d for pairs); None without a t-test.
        seed_interval: 95 % interval by bootstrap over the seeds.
        example_interval: 95 % interval by bootstrap over the test examples.
        both_interval: 95 % interval by bootstrap over both.
        crossed: The test that treats both seeds and examples as random.
        basis: What the deciding test runs over; None if no test is possible.
        p: p of the deciding test.
        p_holm: `p` after Holm's correction over all comparisons of the table.
        significant: Whether `p_holm` is below alpha.
        p_equivalence: p of the two one-sided tests that the difference is within the plan's margin, after Holm's
            correction; None without a margin, or with one seed.
        equivalent: Whether `p_equivalence` is below alpha.
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
    # Summaries of earlier versions don't have these.
    p_equivalence: float | None = None
    equivalent: bool = False

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the deciding test: over seeds and examples if possible."""
        if self.crossed is not None:
            return self.crossed.interval
        return seed_interval_of_mean(self.by_seed) if self.basis == "seeds" else self.example_interval


@dataclass(frozen=True, kw_only=True)
class Table:
    """All arms on one test set.

    Attributes:
        data: The training data set.
        fraction: The share of it that was used.
        test: The test set.
        examples: Size of the test set.
        rows: One row per arm with a finished training, in the plan's order.
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
    """The number of a model's parameters, and how many of them are trained."""

    total: int
    trained: int


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """The description of an arm.

    Attributes:
        text: The purpose of the arm, in one sentence.
        kind: The built-in arm that this arm is, or is based on.
        host: Name of the host.
        donor: Name of the donor layer, such as "Llama-3.1-8B-L31"; None without a donor.
        parameters: Numbers of parameters; None before a training is finished.
        training_seconds: Mean over the trainings; None before a training is finished.
    """

    text: str
    kind: str
    host: str
    donor: str | None
    parameters: ParameterCounts | None
    training_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class FailedCell:
    """A training that failed, with the error."""

    id: str
    arm: str
    data: str
    fraction: float
    seed: int
    error: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CellCounts:
    """The numbers of planned, finished and missing trainings, and the failed trainings."""

    planned: int
    done: int
    missing: int
    failed: tuple[FailedCell, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of a study.

    Attributes:
        name: Name of the plan.
        title: Title of the plan.
        task: The task that is learned.
        metric: The score that is compared.
        higher_is_better: Whether a higher score is better.
        reference: The arm that all other arms are compared with.
        focus: A second arm that all other arms are compared with; None for no second arm.
        alpha: Significance level of the tests.
        equivalence: Margin within which two arms count as equivalent, as in the plan; None for no test of that.
        verdict: The result in one or two sentences.
        cells: Counts of the trainings.
        arms: Name -> description, for all arms of the plan.
        tables: One table per data set, share and test set with a finished training.
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
    # Summaries of earlier versions don't have it.
    equivalence: float | None = None

    @property
    def is_share(self) -> bool:
        """Whether the metric goes from 0 to 1 and is shown as per cent."""
        task = TASKS.get(self.task)  # None: a task of a package that is not installed here
        return task is not None and any(score.is_share for score in task.scores if score.name == self.metric)

    def parameters(self, arm: str) -> ParameterCounts | None:
        """Return the numbers of an arm's parameters; None before a training is finished."""
        return self.arms[arm].parameters

    def is_reference(self, arm: str) -> bool:
        """Return whether an arm is the reference, or the reference with another host."""
        return is_called(self.reference, arm)

    def against_reference(self, table: Table, arm: str) -> Comparison | None:
        """Return the comparison of an arm with the reference on the same host."""
        comparisons = (c for c in table.comparisons if c.arm == arm and self.is_reference(c.against))
        return next(comparisons, None)

    def best(self, rows: tuple[Row, ...]) -> float | None:
        """Return the best mean of some rows; None if no row has a mean that is a number."""
        means = (row.mean for row in rows if not math.isnan(row.mean))
        return (max if self.higher_is_better else min)(means, default=None)

    def is_better(self, comparison: Comparison) -> bool:
        """Return whether the first arm of a comparison is significantly better."""
        return comparison.significant and (comparison.mean > 0) == self.higher_is_better

    def outcome(self, comparison: Comparison | None) -> str | None:
        """Return a comparison in one or two words, such as "better" or "not significant"; None without a test."""
        if comparison is None:
            return None
        if comparison.equivalent and not comparison.significant:
            return "equivalent"
        if comparison.p_holm is None:
            return None
        if not comparison.significant:
            return "not significant"
        return "better" if self.is_better(comparison) else "worse"
