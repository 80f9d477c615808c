"""Is one arm better than another? Paired comparisons over seeds and over test examples.

Two things are random in a study: the seeds (weights, held-out part, order, dropout), and which examples are in the test
set. A claim is about other seeds and other texts, so a test must take both into account:

- A test over the seeds alone (t-test, permutation) treats the test set as fixed. With three seeds its t has two degrees
  of freedom, and a permutation test can never go below p = 2/2^3 = 0.25 (0.0625 with five).
- A test over the examples alone treats the trained models as fixed. It mistakes a lucky seed for an effect.

The verdict uses `crossed_test`, which takes both into account. The other tests are reported next to it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Matrix = npt.NDArray[np.float64]
ALPHA = 0.05
# From this number of seeds on, a difference is judged by the scatter of its own two arms alone.
ENOUGH_SEEDS = 5
_RESAMPLES = 2000
# Numbers in memory at the same time: 8 MB.
_AT_ONCE = 1_000_000
# Up to this many seeds, the permutation test tries all sign changes: 2^12 = 4,096.
_EXACT = 12


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CrossedTest:
    """The result of `crossed_test`: mean difference, its standard error, degrees of freedom, p, and 95 % interval."""

    mean: float
    error: float
    df: float
    p: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class SeedVariance:
    """How much seeds change the difference of two arms: a mean square per example, and its degrees of freedom."""

    mean_square: float
    df: float


def pooled_seed_variance(arms: Sequence[Matrix]) -> SeedVariance | None:
    """Estimate how much seeds change a difference, from all arms of a study together.

    Three seeds of one difference give two degrees of freedom, which is a poor estimate. Four arms with three seeds give
    more: up to (arms - 1)(seeds - 1) if all arms scatter equally, and fewer if one arm causes most of the scatter.

    Args:
        arms: [seeds, examples] for each arm, with the same seeds.

    Returns:
        The variance, or None with fewer than two arms or seeds.
    """
    if len(arms) < 2 or arms[0].shape[0] < 2:
        return None
    means = np.array([arm.mean(axis=1) for arm in arms])  # [arms, seeds]
    residuals = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    count = (len(arms) - 1) * (means.shape[1] - 1)
    return SeedVariance(
        mean_square=float(2 * arms[0].shape[1] * (residuals**2).sum() / count), df=_pooled_df(residuals)
    )


def _pooled_df(residuals: Matrix) -> float:
    """Return the degrees of freedom of a variance that is pooled from arms with unequal scatter.

    This is Satterthwaite's formula, (sum v)^2 / sum(v^2 / df). Each arm's variance v is an unbiased estimate from the
    residuals, that is, after subtracting the means of arms and seeds. With few seeds, v^2 is too large by a factor of
    (df + 2) / df, so the formula uses v^2 / (df + 2) and subtracts 2 at the end. In 1,000 simulated studies of four
    equal arms and three seeds, in which one arm scatters six times as much as the others, 4.5 to 5.8 % of the results
    were false alarms. With (arms - 1)(seeds - 1) degrees of freedom it was 5.6 to 7.1 %.

    Args:
        residuals: [arms, seeds].
    """
    arms, seeds = residuals.shape
    full = float((arms - 1) * (seeds - 1))
    squares = (residuals**2).sum(axis=1) / (seeds - 1)
    if arms == 2 or squares.sum() < 1e-24:
        return full
    total = float(squares.sum()) * arms / (arms - 1)
    by_arm = np.maximum((squares - total / arms**2) / (1 - 2 / arms), 0.0)
    df: float = (by_arm.sum() ** 2 / (by_arm**2 / (seeds + 1)).sum() - 2) * (arms - 1) / arms
    return min(full, max(float(seeds - 1), df))


def crossed_test(differences: Matrix, pooled: SeedVariance | None = None) -> CrossedTest:
    """Test a mean difference with seeds and examples as crossed random effects: each seed is tested on each example.

    The variance of the mean is (MS_seeds + MS_examples - MS_residual) / (seeds x examples), from a two-way analysis of
    variance without repetition, with Satterthwaite's degrees of freedom. This is the quasi-F test of Clark (1973) for
    one contrast. If this variance is smaller than the one from seeds or examples alone, the larger of those is used.

    The variance over seeds is that of the two compared arms from five seeds on. An arm that scatters does not hide
    the differences of the others. With fewer seeds, their variance is poorly known. If it is below that of all arms
    (`pooled`), a weighted mean of the two is used, in which the latter has 5 - seeds times the weight of its degrees of
    freedom. In all other cases, the t-test over the seeds decides if its p is larger: Satterthwaite's approximation is
    too optimistic with few degrees of freedom. docs/studies.md has the false alarms and the power in simulated
    studies, which `python -m research.power` repeats.

    Args:
        differences: [seeds, examples], the score of one arm minus that of the other; at least two of each.
        pooled: The variance over seeds, from all arms of the study.

    Raises:
        ValueError: There are fewer than two seeds or examples.
    """
    seeds, examples = differences.shape
    if seeds < 2 or examples < 2:
        raise ValueError(f"{seeds} seeds x {examples} examples: the test needs at least two of each")
    own_variance = SeedVariance(mean_square=float(examples * differences.mean(axis=1).var(ddof=1)), df=seeds - 1)
    if seeds < ENOUGH_SEEDS and pooled is not None and own_variance.mean_square < pooled.mean_square * (1 - 1e-9):
        return _quasi_f(differences, _shrink(own_variance, pooled, seeds))
    result = _quasi_f(differences, own_variance)
    p_of_seeds = _t_test(differences.mean(axis=1))
    if p_of_seeds is None or p_of_seeds <= result.p:
        return result
    error = math.sqrt(own_variance.mean_square / (seeds * examples))
    return _outcome(result.mean, error, own_variance.df)


def _shrink(own: SeedVariance, pooled: SeedVariance, seeds: int) -> SeedVariance:
    """Return the weighted mean of two variances, with Satterthwaite's degrees of freedom."""
    weight = (ENOUGH_SEEDS - seeds) * pooled.df
    own_part, pooled_part = own.df * own.mean_square, weight * pooled.mean_square
    total = own_part + pooled_part
    df = total**2 / (own_part**2 / own.df + pooled_part**2 / pooled.df)
    return SeedVariance(mean_square=total / (own.df + weight), df=df)


