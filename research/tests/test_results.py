"""docs/results.md says what the evidence says: the committed page, figures and README against the committed JSON."""

import re
import shlex

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks import evidence as command
from benchmarks import loudness
from benchmarks.evidence_facts import load
from benchmarks.evidence_figures import FIGURES
from benchmarks.evidence_store import EVIDENCE, PLANS, RESULTS, unpack
from layer_surgeon.study.layout import read_json
from layer_surgeon_cli import compare
from layer_surgeon_cli.main import app

# Settings, which no study measures.
SETTINGS = ("95 %", "10 %", "p < 0.05")
_TAG = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
_RESULT = re.compile(
    r"[-+\d.,]*\d\s*(?:%|(?:percentage )?points?\b|per ?cent)|\bp\s*[=<>]\s*[\d.]|\brho\s*=|±\s*\d|[FRt]\(\d"
)


def bare_results(template):
    """Numbers in the prose that look like results, beside the settings."""
    prose = _CODE.sub(" ", _TAG.sub(" ", template))
    for setting in SETTINGS:
        prose = re.sub(rf"(?<![\d.,]){re.escape(setting)}(?!\d)", " ", prose)
    return _RESULT.findall(prose)


@pytest.fixture(scope="module")
def evidence():
    return load()


@pytest.fixture(scope="module")
def made(evidence):
    return command.render(evidence)


def test_the_page_and_its_figures_are_what_the_evidence_gives(made):
    files, _ = made
    assert command.PAGE in files
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `make results`"


def test_no_figure_is_left_over(made):
    files, _ = made
    for name in FIGURES:
        path = command.ASSETS / f"results-{name}.svg"
        assert path.is_file() == (path in files), path


def test_the_trainings_that_were_watched_are_drawn_as_they_went():
    picture = loudness.draw(read_json(RESULTS / "loudness.json"))
    assert (command.ASSETS / "results-loudness.svg").read_text(encoding="utf-8") == picture, "run `make results`"


def test_the_readme_says_what_the_evidence_gives(made):
    readme = command.README.read_text(encoding="utf-8")
    assert command.put_block(readme, made[1]) == readme, "run `make results`"


@pytest.mark.parametrize("template", [command.TEMPLATE, command.BLOCK], ids=lambda path: path.name)
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


def test_every_study_of_the_plan_has_a_file_and_every_file_is_in_the_plan():
    rows = re.findall(
        r"^\| ((?:[a-z]\w*-[\w-]+(?:, )?)+) \|", (RESULTS / "plan.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = {name for row in rows for name in row.split(", ")}
    files = {path.stem: path for path in PLANS.glob("*.yaml")}
    assert named == set(files)
    for name, path in files.items():
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == name


def test_the_evidence_is_of_planned_studies_as_they_are_planned(evidence):
    assert evidence.studies
    assert set(evidence.studies) <= set(evidence.plans)
    for name, study in evidence.studies.items():
        assert study.plan == evidence.plans[name]
        assert (EVIDENCE / f"{name}.json").is_file()
        assert study.content["command"].startswith(f"surgeon compare --config docs/results/plans/{name}.yaml ")
        assert study.content["machines"]
        assert study.content["versions"]["layer_surgeon"]


def test_every_accuracy_is_the_share_of_right_examples(evidence):
    for cell in evidence.trainings.values():
        for test in unpack(cell)["tests"].values():
            assert len(test["correct"]) == test["examples"]
            assert test["correct"].count("1") / test["examples"] == pytest.approx(test["scores"]["accuracy"])


def test_the_row_to_repeat_is_trained_as_it_was(evidence, monkeypatch, tmp_path):
    said = command.PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^surgeon (compare --host .*)$", said, re.MULTILINE)
    plans = []
    monkeypatch.setattr(compare, "run_plan", lambda plan, *_, **__: plans.append(plan) or {})
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == 0, done.output
    planned = evidence.plans["d-domains"]
    arms = {arm.name for arm in plans[0].arms}
    assert arms == {"host", "graft", "random", "wide-head"}
    mine, theirs = (
        {
            (cell.arm.name, cell.seed): (cell.arm, cell.finetune, cell.fraction)
            for cell in plan.cells()
            if cell.data == "sentences-imdb"
        }
        for plan in (plans[0], planned)
    )
    assert mine == {key: value for key, value in theirs.items() if key[0] in arms}
    assert plans[0].data[0] == planned.data[0]
