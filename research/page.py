"""Render the templates of research/templates: prose with Jinja2 expressions, in which every number is computed.

Templates use these functions (STUDY: a file of research/plans; DATA: the training set; TEST: the test set):

    gap(STUDY, DATA, TEST, ARM, AGAINST)      a `Gap`; as text: -4.1 points (-6.0 to -2.2; p = 0.003)
    row(STUDY, DATA, TEST, ARM)               an arm's row of summary.json: mean, deviation, scores, ...
    mean(STUDY, DATA, TEST, ARM)              84.5 %
    scores_table(STUDY, DATA, TEST)           every arm: accuracy, trained parameters, differences
    contrasts_table(STUDY, [[ARM, AGAINST], ...])      these differences on each data set, and over all of them
    shift_table(STUDY, ARM, AGAINST)          differences by training set and test set
    domains_table(STUDY), domains(STUDY)      the table over all domains; its differences: domains(...).graft.own
    sweep_table(STUDY), sweep(STUDY)          the layers; a `LayerSweep`: best, last, means, lag, anova
    anova(STUDY), correlation(STUDY)          F(17, 36) = 1.69, p = 0.093; rho = -0.67, p = 0.003, 18 layers
    given_depth(STUDY)                        that correlation given the layer's number: rho = -0.36, p = 0.15; and the
                                              correlation of loudness with the number: given_depth(STUDY).with_depth
    validation(STUDY, ARM, SEED)              the accuracy on the validation part after each epoch
    average_gap([[STUDY, DATA], ...], ARM, AGAINST)    a `Gap`, averaged over tables
    selection_table(SELECTION, STUDY)         what `surgeon select` chose, in the sweep
    has(STUDY, DATA)                          whether there is anything to show
    price_table(STUDY)                        accuracy and costs of the arms
    training_seconds(STUDY, DATA, ARM)        median times of its trainings: the steps, and all but testing
    figure(NAME)                              a figure of `research.figures`

and the values `evidence`, `measured` (the files of research/measured), `gains_table`, `hypotheses_table`,
`missing_list`, `efficiency_table`, `loudness_table`, `num_planned`, `hours`, `machines`, `versions`.
`reading.gap(...)` and so on are those of the second campaign.
Filters are the functions of `research.numbers`. A name that does not exist is an error.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.machine import ROOT
from layer_surgeon.errors import ConfigError
from research import numbers, tables
from research.evidence import READING, RESEARCH, Evidence
from research.hypotheses import anova_text, hypotheses_table

TEMPLATES, FIGURES = RESEARCH / "templates", RESEARCH / "figures"
_FILTERS = (
    numbers.fixed,
    numbers.three_digits,
    numbers.percent,
    numbers.points,
    numbers.interval_points,
    numbers.p_value,
)


def environment() -> Environment:
    """The settings of Jinja2: Markdown, so nothing is escaped; a tag on a line of its own leaves no line behind."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters.update({function.__name__: function for function in _FILTERS})
    return env


def render(
    source: str, page: Path, evidence: Evidence, figures: Mapping[str, str], reading: Evidence | None = None
) -> str:
    """Fill in a template.

    Args:
        source: The template's text.
        page: The file it is for; links to figures are relative to it.
        evidence: Where the numbers come from.
        figures: The alternative text of each figure, by name.
        reading: The evidence of the second campaign, if the template uses both: `reading.gap(...)`.

    Raises:
        ConfigError: The template asks for something that is not there.
        jinja2.TemplateError: It uses an unknown name, or its syntax is wrong.
    """
    others = {} if reading is None else {"reading": vocabulary(page, reading, figures)}
    text = environment().from_string(source).render(**vocabulary(page, evidence, figures), **others)
    # Sections without evidence leave blank lines.
    return re.sub(r"\n{3,}", "\n\n", text)


