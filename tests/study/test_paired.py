"""Planted truths: studies of equal arms report no difference, and studies with a better arm find it."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from layer_surgeon.study import paired, summary
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.paired import (
    Interval,
    bootstrap,
    compare_scores,
    crossed_test,
    equivalence_test,
    holm,
    pooled_seed_variance,
    sign_permutation,
)
from layer_surgeon.study.plan import StudyPlan
from tests.support.made_up_studies import OTHER_FIELDS

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
    """Return, for each arm, whether it is called different from the first."""
    pooled = pooled_seed_variance(arms)
    return [p < 0.05 for p in holm([crossed_test(arm - arms[0], pooled).p for arm in arms[1:]])]


SHAPES = [
    {"of_seeds": 0.0, "of_examples": 0.0},
    {"of_seeds": 0.0, "of_examples": 1.5},
    {"of_seeds": 0.1, "of_examples": 0.0},
    {"of_seeds": 0.2, "of_examples": 0.5},
    {"of_seeds": 0.5, "of_examples": 0.5},
    {"of_seeds": (0.1, 0.1, 0.3, 0.3), "of_examples": 0.5},
    # The arm that all are compared with scatters six times as much as they do.
    {"of_seeds": (0.6, 0.1, 0.1, 0.1), "of_examples": 0.5},
]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_arms_are_rarely_called_different(seeds, shape):
    """At most 7 of 100 studies without a difference report one, after Holm's correction."""
    rng = np.random.default_rng(seeds)
    false = sum(any(found(simulate(rng, seeds=seeds, examples=200, **shape))) for _ in range(100))
    assert false <= 7


NAMES = ("host", "random", "wide-head", "graft")


class Studies:
    """Run complete studies with made-up cells, from the files of the trainings to the verdict."""

    def __init__(self, root, seeds):
        self.plan = StudyPlan.from_dict(
            {"host": "a/bert", "donor": "b/llm", "arms": list(NAMES), "data": ["films"], "seeds": list(range(seeds))}
        )
        self.folder = StudyFolder(root=root)
        (root / "cells").mkdir()

    def summarize(self, arms):
        for cell in self.plan.cells():
            right = arms[NAMES.index(cell.arm.name)][cell.seed]
            content = {
                "id": cell.id,
                "arm": cell.arm.name,
                "data": "films",
                "fraction": 1.0,
                "seed": cell.seed,
                "tests": {
                    "films": {
                        "examples": len(right),
                        "scores": {"accuracy": right.mean()},
                        "correct": "".join("1" if value else "0" for value in right),
                    }
                },
                **OTHER_FIELDS,
            }
            self.folder.result(cell.id).write_text(json.dumps(content))
        return summary.summarize(self.plan, self.folder)


@pytest.fixture
def no_bootstrap(monkeypatch):
    """Skips the bootstrap, which takes most of the time and does not influence the verdict."""
    for module in (paired, summary):
        monkeypatch.setattr(module, "bootstrap", lambda *_: Interval(0.0, 0.0))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[-1]], ids=str)
def test_studies_of_equal_arms_report_no_difference(shape, tmp_path, no_bootstrap):
    """From cells to the sentence, at most 7 of 100 studies report a difference that does not exist."""
    studies, rng = Studies(tmp_path, 3), np.random.default_rng(3)
    false = 0
    for _ in range(100):
        found = studies.summarize(simulate(rng, seeds=3, examples=200, **shape))
        comparisons = found.tables[0].comparisons
        assert len(comparisons) == 5
        said = any(c.significant for c in comparisons)
        assert said == any(" better than " in c.words or " worse than " in c.words for c in comparisons)
        false += said
        about_graft = next(c for c in comparisons if (c.arm, c.against) == ("graft", "host"))
        assert ("is not significant" in found.verdict) == (not about_graft.significant)
    assert false <= 7


def test_studies_with_a_better_arm_report_it(tmp_path, no_bootstrap):
    studies, rng = Studies(tmp_path, 5), np.random.default_rng(5)
    shape = {"of_seeds": 0.05, "of_examples": 0.3, "effect": 0.7}
    verdicts = [studies.summarize(simulate(rng, seeds=5, examples=1000, **shape)).verdict for _ in range(20)]
    assert sum(text.startswith("graft is better than host by ") for text in verdicts) >= 19
    assert sum("It is also better than random and wide-head." in text for text in verdicts) >= 17


def test_one_scattering_arm_adds_no_degrees_of_freedom():
    """Four arms and three seeds have nearly six degrees of freedom; if only one arm scatters, they have two."""
    rng = np.random.default_rng(6)

    def mean_df(of_seeds):
        scatter = np.array(of_seeds)[:, None, None]
        return np.mean([pooled_seed_variance(rng.normal(0, 1, (4, 3, 1)) * scatter).df for _ in range(400)])

    assert mean_df([1, 1, 1, 1]) > 4.5
    assert mean_df([10, 1, 1, 1]) < 2.6
    assert pooled_seed_variance([np.zeros((3, 4)), np.ones((3, 4))]).df == 2


def test_the_usual_tests_report_too_many_differences():
    """Shows why the verdict uses neither the t-test over seeds nor the test over examples."""
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
    """If all examples have the same result, only the seeds carry information."""
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


def test_equivalence_is_two_one_sided_t_tests():
    differences = np.random.default_rng(0).normal(0.1, 1.0, 40)
    error = differences.std(ddof=1) / np.sqrt(40)
    for margin in (0.1, 0.3, 0.6):
        below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
        above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        assert equivalence_test(differences.mean(), error, 39, margin) == pytest.approx(max(below, above))
    # Without scatter, nothing is shown, however few the examples.
    assert equivalence_test(0.0, 0.0, 4, 0.1) == 1
    assert crossed_test(np.ones((2, 4))).p == 1


@pytest.mark.parametrize(("shift", "most", "least"), [(0.0, 100, 80), (0.05, 7, 0)])
def test_equal_arms_are_equivalent_and_arms_at_the_margin_are_rarely_called_so(shift, most, least):
    """The margin is 5 points. At a true difference of 5 points, at most 7 of 100 studies say "equivalent"."""
    rng, count = np.random.default_rng(1), 0
    for _ in range(100):
        right = rng.random((2, 10, 1000)) < np.array([0.7, 0.7 + shift])[:, None, None]
        test = crossed_test(right[1].astype(float) - right[0])
        count += equivalence_test(test.mean, test.error, test.df, 0.05) < 0.05
    assert least <= count <= most


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
    assert found.mean == pytest.approx(0.03)
    assert found.t_test == pytest.approx(reference.pvalue)
    assert found.effect_size == pytest.approx(0.03 / 0.01)
    assert found.permutation == pytest.approx(0.25)
    one = compare_scores([0.5], [0.6])
    assert (one.deviation, one.t_test, one.permutation, one.seed_interval) == (None,) * 4
    # p would be NaN, which Holm's correction can't sort.
    assert compare_scores([3.0, 4.0], [3.5, math.inf]).t_test is None


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
