"""Trackers: only the chosen ones are used, values have readable names, and a failing tracker does not stop a run."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from layer_surgeon.errors import ConfigError, TrainingError
from layer_surgeon.finetune import FinetuneConfig, run
from layer_surgeon.finetune.confusion import draw_confusion
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon_cli.main import app
from tests.support.classification import Recorder
from tests.support.training import same, train, weights

pytestmark = pytest.mark.charts

# As much of trackio as transformers' callback uses.
TRACKIO = """
import contextvars

class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)

class context_vars:
    current_run = contextvars.ContextVar("run", default=None)
    current_space_id = contextvars.ContextVar("space", default=None)

__version__ = "1.0"
config = Config()
runs, fails_at, ended = [], None, 0

def init(**settings):
    print("trackio says hello on stdout")
    runs.append((settings["name"], []))
    context_vars.current_run.set(settings["name"])

def log(values):
    if len(runs[-1][1]) == fails_at:
        raise ConnectionError("no route to the server")
    runs[-1][1].append(values)

def finish():
    global ended
    ended += 1
    context_vars.current_run.set(None)
"""


class Writer:
    """As much of TensorBoard's writer."""

    def __init__(self, log_dir, purge_step):
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        self.file = Path(log_dir) / f"events-{purge_step}.jsonl"
        self.file.touch()

    def add_text(self, name, text):
        pass

    def add_scalar(self, name, value, step):
        with self.file.open("a") as file:
            file.write(json.dumps([name, value, step]) + "\n")

    def flush(self):
        pass

    close = flush


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """Two trackers that are installed for one test; trackio itself is returned, TensorBoard writes files."""
    site = tmp_path / "site"
    for name, text in (("trackio", TRACKIO), ("tensorboard", "")):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(site))
    made = types.ModuleType("torch.utils.tensorboard")
    made.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", made)
    import trackio

    yield trackio
    sys.modules.pop("trackio")
    sys.modules.pop("tensorboard", None)


def told_to_tensorboard(folder):
    files = sorted((folder / "logs").iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("given", "trackers"),
    [
        (None, ()),
        ("none", ()),
        ("", ()),
        ("tensorboard", ("tensorboard",)),
        (" wandb, mlflow,wandb", ("wandb", "mlflow")),
        (["trackio", "tensorboard"], ("trackio", "tensorboard")),
    ],
)
def test_names(given, trackers):
    assert FinetuneConfig(report_to=given).trackers == trackers
    assert FinetuneConfig().report_to is None


@pytest.mark.parametrize("given", ["all", "comet", "wandb,none", 7, [7]])
def test_invalid_names(given):
    with pytest.raises(ConfigError, match="report_to is"):
        FinetuneConfig(report_to=given)


def test_package_that_is_missing(graft, workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"the package wandb is not installed. Install it \(pip install wandb\)"):
        train(graft, workspace, report_to="wandb")
    assert not workspace.root.exists()
    monkeypatch.chdir(workspace.root.parent)
    done = CliRunner().invoke(app, ["finetune", str(graft), "--report-to", "wandb"])
    assert done.exit_code == 2
    assert "pip install wandb" in done.stderr


def test_tracker_events(graft, workspace, trackio, capsys):
    result = train(graft, workspace, report_to="trackio,tensorboard")
    ((name, told),) = trackio.runs
    assert name == result.path.name
    assert trackio.ended == 1
    logged = [(key, value) for values in told for key, value in values.items()]
    losses = [value for key, value in logged if key == "train/loss"]
    assert losses == [loss for _, loss in result.steps]
    accuracies = [value for key, value in logged if key == "eval/accuracy"]
    assert accuracies == [epoch.accuracy for epoch in result.history]
    assert [value for key, value in logged if key == "eval/loss"] == [epoch.loss for epoch in result.history]
    assert ("test/accuracy", result.test.accuracy) in logged
    assert ("eval/best_accuracy", result.validation.accuracy) in logged
    assert "train/learning_rate" in dict(logged)
    assert {key for key, _ in logged} >= {"train/grad_norm", "eval/macro_f1", "test/macro_f1", "test/loss"}
    assert not {key for key, _ in logged} & {"eval/cross_entropy", "eval/runtime"}
    steps = [step for key, _, step in told_to_tensorboard(result.path) if key == "train/loss"]
    assert steps == [step for step, _ in result.steps]
    assert "hello" not in capsys.readouterr().out


