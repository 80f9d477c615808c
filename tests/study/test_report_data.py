"""What a report shows, from folders whose cells were made up."""

import json
import os
import time
from pathlib import Path

import pytest

from layer_surgeon._io import write_json
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.report_data import load_report
from tests.support.made_up_studies import HOSTILE, VERSIONS, made_up_study


def layers(*indices):
    return [{"source": "b/llm", "layer": index} for index in indices]


def test_a_comparison(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.82, "random": 0.7}, title=HOSTILE)
    report = load_report(tmp_path)
    assert (report.kind, report.title, report.metric, report.is_share) == ("compare", HOSTILE, "accuracy", True)
    assert report.verdict == json.loads((tmp_path / "summary.json").read_text())["verdict"]
    assert report.verdict.startswith("graft is better than host")
    assert report.is_finished
    assert report.state == "All 9 trainings are done."
    (table,) = report.tables
    assert [row.arm for row in table.rows] == ["host", "graft", "random"]
    assert [(row.best, row.verdict) for row in table.rows] == [
        (False, None),
        (True, "better"),
        (False, "not significant"),
    ]
    graft = table.rows[1]
    assert len(graft.by_seed) == 3
    assert graft.interval == graft.seed_interval
    assert (graft.trained, graft.scores["macro_f1"]) == (23_205_506, pytest.approx(graft.mean - 0.01))
    difference = next(c for c in table.comparisons if (c.arm, c.against) == ("graft", "host"))
    assert difference.better
    assert difference.significant
    assert difference.interval[0] < difference.mean < difference.interval[1]
    assert difference.size.endswith("points")
    assert [(cost.arm, cost.is_reference, cost.gain) for cost in table.costs[:2]] == [
        ("host", True, 0.0),
        ("graft", False, difference.mean),
    ]
    assert len(report.measurements) == 9
    assert report.versions == VERSIONS
    assert report.machines == ("cpu (1 threads)",)
    assert report.settings == {"task": "text-classification", "num_epochs": 3.0, "learning_rate": 5e-5}
    assert report.shifts == report.sweeps == ()
    curve = report.curves[1]
    assert (curve.arm, [point.epoch for point in curve.points]) == ("graft", [1.0, 2.0, 3.0])
    mean, low, high = curve.points[0].score
    assert low < mean < high
    assert report.command == f"surgeon compare --config {tmp_path}/study.yaml --output {tmp_path}-again"


def test_an_interval_of_a_share_ends_where_shares_do(tmp_path):
    made_up_study(tmp_path, {"host": 0.5, "graft": 0.98}, seeds=[1, 2], examples=60)
    written = json.loads((tmp_path / "summary.json").read_text())["tables"][0]["rows"][1]["seed_interval"]
    low, high = load_report(tmp_path).tables[0].rows[1].seed_interval
    assert written[1] > 1
    assert (low, high) == (written[0], 1.0)


def test_domain_shift_and_shares_of_the_data(tmp_path):
    made_up_study(
        tmp_path, {"host": 0.7, "graft": 0.8}, data=["films", "shops"], tests="all", fractions=[1.0, 0.1], seeds=[1, 2]
    )
    report = load_report(tmp_path)
    assert [table.place for table in report.tables[:3]] == [
        "films",
        "shops, trained on films",
        "films, 10 % of the data",
    ]
    assert [(shift.arm, shift.fraction) for shift in report.shifts] == [
        ("host", 1.0),
        ("graft", 1.0),
        ("host", 0.1),
        ("graft", 0.1),
    ]
    shift = report.shifts[1]
    assert (shift.trained_on, shift.tested_on) == (("films", "shops"), ("films", "shops"))
    assert shift.means[0][1] == report.tables[1].rows[1].mean


def test_a_sweep(tmp_path):
    shares = {"host": 0.7, "a": 0.7, "b": 0.85, "c": 0.72}
    made_up_study(
        tmp_path, shares, arms=["host", "graft"], donors=layers(2, 0, [1, 2]), focus=None, reference="host", donor=None
    )
    report = load_report(tmp_path)
    assert report.kind == "sweep"
    (sweep,) = report.sweeps
    assert (sweep.donor, sweep.host, sweep.reference.arm) == ("llm", "bert", "host")
    assert [(point.label, point.best) for point in sweep.points] == [("0", True), ("1+2", False), ("2", False)]
    assert sweep.points[0].verdict == "better"
    assert sweep.axis == "layer of llm (from 0)"


def test_a_sweep_over_sites(tmp_path):
    arms = [{"name": f"graft-{site}", "like": "graft", "graft": {"site": site}} for site in ("embeddings", 0, 1)]
    made_up_study(tmp_path, {"host": 0.7, "a": 0.6, "b": 0.7, "c": 0.7}, arms=["host", *arms], seeds=[1], focus=None)
    report = load_report(tmp_path)
    (sweep,) = report.sweeps
    assert (report.kind, sweep.axis) == ("sweep", "where layer -1 of llm sits in the host")
    assert [point.label for point in sweep.points] == ["embeddings", "0", "1"]


