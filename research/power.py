"""False alarms and power of the test that decides a study's comparisons, in simulated studies.

`python -m research.power` prints the tables of docs/studies.md, "Statistics". `--studies 200` is a
quick look. Each study has right and wrong answers of several arms, for several seeds and test examples. The rule that
was used until November 2026 is next to today's: it took the variance over seeds from all arms together, unless that
of the two compared arms was larger.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from layer_surgeon.study import paired
from layer_surgeon.study.paired import ALPHA, CrossedTest, Matrix, SeedVariance, crossed_test, holm

Rule = Callable[[Matrix, SeedVariance | None], CrossedTest]
# For each shape: the standard deviation over seeds of each of the first arms, in logits (the last number is that of
# all further arms), and the standard deviation of what each arm finds hard.
SHAPES: Mapping[str, tuple[Sequence[float], float]] = {
    "no scatter over seeds": ([0.0], 1.5),
    "little scatter": ([0.1], 0.5),
    "some scatter": ([0.2], 0.5),
    "much scatter": ([0.5], 0.5),
    "unequal scatter": ([0.1, 0.1, 0.3], 0.5),
    "the reference scatters six times as much": ([0.6, 0.1], 0.5),
    "another arm scatters six times as much": ([0.1, 0.1, 0.6, 0.1], 0.5),
    "another arm scatters fifteen times as much": ([0.1, 0.1, 1.5, 0.1], 0.3),
}


def simulate(
    rng: np.random.Generator,
    shape: tuple[Sequence[float], float],
    *,
    arms: int,
    seeds: int,
    examples: int,
    effect: float = 0.0,
) -> list[Matrix]:
    """Return right (1) and wrong (0) answers, [seeds, examples] for each arm; the second arm is better by `effect`."""
    scatter, of_examples = shape
    hard = rng.normal(1.2, 1.5, examples)
    answers = []
    for arm in range(arms):
        own = rng.normal(0, of_examples, examples)
        luck = rng.normal(0, scatter[min(arm, len(scatter) - 1)], seeds)
        noise = rng.normal(0, 0.7, (seeds, examples))
        better = effect if arm == 1 else 0.0
        answers.append((hard + own + luck[:, None] + noise + better > 0).astype(float))
    return answers


def former_test(differences: Matrix, pooled: SeedVariance | None = None) -> CrossedTest:
    """Return the result of the rule that was used until November 2026."""
    seeds, examples = differences.shape
    own = SeedVariance(mean_square=float(examples * differences.mean(axis=1).var(ddof=1)), df=seeds - 1)
    if pooled is not None and own.mean_square < pooled.mean_square * (1 - 1e-9):
        return paired._quasi_f(differences, pooled)
    result = paired._quasi_f(differences, own)
    p_of_seeds = paired._t_test(differences.mean(axis=1))
    if own.df >= 4 or p_of_seeds is None or p_of_seeds <= result.p:
        return result
    return paired._outcome(result.mean, math.sqrt(own.mean_square / (seeds * examples)), own.df)


RULES: Mapping[str, Rule] = {"former rule": former_test, "today's rule": crossed_test}


def count_findings(
    shape: tuple[Sequence[float], float], *, studies: int, arms: int, seeds: int, examples: int, effect: float = 0.0
) -> dict[str, tuple[float, float]]:
    """Return two shares of studies for each rule.

    The first share: p of the second arm against the first is below 0.05. The second share, after Holm's correction: any
    comparison with the first arm is significant or, with an effect, that of the second arm.
    """
    counts = {name: np.zeros(2) for name in RULES}
    rng = np.random.default_rng(0)
    for _ in range(studies):
        answers = simulate(rng, shape, arms=arms, seeds=seeds, examples=examples, effect=effect)
        pooled = paired.pooled_seed_variance(answers)
        for name, rule in RULES.items():
            values = [rule(arm - answers[0], pooled).p for arm in answers[1:]]
            corrected = [p < ALPHA for p in holm(values)]
            counts[name] += values[0] < ALPHA, corrected[0] if effect else any(corrected)
    return {name: (float(pair), float(study)) for name, (pair, study) in ((n, c / studies) for n, c in counts.items())}


def print_table(title: str, *, studies: int, arms: int, seeds: int, examples: int, effect: float = 0.0) -> None:
    """Print the shares of studies in which each rule finds a difference, for every shape."""
    print(f"\n{title}: {arms} arms, {seeds} seeds, {examples} examples, {studies} studies", flush=True)
    print(f"{'':44}" + "".join(f"{name:>28}" for name in RULES))
    for name, shape in SHAPES.items():
        shares = count_findings(shape, studies=studies, arms=arms, seeds=seeds, examples=examples, effect=effect)
        cells = "".join(f"{100 * pair:14.1f} % {100 * study:9.1f} %" for pair, study in shares.values())
        print(f"{name:44}{cells}", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    print("Two columns for each rule: one comparison; all comparisons of a study, after Holm's correction.")
    for arms, seeds in ((4, 3), (4, 5), (10, 3), (10, 5), (4, 10)):
        print_table("False alarms", studies=studies, arms=arms, seeds=seeds, examples=400)
    for arms, seeds in ((4, 3), (4, 5), (10, 5), (4, 10), (4, 20)):
        print_table("Power, +3 points", studies=studies, arms=arms, seeds=seeds, examples=1000, effect=0.17)


if __name__ == "__main__":
    main()
