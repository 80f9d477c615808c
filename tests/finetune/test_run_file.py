"""run.yaml contains all settings, and repeats the run bit for bit."""

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from layer_surgeon.finetune import FinetuneConfig, finetune_model
from layer_surgeon.finetune.record import write_run_file
from layer_surgeon_cli.finetune import read_config
from layer_surgeon_cli.main import app
from tests.support.classification import rows


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A file, named by a path relative to its folder."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    lines = [f"{row['text']},{row['label']}" for row in rows(40, labels=("bad", "good"))]
    Path("data.csv").write_text("\n".join(["text,label", *lines, ""]))
    return "data.csv"


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def test_the_file_repeats_the_run_from_another_folder(graft, data, tmp_path, monkeypatch):
    flags = ("--num-epochs", 2, "--batch-size", 8, "--learning-rate", "1e-3", "--train-fraction", 0.5, "--seed", 5)
    run("finetune", graft, "--dataset", data, *flags, "--output", tmp_path / "first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("finetune", "--config", tmp_path / "first" / "run.yaml", "--output", tmp_path / "second")
    first, second = ((tmp_path / name) for name in ("first", "second"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "run.yaml").read_bytes() == (second / "run.yaml").read_bytes()
    run("finetune", "--config", first / "run.yaml", "--seed", 6, "--output", tmp_path / "third")
    assert (first / "model.safetensors").read_bytes() != (tmp_path / "third" / "model.safetensors").read_bytes()


def test_every_setting_is_written_with_its_final_value(graft, workspace):
    data = {"train": rows(24), "validation": rows(8, seed=1)}
    result = finetune_model(graft, data, workspace=workspace, num_epochs=1, batch_size=8, learning_rate=3e-5)
    content = yaml.safe_load((result.path / "run.yaml").read_text())
    assert set(content) == {"graft", *(field.name for field in fields(FinetuneConfig))}
    assert content["graft"] == str(graft)
    assert {name: content[name] for name in asdict(result.config)} == asdict(result.config)
    assert (content["task"], content["select_by"]) == ("text-classification", "accuracy")
    assert "# dataset: was an object in memory" in (result.path / "run.yaml").read_text()


def test_sources_are_names_or_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").touch()
    Path("sst2").mkdir()
    places = {"graft": Path("a.csv"), "dataset": ["a.csv", "user/repo"], "test": "sst2", "validation": None}
    write_run_file(tmp_path, places, FinetuneConfig(learning_rate=5e-5, label_column="1e5", source_prefix="Ü: "))
    read, settings = read_config(tmp_path / "run.yaml")
    assert read == {
        "graft": str(tmp_path / "a.csv"),
        "dataset": [str(tmp_path / "a.csv"), "user/repo"],
        "test": "sst2",
    }
    assert FinetuneConfig(**settings) == FinetuneConfig(learning_rate=5e-5, label_column="1e5", source_prefix="Ü: ")