def vocabulary(page: Path, evidence: Evidence, figures: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a template can use, by name; for the arguments see `render`."""

    def figure(name: str) -> str:
        if name not in figures:
            raise ConfigError(f"There is no figure {name}. There are: {', '.join(figures) or 'none'}.")
        return f"![{figures[name]}]({os.path.relpath(FIGURES / f'{name}.svg', page.parent)})"

    def correlation(name: str) -> str:
        result = evidence.loudness_correlation(name)
        return f"rho = {numbers.fixed(result['rho'], 2)}, {numbers.p_value(result['p'])}, {result['layers']} layers"

    def of_study(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda name, *arguments: function(evidence.study(name), *arguments)

    return {
        "evidence": evidence,
        "measured": evidence.measured,
        "has": evidence.has,
        "figure": figure,
        "correlation": correlation,
        "given_depth": evidence.loudness_given_depth,
        "average_gap": evidence.average_gap,
        "validation": of_study(lambda study, *arguments: study.validation(*arguments)),
        "gap": of_study(lambda study, *arguments: study.gap(*arguments)),
        "row": of_study(lambda study, *arguments: study.row(*arguments)),
        "mean": of_study(lambda study, *arguments: f"{numbers.percent(study.row(*arguments)['mean'])} %"),
        "domains": of_study(lambda study: study.domains),
        "sweep": of_study(lambda study: study.sweep),
        "anova": of_study(anova_text),
        "scores_table": of_study(tables.scores_table),
        "contrasts_table": of_study(lambda study, pairs: tables.contrasts_table(evidence, study, pairs)),
        "shift_table": of_study(tables.shift_table),
        "domains_table": of_study(tables.domains_table),
        "sweep_table": of_study(lambda study: tables.sweep_table(study, evidence.gains(study.name))),
        "selection_table": lambda selection, study: tables.selection_table(evidence, selection, study),
        "gains_table": lambda: tables.gains_table(evidence),
        "hypotheses_table": lambda: hypotheses_table(evidence),
        "price_table": of_study(lambda study: tables.price_table(evidence, study)),
        "missing_list": lambda: tables.missing_list(evidence),
        "training_seconds": of_study(tables.training_seconds),
        "efficiency_table": lambda: tables.efficiency_table(evidence.measured["efficiency"]),
        "loudness_table": lambda: tables.loudness_table(evidence.measured["loudness"]),
        "num_planned": len({cell.id for plan in evidence.plans.values() for cell in plan.cells()}),
        "hours": sum(cell["seconds"]["all"] for cell in evidence.trainings.values()) / 3600,
        "machines": _machines(evidence),
        "versions": _versions(evidence),
    }


def _machines(evidence: Evidence) -> str:
    machines = [machine for study in evidence.studies.values() for machine in study.content["machines"]]
    texts = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"{machine['platform']}, Python {machine['python']}"
        for machine in machines
    )
    return "; ".join(dict.fromkeys(texts))


def _versions(evidence: Evidence) -> str:
    by_package: dict[str, set[str]] = {}
    for study in evidence.studies.values():
        for name, text in study.content["versions"].items():
            by_package.setdefault(name, set()).update(text.split(", "))
    return ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in by_package.items())


def write_block(readme: str, block: str) -> str:
    """The README with a new block between its marks.

    Raises:
        ConfigError: It has no such marks.
    """
    before, begin, remaining = readme.partition(BEGIN)
    _, end, after = remaining.partition(END)
    if not begin or not end:
        raise ConfigError(f"README.md has no {BEGIN} followed by {END}: the result goes between them.")
    return f"{before}{begin}\n{block.strip()}\n{end}{after}"


BEGIN, END = "<!-- result -->", "<!-- /result -->"
PAGES = {
    "results.md.jinja": RESEARCH / "results.md",
    "answer.md.jinja": ROOT / "docs" / "results.md",
    "reading.md.jinja": READING / "results.md",
}
# The templates of the second campaign get its evidence.
OF_READING = ("reading.md.jinja",)
README = ROOT / "README.md"


def render_all(evidence: Evidence, reading: Evidence, figures: Mapping[str, str]) -> dict[Path, str]:
    """Every generated page by its file: the full results, the short answer, and the README with its block.

    Args:
        evidence: The evidence of the first campaign.
        reading: That of the second one.
        figures: The alternative text of each figure, by name.

    Raises:
        ConfigError: A template asks for something that is not there.
    """
    texts = {}
    for name, page in PAGES.items():
        note = f"<!-- Generated from research/templates/{name} by `make results`: edit the template. -->\n\n"
        source = (TEMPLATES / name).read_text(encoding="utf-8")
        texts[page] = note + render(source, page, reading if name in OF_READING else evidence, figures, reading)
    block = render((TEMPLATES / "readme.md.jinja").read_text(encoding="utf-8"), README, evidence, figures, reading)
    return texts | {README: write_block(README.read_text(encoding="utf-8"), block)}