def test_a_sweep_holds_no_arm_that_is_trained_in_another_way(tmp_path):
    slow = {"name": "slow", "like": "graft", "finetune": {"learning_rate": 1e-5}}
    middle = {"name": "middle", "like": "graft", "donor": layers(16)[0]}
    made_up_study(
        tmp_path, {"host": 0.7, "a": 0.6, "b": 0.7, "c": 0.7}, arms=["host", "graft", slow, middle], seeds=[1]
    )
    (sweep,) = load_report(tmp_path).sweeps
    assert [(point.arm, point.label) for point in sweep.points] == [("middle", "16"), ("graft", "-1")]


def test_cells_that_are_older_than_the_name_of_their_arm(tmp_path):
    arms = ["host", {"name": "my graft", "like": "graft"}]
    made_up_study(tmp_path, {"host": 0.7, "my graft": 0.8}, arms=arms, seeds=[1], focus=None)
    plan = tmp_path / "study.yaml"
    plan.write_text(plan.read_text().replace("name: my graft", "name: my-graft"))
    report = load_report(tmp_path)
    assert [row.arm for row in report.tables[0].rows] == ["host", "my-graft"]
    assert [(curve.arm, one.arm) for curve, one in zip(report.curves, report.measurements, strict=True)] == [
        ("host", "host"),
        ("my-graft", "my-graft"),
    ]


def test_a_study_in_this_folder_is_repeated_beside_it(tmp_path, monkeypatch):
    made_up_study(tmp_path, {"host": 0.7}, seeds=[1], title="2024")
    monkeypatch.chdir(tmp_path)
    report = load_report(Path())
    assert report.command == f"surgeon compare --config {tmp_path}/study.yaml --output {tmp_path}-again"
    assert report.title == "2024"


def test_a_selection(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8})
    rungs = [{"name": "probe without training", "scores": {"graft": 0.6, "x": 0.5}, "kept": ["graft"], "examples": 0.0}]
    write_json(tmp_path / "selection.json", {"format": 1, "best": "graft", "layers": [17], "cost": 0.3, "rungs": rungs})
    report = load_report(tmp_path)
    assert (report.kind, report.selection.best, report.selection.layers) == ("select", "graft", (17,))
    assert report.selection.rungs[0].kept == ("graft",)
    assert (report.selection.site, report.selection.margin) == ("encoder_output", None)
    margin = {"runner_up": "x", "difference": 0.01, "deviation": 0.02}
    content = {"format": 1, "best": "graft", "layers": [17], "cost": 0.3, "rungs": rungs, "site": 3, "margin": margin}
    write_json(tmp_path / "selection.json", content)
    found = load_report(tmp_path).selection
    assert found.margin == "ahead of x by 1.0 points, which scatters by 2.0 points by seed: too close to call"
    assert found.site == "3"
    # The folder then serves another study.
    made_up_study(tmp_path, {"host": 0.7, "gated": 0.8})
    assert load_report(tmp_path).kind == "compare"


def test_an_unfinished_study_and_a_stale_summary(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, skip=[("graft", 2), ("graft", 3)])
    before = load_report(tmp_path)
    assert before.state == "Not finished: 4 of 6 trainings are done, 2 are missing."
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, fail=[("graft", 3)], summary=False)
    report = load_report(tmp_path)
    assert report.state == "Not finished: 5 of 6 trainings are done, 1 failed."
    assert report.failed[0].error == "TrainingError: the loss is nan | <b>"
    assert report.tables[0].rows[1].seeds == (1, 2)
    later = time.time() + 10
    os.utime(tmp_path / "summary.json", (later, later))
    assert load_report(tmp_path).tables == report.tables  # the number of cells tells, too
    (tmp_path / "summary.json").unlink()
    assert load_report(tmp_path).tables == report.tables


def test_nothing_finished_yet(tmp_path):
    made_up_study(tmp_path, {"host": 0.7}, skip=[("host", 1), ("host", 2), ("host", 3)])
    report = load_report(tmp_path)
    assert (report.verdict, report.tables, report.started) == ("Nothing is finished yet.", (), None)
    assert len(report.missing) == 3


def test_what_is_no_study_or_damaged_says_what_to_do(tmp_path):
    with pytest.raises(WorkspaceError, match=r"is no folder\. A report is made of a study's folder: what --output"):
        load_report(tmp_path / "nowhere")
    with pytest.raises(WorkspaceError, match=r"holds no study\.yaml"):
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
    with pytest.raises(WorkspaceError, match="lacks history. Delete it and go on with the study"):
        load_report(tmp_path)
    write_json(cell, {**json.loads(whole), "tests": {"films": {}}})
    with pytest.raises(WorkspaceError, match="lacks what a study's files hold"):
        load_report(tmp_path)
    cell.write_text(whole)
    place.summary.write_text("{")
    with pytest.raises(WorkspaceError, match=r"summary\.json can't be read"):
        load_report(tmp_path)
    place.plan.write_text("arms: 3\ndata: [")
    with pytest.raises(WorkspaceError, match=r"study\.yaml is damaged"):
        load_report(tmp_path)
