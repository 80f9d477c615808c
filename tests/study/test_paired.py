"""Planted truths: where arms are equal, studies say so; where one is better, they find it."""

import numpy as np
import pytest
from scipy import stats

from layer_surgeon.study.paired import (
    bootstrap,
    compare_scores,
    crossed_test,
    holm,
    pooled_seed_variance,
    sign_permutation,
)

ARMS = 4


def simulate(rng, *, seeds, examples, of_seeds, of_examples, effect=0.0):
    """Right and wrong answers of four arms, [seeds, examples] each; the last is better by `effect`, in logits.

    An example is as hard for all; besides, each arm has its own examples that it finds hard, and its own luck with each
    seed.
    """
    hard = rng.normal(1.2, 1.5, examples)
    arms = []
    for arm in range(ARMS):
        own = rng.normal(0, of_examples, examples)
        luck = rng.normal(0, of_seeds[arm] if isinstance(of_seeds, tuple) else of_seeds, seeds)
        noise = rng.normal(0, 0.7, (seeds, examples))
        arms.append((hard + own + luck[:, None] + noise + (effect if arm == ARMS - 1 else 0) > 0).astype(float))
    return arms


def found(arms):
    """Whether each arm is called different from the first."""
    pooled = pooled_seed_variance(arms)
    return [p < 0.05 for p in holm([crossed_test(arm - arms[0], pooled).p for arm in arms[1:]])]


SHAPES = [
    {"of_seeds": 0.0, "of_examples": 0.0},
    {"of_seeds": 0.0, "of_examples": 1.5},
    {"of_seeds": 0.1, "of_examples": 0.0},
    {"of_seeds": 0.2, "of_examples": 0.5},
    {"of_seeds": 0.5, "of_examples": 0.5},
    {"of_seeds": (0.1, 0.1, 0.3, 0.3), "of_examples": 0.5},
]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_arms_are_called_equal(seeds, shape):
    """At most 7 of 100 studies with no difference in them name one, after Holm."""
    rng = np.random.default_rng(seeds)
    false = sum(any(found(simulate(rng, seeds=seeds, examples=200, **shape))) for _ in range(100))
    assert false <= 7


def test_the_usual_tests_would_not_hold_that():
    """Why the verdict is not the t-test over seeds, nor the test over examples."""
    rng = np.random.default_rng(0)
    over_seeds = over_examples = 0
    for _ in range(100):
        arms = simulate(rng, seeds=5, examples=400, of_seeds=0.0, of_examples=1.5)
        over_seeds += stats.ttest_1samp((arms[1] - arms[0]).mean(axis=1), 0).pvalue < 0.05
        arms = simulate(rng, seeds=5, examples=400, of_seeds=0.3, of_examples=0.0)
        over_examples += stats.ttest_1samp((arms[1] - arms[0]).mean(axis=0), 0).pvalue < 0.05
    assert over_seeds > 20
    assert over_examples > 20


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_better_arm_is_found(seeds):
    rng = np.random.default_rng(10 + seeds)
    studies = [
        found(simulate(rng, seeds=seeds, examples=1000, of_seeds=0.05, of_examples=0.3, effect=0.7)) for _ in range(60)
    ]
    # 7 points of accuracy; three seeds leave a few of such studies undecided.
    assert sum(study[-1] for study in studies) >= (52 if seeds == 3 else 58)
    assert sum(any(study[:-1]) for study in studies) <= 4


def test_two_arms_and_three_seeds():
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(100):
        first, second, *_ = simulate(rng, seeds=3, examples=400, of_seeds=0.2, of_examples=0.3)
        false += crossed_test(second - first, pooled_seed_variance([first, second])).p < 0.05
    assert false <= 7


def test_the_test_with_seeds_alone_is_the_t_test():
    """Where all examples go together, only the seeds are left to tell anything."""
    by_seed = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    differences = np.repeat(by_seed[:, None], 50, axis=1)
    test = crossed_test(differences)
    assert test.p == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)
    assert test.df == pytest.approx(5)
    assert test.interval.low == pytest.approx(stats.ttest_1samp(by_seed, 0).confidence_interval().low)


def test_no_difference_at_all():
    test = crossed_test(np.zeros((3, 20)))
    assert (test.mean, test.p, tuple(test.interval)) == (0.0, 1.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="1 seeds"):
        crossed_test(np.zeros((1, 20)))


def test_permutation_is_exact_for_few_seeds():
    assert sign_permutation([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert sign_permutation([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)
    assert sign_permutation([1.0, -1.0]) == 1.0
    values = np.array([0.3, -0.1, 0.4, 0.2, 0.5, -0.2])
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples").pvalue
    assert sign_permutation(values.tolist()) == pytest.approx(expected)


def test_holm():
    # Holm's own kind of example: sorted, times 4, 3, 2, 1, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_scores_by_seed():
    found = compare_scores([0.80, 0.82, 0.81], [0.83, 0.84, 0.85])
    reference = stats.ttest_rel([0.83, 0.84, 0.85], [0.80, 0.82, 0.81])
    assert found["mean"] == pytest.approx(0.03)
    assert found["t_test"] == pytest.approx(reference.pvalue)
    assert found["effect_size"] == pytest.approx(0.03 / 0.01)
    assert found["permutation"] == pytest.approx(0.25)
    one = compare_scores([0.5], [0.6])
    assert (one["deviation"], one["t_test"], one["permutation"], one["seed_interval"]) == (None,) * 4


def test_bootstrap_intervals():
    rng = np.random.default_rng(0)
    values = rng.normal(0.1, 1.0, (5, 400))
    low, high = bootstrap(values, "examples")
    error = values.mean(axis=0).std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)
    same = np.repeat(rng.normal(0, 1, (5, 1)), 30, axis=1)
    assert bootstrap(same, "seeds").low < bootstrap(same, "seeds").high
    assert bootstrap(same, "examples").low == pytest.approx(bootstrap(same, "examples").high)
    assert bootstrap(values, "both").low < low + error
