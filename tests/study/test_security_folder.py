"""A study's folder from a stranger: nothing outside it is written, read or deleted, and dry runs write nothing."""

import dataclasses
import json
from html import unescape
from pathlib import Path

import pytest
from safetensors.torch import load_file

from layer_surgeon._io import write_bytes
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.errors import ConfigError, DataError, WorkspaceError
from layer_surgeon.report.export import write_report
from layer_surgeon.report.load import load_report
from layer_surgeon.report.render import html
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.data import PreparedData, write_rows
from layer_surgeon.study.donor_layers import prepare_layers
from layer_surgeon.study.estimate import estimate_study
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.records import read_failures
from layer_surgeon.workspace import Workspace
from layer_surgeon_cli.report import write_sweep_picture
from layer_surgeon_cli.ui import Ui
from tests.support.classification import Recorder
from tests.support.command_line import surgeon_here
from tests.support.http_folder import Answer, Asked, HttpFolder
from tests.support.made_up_studies import made_up_study
from tests.support.studies import tiny_parts, tiny_plan

SECRET = "s3cr3t"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_parts(tmp_path_factory.mktemp("parts"))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return all files of a folder, with their times and contents."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.mark.parametrize("name", ["/any/dir", "..", ".", "", "a/b", "a\\b", "a\0b"])
def test_a_name_is_never_a_path(tmp_path, name):
    folder = StudyFolder(root=tmp_path)
    for make in (folder.data, folder.layer, folder.path):
        with pytest.raises(WorkspaceError, match="not a valid name"):
            make(name)
    with pytest.raises(WorkspaceError, match="not a valid name"):
        folder.result(f"../{name}")


@pytest.mark.parametrize("name", ["data", "layers", "runs", "logs", "cells", "study.yaml"])
def test_a_link_that_leaves_the_folder_is_refused_before_anything_is_written(parts, tmp_path, name):
    study, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    study.mkdir()
    elsewhere.mkdir()
    (study / name).symlink_to(elsewhere)
    with pytest.raises(WorkspaceError, match="not in the study's folder"):
        run_study(tiny_plan(parts, arms=["host"], seeds=[1]), study)
    with pytest.raises(WorkspaceError, match="not in the study's folder"):
        # A report reads cells and the plan.
        load_report(study) if name == "study.yaml" else StudyFolder(root=study).path(name)
    assert not list(elsewhere.iterdir())


def test_links_of_files_that_leave_the_folder(tmp_path):
    plan = made_up_study(tmp_path / "study", {"host": 0.7, "graft": 0.8})
    folder, cell = StudyFolder(root=tmp_path / "study"), plan.cells()[0]
    (tmp_path / "precious.json").write_text('{"format": 1}')
    for path in (folder.result(cell.id), folder.failure(cell.id), folder.log(cell.id), folder.run(cell.id)):
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "precious.json")
        with pytest.raises(WorkspaceError, match="Replace the link"):
            folder.path(path.parent.name, path.name)
        path.unlink()
    (folder.run(cell.id, ".unfinished").parent / f"{cell.id}.unfinished").symlink_to(tmp_path)
    with pytest.raises(WorkspaceError, match="Replace the link"):
        folder.run(cell.id, ".unfinished")
    (tmp_path / "study/data/films").mkdir(parents=True)
    (tmp_path / "study/data/films/train.jsonl").symlink_to(tmp_path / "precious.json")
    with pytest.raises(WorkspaceError, match="Replace the link"):
        folder.data("films")
    (tmp_path / "study/data/films/train.jsonl").unlink()
    (tmp_path / "study/data/films/train.jsonl").symlink_to("train.jsonl")
    with pytest.raises(WorkspaceError, match="can't be read"):
        folder.data("films")


def test_a_picture_and_a_report_replace_links(tmp_path):
    made_up_study(tmp_path / "study", {"host": 0.7, "graft": 0.8})
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "sweep.png").symlink_to(precious)
    write_bytes(tmp_path / "sweep.png", b"picture")
    assert precious.read_text() == "precious"
    assert not (tmp_path / "sweep.png").is_symlink()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "scores.png").write_text("precious")
    (tmp_path / "study/report").mkdir()
    (tmp_path / "study/report/figures").symlink_to(pictures)
    with pytest.raises(WorkspaceError, match="link that leads out of"):
        write_report(load_report(tmp_path / "study"), tmp_path / "study/report")
    assert [path.name for path in pictures.iterdir()] == ["scores.png"]
    (tmp_path / "study/report/figures").unlink()
    (tmp_path / "study/report").rmdir()
    (tmp_path / "study/report").symlink_to(pictures)
    refused = surgeon_here("report", "study", cwd=tmp_path)
    assert (refused.code, "not in the study's folder" in refused.err) == (1, True), refused.err
    assert [path.name for path in pictures.iterdir()] == ["scores.png"]


