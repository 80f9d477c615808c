"""The folder of a run: one run at a time, and of a stranger nothing is run, followed or deleted."""

import json
import os
import pickle
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import StateDictType

from layer_surgeon.errors import ConfigError, LayerSurgeonError, TrainingError, WorkspaceError
from layer_surgeon.finetune import finetune_model, plan_finetuning, run
from layer_surgeon.finetune import folder as folder_module
from layer_surgeon.finetune.checkpoints import last_checkpoint
from layer_surgeon.finetune.folder import claim_folder
from layer_surgeon.finetune.sharding import check_readable
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.progress import NullProgress
from layer_surgeon.workspace import Workspace
from tests.support.classification import Recorder, rows
from tests.support.races import claim, race

DATA = {"train": rows(24), "validation": rows(8, seed=1)}
SETTINGS = {"num_epochs": 3, "batch_size": 8, "learning_rate": 1e-3}  # 3 steps per epoch


def train(graft, workspace, output, **arguments):
    return finetune_model(graft, DATA, workspace=workspace, output=output, **(SETTINGS | arguments))


@pytest.fixture(scope="module")
def stopped_once(graft, tmp_path_factory):
    """A run that was stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    original = SurgeonTrainer.training_step

    def training_step(self, *arguments, **keywords):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return original(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SurgeonTrainer, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            train(graft, Workspace(folder / "surgery"), folder / "run")
    return folder / "run.unfinished"


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run.unfinished"))


def all_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# ---- files of the user


@pytest.mark.parametrize("name", ["thesis.txt", "checkpoints/notes.txt", "checkpoints/checkpoint-best/model.bin"])
@pytest.mark.parametrize("mark", [None, {}, {"signature": {}}])
def test_folder_of_the_user_is_not_deleted(graft, workspace, tmp_path, name, mark):
    file = tmp_path / "run.unfinished" / name
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    if mark is not None:
        (tmp_path / "run.unfinished/run.json").write_text(json.dumps(mark))
    before = all_files(tmp_path)
    for function in (train, lambda *arguments: plan_finetuning(arguments[0], DATA, output=arguments[2])):
        with pytest.raises(WorkspaceError, match="run.unfinished, which contains files that no run created") as told:
            function(graft, workspace, tmp_path / "run")
    assert name in str(told.value)
    with pytest.raises(TrainingError, match=r"nothing to resume|different settings"):
        train(graft, workspace, tmp_path / "run", resume=True)
    assert all_files(tmp_path) == before


def test_by_default_another_name_is_taken(tmp_path):
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished/thesis.txt").write_text("years of work")
    folder = claim_folder(tmp_path / "run", {}, resume=False, by_default=True, progress=NullProgress())
    assert folder.target.name == "run-2"
    folder.abandon()
    assert all_files(tmp_path) == ["run.unfinished/thesis.txt"]


@pytest.mark.parametrize("left", [[], [".lock"], ["run.json.tmp"], [".run.json.abcd1234.tmp"]])
def test_new_run_after_a_kill(tmp_path, left):
    (tmp_path / "run.unfinished/checkpoints").mkdir(parents=True)
    for name in left:
        (tmp_path / "run.unfinished" / name).write_text("")
    claim_folder(tmp_path / "run", {}, resume=False, by_default=False, progress=NullProgress()).abandon()
    assert list(tmp_path.iterdir()) == []


def test_files_added_during_the_run_are_kept(graft, workspace, tmp_path, monkeypatch):
    write = run.write_report

    def write_report(*arguments):
        (tmp_path / "run.unfinished/notes.txt").write_text("mine")
        write(*arguments)

    monkeypatch.setattr(run, "write_report", write_report)
    progress = Recorder()
    result = train(graft, workspace, tmp_path / "run", progress=progress)
    assert all_files(tmp_path / "run.unfinished") == ["notes.txt"]
    assert any(
        "run.unfinished was not removed: it contains files that this run did not create (notes.txt)" in notice
        for notice in progress.notices
    )
    assert (result.path / "results.json").exists()


# ---- links


def test_links_in_place_of_folders(graft, workspace, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.txt").write_text("mine")
    for name in ("run.unfinished", "run"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(WorkspaceError, match="is a symbolic link"):
            train(graft, workspace, tmp_path / "run")
        (tmp_path / name).unlink()
    (tmp_path / "run.unfinished").mkdir()
    for name in ("checkpoints", "logs", "final", "run.json"):
        (tmp_path / "run.unfinished" / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(WorkspaceError, match=f"contains files that no run created: {name}"):
            train(graft, workspace, tmp_path / "run")
        (tmp_path / "run.unfinished" / name).unlink()
    assert all_files(tmp_path) == ["elsewhere/mine.txt"]


@pytest.mark.parametrize("name", ["logs", "final", "checkpoints/checkpoint-6"])
def test_a_run_with_links_is_not_resumed(graft, workspace, tmp_path, stopped, name):
    (tmp_path / "elsewhere").mkdir()
    (stopped / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceError, match=f"contains symbolic links .{name}"):
        train(graft, workspace, tmp_path / "run", resume=True)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_to_a_run_is_not_resumed(graft, workspace, tmp_path, stopped):
    stopped.rename(tmp_path / "elsewhere")
    stopped.symlink_to(tmp_path / "elsewhere")
    before = all_files(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceError, match="it is a link to another place"):
        train(graft, workspace, tmp_path / "run", resume=True)
    assert all_files(tmp_path / "elsewhere") == before


def make_best(work: Path, step: int) -> Path:
    """Say in the last checkpoint that another one is the best, by a score that no epoch can beat."""
    checkpoint = last(work)
    best = work / f"checkpoints/checkpoint-{step}"
    if not best.exists():
        best.mkdir()
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        (best / "trainer_state.json").write_text(json.dumps(state | {"global_step": step}))
    path = checkpoint / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_global_step": step, "best_metric": 2.0}))
    return best


def test_the_best_checkpoint_has_no_weights_of_another_folder(graft, workspace, tmp_path, stopped):
    best = make_best(stopped, 2)
    shutil.copy(last(stopped) / "model.safetensors", tmp_path / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"x": "../../../other.safetensors"}}
    (best / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LayerSurgeonError, match="other.safetensors', which is not in the folder"):
        train(graft, workspace, tmp_path / "run", resume=True)


def test_the_best_checkpoint_without_weights_is_an_error(graft, workspace, tmp_path, stopped):
    make_best(stopped, 2)
    with pytest.raises(TrainingError, match="the checkpoint of the best epoch, has no weights"):
        train(graft, workspace, tmp_path / "run", resume=True)


# ---- one run at a time


def test_two_runs_dont_claim_one_folder(tmp_path):
    for turn in race(claim, 60, tmp_path, False):
        assert sorted(turn)[1] == "done", turn
        assert "is in use by an active run" in sorted(turn)[0]


def test_a_run_that_begins_during_the_check_is_named(tmp_path, monkeypatch):
    """Its files are not taken for the user's."""
    begun = []
    check = folder_module._check_contents

    def check_late(target):
        if not begun:
            begun.append(None)
            begun.append(claim_folder(target, {}, resume=False, by_default=False, progress=NullProgress()))
            raise WorkspaceError("which contains files that no run created: run.json")
        check(target)

    monkeypatch.setattr(folder_module, "_check_contents", check_late)
    with pytest.raises(WorkspaceError, match="is in use by an active run"):
        claim_folder(tmp_path / "run", {}, resume=False, by_default=False, progress=NullProgress())
    begun[-1].abandon()


