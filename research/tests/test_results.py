"""The committed pages, figures and README are what the committed evidence gives."""

import re
import shlex

import pytest
import yaml
from jinja2 import meta
from typer.testing import CliRunner

from layer_surgeon_cli import compare
from layer_surgeon_cli.main import app
from research import page, results
from research.evidence import PLANS, READING, RESEARCH, load, unpack
from research.figures import draw_all, draw_prices

# Settings, which no study measures.
SETTINGS = ("95 %", "10 %", "p < 0.05")
TEMPLATES = sorted(page.TEMPLATES.glob("*.jinja"))
_TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
_RESULT = re.compile(
    r"[-+\d.,]*\d\s*(?:%|(?:percentage )?points?\b|per ?cent)|\bp\s*[=<>]\s*[\d.]|\brho\s*=|±\s*\d|[FRt]\(\d"
)


def bare_results(template):
    """Numbers in the prose that look like results, except the settings."""
    prose = _CODE.sub(" ", _TAG.sub(" ", template))
    for setting in SETTINGS:
        prose = re.sub(rf"(?<![\d.,]){re.escape(setting)}(?!\d)", " ", prose)
    return _RESULT.findall(prose)


@pytest.fixture(scope="module")
def evidence():
    return load()


@pytest.fixture(scope="module")
def reading():
    return load(READING)


@pytest.fixture(scope="module")
def figures(evidence):
    return draw_all(evidence)


def test_the_pages_and_figures_are_what_the_evidence_gives(evidence, reading):
    assert not results.generate(evidence, reading), "run `make results`"


def test_every_figure_is_shown_and_none_is_left_over(figures, reading):
    drawn = {*figures, *draw_prices(reading)}
    assert {path.stem for path in page.FIGURES.glob("*")} == drawn
    pages = (page.PAGES["results.md.jinja"], page.PAGES["reading.md.jinja"], page.ROOT / "docs" / "selection.md")
    shown = " ".join(path.read_text() for path in pages)
    assert set(re.findall(r"figures/([\w-]+)\.svg", shown)) == drawn


def test_a_figure_of_other_numbers_is_out_of_date(evidence, reading, monkeypatch, tmp_path):
    for path in page.FIGURES.glob("*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(results, "FIGURES", tmp_path)
    assert not results.generate(evidence, reading)
    changed = tmp_path / "why.svg"
    changed.write_text(changed.read_text().replace("<desc id=", "<desc id=x"))
    assert list(results.generate(evidence, reading)) == [changed]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_use_known_names_even_where_nothing_is_shown(template, evidence, figures):
    env = page.environment()
    names = meta.find_undeclared_variables(env.parse(template.read_text(encoding="utf-8")))
    texts = {name: figure.text for name, figure in figures.items()}
    assert names <= page.vocabulary(page.README, evidence, texts).keys() | env.globals.keys() | {"reading"}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_number_of_the_prose_is_typed_by_hand(template):
    assert bare_results(template.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "prose",
    [
        "better by 4.1 points",
        "84.5 % of them",
        "by +3 percentage points",
        "(p = 0.03)",
        "rho = -0.7",
        "p < .001",
        "81 ± 2",
        "F(17, 36)",
    ],
)
def test_a_number_that_is_typed_by_hand_is_found(prose):
    assert len(bare_results(f"On 10 % of the data, {{{{mean a b c d}}}}, `p = 1`, the graft is {prose}.")) == 1


def planned_studies(campaign):
    rows = re.findall(
        r"^\| ((?:[a-z]\w*-[\w-]+(?:, )?)+) \|", (campaign / "plan.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return {name for row in rows for name in row.split(", ")}


def test_every_study_of_the_plan_has_a_file():
    assert {path.stem for path in PLANS.glob("*.yaml")} == planned_studies(RESEARCH)


@pytest.mark.parametrize("campaign", [RESEARCH, READING], ids=lambda path: path.name)
def test_every_file_is_a_study_of_the_plan(campaign):
    files = {path.stem: path for path in (campaign / "plans").glob("*.yaml")}
    assert files
    assert set(files) <= planned_studies(campaign)
    for name, path in files.items():
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == name


@pytest.mark.parametrize("campaign", [RESEARCH, READING], ids=lambda path: path.name)
def test_the_evidence_is_of_planned_studies_as_they_are_planned(campaign, evidence, reading):
    campaign_evidence = reading if campaign == READING else evidence
    assert campaign_evidence.studies
    assert set(campaign_evidence.studies) <= set(campaign_evidence.plans)
    for name, study in campaign_evidence.studies.items():
        # Plans had no margin of equivalence when the first studies ran.
        assert {"equivalence": None, **study.content["plan"]} == campaign_evidence.plans[name].as_dict()
        assert (campaign / "evidence" / f"{name}.json").is_file()
        plans = (campaign / "plans").relative_to(page.ROOT)
        assert study.content["command"].startswith(f"surgeon compare --config {plans}/{name}.yaml ")
        assert study.content["machines"]
        assert study.content["versions"]["layer_surgeon"]


def test_every_accuracy_is_the_share_of_right_examples(evidence, reading):
    for cell in (*evidence.trainings.values(), *reading.trainings.values()):
        for test in unpack(cell)["tests"].values():
            assert len(test["correct"]) == test["examples"]
            assert test["correct"].count("1") / test["examples"] == pytest.approx(test["scores"]["accuracy"])


def test_the_row_to_repeat_is_trained_as_it_was(evidence, monkeypatch, tmp_path):
    text = page.PAGES["results.md.jinja"].read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^surgeon (compare --host .*)$", text, re.MULTILINE)
    plans = []
    monkeypatch.setattr(compare, "run_plan", lambda plan, *_, **__: plans.append(plan) or {})
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == 0, done.output
    planned = evidence.plans["d-domains"]
    arms = {arm.name for arm in plans[0].arms}
    assert arms == {"host", "graft", "random", "wide-head"}
    repeated, committed = (
        {
            (cell.arm.name, cell.seed): (cell.arm, cell.finetune, cell.fraction)
            for cell in plan.cells()
            if cell.data == "sentences-imdb"
        }
        for plan in (plans[0], planned)
    )
    assert repeated == {key: value for key, value in committed.items() if key[0] in arms}
    assert plans[0].data[0] == planned.data[0]
