"""A stopped run of the command: its message, its exit code, and resuming from its checkpoint."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

from layer_surgeon.finetune import run as run_module
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon_cli.main import app
from tests.support.classification import rows

FLAGS = ("--num-epochs", 3, "--batch-size", 8, "--output", "run", "--dataset", "data.csv", "--validation", "more.csv")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with data: 5 steps an epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SURGEON_WORKSPACE", raising=False)
    for name, made in (("data.csv", rows(40)), ("more.csv", rows(8, seed=1))):
        lines = [f"{row['text']},{row['label']}" for row in made]
        (tmp_path / name).write_text("\n".join(["text,label", *lines, ""]))
    return tmp_path


def run(graft, *arguments):
    done = CliRunner().invoke(app, ["finetune", *map(str, (graft, *FLAGS, *arguments))])
    return done.exit_code, " ".join((done.stderr or "").split())


def goes_on(graft, place, step):
    state = json.loads(
        (place / "run.unfinished" / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").read_text()
    )
    assert state["global_step"] == step
    code, said = run(graft, "--resume")
    assert code == 0, said
    assert (place / "run" / "results.json").is_file()
    assert not (place / "run.unfinished").exists()


def break_step(monkeypatch, number, result):
    """Make one training step, once, do something else."""
    step, armed = SurgeonTrainer.training_step, [True]

    def training_step(self, *arguments, **keywords):
        if armed and self.state.global_step == number:
            armed.clear()
            return result(self)
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(SurgeonTrainer, "training_step", training_step)


def test_nan_loss(graft, place, monkeypatch):
    break_step(monkeypatch, 7, lambda self: torch.tensor(math.nan))
    code, said = run(graft)
    assert code == 1
    assert "The loss is nan at step 8" in said
    assert "Try a lower --learning-rate" in said
    assert "Training up to step 5 is saved in run.unfinished; continue with --resume" in said
    goes_on(graft, place, 5)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 576 vs 470"),
    ],
    ids=["system", "safetensors", "torch"],
)
def test_disk_that_gets_full_in_the_second_checkpoint(graft, place, monkeypatch, error):
    save, armed = SurgeonTrainer._save, [True]

    def full(self, folder=None, state_dict=None):
        save(self, folder, state_dict)
        if armed and self.state.global_step == 10:
            armed.clear()
            raise error

    monkeypatch.setattr(SurgeonTrainer, "_save", full)
    code, said = run(graft)
    assert code == 1
    assert "can't be written" in said
    assert "Training up to step 5 is saved in run.unfinished" in said
    assert not (place / "run.unfinished" / "checkpoints" / "checkpoint-10").exists()
    goes_on(graft, place, 5)


def test_disk_that_gets_full_when_the_finished_run_is_written(graft, place, monkeypatch):
    write, armed = run_module.write_report, [True]

    def full(*arguments):
        if armed:
            armed.clear()
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(run_module, "write_report", full)
    code, said = run(graft)
    assert code == 1
    assert "run.unfinished can't be written: No space left on device. Training up to step 15 is saved" in said
    assert not (place / "run").exists()
    goes_on(graft, place, 15)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_ctrl_c(graft, place):
    arguments = (graft, *FLAGS, "--num-epochs", 20_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "layer_surgeon_cli", "finetune", *map(str, arguments)],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores the signal, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The first checkpoint is complete when the second one is there.
    checkpoints: set[Path] = set()
    while process.poll() is None and len(checkpoints) < 2:
        time.sleep(0.05)
        checkpoints |= set(place.glob("run.unfinished/checkpoints/*/trainer_state.json"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 1, said
    assert "Interrupted. Training up to step" in said
    assert "Traceback" not in said
    assert list(place.glob("run.unfinished/checkpoints/*/trainer_state.json"))
    assert json.loads((place / "run.unfinished" / "run.json").read_text()).keys() == {"signature"}
    assert not (place / "run.unfinished" / ".lock").exists()
