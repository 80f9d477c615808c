"""`surgeon finetune`, `evaluate` and `predict`, as a person types them."""

import csv
import json
import os
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.workspace import Workspace
from layer_surgeon_cli.main import app
from tests.support.classification import rows, write_csv
from tests.support.command_line import surgeon


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SURGEON_WORKSPACE", raising=False)
    return lambda *arguments, **keywords: CliRunner().invoke(app, [str(a) for a in arguments], **keywords)


@pytest.fixture
def train_csv(tmp_path):
    return write_csv(tmp_path / "train.csv", rows(60, labels=("bad", "good")))


@pytest.fixture
def test_csv(tmp_path):
    return write_csv(tmp_path / "test.csv", rows(20, seed=4, labels=("bad", "good")))


FAST = ("--num-epochs", 2, "--batch-size", 8, "--learning-rate", "5e-3")


def test_no_workspace_yet(tmp_path):
    """Through the installed command, from another folder."""
    done = surgeon("finetune", cwd=tmp_path)
    assert done.code == 1
    assert "The workspace surgery holds no graft yet. Make one first: surgeon graft bert-base-uncased" in done.err
    assert done.out == ""
    assert [path.name for path in tmp_path.iterdir() if path.name != ".hf"] == []
    assert surgeon("evaluate", cwd=tmp_path).code == 1
    assert "Train one first: surgeon finetune" in surgeon("predict", "A text.", cwd=tmp_path).err


def test_the_layer_of_a_graft_without_donor_is_in_the_workspace(run, graft, artifact, tmp_path):
    shutil.copytree(graft, tmp_path / "graft", ignore=shutil.ignore_patterns("donor"))
    shutil.copytree(artifact, tmp_path / "elsewhere/layers/l")
    assert "saved without its donor layer" in run("predict", "A text.", "--model", "graft").stderr
    done = run("predict", "A text.", "--model", "graft", "--workspace", "elsewhere")
    assert done.exit_code == 0, done.output
    assert "SURGEON_WORKSPACE" not in os.environ


def test_the_whole_way(run, graft, train_csv, test_csv, tmp_path):
    Workspace("surgery").set_latest("graft", graft)
    done = run("finetune", "--dataset", train_csv, "--test", test_csv, *FAST)
    assert done.exit_code == 0, done.output
    assert "(kept)" in done.stdout
    assert "surgery/runs/train-tiny-bert+tiny-llama-L3" in done.stdout
    assert "Training" in done.stderr
    results = json.loads((tmp_path / "surgery/runs/train-tiny-bert+tiny-llama-L3/results.json").read_text())

    done = run("evaluate", "--json")
    document = json.loads(done.stdout)
    assert document["data"] == str(test_csv)
    assert document["accuracy"] == results["test"]["accuracy"]
    assert document["confusion"] == results["test"]["confusion"]

    done = run("evaluate", "--dataset", train_csv)
    assert "accuracy" in done.stdout
    assert "as good" in done.stdout

    done = run("predict", "the film was good", "a dull plot")
    assert [line.split()[0] for line in done.stdout.splitlines() if "film" in line or "plot" in line] != []
    done = run("predict", "-", "--json", input="\ufeffthe film was good\n\na dull plot\n")
    document = json.loads(done.stdout)
    assert [row["text"] for row in document] == ["the film was good", "a dull plot"]
    assert set(document[0]["probabilities"]) == {"bad", "good"}
    done = run("predict", "-", input=b"caf\xe9\n")
    assert (done.exit_code, "stdin is not UTF-8 text (byte 3)" in done.stderr) == (1, True)


def test_predictions_into_files(run, graft, train_csv, test_csv, tmp_path):
    run("finetune", graft, "--dataset", train_csv, "--max-steps", 1)
    assert run("predict", "--input", test_csv, "--output", "out.csv").exit_code == 0
    assert run("predict", "--input", test_csv, "--output", "out.jsonl").exit_code == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in table] == [row["text"] for row in lines] == [r["text"] for r in rows(20, seed=4)]
    assert [row["label"] for row in table] == [row["label"] for row in lines]
    assert float(table[0]["p(good)"]) == lines[0]["probabilities"]["good"]
    done = run("predict", "--input", test_csv, "--output", f"{test_csv}/out.csv")
    assert (done.exit_code, "can't be written" in done.stderr) == (1, True)