def _quasi_f(differences: Matrix, seed_variance: SeedVariance) -> CrossedTest:
    seeds, examples = differences.shape
    mean = float(differences.mean())
    by_seed, by_example = differences.mean(axis=1), differences.mean(axis=0)
    example_square = float(seeds * by_example.var(ddof=1))
    residuals = differences - by_seed[:, None] - by_example[None, :] + mean
    residual_square = float((residuals**2).sum() / ((seeds - 1) * (examples - 1)))
    mean_squares = [
        (seed_variance.mean_square, seed_variance.df),
        (example_square, examples - 1),
        (-residual_square, (seeds - 1) * (examples - 1)),
    ]
    total = sum(square for square, _ in mean_squares)
    largest, square_df = max(mean_squares[:2])
    if total <= largest:
        total, df = largest, float(square_df)
    else:
        df = total**2 / sum(square**2 / square_df for square, square_df in mean_squares)
    return _outcome(mean, math.sqrt(total / (seeds * examples)), df)


def _outcome(mean: float, error: float, df: float) -> CrossedTest:
    if error < 1e-12:
        # Without any scatter, there is nothing to test a difference with.
        return CrossedTest(mean=mean, error=0.0, df=df, p=1.0, interval=Interval(mean, mean))
    half_width = float(stats.t.ppf(1 - ALPHA / 2, df)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, df))
    return CrossedTest(mean=mean, error=error, df=df, p=p, interval=Interval(mean - half_width, mean + half_width))


def equivalence_test(mean: float, error: float, df: float, margin: float) -> float:
    """Return p of the two one-sided t-tests (Schuirmann 1987) that a difference is between -margin and +margin.

    It is below 0.05 if the 90 % interval of the difference lies within the margin. It is 1 without an error, because
    there is nothing to test with.

    Args:
        mean: The mean difference.
        error: Its standard error.
        df: The degrees of freedom of the error.
        margin: The margin, positive, in the unit of the difference.
    """
    if error < 1e-12:
        return 1.0
    return float(stats.t.sf((margin - abs(mean)) / error, df))


