"""A report in every format, of a study with names that would break each format without escaping."""

import csv
import io
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image
from typer.testing import CliRunner

from layer_surgeon._io import write_json
from layer_surgeon._text import csv_cell
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.report import pictures
from layer_surgeon.report.csv_files import measurements_csv
from layer_surgeon.report.export import write_report
from layer_surgeon.report.latex import escape, latex
from layer_surgeon.report.load import load_report
from layer_surgeon.report.pictures import draw_sweep
from layer_surgeon.report.render import code_block, escape_markdown, markdown
from layer_surgeon_cli.main import app
from tests.support.made_up_studies import HOSTILE, made_up_study

FORMULA = "=cmd|' /C calc'!A0"
PICTURES = ["cost-1", "cost-2", "layers-1", "layers-2", "learning", "scores-1", "scores-2", "shift"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study with two test sets, two layers and a failed training: nearly every part of a report."""
    place = tmp_path_factory.mktemp("a study & more")
    layer = {"source": "b/llm", "layer": 4}
    arms = ["host", {"name": HOSTILE, "like": "graft"}, {"name": FORMULA, "like": "graft", "donor": layer}]
    shops = {"name": "shops", "train": [], "test": ["x"]}
    content = {"title": HOSTILE, "data": ["films", shops], "tests": "all", "focus": HOSTILE}
    shares = {"host": 0.5, "a": 0.9, "b": 0.55}
    made_up_study(place, shares, arms=arms, fail=[(FORMULA, 2)], examples=100, **content)
    return place


@pytest.fixture(scope="module")
def report(folder):
    return load_report(folder)


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    write_report(report, output, ("md", "csv", "tex", "png"))
    return output


def test_markdown(report, written):
    text = (written / "report.md").read_text(encoding="utf-8")
    title, verdict = text.split("\n\n")[:2]
    assert title == f"# {escape_markdown(HOSTILE)}"
    assert verdict == f"> **{escape_markdown(report.summary.verdict)}**"
    assert "<script" not in text
    assert not re.search(r"(?<!\\)[_*`~$]", re.sub(r"```.*?```", "", text.replace("**", ""), flags=re.DOTALL))
    header = 0
    for line in text.splitlines():
        cells = line.count("|") if line.startswith("|") else 0
        assert cells == header or not header or not cells, line
        header = cells
    assert report.command in text
    for link in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (written / link).is_file()
    assert text.count("](figures/") == len(PICTURES)
    assert "TrainingError: the loss is nan &#124; &lt;b&gt;" in text
    assert "figures" not in markdown(report, {})


def test_a_code_block_can_contain_any_fence():
    assert code_block("a ```` b") == "`````\na ```` b\n`````"


def test_control_sequences_are_escaped():
    assert escape_markdown("a\x1b[31m\u202eb") == "a\\\\x1b\\[31m\\\\u202eb"
    assert code_block("a\x1b[31m") == "```\na\\x1b[31m\n```"


def test_csv(report, written):
    rows = list(csv.DictReader(io.StringIO((written / "measurements.csv").read_text(encoding="utf-8"))))
    # 3 arms x 3 seeds, less one that failed; on 2 test sets each.
    assert len(rows) == sum(len(result.tests) for result in report.results) == 16
    first, other = report.results[0], next(row for row in rows if row["arm"] == HOSTILE)
    assert (rows[0]["arm"], rows[0]["test"], rows[0]["seed"]) == ("host", "films", "1")
    assert float(rows[0]["accuracy"]) == first.tests["films"].scores["accuracy"]
    assert float(rows[0]["validation_accuracy"]) == first.validation.scores["accuracy"]
    assert (other["donor"], other["trained_parameters"]) == ("llm-L-1", "23205506")
    assert {row["arm"] for row in rows} == {"host", HOSTILE, f"'{FORMULA}"}
    comparisons = list(csv.DictReader(io.StringIO((written / "comparisons.csv").read_text(encoding="utf-8"))))
    first_difference = report.summary.tables[0].comparisons[0]
    assert len(comparisons) == sum(len(table.comparisons) for table in report.summary.tables)
    assert float(comparisons[0]["difference"]) == first_difference.mean
    assert comparisons[0]["significant"] == str(first_difference.significant).lower()
    assert comparisons[0]["words"] == first_difference.words
    assert csv_cell(-0.5) == -0.5


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-A1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_is_a_formula_to_a_spreadsheet(text, tmp_path):
    safe = csv_cell(text)
    assert safe == f"'{text}".replace("\r", " ")
    assert csv_cell(f"x{text}\r=1") == f"x{text} =1".replace("\r", " ")
    arms = ["host", {"name": "graft", "like": "graft"}]
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, arms=arms, examples=60, seeds=[1])
    cell = next((tmp_path / "cells").glob("*.json"))
    content = json.loads(cell.read_text())
    content["tests"]["films"]["scores"][text] = 0.5
    write_json(cell, {**content, "device": text})
    (header, *rows) = csv.reader(io.StringIO(measurements_csv(load_report(tmp_path)), newline=""))
    assert safe in header
    assert safe in [row[-1] for row in rows]
    assert not [entry for row in (header, *rows) for entry in row if entry.startswith(("=", "+", "@", "\t", "\r"))]


def test_latex(report, written, tmp_path):
    text = (written / "tables.tex").read_text(encoding="utf-8")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.count(r"\begin{table}") == body.count(r"\end{table}") == body.count(r"\bottomrule")
    assert r"\textless{}script\textgreater{}" in body
    assert r"\& a\_b 100\% \$x\textasciicircum{}2\$ \{c\} \textbar{} \#1 \textbackslash{}d" in body
    assert r"naïve \ifdefined\Umathchar 层\else{}U+5C42\fi{}" in body
    table = report.summary.tables[0]
    best = table.rows[1]
    assert report.summary.best(table.rows) == best.mean
    assert report.summary.outcome(report.summary.against_reference(table, best.arm)) == "better"
    assert rf"\textbf{{{100 * best.mean:.2f}}} $\pm$ {100 * best.deviation:.2f}$^\dagger$" in body
    if (program := shutil.which("pdflatex")) is None:
        return
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    (tmp_path / "tables.tex").write_text(text, encoding="utf-8")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_latex_has_bold_only_for_significant_best_scores(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.71}, examples=60)
    assert r"\textbf" not in latex(load_report(tmp_path))


def test_a_name_in_latex_is_not_an_option_of_the_previous_row():
    assert escape("[2em] *x*") == "{[}2em] {*}x{*}"


def test_the_picture_of_a_sweep(tmp_path):
    layers = [{"source": "b/llm", "layer": layer} for layer in range(2)]
    shares = {"host": 0.5, "graft+llm-L0": 0.9, "graft+llm-L1": 0.6}
    made_up_study(tmp_path, shares, arms=["host", "graft"], donors=layers, donor=None, focus=None, examples=60)
    assert draw_sweep(load_report(tmp_path)).startswith(b"\x89PNG")
    made_up_study(tmp_path / "compare", {"host": 0.5, "graft": 0.6}, examples=60)
    assert draw_sweep(load_report(tmp_path / "compare")) is None


def test_pictures(written):
    assert sorted(path.stem for path in (written / "figures").iterdir()) == PICTURES
    for path in (written / "figures").iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 300
            colors = picture.convert("RGB").resize((100, 100)).getcolors(10_000)
            assert len(colors) > 50
            assert max(colors)[1] == (255, 255, 255)


def test_a_report_is_only_overwritten_with_force(report, written, tmp_path, monkeypatch):
    place = tmp_path / "report"
    (place / "figures").mkdir(parents=True)
    for name in ("scores-9.png", "photo.png"):
        (place / "figures" / name).touch()
    monkeypatch.setattr(pictures, "draw_pictures", lambda _: {})
    assert write_report(report, place, ("png",)) == ()
    assert [path.name for path in (place / "figures").iterdir()] == ["photo.png"]
    assert write_report(report, place, ("csv",)) == (place / "measurements.csv", place / "comparisons.csv")
    with pytest.raises(WorkspaceError, match=r"measurements\.csv already exists\. .* --force"):
        write_report(report, place, ("md", "csv"), force=False)
    assert write_report(report, place, ("md",), force=False) == (place / "report.md",)
    with pytest.raises(WorkspaceError, match="is a file; a report needs a folder"):
        write_report(report, place / "report.md")


def test_markdown_of_a_selection_and_of_unfinished_trainings(tmp_path):
    made_up_study(tmp_path, {"host": 0.5, "graft": 0.8}, examples=60, skip=[("graft", 2)])
    rungs = [{"name": "probe | first", "scores": {"graft": 0.6, "<b>": 0.5}, "kept": ["graft"], "examples": 0.0}]
    write_json(tmp_path / "selection.json", {"format": 1, "best": "graft", "layers": [3], "cost": 0.25, "rungs": rungs})
    text = markdown(load_report(tmp_path), {})
    assert "**graft** (layer 3, site encoder\\_output), at 25% of the cost" in text
    assert "| candidate | probe &#124; first |" in text
    assert "| &lt;b&gt; | 0.5000 |" in text
    assert "## Unfinished trainings\n\n| arm | data | share | seed | state | error |" in text


def test_an_empty_study_can_be_reported(tmp_path):
    made_up_study(tmp_path, {"host": 0.7}, skip=[("host", 1), ("host", 2), ("host", 3)])
    write_report(load_report(tmp_path), tmp_path / "report", ("md", "csv", "tex", "png"))
    assert "Nothing is finished yet." in (tmp_path / "report" / "report.md").read_text()


def test_the_command(folder):
    def surgeon(*arguments):
        return CliRunner().invoke(app, ["report", *map(str, arguments)])

    done = surgeon(folder, "--format", "html", "--format", "md", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    place = folder / "report"
    assert (document["path"], document["done"], document["planned"]) == (str(place), 8, 9)
    assert document["files"] == [str(place / "report.html"), str(place / "report.md")]
    assert "<script>alert" not in (place / "report.html").read_text(encoding="utf-8")
    assert surgeon(folder, "-f", "csv").exit_code == 0
    shown = surgeon(folder, "-f", "csv")  # the folder's own report is always replaced
    assert "report/measurements.csv" in shown.stdout
    assert "Not finished: 8 of 9 trainings are done, 1 failed." in shown.stdout
    refused = surgeon(folder, "-f", "csv", "-o", place)
    assert (refused.exit_code, "--force" in refused.stderr) == (1, True)
    assert surgeon(folder, "-f", "csv", "-o", place, "--force").exit_code == 0
    wrong = surgeon(folder, "-f", "pdf")
    assert (wrong.exit_code, "it must be one of html, md, csv, tex, png" in wrong.stderr) == (2, True)
    nowhere = surgeon(folder / "nowhere")
    assert (nowhere.exit_code, "A report is made of a study's folder" in nowhere.stderr) == (1, True)
