"""The content of reports, from folders with made-up cells."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layer_surgeon._io import write_json
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.report.load import load_report
from layer_surgeon.report.series import layer_sweeps, learning_curves, place_of, shift_matrices
from layer_surgeon.report.words import score_span
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.records import as_json, read_summary
from layer_surgeon.study.summary import summarize
from tests.support.made_up_studies import HOSTILE, VERSIONS, made_up_study
from tests.support.studies import read_cells


def layers(*indices):
    return [{"source": "b/llm", "layer": index} for index in indices]


def test_a_comparison(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.82, "random": 0.7}, title=HOSTILE)
    report = load_report(tmp_path)
    summary = report.summary
    assert (report.kind, summary.title, summary.metric, summary.is_share) == ("compare", HOSTILE, "accuracy", True)
    assert summary.verdict == json.loads((tmp_path / "summary.json").read_text())["verdict"]
    assert summary.verdict.startswith("graft is better than host")
    assert report.is_finished
    assert report.state == "All 9 trainings are done."
    (table,) = summary.tables
    outcomes = [(row.arm, summary.outcome(summary.against_reference(table, row.arm))) for row in table.rows]
    assert outcomes == [("host", None), ("graft", "better"), ("random", "not significant")]
    graft = table.rows[1]
    assert summary.best(table.rows) == graft.mean
    assert len(graft.by_seed) == 3
    assert graft.scores["macro_f1"] == pytest.approx(graft.mean - 0.01)
    assert summary.parameters("graft").trained == 23_205_506
    difference = summary.against_reference(table, "graft")
    assert (difference.arm, difference.against) == ("graft", "host")
    assert summary.is_better(difference)
    assert difference.significant
    assert difference.interval.low < difference.mean < difference.interval.high
    assert len(report.results) == 9
    assert report.versions == VERSIONS
    assert report.machines == ("cpu (1 threads)",)
    assert report.settings == {"task": "text-classification", "num_epochs": 3.0, "learning_rate": 5e-5}
    assert shift_matrices(summary, report.plan) == layer_sweeps(summary, report.plan) == ()
    curve = learning_curves(report.plan, report.results)[1]
    assert (curve.arm, [point.epoch for point in curve.points]) == ("graft", [1.0, 2.0, 3.0])
    mean, low, high = curve.points[0].score
    assert low < mean < high
    assert report.command == f"surgeon compare --config {tmp_path}/study.yaml --output {tmp_path}-again"


def test_the_interval_of_a_share_stays_within_0_and_1(tmp_path):
    made_up_study(tmp_path, {"host": 0.5, "graft": 0.98}, seeds=[1, 2], examples=60)
    written = json.loads((tmp_path / "summary.json").read_text())["tables"][0]["rows"][1]["seed_interval"]
    summary = load_report(tmp_path).summary
    low, high = score_span(summary.tables[0].rows[1].seed_interval, summary)
    assert written[1] > 1
    assert (low, high) == (written[0], 1.0)


def test_domain_shift_and_shares_of_the_data(tmp_path):
    made_up_study(
        tmp_path, {"host": 0.7, "graft": 0.8}, data=["films", "shops"], tests="all", fractions=[1.0, 0.1], seeds=[1, 2]
    )
    report = load_report(tmp_path)
    assert [place_of(table) for table in report.summary.tables[:3]] == [
        "films",
        "shops, trained on films",
        "films, 10 % of the data",
    ]
    shifts = shift_matrices(report.summary, report.plan)
    assert [(shift.arm, shift.fraction) for shift in shifts] == [
        ("host", 1.0),
        ("graft", 1.0),
        ("host", 0.1),
        ("graft", 0.1),
    ]
    shift = shifts[1]
    assert (shift.trained_on, shift.tested_on) == (("films", "shops"), ("films", "shops"))
    assert shift.means[0][1] == report.summary.tables[1].rows[1].mean


def test_a_sweep(tmp_path):
    shares = {"host": 0.7, "a": 0.7, "b": 0.85, "c": 0.72}
    made_up_study(
        tmp_path, shares, arms=["host", "graft"], donors=layers(2, 0, [1, 2]), focus=None, reference="host", donor=None
    )
    report = load_report(tmp_path)
    assert report.kind == "sweep"
    (sweep,) = layer_sweeps(report.summary, report.plan)
    assert (sweep.donor, sweep.host, sweep.reference.arm) == ("llm", "bert", "host")
    assert [(point.label, point.best) for point in sweep.points] == [("0", True), ("1+2", False), ("2", False)]
    assert sweep.points[0].outcome == "better"
    assert sweep.axis == "layer of llm (from 0)"


def test_a_sweep_over_sites(tmp_path):
    arms = [{"name": f"graft-{site}", "like": "graft", "graft": {"site": site}} for site in ("embeddings", 0, 1)]
    made_up_study(tmp_path, {"host": 0.7, "a": 0.6, "b": 0.7, "c": 0.7}, arms=["host", *arms], seeds=[1], focus=None)
    report = load_report(tmp_path)
    (sweep,) = layer_sweeps(report.summary, report.plan)
    assert (report.kind, sweep.axis) == ("sweep", "site of llm-L-1 in the host")
    assert [point.label for point in sweep.points] == ["embeddings", "0", "1"]


def test_a_sweep_excludes_arms_with_other_settings(tmp_path):
    slow = {"name": "slow", "like": "graft", "finetune": {"learning_rate": 1e-5}}
    middle = {"name": "middle", "like": "graft", "donor": layers(16)[0]}
    made_up_study(
        tmp_path, {"host": 0.7, "a": 0.6, "b": 0.7, "c": 0.7}, arms=["host", "graft", slow, middle], seeds=[1]
    )
    report = load_report(tmp_path)
    (sweep,) = layer_sweeps(report.summary, report.plan)
    assert [(point.row.arm, point.label) for point in sweep.points] == [("middle", "16"), ("graft", "-1")]


def test_a_sweep_excludes_controls_and_lora(tmp_path):
    changes = [{"control": "projections-only"}, {"lora": {"r": 4}}, {"synthetic": {"seed": 1}}]
    others = [
        {"name": f"other-{layer}", "like": "graft", "donor": layers(layer)[0], **change}
        for layer, change in enumerate(changes)
    ]
    arms = ["host", "graft", *others, {"name": "middle", "like": "graft", "donor": layers(16)[0]}]
    made_up_study(tmp_path, dict.fromkeys(range(6), 0.7), arms=arms, seeds=[1])
    report = load_report(tmp_path)
    (sweep,) = layer_sweeps(report.summary, report.plan)
    assert [point.row.arm for point in sweep.points] == ["middle", "graft"]


def test_cells_from_before_an_arm_was_renamed(tmp_path):
    arms = ["host", {"name": "my graft", "like": "graft"}]
    made_up_study(tmp_path, {"host": 0.7, "my graft": 0.8}, arms=arms, seeds=[1], focus=None)
    plan = tmp_path / "study.yaml"
    plan.write_text(plan.read_text().replace("name: my graft", "name: my-graft"))
    report = load_report(tmp_path)
    assert [row.arm for row in report.summary.tables[0].rows] == ["host", "my-graft"]
    curves = learning_curves(report.plan, report.results)
    assert [curve.arm for curve in curves] == [result.arm for result in report.results] == ["host", "my-graft"]


def test_a_study_in_the_current_folder_is_repeated_next_to_it(tmp_path, monkeypatch):
    made_up_study(tmp_path, {"host": 0.7}, seeds=[1], title="2024")
    monkeypatch.chdir(tmp_path)
    report = load_report(Path())
    assert report.command == f"surgeon compare --config {tmp_path}/study.yaml --output {tmp_path}-again"
    assert report.summary.title == "2024"


def test_a_selection(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8})
    rungs = [{"name": "probe without training", "scores": {"graft": 0.6, "x": 0.5}, "kept": ["graft"], "examples": 0.0}]
    write_json(tmp_path / "selection.json", {"format": 1, "best": "graft", "layers": [17], "cost": 0.3, "rungs": rungs})
    report = load_report(tmp_path)
    assert (report.kind, report.selection.best, report.selection.layers) == ("select", "graft", (17,))
    assert report.selection.rungs[0].kept == ("graft",)
    assert (report.selection.site, report.margin) == ("encoder_output", None)
    margin = {"runner_up": "x", "difference": 0.01, "deviation": 0.02}
    content = {"format": 1, "best": "graft", "layers": [17], "cost": 0.3, "rungs": rungs, "site": 3, "margin": margin}
    write_json(tmp_path / "selection.json", content)
    found = load_report(tmp_path)
    assert (
        found.margin
        == "ahead of x by 1.0 points, with a standard deviation of 2.0 points over the seeds: too close to call"
    )
    assert found.selection.site == 3
    # The folder then serves another study.
    made_up_study(tmp_path, {"host": 0.7, "gated": 0.8})
    assert load_report(tmp_path).kind == "compare"


def test_an_unfinished_study_and_a_stale_summary(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, skip=[("graft", 2), ("graft", 3)])
    before = load_report(tmp_path)
    assert before.state == "Not finished: 4 of 6 trainings are done, 2 missing."
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, fail=[("graft", 3)], summary=False)
    report = load_report(tmp_path)
    assert report.state == "Not finished: 5 of 6 trainings are done, 1 failed."
    assert report.failed[0].error == "TrainingError: the loss is nan | <b>"
    assert report.summary.tables[0].rows[1].seeds == (1, 2)
    later = time.time() + 10
    os.utime(tmp_path / "summary.json", (later, later))
    assert load_report(tmp_path).summary.tables == report.summary.tables  # the number of cells tells, too
    (tmp_path / "summary.json").unlink()
    assert load_report(tmp_path).summary.tables == report.summary.tables


def test_nothing_finished_yet(tmp_path):
    made_up_study(tmp_path, {"host": 0.7}, skip=[("host", 1), ("host", 2), ("host", 3)])
    report = load_report(tmp_path)
    assert (report.summary.verdict, report.summary.tables, report.started) == ("Nothing is finished yet.", (), None)
    assert len(report.missing) == 3


def test_missing_and_damaged_studies_are_refused_with_advice(tmp_path):
    with pytest.raises(
        WorkspaceError, match=r"is not a folder\. A report is made of a study's folder\. Use the --output"
    ):
        load_report(tmp_path / "nowhere")
    with pytest.raises(WorkspaceError, match=r"has no study\.yaml"):
        load_report(tmp_path)
    plan = made_up_study(tmp_path, {"host": 0.7, "graft": 0.8})
    place = StudyFolder(root=tmp_path)
    cell = place.result(plan.cells()[0].id)
    whole = cell.read_text()
    cell.write_text(whole[:100])
    with pytest.raises(WorkspaceError, match="can't be read .* Delete it"):
        load_report(tmp_path)
    content = json.loads(whole)
    del content["history"]
    write_json(cell, content)
    with pytest.raises(WorkspaceError, match="lacks history. Delete it and continue the study, which trains it again"):
        load_report(tmp_path)
    write_json(cell, {**json.loads(whole), "tests": {"films": {}}})
    with pytest.raises(WorkspaceError, match=r"lacks tests\.films\.examples\. Delete it"):
        load_report(tmp_path)
    write_json(cell, {**json.loads(whole), "best_epoch": "two"})
    with pytest.raises(WorkspaceError, match=r"has 'two' as best_epoch, which has the wrong type\. Delete it"):
        load_report(tmp_path)
    cell.write_text(whole)
    summary = json.loads(place.summary.read_text())
    del summary["tables"][0]["rows"][1]["mean"]
    write_json(place.summary, summary)
    with pytest.raises(WorkspaceError, match=r"lacks tables\[0\]\.rows\[1\]\.mean\. .* which writes it again"):
        load_report(tmp_path)
    place.summary.write_text("{")
    with pytest.raises(WorkspaceError, match=r"summary\.json can't be read"):
        load_report(tmp_path)
    plan_text = place.plan.read_text()
    place.plan.write_text(plan_text.replace("task: text-classification", "task: my-task"))
    with pytest.raises(WorkspaceError, match=r"of the task my-task, which is not installed\. Install the package"):
        load_report(tmp_path)
    place.plan.write_text("arms: 3\ndata: [")
    with pytest.raises(WorkspaceError, match=r"study\.yaml is damaged"):
        load_report(tmp_path)


def test_a_summary_survives_writing_and_reading(tmp_path):
    plan = made_up_study(tmp_path, {"host": 0.7, "graft": 0.82}, fail=[("graft", 2)])
    folder = StudyFolder(root=tmp_path)
    summary = read_summary(folder.summary)
    assert summary == summarize(plan, folder)
    assert as_json(summary) == json.loads(folder.summary.read_text())
    assert all(
        as_json(cell)["tests"] == json.loads(folder.result(cell.id).read_text())["tests"] for cell in read_cells(folder)
    )


def test_reading_a_study_needs_no_torch(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.82}, examples=60)
    code = "import sys; from pathlib import Path; from layer_surgeon.report.load import load_report; "
    code += "load_report(Path(sys.argv[1])); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True)
    assert not {"torch", "transformers", "altair", "pandas", "vl_convert", "matplotlib"} & set(done.stdout.split())
