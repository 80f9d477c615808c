"""The page and the README's block: prose with directives -> Markdown, in which every number is the evidence's.

    {{table STUDY DATA TEST}}                every arm: accuracy, trained parameters, differences
    {{diff STUDY DATA TEST ARM AGAINST}}     -4.1 points (-6.0 to -2.2; p = 0.003)
    {{points STUDY DATA TEST ARM AGAINST}}   -4.1
    {{p STUDY DATA TEST ARM AGAINST}}        p = 0.003
    {{mean STUDY DATA TEST ARM}}             84.5 %
    {{score STUDY DATA TEST ARM SCORE}}      another score of an arm, mean over the seeds: 0.42
    {{shift STUDY ARM AGAINST}}              differences by training and test set
    {{domains STUDY}}  {{domain STUDY ARM own|other|shift}}   the table over all domains; one of its differences
    {{sweep STUDY}}  {{anova STUDY}}  {{best STUDY}}  {{last STUDY}}  {{behind STUDY}}  {{pooled STUDY}}
    {{rank STUDY}}                           Spearman's correlation of accuracy with loudness, over its layers
    {{selection SELECTION STUDY}}            what `surgeon select` chose, in the sweep
    {{runs}}  {{runs STUDY}}  {{planned}}  {{planned STUDY}}  {{seeds STUDY}}  {{hours}}
    {{hypotheses}}                           those of the plan, each with its answer
    {{missing}}  {{studies}}  {{machine}}  {{versions}}  {{command STUDY}}
    {{efficiency}}  {{loudness}}             tables of docs/results/{efficiency,loudness}.json
    {{value FILE PATH}}                      a number of these, such as {{value loudness start/gemma-3-270m/graft/loss}}
    {{figure NAME}}                          one of `benchmarks.evidence_figures`
    {{#if NAME NAME}} ... {{else}} ... {{/if}}   only where all of these studies, selections or measurements are there

A directive that is not known is an error, and so is one that asks for what is not there, outside of such a section.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import evidence_text as text
from benchmarks.evidence_facts import Evidence, Gap, Study
from benchmarks.evidence_layers import accuracy_by_gain, gains
from benchmarks.evidence_verdicts import hypotheses
from layer_surgeon.errors import ConfigError
from layer_surgeon.report.series import LayerPoint

_TAG = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
# A section's tag that has a line for itself takes the line with it.
_ALONE = re.compile(r"^[ \t]*(\{\{(?:#if [^}]*|else|/if)\}\})[ \t]*\n", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Page:
    """What directives draw on.

    Attributes:
        evidence: The numbers.
        figures: Name -> text for those who don't see it; only those that can be drawn.
        assets: Where the figures lie, as the page has it.
    """

    evidence: Evidence
    figures: Mapping[str, str]
    assets: str

    def render(self, template: str) -> str:
        """The template with its directives carried out.

        Raises:
            ConfigError: A directive is not known, or asks for what is not there.
        """
        pieces = _TAG.split(_ALONE.sub(r"\1", template))
        done, rest = self._block(pieces, 0, shown=True, inside=False)
        if rest != len(pieces):
            raise ConfigError("There is an {{else}} or {{/if}} without an {{#if}}.")
        return re.sub(r"\n{3,}", "\n\n", done).strip() + "\n"

    def _block(self, pieces: list[str], at: int, *, shown: bool, inside: bool) -> tuple[str, int]:
        """Text and tags take turns; ends behind them, or at the tag that ends a section."""
        done = [pieces[at] if shown else ""]
        at += 1
        while at < len(pieces):
            tag = " ".join(pieces[at].split())
            if tag in ("else", "/if"):
                return "".join(done), at
            if tag.startswith("#if "):
                section, at = self._section(tag, pieces, at + 1, shown=shown)
                done.append(section)
            else:
                done.append(self._carry_out(tag, shown=shown))
                at += 1
            done.append(pieces[at] if shown else "")
            at += 1
        if inside:
            raise ConfigError("An {{#if}} has no {{/if}}.")
        return "".join(done), at

    def _section(self, tag: str, pieces: list[str], at: int, *, shown: bool) -> tuple[str, int]:
        there = all(self.evidence.has(name) for name in tag.split()[1:])
        first, at = self._block(pieces, at, shown=shown and there, inside=True)
        second = ""
        if pieces[at].strip() == "else":
            second, at = self._block(pieces, at + 1, shown=shown and not there, inside=True)
        return first + second, at + 1

    def _carry_out(self, tag: str, *, shown: bool) -> str:
        name, *arguments = tag.split()
        if name not in DIRECTIVES:
            raise ConfigError(f"{{{{{tag}}}}}: there is no such directive. There are: {', '.join(DIRECTIVES)}.")
        function = DIRECTIVES[name]
        try:
            inspect.signature(function).bind(self, *arguments)
        except TypeError as error:
            raise ConfigError(f"{{{{{tag}}}}}: {error}.") from error
        if not shown:
            return ""
        try:
            return function(self, *arguments)
        except ConfigError as error:
            raise ConfigError(f"{{{{{tag}}}}}: {error}") from error


def _study(page: Page, name: str) -> Study:
    return page.evidence.study(name)


def _gap(page: Page, name: str, data: str, test: str, arm: str, against: str) -> Gap:
    return page.evidence.study(name).gap(data, test, arm, against)


def _diff(page: Page, name: str, data: str, test: str, arm: str, against: str) -> str:
    return text.say_gap(_gap(page, name, data, test, arm, against))


def _points(page: Page, name: str, data: str, test: str, arm: str, against: str) -> str:
    return text.points(_gap(page, name, data, test, arm, against).mean)


def _p(page: Page, name: str, data: str, test: str, arm: str, against: str) -> str:
    return text.say_chance(_gap(page, name, data, test, arm, against).p)


def _mean(page: Page, name: str, data: str, test: str, arm: str) -> str:
    return f"{text.per_cent(_study(page, name).row(data, test, arm).mean)} %"


def _score(page: Page, name: str, data: str, test: str, arm: str, score: str) -> str:
    study = _study(page, name)
    seeds = study.row(data, test, arm).seeds
    cells = [cell for cell in study.cells if (cell["arm"], cell["data"]) == (arm, data) and cell["seed"] in seeds]
    scores = [cell["tests"][test]["scores"] for cell in cells]
    if any(score not in found for found in scores):
        raise ConfigError(f"{name} has no {score} there. There are: {', '.join(scores[0])}.")
    return text.fixed(sum(found[score] for found in scores) / len(scores), 2)


def _shift(page: Page, name: str, arm: str, against: str) -> str:
    return text.shift_table(_study(page, name), arm, against)


def _domain(page: Page, name: str, arm: str, kind: str) -> str:
    found = _study(page, name).domains()
    if arm not in found or kind not in ("own", "other", "shift"):
        raise ConfigError(f"There is no {arm} {kind}. There are own, other and shift of: {', '.join(found)}.")
    return text.say_gap(found[arm][("own", "other", "shift").index(kind)])


def _anova(page: Page, name: str) -> str:
    found = _study(page, name).anova()
    return f"F({found.between}, {found.within}) = {text.fixed(found.f, 2)}, {text.say_chance(found.p)}"


def _layer(point: LayerPoint) -> str:
    return f"layer {point.label} ({text.per_cent(point.row.mean)} %)"


def _ends(page: Page, name: str) -> tuple[LayerPoint, LayerPoint]:
    layers = _study(page, name).sweep().points
    return max(layers, key=lambda point: point.row.mean), layers[-1]


def _behind(page: Page, name: str) -> str:
    best, last = _ends(page, name)
    return f"{text.fixed(100 * (best.row.mean - last.row.mean))} points"


def _pooled(page: Page, name: str) -> str:
    return f"{text.per_cent(_study(page, name).anova().pooled_deviation)} points"


def _rank(page: Page, name: str) -> str:
    found = accuracy_by_gain(page.evidence, _study(page, name))
    return f"rho = {text.fixed(found.rho, 2)}, {text.say_chance(found.p)}, {found.layers} layers"


def _runs(page: Page, name: str | None = None) -> str:
    return str(len(page.evidence.trainings if name is None else _study(page, name).cells))


def _planned(page: Page, name: str | None = None) -> str:
    plans = page.evidence.plans
    if name is not None and name not in plans:
        raise ConfigError(f"{name} is not planned.")
    chosen = plans.values() if name is None else [plans[name]]
    return str(len({cell.id for plan in chosen for cell in plan.cells()}))


def _hours(page: Page) -> str:
    seconds = sum(cell["seconds"]["all"] for cell in page.evidence.trainings.values())
    return f"{text.fixed(seconds / 3600)} hours"


def _machine(page: Page) -> str:
    found = [machine for study in page.evidence.studies.values() for machine in study.content["machines"]]
    told = (
        f"{entry['processor']}, {entry['cores']} cores, {entry['memory_bytes'] / 1e9:.0f} GB, {entry['platform']}, "
        f"Python {entry['python']}"
        for entry in found
    )
    return "; ".join(dict.fromkeys(told))


def _versions(page: Page) -> str:
    found: dict[str, set[str]] = {}
    for study in page.evidence.studies.values():
        for name, versions in study.content["versions"].items():
            found.setdefault(name, set()).update(versions.split(", "))
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items())


def _measured(page: Page, name: str) -> Mapping[str, Any]:
    if name not in page.evidence.measured:
        raise ConfigError(f"docs/results/{name}.json is not there.")
    return page.evidence.measured[name]


def _value(page: Page, name: str, path: str) -> str:
    value: Any = _measured(page, name)
    for key in path.split("/"):
        keys = list(value) if isinstance(value, Mapping) else [str(index) for index in range(len(value))]
        if key not in keys:
            raise ConfigError(f"{name} has no {key} there. There are: {', '.join(keys)}.")
        value = value[key] if isinstance(value, Mapping) else value[int(key)]
    return text.three_digits(value) if isinstance(value, float) else str(value)


def _figure(page: Page, name: str) -> str:
    if name not in page.figures:
        raise ConfigError(f"The figure {name} can't be drawn yet. There are: {', '.join(page.figures) or 'none'}.")
    return f"![{page.figures[name]}]({page.assets}/results-{name}.svg)"


DIRECTIVES: Mapping[str, Callable[..., str]] = {
    "table": lambda page, name, data, test: text.scores_table(_study(page, name), data, test),
    "diff": _diff,
    "points": _points,
    "p": _p,
    "mean": _mean,
    "score": _score,
    "shift": _shift,
    "domains": lambda page, name: text.domains_table(_study(page, name)),
    "domain": _domain,
    "ahead": lambda page: text.ahead_table(page.evidence),
    "sweep": lambda page, name: text.sweep_table(_study(page, name), gains(page.evidence, name)),
    "anova": _anova,
    "best": lambda page, name: _layer(_ends(page, name)[0]),
    "last": lambda page, name: _layer(_ends(page, name)[1]),
    "behind": _behind,
    "pooled": _pooled,
    "rank": _rank,
    "selection": lambda page, name, sweep: text.selection_table(page.evidence, name, sweep),
    "runs": _runs,
    "planned": _planned,
    "seeds": lambda page, name: text.say_seeds(_study(page, name)),
    "hours": _hours,
    "hypotheses": lambda page: hypotheses(page.evidence),
    "missing": lambda page: text.missing_list(page.evidence),
    "studies": lambda page: text.studies_table(page.evidence),
    "machine": _machine,
    "versions": _versions,
    "command": lambda page, name: str(_study(page, name).content["command"]),
    "efficiency": lambda page: text.efficiency_table(_measured(page, "efficiency")),
    "loudness": lambda page: text.loudness_table(_measured(page, "loudness")),
    "value": _value,
    "figure": _figure,
}
