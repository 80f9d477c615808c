"""A sweep's layers beside how loud each of them is: does the accuracy fall with the loudness?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks.evidence_facts import Evidence, Study
from layer_surgeon.errors import ConfigError

LAYERS = "layers"
_SHUFFLES = 50_000


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's, with the p of a permutation test, two-sided."""

    rho: float
    p: float
    layers: int


def gains(evidence: Evidence, study: str) -> Mapping[str, float]:
    """By arm: how many times its input a layer adds to it before training, geometric mean over the seeds.

    Empty where that was not measured.
    """
    sweeps: Mapping[str, Any] = evidence.measured.get(LAYERS, {"sweeps": {}})["sweeps"]
    return {arm: float(stats.gmean(numbers["gain"])) for arm, numbers in sweeps.get(study, {}).items()}


def accuracy_by_gain(evidence: Evidence, study: Study) -> RankCorrelation:
    """The correlation of the layers' accuracies, means over the seeds, with their gains.

    Raises:
        ConfigError: There is no sweep, or the gains of its layers were not measured.
    """
    found = gains(evidence, study.name)
    if not found:
        raise ConfigError(f"docs/results/{LAYERS}.json does not have {study.name}.")
    points = study.sweep().points
    return correlate([found[point.row.arm] for point in points], [point.row.mean for point in points])


def correlate(first: Sequence[float], second: Sequence[float]) -> RankCorrelation:
    """Of two numbers for each layer. Where the orders are few enough, all of them are tried."""
    one, other = (stats.zscore(stats.rankdata(values)) for values in (first, second))
    found = stats.permutation_test(
        (one,),
        lambda order, axis: (order * other).mean(axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=_SHUFFLES,
        batch=5_000,
        rng=0,
    )
    return RankCorrelation(rho=float(found.statistic), p=float(found.pvalue), layers=len(first))