def test_by_default_two_runs_take_two_folders(tmp_path):
    assert race(claim, 30, tmp_path, True) == [["done", "done"]] * 30
    assert len(list(tmp_path.iterdir())) == 60


def test_active_run_is_not_touched(graft, workspace, tmp_path):
    folder = claim_folder(tmp_path / "run", {}, resume=False, by_default=False, progress=NullProgress())
    for resume in (False, True):
        with pytest.raises(WorkspaceError, match="is in use by an active run"):
            train(graft, workspace, tmp_path / "run", resume=resume)
    assert folder.checkpoints.is_dir()
    folder.abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pid", [10**30, -1, 0, -(10**30), True, "1", 1.5, None, [1]])
def test_invalid_process_id(tmp_path, pid):
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished/run.json").write_text(json.dumps({"signature": {}, "pid": pid}))
    claim_folder(tmp_path / "run", {}, resume=False, by_default=False, progress=NullProgress()).abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3", '{"signature": 3}', '{"signature": ' + "[" * 9000])
def test_invalid_run_file(tmp_path, content):
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished/run.json").write_text(content)
    with pytest.raises(WorkspaceError, match="contains files that no run created: run.json"):
        claim_folder(tmp_path / "run", {}, resume=False, by_default=False, progress=NullProgress())
    with pytest.raises(TrainingError, match="nothing to resume"):
        claim_folder(tmp_path / "run", {}, resume=True, by_default=False, progress=NullProgress())


# ---- a stranger's checkpoint


class Code:
    """Runs code when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def last(work: Path) -> Path:
    return max((work / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("optimizer.pt", False),
        ("optimizer.pt", True),
        ("scheduler.pt", False),
        ("rng_state.pth", False),
        ("rng_state.pth", True),
        ("training_args.bin", False),
    ],
)
def test_checkpoint_does_not_run_code(graft, workspace, tmp_path, stopped, name, bare):
    victim = tmp_path / "ran"
    if bare:
        (last(stopped) / name).write_bytes(pickle.dumps(Code(victim), protocol=2))
    else:
        torch.save(Code(victim), last(stopped) / name)
    if name == "training_args.bin":
        train(graft, workspace, tmp_path / "run", resume=True)
    else:
        with pytest.raises(TrainingError, match="The checkpoint can't be read"):
            train(graft, workspace, tmp_path / "run", resume=True)
        assert last(stopped).is_dir()
    assert not victim.exists()


def test_weights_are_not_unpickled(graft, workspace, tmp_path, stopped):
    (last(stopped) / "model.safetensors").unlink()
    torch.save(Code(tmp_path / "ran"), last(stopped) / "pytorch_model.bin")
    with pytest.raises(TrainingError, match="The checkpoint can't be read"):
        train(graft, workspace, tmp_path / "run", resume=True)
    assert not (tmp_path / "ran").exists()


def test_weights_outside_of_the_checkpoint_are_not_read(graft, workspace, tmp_path, stopped):
    weights = last(stopped) / "model.safetensors"
    weights.rename(tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"head.weight": "../../../model.safetensors"}}
    weights.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TrainingError, match="which is not in the folder"):
        train(graft, workspace, tmp_path / "run", resume=True)


def test_checkpoints_that_are_read_with_pickle_are_not_resumed():
    check_readable(SimpleNamespace(state_dict_type=StateDictType.FULL_STATE_DICT))
    with pytest.raises(
        ConfigError, match="fsdp_state_dict_type is SHARDED_STATE_DICT, but a run can only be resumed with"
    ):
        check_readable(SimpleNamespace(state_dict_type=StateDictType.SHARDED_STATE_DICT))


@pytest.mark.parametrize(
    "change",
    [
        {"global_step": 10**30},
        {"global_step": "3"},
        {"global_step": 2},
        {"log_history": "none"},
        {"log_history": [{"step": 1, "loss": "x"}]},
        {"stateful_callbacks": 3},
        {"best_global_step": "../../elsewhere"},
    ],
)
def test_a_checkpoint_with_an_odd_state_counts_as_broken(tmp_path, stopped, change):
    state = last(stopped) / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | change))
    assert last_checkpoint(stopped / "checkpoints") is None


def test_callbacks_of_a_checkpoint_that_dont_exist(graft, workspace, tmp_path, stopped):
    state = last(stopped) / "trainer_state.json"
    odd = {"stateful_callbacks": {"TrainerControl": {"args": {"no": 1}}}}
    state.write_text(json.dumps(json.loads(state.read_text()) | odd))
    with pytest.raises(TrainingError, match="The checkpoint can't be read"):
        train(graft, workspace, tmp_path / "run", resume=True)


def test_the_best_weights_come_from_the_runs_own_folder(graft, workspace, tmp_path, stopped):
    """A checkpoint names them by a whole path; a run that was moved finds its own, and a stranger's leads nowhere."""
    state = last(stopped) / "trainer_state.json"
    content = json.loads(state.read_text())
    (tmp_path / "elsewhere").mkdir()
    state.write_text(json.dumps(content | {"best_model_checkpoint": str(tmp_path / "elsewhere")}))
    assert train(graft, workspace, tmp_path / "run", resume=True).best_epoch >= 1


def test_missing_best_step(graft, workspace, tmp_path, stopped):
    state = last(stopped) / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_global_step": 1}))
    with pytest.raises(TrainingError, match="checkpoint-1, the checkpoint of the best epoch, is missing"):
        train(graft, workspace, tmp_path / "run", resume=True)


# ---- modes


def test_modes_of_a_run(graft, workspace, tmp_path, stopped):
    usual = stat.S_IMODE((stopped / "run.json").stat().st_mode)
    assert usual == 0o666 & ~os.umask(os.umask(0o022))
    for path in last(stopped).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == usual, path
    finished = train(graft, workspace, tmp_path / "run", resume=True).path
    for path in finished.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            assert stat.S_IMODE(path.stat().st_mode) == usual, path
