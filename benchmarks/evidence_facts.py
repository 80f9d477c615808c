"""What the evidence says: the product's own tables of every study, and what the page asks beside them."""

import functools
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.evidence_store import EVIDENCE, PLANS, RESULTS, SELECT, plans, unpack
from layer_surgeon.errors import ConfigError
from layer_surgeon.report.series import LayerSweep, layer_sweeps
from layer_surgeon.study.layout import StudyFolder, read_json, write_json
from layer_surgeon.study.paired import ALPHA, compare_scores, holm, seed_interval_of_mean
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.summary import summarize
from layer_surgeon.study.tables import Comparison, Row, Summary, Table

# Measured by other commands, which write them.
MEASURED = ("efficiency", "loudness", "layers")
CROSSED = "seeds and examples"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A difference of two arms as the page says it.

    Attributes:
        arm, against: The arms.
        mean: arm minus against.
        interval: 95 %; None with one seed.
        p: After Holm's correction; None where there is no test.
        seeds: How many both have.
        by_seed: The difference of each.
    """

    arm: str
    against: str
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    seeds: int
    by_seed: tuple[float, ...]

    @property
    def significant(self) -> bool:
        """As the study's own verdict has it."""
        return self.p is not None and self.p < ALPHA


@dataclass(frozen=True, kw_only=True)
class Anova:
    """One-way analysis of variance over the layers of a sweep."""

    f: float
    p: float
    between: int
    within: int
    pooled_deviation: float


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study, with the seeds that all of its arms have.

    Attributes:
        name, plan: As planned.
        cells: All finished trainings, as the evidence has them.
        seeds: By data set: those with which every arm is trained.
        summary: The product's, of these seeds.
        content: The evidence's file.
    """

    name: str
    plan: StudyPlan
    cells: tuple[Mapping[str, Any], ...]
    seeds: Mapping[str, tuple[int, ...]]
    summary: Summary
    content: Mapping[str, Any]

    @property
    def tables(self) -> tuple[Table, ...]:
        """Of the summary."""
        return self.summary.tables

    @property
    def is_there(self) -> bool:
        """Every table has at least one seed."""
        return all(self.seeds.values())

    def table(self, data: str, test: str) -> Table:
        """Trained on `data`, tested on `test`.

        Raises:
            ConfigError: There is none.
        """
        for table in self.tables:
            if (table.data, table.test) == (data, test):
                return table
        known = ", ".join(f"{table.data} {table.test}" for table in self.tables) or "none yet"
        raise ConfigError(f"{self.name} has no table for {data} {test}. There are: {known}.")

    def row(self, data: str, test: str, arm: str) -> Row:
        """An arm's row.

        Raises:
            ConfigError: There is none.
        """
        for row in self.table(data, test).rows:
            if row.arm == arm:
                return row
        raise ConfigError(f"{self.name} has no arm {arm}. There are: {', '.join(a.name for a in self.plan.arms)}.")

    def gap(self, data: str, test: str, arm: str, against: str) -> Gap:
        """A comparison of the study, in either direction.

        Raises:
            ConfigError: The study does not make it.
        """
        for entry in self.table(data, test).comparisons:
            if (entry.arm, entry.against) == (arm, against):
                return gap_of(entry)
            if (entry.arm, entry.against) == (against, arm):
                return _turned(gap_of(entry))
        raise ConfigError(
            f"{self.name} does not compare {arm} with {against}: it takes each arm against {self.plan.reference}, and "
            f"{self.plan.focus} against each."
        )

    def sweep(self) -> LayerSweep:
        """The study's layers.

        Raises:
            ConfigError: It has none.
        """
        found = layer_sweeps(self.summary, self.plan)
        if not found:
            raise ConfigError(f"{self.name} sweeps over no layers.")
        return found[0]

    def anova(self) -> Anova:
        """Do the layers differ?

        Raises:
            ConfigError: There is no sweep, or only one seed.
        """
        groups = [point.row.by_seed for point in self.sweep().points]
        if min(map(len, groups)) < 2:
            raise ConfigError(f"{self.name} has one seed, with which no analysis of variance can be made.")
        found = stats.f_oneway(*groups)
        return Anova(
            f=float(found.statistic),
            p=float(found.pvalue),
            between=len(groups) - 1,
            within=sum(map(len, groups)) - len(groups),
            pooled_deviation=float(np.mean([np.var(group, ddof=1) for group in groups]) ** 0.5),
        )

    def domains(self) -> dict[str, tuple[Gap, Gap, Gap]]:
        """By arm, against the reference: on the own domain, on the others, and the second minus the first.

        Each seed's differences are averaged over the tables; interval (t) and p are over the seeds, p with Holm's
        correction over all that is returned.
        """
        reference = self.plan.reference
        arms = [arm.name for arm in self.plan.arms if arm.name != reference]
        seeds = [seed for seed in self.plan.seeds if all(seed in own for own in self.seeds.values())]
        values: dict[tuple[str, str], list[float]] = {}
        for arm in arms:
            own, other = self._by_seed(arm, seeds, own=True), self._by_seed(arm, seeds, own=False)
            shift = [second - first for first, second in zip(own, other, strict=True)]
            values |= {(arm, "own"): own, (arm, "other"): other, (arm, "shift"): shift}
        raw = {key: compare_scores([0.0] * len(seeds), entry).t_test for key, entry in values.items()}
        tested = [key for key, p in raw.items() if p is not None]
        adjusted = dict(zip(tested, holm([raw[key] for key in tested]), strict=True))

        def gap(arm: str, kind: str) -> Gap:
            entry = values[arm, kind]
            found = seed_interval_of_mean(entry)
            return Gap(
                arm=arm,
                against=reference,
                mean=sum(entry) / len(entry),
                interval=None if found is None else (found.low, found.high),
                p=adjusted.get((arm, kind)),
                seeds=len(seeds),
                by_seed=tuple(entry),
            )

        return {arm: (gap(arm, "own"), gap(arm, "other"), gap(arm, "shift")) for arm in arms} if seeds else {}

    def _by_seed(self, arm: str, seeds: Sequence[int], *, own: bool) -> list[float]:
        tables = [table for table in self.tables if (table.data == table.test) == own]
        scores = {
            (row.arm, table.data, table.test, seed): value
            for table in tables
            for row in table.rows
            for seed, value in zip(row.seeds, row.by_seed, strict=True)
        }
        pairs = [(table.data, table.test) for table in tables]
        return [
            sum(scores[arm, *pair, seed] - scores[self.plan.reference, *pair, seed] for pair in pairs) / len(pairs)
            for seed in seeds
        ]


def gap_of(entry: Comparison) -> Gap:
    """The product's comparison as the page says it: an interval by bootstrap is not of the test that decides."""
    return Gap(
        arm=entry.arm,
        against=entry.against,
        mean=entry.mean,
        interval=entry.interval if entry.basis == CROSSED else None,
        p=entry.p_holm,
        seeds=len(entry.seeds),
        by_seed=entry.by_seed,
    )