def test_a_failed_cell_is_known_by_its_file_s_name(tmp_path):
    (tmp_path / "outside.json").touch()
    folder = StudyFolder(root=tmp_path / "study")
    folder.failure("a").parent.mkdir(parents=True)
    error = {"type": "DataError", "message": "no rows"}
    head = {"format": 1, "arm": "host", "data": "films", "fraction": 1.0, "seed": 1, "error": error}
    folder.failure("a").write_text(json.dumps({**head, "id": "../../outside"}))
    assert [failure.id for failure in read_failures(folder)] == ["../../outside"]


def test_a_complete_plan_overwrites_nothing(tmp_path):
    """Repeats the original attack: one YAML file and `--dry-run`."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "train.jsonl").write_text("precious")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n' * 8)
    plan = StudyPlan.from_dict({"arms": ["host"], "data": ["train.jsonl"], "seeds": [1]}).as_dict()
    plan["data"][0]["name"] = str(victim)
    plan["tests"] = {str(victim): [str(victim)]}
    (tmp_path / "plan.yaml").write_text(dump_yaml(plan))
    result = surgeon_here("compare", "-c", "plan.yaml", "--dry-run", cwd=tmp_path)
    assert (result.code, "A name has at most" in result.err) == (2, True), result.err
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"train.jsonl": "precious"}


def test_a_dry_run_writes_nothing(parts, tmp_path):
    plan = tiny_plan(parts, arms=["host", "graft"], seeds=[1], data=parts["data"][:1])
    estimate = estimate_study(plan, tmp_path / "study", Recorder())
    assert (estimate.cells, estimate.done, set(estimate.seconds_by_arm)) == (2, 0, {"host", "graft"})
    assert not (tmp_path / "study").exists()


def test_a_dry_run_uses_what_a_running_study_has_prepared_and_leaves_it(parts, tmp_path, monkeypatch):
    plan = tiny_plan(parts, arms=["host", "graft"], seeds=[1], data=parts["data"][:1])
    folder = StudyFolder(root=tmp_path)
    plan.write(folder.plan)
    prepare_study(plan, folder, Recorder())
    before = state(tmp_path)
    monkeypatch.setattr("layer_surgeon.study.donor_layers.extract_layer", lambda *_, **__: pytest.fail("it is there"))
    monkeypatch.setattr("layer_surgeon.study.prepare.write_rows", lambda *_: pytest.fail("they are there"))
    other = dataclasses.replace(plan, title="another", seeds=(7,))
    assert estimate_study(other, tmp_path, Recorder()).cells == 2
    monkeypatch.undo()
    assert state(tmp_path) == before
    # Prepared by another plan: made again, in the folder that is thrown away.
    assert estimate_study(dataclasses.replace(other, test_fraction=0.3), tmp_path, Recorder()).cells == 2
    assert state(tmp_path) == before
    moved = tiny_plan({**parts, "donor": f"{parts['donor']['source']}/../tiny-llama"}, arms=["graft"], seeds=[1])
    with pytest.raises(ConfigError, match="was extracted from"):
        estimate_study(moved, tmp_path, Recorder())


@pytest.mark.slow
def test_a_dry_sweep_writes_nothing(parts, tmp_path):
    arguments = ("--host", parts["host"], "--dataset", parts["data"][0], "--num-seeds", 1)
    arguments = (*arguments, "--set", "finetune.max_length=16")
    result = surgeon_here(
        *("sweep", parts["donor"]["source"], "--layers", "0,1", "--candidates", "sites", *arguments),
        *("--output", "study", "--dry-run", "--json"),
        cwd=tmp_path,
    )
    assert result.code == 0, result.err
    assert not (tmp_path / "study").exists()


def test_a_signed_url_is_used_and_not_kept(parts, tmp_path):
    source = Path(parts["donor"]["source"])
    study = tmp_path / "study"
    folder = StudyFolder(root=study)

    def only_signed(asked: Asked, answer: Answer) -> None:
        signed.append(asked.headers["query"] == f"signature={SECRET}")
        if not signed[-1]:
            answer.status, answer.body = 403, b""

    signed: list[bool] = []
    with HttpFolder({f"llm/{path.name}": path.read_bytes() for path in source.iterdir()}) as served:
        served.fault = only_signed
        url = f"{served.url}/llm?signature={SECRET}"
        plan = tiny_plan({**parts, "donor": url}, arms=["graft"], seeds=[1], data=parts["data"][:1])
        plan.write(folder.plan)
        prepare_layers([arm.donor for arm in plan.arms], folder, Recorder())
    assert signed
    assert all(signed)
    for path in study.rglob("*"):
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    # It goes on from what it kept, without the server.
    again = StudyPlan.read(folder.plan)
    prepare_layers([arm.donor for arm in again.arms], folder, Recorder())
    assert [cell.id for cell in again.cells()] == [cell.id for cell in plan.cells()]
    assert load_file(folder.layer(again.arms[0].donor.name) / "model.safetensors")


def test_a_file_of_written_texts_is_no_way_to_other_files(parts, tmp_path):
    (tmp_path / "id_rsa").write_text("-----BEGIN PRIVATE KEY-----\nMIIabc\n")
    (tmp_path / "other.jsonl").write_text('{"text": "a", "label": "negative", "token": "t0ken"}\n')
    (tmp_path / "labels.jsonl").write_text('{"text": "a", "label": "neither"}\n')
    study = tmp_path / "study"

    def plan(name):
        arms = [{"name": "zerogen", "synthetic": {"file": str(tmp_path / name)}}]
        return tiny_plan(parts, arms=arms, seeds=[1], data=parts["data"][:1])

    for name in ("id_rsa", "labels.jsonl", "nowhere.jsonl"):
        with pytest.raises(DataError, match=name) as refused:
            prepare_study(plan(name), StudyFolder(root=study), Recorder())
        assert "MIIabc" not in str(refused.value)
    assert not list(study.glob("data/*/synthetic*"))
    prepare_study(plan("other.jsonl"), StudyFolder(root=study), Recorder())
    (made,) = study.glob("data/*/synthetic*")
    assert json.loads(made.read_text()) == {"text": "a", "label": "negative"}
    with pytest.raises(DataError, match="example 1 is wrong"):
        prepare_study(plan("labels.jsonl"), StudyFolder(root=tmp_path / "again"), Recorder())


def test_texts_may_contain_any_characters(tmp_path):
    rows = [{"text": "a\x85b\u2028c\u2029d\x1ee", "label": "yes"}, {"text": "f", "label": "no"}]
    write_rows(tmp_path / "train.jsonl", rows)
    data = PreparedData(folder=tmp_path, labels=("no", "yes"), pairs=False, examples={"train": 2})
    assert data.rows("train") == rows


def test_a_sweep_of_one_layer_has_no_picture(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8})
    ui = Ui(as_json=True, quiet=True, debug=False, workspace=Workspace(tmp_path))
    assert write_sweep_picture(tmp_path, ui) is None
    assert not (tmp_path / "sweep.png").exists()


def test_the_page_posts_nothing_and_has_no_html_of_a_metric(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8})
    report = load_report(tmp_path)
    hostile = "<form action=//evil>"
    summary = dataclasses.replace(report.summary, metric=hostile)
    page = html(dataclasses.replace(report, summary=summary))
    assert "<form" not in page.casefold()
    policy = unescape(page)
    assert "form-action 'none'" in policy
    assert "base-uri 'none'" in policy


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", "[" * 100_000),
        ("summary.json", '{"format": 1, "cells": {"done": 6}, "tables": [{"rows": [{"mean": "x"}]}]}'),
        ("selection.json", "[" * 100_000),
        ("selection.json", '{"format": 1, "best": "graft", "layers": 5, "rungs": 7}'),
        ("study.yaml", "a: " + "[" * 20_000),
        ("study.yaml", "[]"),
    ],
)
def test_a_damaged_file_is_said(tmp_path, name, text):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8})
    (tmp_path / name).write_text(text)
    with pytest.raises(WorkspaceError, match=name):
        load_report(tmp_path)


@pytest.mark.parametrize("scores", [{"accuracy": "x"}, {"accuracy": 0.5}, {"accuracy": None}, ["accuracy"]])
def test_a_damaged_cell_is_said(tmp_path, scores):
    plan = made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, summary=False)
    damaged = {"films": {"examples": 9, "scores": scores, "correct": "abc"}}
    for cell in plan.cells():
        path = StudyFolder(root=tmp_path).result(cell.id)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tests": damaged}))
    with pytest.raises(WorkspaceError):
        load_report(tmp_path)


def test_a_folder_with_an_adapter_alone_loads_no_other_model(parts, tmp_path):
    """transformers would load the model that an adapter's config names; any model can write synthetic texts."""
    pytest.importorskip("peft")
    (tmp_path / "adapter").mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": parts["donor"]["source"]}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    arms = [{"name": "zerogen", "synthetic": {"model": str(tmp_path / "adapter"), "per_label": 1}}]
    plan = tiny_plan(parts, arms=arms, seeds=[1], data=parts["data"][:1])
    with pytest.raises(ConfigError, match="a model that you didn't name"):
        prepare_study(plan, StudyFolder(root=tmp_path / "study"), Recorder())
