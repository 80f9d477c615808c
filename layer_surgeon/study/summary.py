"""Makes the typed summary from the cells: means, paired differences, and verdicts.

summary.json has the field `format`, followed by the fields of `tables.Summary`: the verdict in words, the finished
trainings, the arms, and one table per test set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.paired import (
    ALPHA,
    CrossedTest,
    Interval,
    Matrix,
    ScoreDifference,
    SeedVariance,
    bootstrap,
    compare_scores,
    crossed_test,
    equivalence_test,
    holm,
    pooled_seed_variance,
    seed_interval_of_mean,
)
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.records import CellResult, read_cell, read_failures
from layer_surgeon.study.tables import (
    ArmSummary,
    Basis,
    CellCounts,
    Comparison,
    ParameterCounts,
    Row,
    Summary,
    Table,
)
from layer_surgeon.study.verdict import say_comparison, say_study

ByArm = Mapping[str, Sequence[CellResult]]


def read_results(plan: StudyPlan, folder: StudyFolder) -> tuple[CellResult, ...]:
    """Return the results of the plan's finished cells.

    Raises:
        WorkspaceError: A cell's file can't be read.
    """
    done = [(cell, folder.result(cell.id)) for cell in plan.cells() if folder.result(cell.id).exists()]
    # The id only contains a form of the arm's name that is safe for files. So the arm may have been renamed since the
    # cell was trained, and the name in the plan is the right one.
    return tuple(replace(read_cell(path), arm=cell.arm.name) for cell, path in done)


def summarize(plan: StudyPlan, folder: StudyFolder) -> Summary:
    """Summarize the finished cells of a study.

    Raises:
        WorkspaceError: A cell's file can't be read.
    """
    results = read_results(plan, folder)
    ids = [cell.id for cell in plan.cells()]
    failed = tuple(failure for failure in read_failures(folder) if failure.id in set(ids))
    tables = tuple(
        table
        for data, tests in plan.tests.items()
        for fraction in plan.fractions
        for test in tests
        if (table := _make_table(plan, data, fraction, test, results)).rows
    )
    # Only trainings know the number of a layer that the plan counts from the end.
    donors = {arm.donor: result.donor for arm in plan.arms for result in results if result.arm == arm.name}
    return Summary(
        name=plan.name,
        title=plan.title,
        task=plan.task,
        metric=plan.metric,
        higher_is_better=plan.higher_is_better,
        reference=plan.reference,
        focus=plan.focus,
        alpha=ALPHA,
        equivalence=plan.equivalence,
        verdict=say_study(tables, plan, missing=len(ids) - len(results)),
        cells=CellCounts(
            planned=len(ids), done=len(results), missing=len(ids) - len(results) - len(failed), failed=failed
        ),
        arms={
            arm.name: ArmSummary(
                text=arm.text,
                kind=arm.kind,
                host=arm.host_name,
                donor=None if arm.donor is None else donors.get(arm.donor, arm.donor.name),
                parameters=ParameterCounts(
                    total=arm_results[0].parameters.total, trained=arm_results[0].parameters.trained
                )
                if arm_results
                else None,
                training_seconds=_mean([result.seconds.training for result in arm_results]) if arm_results else None,
            )
            for arm in plan.arms
            for arm_results in [[result for result in results if result.arm == arm.name]]
        },
        tables=tables,
    )


def _make_table(plan: StudyPlan, data: str, fraction: float, test: str, results: Sequence[CellResult]) -> Table:
    measured = [r for r in results if (r.data, r.fraction) == (data, fraction) and plan.metric in _scores(r, test)]
    by_arm = {
        arm.name: sorted((r for r in measured if r.arm == arm.name), key=lambda r: r.seed)
        for arm in plan.arms
        if any(r.arm == arm.name for r in measured)
    }
    return Table(
        data=data,
        fraction=fraction,
        test=test,
        examples=measured[0].tests[test].examples if measured else 0,
        rows=tuple(_make_row(name, test, own, plan.metric) for name, own in by_arm.items()),
        comparisons=_compare_arms(plan, test, by_arm),
    )


def _scores(result: CellResult, test: str) -> Mapping[str, float]:
    return result.tests[test].scores if test in result.tests else {}


def _make_row(arm: str, test: str, results: Sequence[CellResult], metric: str) -> Row:
    values = [float(_scores(result, test)[metric]) for result in results]
    bits = _correct_matrix(results, test) if metric == "accuracy" else None
    # A mean over other seeds than those of the row would not be comparable.
    names = [name for name in _scores(results[0], test) if all(name in _scores(result, test) for result in results)]
    return Row(
        arm=arm,
        seeds=tuple(result.seed for result in results),
        by_seed=tuple(values),
        mean=_mean(values),
        deviation=float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None,
        seed_interval=seed_interval_of_mean(values),
        example_interval=None if bits is None else bootstrap(bits, "examples"),
        scores={name: _mean([_scores(result, test)[name] for result in results]) for name in names},
        training_seconds=_mean([result.seconds.training for result in results]),
        train_examples=results[0].train_examples,
    )


def _compare_arms(plan: StudyPlan, test: str, by_arm: ByArm) -> tuple[Comparison, ...]:
    """Compare every arm with the reference on the same host, and the focus with every other arm."""
    comparisons: list[Comparison] = []
    done: set[tuple[str, str]] = set()
    pooled = _pool_seeds(test, by_arm) if plan.metric == "accuracy" else {}
    against_reference = [(name, _partner(plan.reference, name, by_arm)) for name in by_arm]
    focused = [(focus, name) for name in by_arm if (focus := _partner(plan.focus, name, by_arm))]
    for arm, against in (*against_reference, *focused):
        if against is None or arm == against or (arm, against) in done or (against, arm) in done:
            continue
        done.add((arm, against))
        if (comparison := _compare(plan, test, (by_arm[arm], by_arm[against]), pooled)) is not None:
            comparisons.append(comparison)
    # Holm's correction covers all comparisons of a table, since together they make one claim about a test set.
    differences = _correct([comparison.p for comparison in comparisons])
    equivalences = _correct([comparison.p_equivalence for comparison in comparisons])
    return tuple(
        _decide(comparison, p, p_equivalence, plan)
        for comparison, p, p_equivalence in zip(comparisons, differences, equivalences, strict=True)
    )


def _correct(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values after Holm's correction, with None for those that are None."""
    adjusted = iter(holm([value for value in values if value is not None]))
    return [None if value is None else next(adjusted) for value in values]


