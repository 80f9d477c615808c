"""A sweep's layers beside how loud each of them is: does the accuracy fall with the loudness?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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

    Raises:
        ConfigError: It was not measured.
    """
    measured: Mapping[str, Any] = evidence.measured.get(LAYERS, {"sweeps": {}})["sweeps"]
    if study not in measured:
        raise ConfigError(f"docs/results/{LAYERS}.json does not have {study}. It has: {', '.join(measured) or 'none'}.")
    return {arm: math.exp(np.log(numbers["gain"]).mean()) for arm, numbers in measured[study].items()}


def gains_if_known(evidence: Evidence, study: str) -> Mapping[str, float]:
    """The same; none where they were not measured."""
    return gains(evidence, study) if study in evidence.measured.get(LAYERS, {"sweeps": {}})["sweeps"] else {}


def accuracy_by_gain(evidence: Evidence, study: Study) -> RankCorrelation:
    """The correlation of the layers' accuracies, means over the seeds, with their gains.

    Raises:
        ConfigError: There is no sweep, or the gains of its layers were not measured.
    """
    found = gains(evidence, study.name)
    points = study.sweep().points
    return correlate([found[point.arm] for point in points], [point.mean for point in points])


def correlate(first: Sequence[float], second: Sequence[float]) -> RankCorrelation:
    """Of two numbers for each layer. Where the orders are few enough, all of them are tried."""
    ranks, fixed = stats.rankdata(first), stats.rankdata(second)
    fixed = (fixed - fixed.mean()) / np.linalg.norm(fixed - fixed.mean())

    def rho(shuffled: np.ndarray, axis: int = -1) -> np.ndarray:
        centred = shuffled - ranks.mean()
        return np.asarray((np.moveaxis(centred, axis, -1) @ fixed) / np.linalg.norm(ranks - ranks.mean()))

    found = stats.permutation_test(
        (ranks,), rho, permutation_type="pairings", vectorized=True, n_resamples=_SHUFFLES, batch=5_000, rng=0
    )
    return RankCorrelation(rho=float(found.statistic), p=float(found.pvalue), layers=len(first))
