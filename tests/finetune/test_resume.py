"""A stopped run resumes to the same weights, and is never mistaken for a finished run."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from layer_surgeon.errors import TrainingError, WorkspaceError
from layer_surgeon.finetune import finetune_model, run, watching
from layer_surgeon.finetune.checkpoints import last_checkpoint, remove_broken
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.graft import save_graft
from layer_surgeon.workspace import Workspace
from tests.support.classification import Recorder, rows
from tests.support.tiny_models import cut_artifact, save_quietly, tiny_llama

DATA = {"train": rows(40), "validation": rows(16, seed=1)}
SETTINGS = {"num_epochs": 3, "batch_size": 8, "learning_rate": 1e-3}  # 5 steps per epoch


def train(graft, workspace, **arguments):
    return finetune_model(graft, arguments.pop("data", DATA), workspace=workspace, **(SETTINGS | arguments))


@pytest.fixture
def stop_at(monkeypatch):
    """Make the next run stop in front of a step, once."""
    original = SurgeonTrainer.training_step

    def arm(step, error=KeyboardInterrupt):
        armed = [True]
        arm.steps = 0

        def training_step(self, *arguments, **keywords):
            arm.steps += 1
            if armed and self.state.global_step == step:
                armed.clear()
                raise error()
            return original(self, *arguments, **keywords)

        monkeypatch.setattr(SurgeonTrainer, "training_step", training_step)

    return arm


def same(one, other):
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("step", [5, 12])
def test_resumed_run_ends_with_the_same_weights(graft, workspace, tmp_path, stop_at, step):
    whole = train(graft, Workspace(tmp_path / "whole"))
    stop_at(step)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        train(graft, workspace)
    kept = 5 * (step // 5)
    assert f"Training up to step {kept} is saved" in str(interrupted.value)
    assert not workspace.folder("run", whole.path.name).exists()
    progress = Recorder()
    stop_at.steps = 0
    resumed = train(graft, workspace, resume=True, progress=progress)
    assert stop_at.steps == 15 - kept
    assert progress.amounts[0] == 15
    assert same(whole, resumed)
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch
    assert [path.name for path in resumed.path.parent.iterdir()] == [whole.path.name]


def test_the_seconds_before_the_stop_are_counted(graft, workspace, stop_at, monkeypatch):
    """Each step takes a second. The two after the last checkpoint are lost, and not counted."""
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: float(stop_at.steps)))
    stop_at(12)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace)
    assert train(graft, workspace, resume=True).seconds == 15


def test_best_epoch_before_the_stop_is_still_known(graft, workspace, tmp_path, stop_at):
    """With a rate that changes nothing the first epoch stays the best, across the stop."""
    stop_at(12)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace, learning_rate=1e-12)
    assert train(graft, workspace, learning_rate=1e-12, resume=True).best_epoch == 1


def test_early_stopping_continues_its_count_after_resuming(graft, workspace, tmp_path, stop_at):
    settings = {"learning_rate": 1e-12, "num_epochs": 6, "early_stopping_patience": 3}
    whole = train(graft, Workspace(tmp_path / "whole"), **settings)
    assert len(whole.history) == 4
    stop_at(12)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace, **settings)
    assert len(train(graft, workspace, resume=True, **settings).history) == 4


def test_stopped_before_the_first_epoch_leaves_nothing(graft, workspace, stop_at):
    stop_at(3)
    with pytest.raises(KeyboardInterrupt, match="nothing was kept"):
        train(graft, workspace)
    assert not workspace.root.exists()
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(graft, workspace, resume=True)


def test_other_settings_or_data_are_refused(graft, workspace, stop_at):
    stop_at(7)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace)
    with pytest.raises(TrainingError, match=r"config\.learning_rate was 0\.001 and is now 0\.01"):
        train(graft, workspace, learning_rate=1e-2, resume=True)
    with pytest.raises(TrainingError, match=r"data\.splits\.train\.examples was 40 and is now 32"):
        train(graft, workspace, data=DATA | {"train": rows(32)}, resume=True)
    assert train(graft, workspace, resume=True).path.is_dir()


def test_finished_run_is_not_resumed(graft, workspace, tmp_path):
    train(graft, workspace, output=tmp_path / "run")
    with pytest.raises(TrainingError, match="finished: there is nothing to resume"):
        train(graft, workspace, output=tmp_path / "run", resume=True)


def test_unfinished_run_is_not_overwritten(graft, workspace, tmp_path, stop_at):
    stop_at(7)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace, output=tmp_path / "run")
    with pytest.raises(WorkspaceError, match="contains an unfinished run. Continue it with --resume"):
        train(graft, workspace, output=tmp_path / "run")


def test_new_run_next_to_an_unfinished_one(graft, workspace, stop_at):
    stop_at(7)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace)
    progress = Recorder()
    new = train(graft, workspace, progress=progress)
    assert new.path.name.endswith("-2")
    assert any("is unfinished; --resume would continue it" in notice for notice in progress.notices)
    assert train(graft, workspace, resume=True).path.name == new.path.name.removesuffix("-2")


def test_incomplete_checkpoint_is_skipped(graft, workspace, tmp_path, stop_at):
    """As after a kill while a checkpoint is being written: its state, which comes last, is missing."""
    whole = train(graft, Workspace(tmp_path / "whole"))
    stop_at(12)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace)
    checkpoints = next((workspace.root / "runs").iterdir()) / "checkpoints"
    broken = checkpoints / "checkpoint-12"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    assert same(whole, train(graft, workspace, resume=True))


def test_a_checkpoint_with_fields_of_another_version_is_kept(graft, workspace, stop_at):
    stop_at(7)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace)
    checkpoints = next((workspace.root / "runs").iterdir()) / "checkpoints"
    state = last_checkpoint(checkpoints) / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"of_a_later_version": 1}))
    remove_broken(checkpoints)
    assert last_checkpoint(checkpoints) == state.parent


def test_run_of_a_running_process_is_not_touched(graft, workspace, tmp_path):
    work = tmp_path / "run.unfinished"
    work.mkdir()
    (work / "run.json").write_text(json.dumps({"signature": {}, "pid": os.getppid()}))
    with pytest.raises(WorkspaceError, match="an active run"):
        train(graft, workspace, output=tmp_path / "run")
    assert work.exists()
    (work / "run.json").write_text(json.dumps({"signature": {}, "pid": 2**22 + 1}))  # above Linux's largest
    train(graft, workspace, output=tmp_path / "run", max_steps=1)
    assert not work.exists()


@pytest.mark.parametrize(
    "settings",
    [{"max_steps": 7}, {"learning_rate": 1e-12, "num_epochs": 6, "early_stopping_patience": 2}],
    ids=["inside an epoch", "early stop"],
)
def test_a_run_that_was_stopped_after_its_last_step_trains_no_more(graft, workspace, tmp_path, stop_at, settings):
    whole = train(graft, Workspace(tmp_path / "whole"), **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(graft, workspace, **settings)
    stop_at(-1)
    resumed = train(graft, workspace, resume=True, **settings)
    assert stop_at.steps == 0
    assert same(whole, resumed)
    assert (resumed.history, resumed.best_epoch, resumed.steps) == (whole.history, whole.best_epoch, whole.steps)


@pytest.mark.parametrize("settings", [{}, {"train_host": "lora"}], ids=["all", "lora"])
def test_another_donor_is_another_run(graft, host, workspace, tmp_path, stop_at, settings):
    """No checkpoint has the frozen donor, and its shape is the same."""
    save_quietly(tiny_llama(seed=6), tmp_path / "llm")
    other = tmp_path / "other" / graft.name
    save_graft(host, cut_artifact(tmp_path / "llm", [3], tmp_path / "L3"), output=other, seed=7, workspace=workspace)
    stop_at(7)
    with pytest.raises(KeyboardInterrupt):
        train(graft, workspace, **settings)
    with pytest.raises(TrainingError, match="donor was '.*' and is now"):
        train(other, workspace, resume=True, **settings)


def test_error_in_the_end_keeps_the_checkpoint(graft, workspace, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_report", full)
        with pytest.raises(WorkspaceError, match="No space left on device. Training up to step 15 is saved"):
            train(graft, workspace)
    assert train(graft, workspace, resume=True).path.is_dir()