def _decide(comparison: Comparison, p_holm: float | None, p_equivalence: float | None, plan: StudyPlan) -> Comparison:
    decided = replace(
        comparison,
        p_holm=p_holm,
        significant=p_holm is not None and p_holm < ALPHA,
        p_equivalence=p_equivalence,
        equivalent=p_equivalence is not None and p_equivalence < ALPHA,
    )
    return replace(decided, words=say_comparison(decided, plan))


def _partner(name: str | None, arm: str, by_arm: ByArm) -> str | None:
    """Return the arm called `name`, or the arm of that name on the same host as `arm`; None if there is none."""
    if name is None or name in by_arm:
        return name
    _, at, host = arm.rpartition("@")
    partner = f"{name}@{host}" if at else name
    return partner if partner in by_arm else None


def _pool_seeds(test: str, by_arm: ByArm) -> dict[tuple[int, ...], SeedVariance | None]:
    """Return the variance over seeds for each set of seeds, pooled over all arms that were trained with exactly these.

    It is None if fewer than two arms have these seeds, or if their numbers of test examples differ.
    """
    seeds = {name: tuple(result.seed for result in results) for name, results in by_arm.items()}
    pooled: dict[tuple[int, ...], SeedVariance | None] = {}
    for common in set(seeds.values()):
        matrices = [_correct_matrix(by_arm[name], test) for name, arm_seeds in seeds.items() if arm_seeds == common]
        usable = [matrix for matrix in matrices if matrix is not None]
        pooled[common] = pooled_seed_variance(usable) if len({matrix.shape for matrix in usable}) == 1 else None
    return pooled


