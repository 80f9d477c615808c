"""Foreign files in a graft's folder are never deleted, and two processes don't write into one folder."""

import json
import os
import stat

import pytest

from layer_surgeon.errors import ArtifactError
from layer_surgeon.graft import GraftConfig, GraftedModel, save_graft
from layer_surgeon.workspace import Workspace
from tests.support.races import graft as graft_in_process
from tests.support.races import race


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "surgery")


@pytest.fixture
def made(host_folder, artifact, workspace, tmp_path):
    save_graft(host_folder("bert"), artifact, output=tmp_path / "out", workspace=workspace)
    return tmp_path / "out"


def all_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replace(host_folder, artifact, workspace, folder):
    save_graft(host_folder("bert"), artifact, output=folder, force=True, workspace=workspace)


@pytest.mark.parametrize("name", ["notes.md", "data/train.csv", "donor/notes.md", "results.json", ".git/HEAD"])
def test_files_next_to_a_graft_are_not_deleted(host_folder, artifact, workspace, made, name):
    (made / name).parent.mkdir(exist_ok=True)
    (made / name).write_text("mine")
    before = all_files(made)
    with pytest.raises(ArtifactError, match=f"also files that are not part of one: {name}"):
        replace(host_folder, artifact, workspace, made)
    assert all_files(made) == before


def test_model_type_alone_doesnt_make_a_folder_a_graft(host_folder, artifact, workspace, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "surgeon_graft"}))
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"not part of one: thesis\.tex"):
        replace(host_folder, artifact, workspace, folder)
    assert (folder / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("host", ["bert", "t5", "gpt2"])
def test_all_files_of_a_graft_can_be_replaced(host_folder, artifact, workspace, tmp_path, host):
    task = "causal-lm" if host == "gpt2" else "text-classification"
    for force in (False, True):
        save_graft(
            host_folder(host),
            artifact,
            config=GraftConfig(task=task),
            output=tmp_path / "out",
            force=force,
            workspace=workspace,
        )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_file_added_while_the_graft_is_made_stays(host_folder, artifact, workspace, made, monkeypatch):
    save = GraftedModel.save_pretrained

    def save_pretrained(self, *arguments, **keywords):
        (made / "notes.md").write_text("mine")
        save(self, *arguments, **keywords)

    monkeypatch.setattr(GraftedModel, "save_pretrained", save_pretrained)
    with pytest.raises(ArtifactError, match=r"not part of one: notes\.md"):
        replace(host_folder, artifact, workspace, made)
    assert (made / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"model_type": ["surgeon_graft"]}'])
def test_folder_with_an_invalid_config_is_not_a_graft(host_folder, artifact, workspace, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text(content)
    with pytest.raises(ArtifactError, match="already exists and is not a graft"):
        replace(host_folder, artifact, workspace, tmp_path / "out")


def test_saving_a_model_keeps_a_foreign_donor_folder(made, tmp_path):
    model = GraftedModel.from_pretrained(made)
    target = tmp_path / "existing"
    (target / "donor").mkdir(parents=True)
    (target / "donor/organs.csv").write_text("mine")
    with pytest.raises(ArtifactError, match=r"donor already exists and is not a layer artifact"):
        model.save_pretrained(target)
    assert all_files(target) == {"donor/organs.csv": b"mine"}


def test_saving_a_model_doesnt_follow_a_link_to_a_donor_folder(made, tmp_path):
    model = GraftedModel.from_pretrained(made)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing/donor").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="donor is a symbolic link"):
        model.save_pretrained(tmp_path / "existing")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_card_that_is_a_link_is_not_copied(host_folder, artifact, tmp_path):
    from layer_surgeon.donor import DonorLayer

    donor = DonorLayer.from_pretrained(artifact)
    donor.save_pretrained(tmp_path / "first")
    (tmp_path / "secret").write_text("token")
    (tmp_path / "first/README.md").unlink(missing_ok=True)
    (tmp_path / "first/README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="README.md leads out of .* through a symbolic link"):
        DonorLayer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")


def test_modes(host_folder, artifact, workspace, tmp_path):
    (artifact / "model.safetensors").chmod(0o640)
    save_graft(host_folder("bert"), artifact, output=tmp_path / "out", workspace=workspace)
    usual = 0o666 & ~os.umask(os.umask(0o022))
    for path in (tmp_path / "out").rglob("*"):
        linked = path.name == "model.safetensors" and path.parent.name == "donor"
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == (0o640 if linked else usual), path


def test_one_of_two_different_grafts_into_one_folder_fails(host_folder, artifact, tmp_path):
    for turn in race(graft_in_process, 8, host_folder("bert"), artifact, tmp_path):
        message, result = sorted(turn)
        assert result == "done", turn
        assert "already holds a graft" in message
