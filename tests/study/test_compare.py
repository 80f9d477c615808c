"""Studies of tiny models: every cell is trained once, despite interruptions and failures."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from layer_surgeon.errors import ConfigError, DataError, WorkspaceError
from layer_surgeon.study import compare, executors, prepare
from layer_surgeon.study.arms import ARMS, DonorSpec
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.data import DataSpec, PreparedData
from layer_surgeon.study.donor_layers import check_layers, donor_name, prepare_layers
from layer_surgeon.study.layout import StudyFolder, locked
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study, synthetic_file
from tests.support.classification import Recorder
from tests.support.studies import run_in_this_process, tiny_parts, tiny_plan, write_data


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_parts(tmp_path_factory.mktemp("parts"))


def in_this_process(plan, root):
    folder = StudyFolder(root=root)
    prepare_study(plan, folder, Recorder())
    return {cell.id: run_cell(cell, folder) for cell in plan.cells()}


def raising(error):
    def fail(*_):
        raise error

    return fail


ALL_BUT = ("larger-host", "zerogen")


@pytest.mark.slow
def test_every_arm_trains_the_right_parameters(parts, tmp_path):
    pytest.importorskip("peft")
    # test_stacks.py trains those that need the donor's first layers.
    arms = [name for name in ARMS if name not in ALL_BUT and not name.startswith("stack") and name != "cut"]
    plan = tiny_plan(parts, arms=arms, seeds=[1], data=parts["data"][:1])
    results = {cell.arm: cell for cell in in_this_process(plan, tmp_path).values()}
    assert list(results) == arms
    trained = {name: cell.parameters.trained for name, cell in results.items()}
    total = {name: cell.parameters.total for name, cell in results.items()}
    assert trained["graft"] == trained["random"] == trained["projections-only"] == trained["wide-head"]
    assert total["host"] < total["wide-head"] < total["graft"] == total["random"]
    assert trained["random-trained"] == trained["donor-trained"] == total["graft"]
    assert trained["lora"] < trained["host"] == total["host"] < total["lora"]
    assert trained["gated"] == trained["graft"] + 1
    assert trained["donor-only"] < trained["graft"]
    assert len({cell.history[0]["training_loss"] for cell in results.values()}) == len(arms)
    for cell in results.values():
        test = cell.tests["films"]
        assert test.examples == len(test.correct) == 12
        assert test.correct.count("1") / 12 == pytest.approx(test.scores["accuracy"])


def test_a_limit_takes_the_same_test_examples_for_all_seeds(parts, tmp_path):
    """In the shares of the classes; the training and validation parts stay as they are."""
    plain = {"name": "films", "train": parts["data"][0]}
    films = {**plain, "max_test_samples": 4}
    folders = {name: StudyFolder(root=tmp_path / name) for name in ("limited", "whole")}
    told = Recorder()
    for data, folder in zip((films, plain), folders.values(), strict=True):
        prepare_study(tiny_plan(parts, arms=["host"], data=[data]), folder, told)
    held_out = "films has no test part. 12 of its examples are held out to test all trainings"
    assert [text for text in told.notices if text.startswith(held_out)] == [
        f"{held_out}, and 4 of these are used.",
        f"{held_out}.",
    ]
    limited, whole = (PreparedData.open(folder.data("films")) for folder in folders.values())
    rows = limited.rows("test")
    assert len(rows) == 4
    assert [row for row in whole.rows("test") if row in rows] == rows
    assert Counter(row["label"] for row in rows) == {label: 4 // len(limited.labels) for label in limited.labels}
    assert {**limited.examples, "test": 0} == {**whole.examples, "test": 0}
    plan = tiny_plan(parts, arms=["host"], data=[films], seeds=[1, 2])
    assert DataSpec.from_dict(plan.data[0].as_dict()) == plan.data[0]
    for cell in plan.cells():
        assert len(run_cell(cell, folders["limited"]).tests["films"].correct) == 4
    with pytest.raises(ConfigError, match="max_test_samples of films is 0; it must be a number above 0"):
        tiny_plan(parts, arms=["host"], data=[{**films, "max_test_samples": 0}])


def test_a_study_continues_where_it_stopped(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run_local", run_in_this_process)
    plan = tiny_plan(parts, arms=["host", "graft"], tests="all", data=parts["data"], seeds=[1])
    result = run_study(plan, tmp_path)
    assert (result.done, result.ran, result.failed, result.missing) == (4, 4, {}, 0)
    assert result.summary.arms["graft"].donor == "tiny-llama-L3"
    folder = StudyFolder(root=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    first = json.loads(folder.summary.read_text())
    assert [(table["data"], table["test"]) for table in first["tables"]] == [
        ("films", "films"),
        ("films", "shops"),
        ("shops", "shops"),
        ("shops", "films"),
    ]
    assert not [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]

    gone = next(path for path in files if path.name.startswith("graft.films"))
    before = json.loads(gone.read_text())
    gone.unlink()
    again = run_study(StudyPlan.read(folder.plan), tmp_path)
    assert (again.done, again.ran) == (4, 1)
    assert {p: p.stat().st_mtime_ns for p in files if p != gone} == {p: t for p, t in files.items() if p != gone}
    after = json.loads(gone.read_text())
    assert after["tests"] == before["tests"]
    assert after["history"] == before["history"]

    def without_times(tables):
        for table in tables:
            for row in table["rows"]:
                row.pop("training_seconds")
        return tables

    assert without_times(json.loads(folder.summary.read_text())["tables"]) == without_times(first["tables"])


def test_donors_are_named_by_the_number_of_their_layer(parts, tmp_path):
    folder, last = StudyFolder(root=tmp_path), DonorSpec.parse(parts["donor"])
    prepare_layers([last], folder, Recorder())
    artifact = DonorSpec(source=str(folder.layer(last.name)))
    assert [donor_name(donor, folder) for donor in (last, artifact)] == ["tiny-llama-L3"] * 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"layers": [0, 1]}, "layers 0, 1"), ({"revision": "v7", "dtype": "bfloat16"}, "revision v7 and dtype bfloat16")],
)
def test_a_layer_artifact_is_used_as_it_is(parts, tmp_path, settings, named):
    folder, last = StudyFolder(root=tmp_path), DonorSpec.parse(parts["donor"])
    prepare_layers([last], folder, Recorder())
    source = str(folder.layer(last.name))
    check_layers([DonorSpec(source=source), DonorSpec(source=source, layers=(3,))], folder)
    with pytest.raises(ConfigError, match=rf"used as it is: layers 3 in F32\. The plan names {named}\."):
        check_layers([DonorSpec.parse({"source": source, **settings})], folder)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_changed_data_file_is_refused(parts, tmp_path, task):
    folder, films = StudyFolder(root=tmp_path / "study"), tmp_path / "films.jsonl"
    films.write_text(Path(parts["data"][0]).read_text())
    plan = tiny_plan(parts, arms=["host"], data=[str(films)])
    plan = replace(plan, task=task)
    prepare_study(plan, folder, Recorder())
    info_path = folder.data("films") / "data.json"
    info = json.loads(info_path.read_text())
    assert list(info["files"]) == [str(films)]
    prepare_study(plan, folder, Recorder())
    films.write_text(films.read_text().replace("film", "movie"))
    with pytest.raises(ConfigError, match=r"films.jsonl has changed since the study's trainings\. Use another folder"):
        prepare_study(plan, folder, Recorder())
    # Earlier versions did not write hashes.
    del info["files"]
    info_path.write_text(json.dumps(info))
    prepare_study(plan, folder, Recorder())


def test_an_interrupted_preparation_does_not_look_complete(parts, tmp_path, monkeypatch):
    folder = StudyFolder(root=tmp_path)
    plans = [tiny_plan(parts, arms=["host"], data=[{"name": "films", "train": path}]) for path in parts["data"]]
    prepare_study(plans[0], folder, Recorder())
    before = PreparedData.open(folder.data("films")).rows("train")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_rows", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prepare_study(plans[1], folder, Recorder())
    prepare_study(plans[0], folder, Recorder())
    assert PreparedData.open(folder.data("films")).rows("train") == before


def test_a_failed_preparation_keeps_the_plan_of_the_folder(parts, tmp_path, monkeypatch):
    folder = StudyFolder(root=tmp_path)

    def fail(error):
        monkeypatch.setattr(compare, "prepare_study", raising(error))
        with pytest.raises(type(error)):
            run_study(tiny_plan(parts, arms=["host"]), tmp_path)

    fail(RuntimeError())
    assert not folder.plan.exists()
    tiny_plan(parts, arms=["host"], seeds=[9]).write(folder.plan)
    before = folder.plan.read_text()
    for error in (DataError(), RuntimeError()):
        fail(error)
        assert folder.plan.read_text() == before
    fail(KeyboardInterrupt())
    assert StudyPlan.read(folder.plan) == tiny_plan(parts, arms=["host"])


def test_a_plan_that_was_written_by_hand_is_not_replaced(parts, tmp_path):
    (tmp_path / "study.yaml").write_text("arms: [host]  # mine")
    with pytest.raises(ConfigError, match=r"study.yaml is not the plan of a study .* Choose another folder"):
        run_study(tiny_plan(parts, arms=["host"]), tmp_path)
    assert (tmp_path / "study.yaml").read_text() == "arms: [host]  # mine"


def test_models_that_were_not_kept_are_not_missed_silently(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run_local", run_in_this_process)
    one = {"arms": ["host"], "seeds": [1], "data": parts["data"][:1]}
    run_study(tiny_plan(parts, **one), tmp_path)
    progress = Recorder()
    assert run_study(tiny_plan(parts, **one, keep_models=True), tmp_path, progress=progress).ran == 0
    assert any("trained without keep_models" in text for text in progress.notices)


def test_a_failed_cell_is_reported_and_does_not_stop_the_study(parts, tmp_path):
    broken = {"name": "broken", "like": "host", "host": str(tmp_path / "nowhere")}
    plan = tiny_plan(parts, arms=["host", broken], seeds=[1], data=parts["data"][:1])
    progress = Recorder()
    result = run_study(plan, tmp_path / "study", progress=progress)
    assert (result.done, len(result.failed), result.missing) == (1, 1, 0)
    assert any(text.startswith("Failed: broken on films, seed 1: ") and "nowhere" in text for text in progress.notices)
    failed = result.summary.cells.failed
    assert [(cell.arm, cell.error["type"]) for cell in failed] == [("broken", "SourceNotFoundError")]


def test_a_killed_process_does_not_get_the_reason_of_an_earlier_failure(parts, tmp_path, monkeypatch):
    folder = StudyFolder(root=tmp_path)
    (cell,) = tiny_plan(parts, arms=["host"], seeds=[1], data=parts["data"][:1]).cells()
    folder.failure(cell.id).parent.mkdir(parents=True)
    folder.failure(cell.id).write_text(json.dumps({"error": {"type": "DataError", "message": "fixed since"}}))
    monkeypatch.setattr(executors, "_run_python", lambda arguments, log, threads, running: log.write_text("") or -9)
    reason = executors.run_process(cell, folder, threads=1)
    assert "fixed since" not in reason
    assert "code -9" in reason


def test_an_arm_trains_on_synthetic_texts(parts, tmp_path):
    """The arm uses no row of the real training data, neither to train nor to choose the best epoch."""
    written = write_data(tmp_path, "written", count=24, seed=9)
    plan = tiny_plan(
        parts, arms=["host", {"name": "zerogen", "synthetic": {"file": written}}], seeds=[1], data=parts["data"][:1]
    )
    results = {cell.arm: cell for cell in in_this_process(plan, tmp_path / "study").values()}
    assert results["zerogen"].train_examples + results["zerogen"].validation.examples == 24
    assert results["host"].train_examples + results["host"].validation.examples == 48
    assert [results[name].tests["films"].examples for name in ("host", "zerogen")] == [12, 12]
    # Other settings, other texts; the first ones stay, for the trainings that had them.
    again = write_data(tmp_path, "again", count=32, seed=10)
    changed = tiny_plan(
        parts, arms=["host", {"name": "zerogen", "synthetic": {"file": again}}], seeds=[1], data=parts["data"][:1]
    )
    folder = StudyFolder(root=tmp_path / "study")
    prepare_study(changed, folder, Recorder())
    counts = [len(synthetic_file(made.arms[1], "films", folder).read_text().splitlines()) for made in (plan, changed)]
    assert counts == [24, 32]
    Path(again).write_bytes(Path(written).read_bytes())
    with pytest.raises(ConfigError, match="again.* has changed since the study's trainings"):
        prepare_study(changed, folder, Recorder())
    Path(again).unlink()
    prepare_study(changed, folder, Recorder())
    nameless = tiny_plan(parts, arms=["host", "zerogen"], seeds=[1])
    with pytest.raises(ConfigError, match="which model writes them"):
        prepare_study(nameless, StudyFolder(root=tmp_path / "nameless"), Recorder())


def test_a_second_command_on_the_same_folder_is_refused(parts, tmp_path):
    with locked(tmp_path / "study.lock", wait=False), pytest.raises(WorkspaceError, match="Another process"):
        run_study(tiny_plan(parts), tmp_path)
