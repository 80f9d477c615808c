"""Read the committed evidence back: the tables that `surgeon compare` makes, computed from the single trainings."""

import functools
import itertools
import math
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.machine import ROOT
from layer_surgeon._io import write_json
from layer_surgeon._yaml import read_yaml
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.layout import StudyFolder, read_json
from layer_surgeon.study.paired import ALPHA, compare_scores, holm, seed_interval_of_mean
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.records import as_json
from layer_surgeon.study.summary import summarize
from research.numbers import Interval, interval_points, p_values, points

RESEARCH = ROOT / "research"
# The second campaign: its plans and evidence.
READING = RESEARCH / "reading"
PLANS, MEASURED = RESEARCH / "plans", RESEARCH / "measured"
SELECT = "select-"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The difference between two arms; its text is `-4.1 points (-6.0 to -2.2; p = 0.003, corrected 0.04)`.

    Attributes:
        arm: The first arm.
        against: The arm that is subtracted from it.
        mean: Mean difference, a share.
        interval: The 95 % interval of the test that decides; None with one seed.
        p: After Holm's correction; None where there is no test.
        by_seed: The difference of each seed.
        raw_p: Before the correction; None where there is none.
        p_equivalence: Of the test that the difference is within the plan's margin, after Holm's correction; None where
            there is none.
    """

    arm: str
    against: str
    mean: float
    interval: Interval | None
    p: float | None
    by_seed: tuple[float, ...]
    raw_p: float | None = None
    p_equivalence: float | None = None

    def __str__(self) -> str:
        return f"{points(self.mean)} points ({interval_points(self.interval)}; {p_values(self.raw_p, self.p)})"

    @property
    def significant(self) -> bool:
        """Whether p is below the level of the tests."""
        return self.p is not None and self.p < ALPHA

    @property
    def ahead(self) -> bool:
        """Whether the first arm is significantly better."""
        return self.significant and self.mean > 0

    @property
    def equivalent(self) -> bool:
        """Whether the difference is shown to be within the plan's margin."""
        return self.p_equivalence is not None and self.p_equivalence < ALPHA

    @property
    def seeds_for_one_point(self) -> int:
        """With how many seeds the t-test finds a difference of one point in 80 % of studies that scatter like this one.

        Raises:
            ConfigError: There is only one seed, or no scatter.
        """
        deviation = statistics.stdev(self.by_seed) if len(self.by_seed) > 1 else 0
        if not deviation:
            raise ConfigError("The number of seeds needs differences that scatter, over two seeds or more.")

        def power(seeds: int) -> float:
            limit = stats.t.ppf(1 - ALPHA / 2, seeds - 1)
            return float(stats.nct.sf(limit, seeds - 1, 0.01 / deviation * math.sqrt(seeds)))

        return next(seeds for seeds in itertools.count(2) if power(seeds) >= 0.8)

    def reversed(self) -> "Gap":
        """The same difference with the arms exchanged."""
        return replace(
            self,
            arm=self.against,
            against=self.arm,
            mean=-self.mean,
            interval=None if self.interval is None else (-self.interval[1], -self.interval[0]),
            by_seed=tuple(-value for value in self.by_seed),
        )