@dataclass(frozen=True, kw_only=True)
class _ExampleTests:
    """The part of a comparison that needs the result of every single example."""

    example_interval: Interval | None = None
    both_interval: Interval | None = None
    crossed: CrossedTest | None = None
    basis: Basis
    p: float


def _compare(
    plan: StudyPlan,
    test: str,
    pair: tuple[Sequence[CellResult], Sequence[CellResult]],
    pooled: Mapping[tuple[int, ...], SeedVariance | None],
) -> Comparison | None:
    second, first = ({result.seed: result for result in results} for results in pair)
    seeds = tuple(seed for seed in second if seed in first)
    if not seeds:
        return None
    results_of_pair = [[second[seed] for seed in seeds], [first[seed] for seed in seeds]]
    scores = [[float(_scores(result, test)[plan.metric]) for result in results] for results in results_of_pair]
    difference = compare_scores(scores[1], scores[0])
    bits = [_correct_matrix(results, test) if plan.metric == "accuracy" else None for results in results_of_pair]
    examples = None
    if bits[0] is not None and bits[1] is not None and bits[0].shape == bits[1].shape and bits[0].shape[1] > 1:
        examples = _test_examples(bits[0] - bits[1], pooled.get(seeds))
    by_seeds: Basis | None = None if difference.t_test is None else "seeds"
    return Comparison(
        arm=pair[0][0].arm,
        against=pair[1][0].arm,
        seeds=seeds,
        mean=difference.mean,
        deviation=difference.deviation,
        by_seed=difference.by_seed,
        t_test=difference.t_test,
        permutation=difference.permutation,
        effect_size=difference.effect_size,
        seed_interval=difference.seed_interval,
        example_interval=None if examples is None else examples.example_interval,
        both_interval=None if examples is None else examples.both_interval,
        crossed=None if examples is None else examples.crossed,
        basis=by_seeds if examples is None else examples.basis,
        p=difference.t_test if examples is None else examples.p,
        p_holm=None,
        significant=False,
        words="",
        p_equivalence=_test_equivalence(plan, difference, None if examples is None else examples.crossed),
    )


def _test_equivalence(plan: StudyPlan, difference: ScoreDifference, crossed: CrossedTest | None) -> float | None:
    """Return p of the test that a difference is within the plan's margin; None without a margin or with one seed."""
    if plan.equivalence is None:
        return None
    margin = plan.equivalence / 100 if plan.is_share else plan.equivalence
    if crossed is not None:
        return equivalence_test(crossed.mean, crossed.error, crossed.df, margin)
    return difference.test_equivalence(margin)


def _test_examples(differences: Matrix, pooled: SeedVariance | None) -> _ExampleTests:
    """Test the differences between right (1) and wrong (0), given as [seeds, examples]."""
    interval = bootstrap(differences, "examples")
    if len(differences) > 1:
        crossed = crossed_test(differences, pooled)
        both = bootstrap(differences, "both")
        return _ExampleTests(
            example_interval=interval, both_interval=both, crossed=crossed, basis="seeds and examples", p=crossed.p
        )
    spread = bool(differences.std() > 0)
    p = float(stats.ttest_1samp(differences[0], 0.0).pvalue) if spread else 1.0
    return _ExampleTests(example_interval=interval, basis="examples", p=p)


def _correct_matrix(results: Sequence[CellResult], test: str) -> Matrix | None:
    """Return [seeds, examples] with 1 for right and 0 for wrong; None if a cell lacks them or has another number."""
    texts = [text for result in results if (text := result.tests[test].correct) is not None]
    if len(texts) < len(results) or len({len(text) for text in texts}) != 1:
        return None
    return np.array([[float(digit) for digit in text] for text in texts])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(np.asarray(values, dtype=np.float64)))