def test_failing_tracker(graft, workspace, trackio):
    """One notice; only the other tracker gets more events; the weights equal those of a run without them."""
    trackio.fails_at, seen = 2, Recorder()
    result = train(graft, workspace, report_to="trackio,tensorboard", progress=seen)
    said = [line for line in seen.notices if "trackio" in line]
    assert said == [
        "trackio failed: ConnectionError: no route to the server. The run continues without it; results.json will "
        "have all results."
    ]
    assert len(trackio.runs[0][1]) == 2
    assert "test/accuracy" in [key for key, _, _ in told_to_tensorboard(result.path)]
    assert json.loads((result.path / "results.json").read_text())["test"]["accuracy"] == result.test.accuracy
    assert same(weights(result), weights(train(graft, workspace)))


def test_failed_run_is_closed_in_the_tracker_and_resumes(graft, workspace, trackio, monkeypatch):
    step, armed = SurgeonTrainer.training_step, [True]

    def once(self, *arguments, **keywords):
        if armed and self.state.global_step == 8:
            armed.clear()
            return torch.tensor(float("nan"))
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(SurgeonTrainer, "training_step", once)
    with pytest.raises(TrainingError, match=r"The loss is nan at step 9.*--resume"):
        train(graft, workspace, report_to="trackio,tensorboard")
    assert trackio.ended == 1
    # Without the tracker it is the same run.
    result = train(graft, workspace, report_to="tensorboard", resume=True)
    assert sorted(path.name for path in (result.path / "logs").iterdir()) == ["events-1.jsonl", "events-7.jsonl"]
    assert not result.path.with_name(f"{result.path.name}.unfinished").exists()


def test_scores_of_a_run_that_was_stopped_after_its_last_step(graft, workspace, trackio, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_report", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(graft, workspace, report_to="trackio", max_steps=7)
    result = train(graft, workspace, report_to="trackio", max_steps=7, resume=True)
    logged = [pair for values in trackio.runs[-1][1] for pair in values.items()]
    assert ("test/accuracy", result.test.accuracy) in logged


def test_what_a_person_sees(graft, workspace):
    seen = Recorder()
    result = train(graft, workspace, progress=seen)
    values = {name for told in seen.values for name in told}
    assert values >= {"loss", "learning rate", "samples/s", "memory", "val accuracy", "val macro F1", "val loss"}
    speeds = [told["samples/s"] for told in seen.values if "samples/s" in told]
    assert all(speed > 0 for speed in speeds)
    assert all(told["memory"] > 1e7 for told in seen.values if "memory" in told)
    lines = [line for line in seen.notices if line.startswith("Epoch ")]
    assert len(lines) == len(result.history) == 2
    first = result.history[0]
    assert lines[0] == (
        f"Epoch 1: training loss {first.training_loss:.4f}, validation accuracy {first.accuracy:.4f}, macro F1 "
        f"{first.scores['macro_f1']:.4f}, loss {first.loss:.4f} (best so far)."
    )
    assert lines[1].endswith("(best so far).") == (result.best_epoch == 2)


@pytest.mark.parametrize("classes", [2, 25])
def test_confusion_matrix(classes, tmp_path):
    """Large enough for its names; numbers only where they fit. (How it looks was looked at.)"""
    counts = [[10 if row == column else 1 for column in range(classes)] for row in range(classes)]
    draw_confusion(counts, [f"class {i}" for i in range(classes)], "run: 20 test examples", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_class_names_are_not_formulas(tmp_path):
    draw_confusion([[3, 1], [0, 4]], ["$\\foo$", "$a_$"], "a run of $\\foo$", tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000