def _turned(gap: Gap) -> Gap:
    return Gap(
        arm=gap.against,
        against=gap.arm,
        mean=-gap.mean,
        interval=None if gap.interval is None else (-gap.interval[1], -gap.interval[0]),
        p=gap.p,
        seeds=gap.seeds,
        by_seed=tuple(-value for value in gap.by_seed),
    )


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the page is made from.

    Attributes:
        plans: Every planned study, by name.
        studies: Those of which a training is finished, by name.
        selections: What `surgeon select` chose, by name.
        measured: docs/results/{efficiency,loudness,layers}.json, as far as they are there.
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

    def has(self, name: str) -> bool:
        """Whether a study, a selection or a measurement is there.

        Raises:
            ConfigError: It is nothing that could be there.
        """
        if name not in self.plans and name not in MEASURED and not name.startswith(SELECT):
            raise ConfigError(f"{name} is not planned. Planned are: {', '.join(self.plans)}.")
        if name in self.studies:
            return self.studies[name].is_there
        return name in self.measured or name in self.selections

    @functools.cached_property
    def trainings(self) -> Mapping[str, Mapping[str, Any]]:
        """Every training by its id: one that two studies share is one."""
        return {cell["id"]: cell for study in self.studies.values() for cell in study.cells}


def load(evidence: Path = EVIDENCE, *, planned: Path = PLANS, measured: Path = RESULTS) -> Evidence:
    """Read what is committed, and let the product sum it up."""
    contents = {path.stem: read_json(path) for path in sorted(evidence.glob("*.json"))}
    known = plans(planned)
    order = [*known, *sorted(name for name in contents if name not in known)]
    chosen = {name: contents[name] for name in order if name in contents}
    # What has no donor is the same training in studies of several donors: it is in the file of one of them.
    everything = {cell["id"]: cell for content in contents.values() for cell in content.get("cells", [])}
    return Evidence(
        plans=known,
        studies={
            name: read_study(name, content, everything)
            for name, content in chosen.items()
            if not name.startswith(SELECT)
        },
        selections={name: content for name, content in chosen.items() if name.startswith(SELECT)},
        measured={
            name: json.loads((measured / f"{name}.json").read_text(encoding="utf-8"))
            for name in MEASURED
            if (measured / f"{name}.json").is_file()
        },
    )


def read_study(name: str, content: Mapping[str, Any], everything: Mapping[str, Mapping[str, Any]]) -> Study:
    """A study's file, with the product's tables of the seeds that all arms have.

    Args:
        name: Its name.
        content: The file.
        everything: The trainings of all files, by id: those that the study shares with others count for it too.
    """
    with tempfile.TemporaryDirectory(prefix="evidence-") as place:
        folder = StudyFolder(root=Path(place))
        # Plans are read from files, and a file of JSON is one of YAML.
        write_json(folder.plan, dict(content["plan"]))
        plan = StudyPlan.read(folder.plan)
        ids = {cell.id for cell in plan.cells()}
        cells = {
            **{key: cell for key, cell in everything.items() if key in ids},
            **{cell["id"]: cell for cell in content["cells"]},
        }
        seeds = whole_seeds(plan, cells)
        for cell in plan.cells():
            if cell.seed in seeds[cell.data]:
                write_json(folder.result(cell.id), unpack(cells[cell.id]))
        summary = summarize(plan, folder)
    return Study(name=name, plan=plan, cells=tuple(cells.values()), seeds=seeds, summary=summary, content=content)


def whole_seeds(plan: StudyPlan, done: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """By data set: the seeds with which all arms are trained, on every share of it."""
    ids = set(done)
    missing = {(cell.data, cell.seed) for cell in plan.cells() if cell.id not in ids}
    trained = dict.fromkeys(cell.data for cell in plan.cells())
    return {data: tuple(seed for seed in plan.seeds if (data, seed) not in missing) for data in trained}