def sign_permutation(differences: Sequence[float]) -> float:
    """Return the p-value of the two-sided paired permutation test: exact up to 12 pairs, else from 20,000 draws."""
    values = np.asarray(differences, dtype=np.float64)
    observed = abs(values.mean())
    tolerance = 1e-12 * max(1.0, float(np.abs(values).max(initial=0.0)))
    if len(values) <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
        return float((np.abs(signs @ values / len(values)) >= observed - tolerance).mean())
    signs = np.random.default_rng(0).choice((1.0, -1.0), size=(20_000, len(values)))
    return float(((np.abs(signs @ values / len(values)) >= observed - tolerance).sum() + 1) / 20_001)


def bootstrap(differences: Matrix, over: str) -> Interval:
    """Return the 95 % interval of the mean by the percentile bootstrap.

    Args:
        differences: [seeds, examples].
        over: What is resampled: seeds, examples, or both.
    """
    rng = np.random.default_rng(0)
    seeds, examples = differences.shape
    over_seeds, over_examples = over in ("seeds", "both"), over in ("examples", "both")
    # Group examples with the same values. With right or wrong for a few seeds there are few groups: 2,000 draws of
    # 1,821 examples take 0.1 s in groups, and took 2.4 s one by one.
    values = differences if over_seeds else differences.mean(axis=0, keepdims=True)
    groups, counts = np.unique(values, axis=1, return_counts=True)
    at_once = max(1, _AT_ONCE // groups.shape[1])
    means = np.empty(_RESAMPLES)
    for first in range(0, _RESAMPLES, at_once):
        size = min(at_once, _RESAMPLES - first)
        group_means = rng.multinomial(seeds, [1 / seeds] * seeds, size) @ groups / seeds if over_seeds else groups
        weights = rng.multinomial(examples, counts / examples, size) if over_examples else counts
        means[first : first + size] = (group_means * weights).sum(axis=1) / examples
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(low), float(high))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all comparisons together, in the same order: Holm's step-down correction (1979)."""
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """The comparison of two arms by the scores of the seeds alone.

    If a score is infinite (a perplexity can overflow), only the differences are known, as with one seed.

    Attributes:
        mean: Mean of the paired differences.
        deviation: Standard deviation of the paired differences; None with one seed.
        by_seed: The difference for each seed.
        t_test: p of the paired t-test; None with one seed, or if all differences are equal.
        permutation: p of the paired permutation test; None with one seed.
        effect_size: Mean divided by deviation, Cohen's d for pairs; None without a t-test.
        seed_interval: 95 % interval by bootstrap; None with one seed.
    """

    mean: float
    deviation: float | None
    by_seed: tuple[float, ...]
    t_test: float | None
    permutation: float | None
    effect_size: float | None
    seed_interval: Interval | None

    def test_equivalence(self, margin: float) -> float | None:
        """Return p of the two one-sided t-tests that the mean is within ±margin; None with one seed."""
        if self.deviation is None:
            return None
        seeds = len(self.by_seed)
        return equivalence_test(self.mean, self.deviation / math.sqrt(seeds), seeds - 1, margin)


def compare_scores(first: Sequence[float], second: Sequence[float]) -> ScoreDifference:
    """Compare two arms by their scores, second minus first.

    Args:
        first: One score per seed.
        second: One score per seed, in the same order.
    """
    delta = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    several = len(delta) > 1 and bool(np.isfinite(delta).all())
    deviation = float(delta.std(ddof=1)) if several else None
    t_test = _t_test(delta) if several else None
    return ScoreDifference(
        mean=float(delta.mean()),
        deviation=deviation,
        by_seed=tuple(float(value) for value in delta),
        t_test=t_test,
        permutation=sign_permutation(delta.tolist()) if several else None,
        effect_size=None if t_test is None or deviation is None else float(delta.mean()) / deviation,
        seed_interval=bootstrap(delta[:, None], "seeds") if several else None,
    )


def _t_test(delta: Matrix) -> float | None:
    """Return p of the paired t-test over the differences of the seeds; None for one, or if all are equal."""
    if len(delta) < 2 or delta.std(ddof=1) <= 1e-12:
        return None
    return float(stats.ttest_1samp(delta, 0.0).pvalue)


def seed_interval_of_mean(scores: Sequence[float]) -> Interval | None:
    """Return the 95 % interval of the mean over seeds, by the t distribution; None with one seed or infinite scores."""
    if len(scores) < 2 or not np.isfinite(scores).all():
        return None
    values = np.asarray(scores, dtype=np.float64)
    half_width = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(float(values.mean()) - half_width, float(values.mean()) + half_width)