def test_json_of_finetune_is_the_results_file(run, graft, train_csv, tmp_path):
    done = run("finetune", graft, "--dataset", train_csv, "--output", "mine", "--json", *FAST)
    document = json.loads(done.stdout)
    assert document.pop("path") == "mine"
    stored = json.loads((tmp_path / "mine/results.json").read_text())
    assert stored.pop("folder") == str(tmp_path / "mine")
    assert document == stored


def test_several_files_are_one_data_set(run, graft, train_csv, test_csv):
    done = run("finetune", graft, "-d", train_csv, "-d", test_csv, "--max-steps", 1, "--json")
    splits = json.loads(done.stdout)["data"]["splits"]
    assert splits["train"]["examples"] + splits["validation"]["examples"] == 80


def test_options_override_the_config_file(run, graft, train_csv, tmp_path):
    content = {"graft": str(graft), "dataset": str(train_csv), "output": "from-file", "max-steps": 2, "batch_size": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content) + "learning_rate: 1e-3\n")
    done = run("finetune", "--config", "run.yaml", "--batch-size", 6, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["path"] == "from-file"
    config = document["config"]
    assert (config["max_steps"], config["batch_size"], config["learning_rate"]) == (2, 6, 1e-3)


def test_a_column_whose_name_is_a_number(run, graft, tmp_path):
    path = tmp_path / "numbered.csv"
    path.write_text("3,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows(20)))
    done = run("finetune", graft, "--dataset", path, "--text-column", "3", "--max-steps", 1, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["data"]["columns"]["text"] == "3"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("learning_rte: 1e-3", "'learning_rte', which is not a setting. Did you mean learning_rate?"),
        ("- 1\n- 2", "must hold `name: value` lines"),
        ("a: [1", "is not valid YAML"),
        ("batch_size: many", "batch_size is 'many'; it must be a whole number"),
    ],
)
def test_bad_config_files(run, graft, tmp_path, content, says):
    (tmp_path / "run.yaml").write_text(content)
    done = run("finetune", graft, "--config", "run.yaml")
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("finetune", "--batch-size", 0), 2, "batch_size is 0; it must be a whole number of at least 1"),
        (("finetune", "--optimizer", "sgd"), 2, "sgd"),
        (("finetune", "--config", "none.yaml"), 2, "none.yaml can't be read: No such file"),
        (("finetune", "nowhere/at/all"), 1, "There is no model folder"),
        (("predict",), 2, "Give either texts"),
        (("predict", "x", "--input", "y.csv"), 2, "Give either texts"),
        (("predict", "x", "--output", "y.xlsx"), 2, "the suffix must be one of .jsonl, .csv"),
        (("evaluate", "nowhere/at/all"), 1, "is not a run of surgeon finetune"),
        (("demo", "--num-seeds", 0), 2, "must be at least 1"),
    ],
)
def test_errors(run, arguments, code, says, tmp_path):
    done = run(*arguments)
    assert done.exit_code == code
    assert says in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("text,stars\na b,1\n", "has no label column. Its columns are: text, stars."),
        ("text,label\na b,1\n", "only one class"),
        (None, "There is no file"),
    ],
)
def test_bad_data_leaves_nothing(run, graft, tmp_path, content, says):
    if content is not None:
        (tmp_path / "data.csv").write_text(content)
    done = run("finetune", graft, "--dataset", "data.csv", "--json")
    assert done.exit_code == 1
    assert says in json.loads(done.stdout)["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["data.csv"])


def test_run_without_test_data(run, graft, train_csv):
    run("finetune", graft, "--dataset", train_csv, "--max-steps", 1)
    done = run("evaluate")
    assert done.exit_code == 1
    assert "had no test data" in done.stderr


def test_interrupted_and_resumed(run, graft, train_csv, monkeypatch):
    original = SurgeonTrainer.training_step
    armed = [True]

    def training_step(self, *arguments, **keywords):
        if armed and self.state.global_step == 8:
            armed.clear()
            raise KeyboardInterrupt
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(SurgeonTrainer, "training_step", training_step)
    done = run("finetune", graft, "--dataset", train_csv, *FAST)
    assert done.exit_code == 1
    assert "Interrupted. Training up to step 6 is saved" in " ".join(done.stderr.split())
    done = run("finetune", graft, "--dataset", train_csv, *FAST, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "Resuming from" in done.stderr