@dataclass(frozen=True, kw_only=True)
class LayerSweep:
    """The layers of a donor on one test set.

    Attributes:
        donor: Its name.
        data: The data set, of which the test part is used.
        labels: By arm, in the order of the layers: "16", "15+16".
        rows: By arm, as in summary.json.
        host: The row of the host alone.
    """

    donor: str
    data: str
    labels: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Any]]
    host: Mapping[str, Any]

    @property
    def means(self) -> dict[str, float]:
        """Mean accuracy by layer."""
        return {label: self.rows[arm]["mean"] for arm, label in self.labels.items()}

    @property
    def best(self) -> str:
        """The layer with the highest mean."""
        return max(self.means, key=self.means.__getitem__)

    @property
    def last(self) -> str:
        """The last layer."""
        return list(self.means)[-1]

    @property
    def lag(self) -> float:
        """How far the last layer is behind the best one."""
        return self.means[self.best] - self.means[self.last]

    @functools.cached_property
    def anova(self) -> Mapping[str, float]:
        """One-way analysis of variance over the layers: f, p, between and within (degrees of freedom), deviation.

        `deviation` is the standard deviation of a layer's seeds, pooled over the layers.

        Raises:
            ConfigError: There is only one seed.
        """
        groups = [self.rows[arm]["by_seed"] for arm in self.labels]
        if min(map(len, groups)) < 2:
            raise ConfigError("An analysis of variance needs two seeds or more, and this sweep has one.")
        result = stats.f_oneway(*groups)
        return {
            "f": float(result.statistic),
            "p": float(result.pvalue),
            "between": len(groups) - 1,
            "within": sum(map(len, groups)) - len(groups),
            "deviation": statistics.fmean(map(statistics.variance, groups)) ** 0.5,
        }


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study, with the seeds that all of its arms have.

    Attributes:
        name: Its name.
        plan: The plan.
        cells: All finished trainings, as the evidence has them.
        seeds: By data set, the seeds with which every arm is trained.
        tables: By training set and test set, the tables of summary.json for these seeds.
        arms: The arms of summary.json.
        content: The evidence file.
    """

    name: str
    plan: StudyPlan
    cells: tuple[Mapping[str, Any], ...]
    seeds: Mapping[str, tuple[int, ...]]
    tables: Mapping[tuple[str, str], Mapping[str, Any]]
    arms: Mapping[str, Mapping[str, Any]]
    content: Mapping[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether every table has at least one seed."""
        return all(self.seeds.values())

    def whole_cells(self, data: str) -> list[Mapping[str, Any]]:
        """The trainings on a data set, with the seeds that all arms have."""
        return [cell for cell in self.cells if cell["data"] == data and cell["seed"] in self.seeds[data]]

    def table(self, data: str, test: str) -> Mapping[str, Any]:
        """The table for a training set and a test set.

        Raises:
            ConfigError: There is none.
        """
        if (data, test) not in self.tables:
            known = ", ".join(map(" ".join, self.tables)) or "none yet"
            raise ConfigError(f"{self.name} has no table for {data} {test}. There are: {known}.")
        return self.tables[data, test]

    def row(self, data: str, test: str, arm: str) -> Mapping[str, Any]:
        """An arm's row in a table.

        Raises:
            ConfigError: There is none.
        """
        rows = {row["arm"]: row for row in self.table(data, test)["rows"]}
        if arm not in rows:
            raise ConfigError(f"{self.name} has no arm {arm}. There are: {', '.join(rows)}.")
        return rows[arm]

    def gaps(self, data: str, test: str) -> dict[tuple[str, str], Gap]:
        """Every comparison of a table, in both directions, by (arm, against)."""
        # An interval by bootstrap belongs to another test than the one that decides.
        gaps = [
            Gap(
                arm=comparison["arm"],
                against=comparison["against"],
                mean=comparison["mean"],
                interval=tuple(comparison["crossed"]["interval"]) if comparison["crossed"] else None,
                p=comparison["p_holm"],
                by_seed=tuple(comparison["by_seed"]),
                raw_p=comparison["p"],
                p_equivalence=comparison["p_equivalence"],
            )
            for comparison in self.table(data, test)["comparisons"]
        ]
        return {(gap.arm, gap.against): gap for gap in (*gaps, *(gap.reversed() for gap in gaps))}

    def gap(self, data: str, test: str, arm: str, against: str) -> Gap:
        """One comparison, in either direction.

        Raises:
            ConfigError: The study does not make it.
        """
        gaps = self.gaps(data, test)
        if (arm, against) not in gaps:
            raise ConfigError(
                f"{self.name} does not compare {arm} with {against}: it compares each arm with {self.plan.reference}, "
                f"and {self.plan.focus} with each."
            )
        return gaps[arm, against]

    def validation(self, arm: str, seed: int) -> list[float]:
        """The accuracy on the validation part after each epoch, in the first training of an arm with a seed.

        Raises:
            ConfigError: There is no such training.
        """
        for cell in self.cells:
            if (cell["arm"], cell["seed"]) == (arm, seed):
                return [epoch["accuracy"] for epoch in cell["history"]]
        raise ConfigError(f"{self.name} has no training of {arm} with seed {seed}.")

    @functools.cached_property
    def sweep(self) -> LayerSweep:
        """The study's layers.

        Raises:
            ConfigError: It has no more than one.
        """
        donors = {arm.name: arm.donor for arm in self.plan.arms if arm.kind == "graft" and arm.donor is not None}
        labels = {name: "+".join(map(str, donor.layers)) for name, donor in donors.items()}
        if len(set(labels.values())) < 2 or not self.tables:
            raise ConfigError(f"{self.name} sweeps over no layers.")
        (data, test) = next(iter(self.tables))
        return LayerSweep(
            donor=next(iter(donors.values())).source.removeprefix("packaged:"),
            data=data,
            labels=labels,
            rows={arm: self.row(data, test, arm) for arm in labels},
            host=self.row(data, test, self.plan.reference),
        )

    @functools.cached_property
    def domains(self) -> Mapping[str, Mapping[str, Gap]]:
        """By arm, against the reference: `own` domain, `other` domains, and `shift`, other minus own.

        Each seed's differences are averaged over the tables. Interval (t) and p are over the seeds, p with Holm's
        correction over everything that is returned.
        """
        reference = self.plan.reference
        arms = [arm.name for arm in self.plan.arms if arm.name != reference]
        values: dict[tuple[str, str], list[float]] = {}
        for arm in arms:
            own, other = self._by_seed(arm, own=True), self._by_seed(arm, own=False)
            shift = [of_other - of_own for of_own, of_other in zip(own, other, strict=True)]
            values |= {(arm, "own"): own, (arm, "other"): other, (arm, "shift"): shift}
        p_values_by_key = {key: compare_scores([0.0] * len(by_seed), by_seed).t_test for key, by_seed in values.items()}
        tested = [key for key, p in p_values_by_key.items() if p is not None]
        adjusted = dict(zip(tested, holm([p_values_by_key[key] for key in tested]), strict=True))
        gaps: dict[str, dict[str, Gap]] = {arm: {} for arm in arms}
        for (arm, kind), by_seed in values.items():
            interval = seed_interval_of_mean(by_seed)
            gaps[arm][kind] = Gap(
                arm=arm,
                against=reference,
                mean=statistics.fmean(by_seed),
                interval=None if interval is None else (interval.low, interval.high),
                p=adjusted.get((arm, kind)),
                by_seed=tuple(by_seed),
                raw_p=p_values_by_key[arm, kind],
            )
        return gaps

    def _by_seed(self, arm: str, *, own: bool) -> list[float]:
        pairs = [(data, test) for data, test in self.tables if (data == test) == own]
        gaps = [self.gap(data, test, arm, self.plan.reference).by_seed for data, test in pairs]
        return [statistics.fmean(of_seed) for of_seed in zip(*gaps, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the pages are made from.

    Attributes:
        plans: Every planned study, by name.
        studies: Those of which a training is finished, by name.
        selections: What `surgeon select` chose, by name.
        measured: The files of research/measured, by name.
    """

    plans: Mapping[str, StudyPlan]
    studies: Mapping[str, Study]
    selections: Mapping[str, Mapping[str, Any]]
    measured: Mapping[str, Mapping[str, Any]]

    def study(self, name: str) -> Study:
        """A study.

        Raises:
            ConfigError: Nothing of it is finished.
        """
        if name not in self.studies:
            raise ConfigError(f"There is no evidence for {name}. There is some for: {', '.join(self.studies)}.")
        return self.studies[name]

    def has(self, name: str, data: str | None = None) -> bool:
        """Whether a study has at least one seed of a data set; without `data`, of each of its data sets.

        Raises:
            ConfigError: The study is not planned.
        """
        if name not in self.plans:
            raise ConfigError(f"{name} is not planned. Planned are: {', '.join(self.plans)}.")
        if name not in self.studies:
            return False
        study = self.studies[name]
        return study.is_whole if data is None else bool(study.seeds.get(data))

    @functools.cached_property
    def trainings(self) -> Mapping[str, Mapping[str, Any]]:
        """Every training by its id; one that two studies share counts once."""
        return {cell["id"]: cell for study in self.studies.values() for cell in study.cells}

    def gains(self, study: str) -> dict[str, float]:
        """By arm, how many times its input a layer adds to it before training: geometric mean over the seeds.

        Empty where that was not measured.
        """
        sweeps: Mapping[str, Any] = self.measured.get("layers", {"sweeps": {}})["sweeps"]
        return {arm: float(stats.gmean(numbers["gain"])) for arm, numbers in sweeps.get(study, {}).items()}

    def loudness_correlation(self, name: str) -> Mapping[str, float]:
        """Spearman's correlation of the layers' mean accuracies with their gains: `rho`, `p` and `layers`.

        Raises:
            ConfigError: The study has no sweep, or the gains of its layers were not measured.
        """
        sweep, gains = self.study(name).sweep, self.gains(name)
        if not gains:
            raise ConfigError(f"research/measured/layers.json does not have {name}.")
        return correlate([gains[arm] for arm in sweep.labels], list(sweep.means.values()))

    def loudness_given_depth(self, name: str) -> Mapping[str, float]:
        """Rank correlations of a sweep's gains: with the layers' numbers, `with_depth`; and with accuracy, given these.

        The latter is the partial correlation `rho`, with `p` from t with layers - 3 degrees of freedom.

        Raises:
            ConfigError: As in `loudness_correlation`.
        """
        self.loudness_correlation(name)  # with its errors
        sweep, gains = self.study(name).sweep, self.gains(name)
        depths = [int(label) for label in sweep.labels.values()]
        layer_gains = [gains[arm] for arm in sweep.labels]
        with_depth = float(stats.spearmanr(layer_gains, depths).statistic)
        return {"with_depth": with_depth, **correlate_given(layer_gains, list(sweep.means.values()), depths)}

    def average_gap(self, tables: Sequence[tuple[str, str]], arm: str, against: str) -> Gap:
        """The difference between two arms, averaged over tables; interval and p over the seeds that all tables have.

        If all studies have the same margin of equivalence, equivalence is tested over these seeds, too.

        Args:
            tables: A study and one of its data sets, tested on itself, for each.
            arm: The first arm.
            against: The arm that is subtracted from it.

        Raises:
            ConfigError: A study does not make the comparison, or no seed is in all tables.
        """
        gaps = []
        for name, data in tables:
            study = self.study(name)
            gaps.append(dict(zip(study.seeds[data], study.gap(data, data, arm, against).by_seed, strict=True)))
        common_seeds = [seed for seed in gaps[0] if all(seed in by_seed for by_seed in gaps)]
        if not common_seeds:
            raise ConfigError(f"No seed is in all of {', '.join(f'{name} {data}' for name, data in tables)}.")
        by_seed = [statistics.fmean(by_seed[seed] for by_seed in gaps) for seed in common_seeds]
        interval, difference = seed_interval_of_mean(by_seed), compare_scores([0.0] * len(by_seed), by_seed)
        margins = {self.study(name).plan.equivalence for name, _ in tables}
        margin = margins.pop() if len(margins) == 1 else None
        return Gap(
            arm=arm,
            against=against,
            mean=difference.mean,
            interval=None if interval is None else (interval.low, interval.high),
            p=difference.t_test,
            by_seed=tuple(by_seed),
            p_equivalence=None if margin is None else difference.test_equivalence(margin / 100),
        )


def correlate(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Spearman's rank correlation `rho`, with the two-sided `p` of a permutation test, and the number of `layers`."""
    ranks, others = (stats.zscore(stats.rankdata(values)) for values in (first, second))
    result = stats.permutation_test(
        (ranks,),
        lambda order, axis: (order * others).mean(axis=axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=50_000,
        batch=5_000,
        rng=0,
    )
    return {"rho": float(result.statistic), "p": float(result.pvalue), "layers": len(first)}


def correlate_given(first: Sequence[float], second: Sequence[float], given: Sequence[float]) -> dict[str, float]:
    """Partial rank correlation `rho` of two lists given a third, with `p` from t with n - 3 degrees of freedom."""
    ranks = np.array([stats.rankdata(values) for values in (first, second, given)])
    ((_, both, with_first), (_, _, with_second), _) = np.corrcoef(ranks)
    rho = float((both - with_first * with_second) / math.sqrt((1 - with_first**2) * (1 - with_second**2)))
    df = len(first) - 3
    return {"rho": rho, "p": float(2 * stats.t.sf(abs(rho) * math.sqrt(df / (1 - rho**2)), df))}


def load_plans(folder: Path = PLANS) -> dict[str, StudyPlan]:
    """The planned studies, by name."""
    return {path.stem: StudyPlan.from_dict(read_yaml(path)) for path in sorted(folder.glob("*.yaml"))}


def load(campaign: Path = RESEARCH) -> Evidence:
    """Read everything that is committed of a campaign, and compute the tables of each study."""
    contents = {path.stem: read_json(path) for path in sorted((campaign / "evidence").glob("*.json"))}
    plans = load_plans(campaign / "plans")
    # An arm without a donor is the same training in studies of several donors, and is in the file of one of them.
    cells = {cell["id"]: cell for content in contents.values() for cell in content.get("cells", [])}
    return Evidence(
        plans=plans,
        studies={name: _study(name, plan, contents[name], cells) for name, plan in plans.items() if name in contents},
        selections={name: content["selection"] for name, content in contents.items() if name.startswith(SELECT)},
        measured={path.stem: read_json(path) for path in (campaign / "measured").glob("*.json")},
    )


def _study(name: str, plan: StudyPlan, content: Mapping[str, Any], all_cells: Mapping[str, Mapping[str, Any]]) -> Study:
    cells = {cell.id: all_cells[cell.id] for cell in plan.cells() if cell.id in all_cells}
    seeds = whole_seeds(plan, cells)
    with tempfile.TemporaryDirectory(prefix="evidence-") as root:
        folder = StudyFolder(root=Path(root))
        for cell in plan.cells():
            if cell.seed in seeds[cell.data]:
                write_json(folder.result(cell.id), unpack(cells[cell.id]))
        summary = as_json(summarize(plan, folder))
    return Study(
        name=name,
        plan=plan,
        cells=tuple(cells.values()),
        seeds=seeds,
        tables={(table["data"], table["test"]): table for table in summary["tables"]},
        arms=summary["arms"],
        content=content,
    )


def whole_seeds(plan: StudyPlan, finished: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """By data set, the seeds with which all arms are trained; `finished` are the ids of trainings."""
    ids = set(finished)
    missing = {(cell.data, cell.seed) for cell in plan.cells() if cell.id not in ids}
    return {data: tuple(seed for seed in plan.seeds if (data, seed) not in missing) for data in plan.tests}


def unpack(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A training of the evidence in the form that `summarize` reads."""
    tests = {name: {**test, "correct": unpack_bits(test["correct"])} for name, test in cell["tests"].items()}
    # What the tables don't need was left out of the evidence.
    left_out = {"host": "", "donor": None, "config": {}, "versions": {}}
    return {"format": 1, **left_out, **cell, "tests": tests}


def unpack_bits(text: str | None) -> str | None:
    """`3:5` -> `101`: the number of examples, and which of them were right as a hexadecimal number."""
    if text is None:
        return None
    number, _, digits = text.partition(":")
    return f"{int(digits, 16):0{int(number)}b}"
