"""The folders of an extraction: nothing of somebody else is deleted, written through, or made a part of the layer."""

import os
import stat

import pytest

from layer_surgeon import extract_layer
from layer_surgeon.errors import ArtifactError
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint

TINY = LLAMA_8B | {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 8}


@pytest.fixture
def donor(tmp_path):
    folder = write_sparse_checkpoint(tmp_path / "donor", TINY, [0, 1])
    for name in ("license.txt", "NOTICE", "Use_Policy.md"):
        (tmp_path / "donor" / name).write_text("terms")
    return folder


def all_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_artifact_can_be_replaced(donor, tmp_path):
    first = all_files(extract_layer(donor, 0, tmp_path / "out").path)
    assert {"license.txt", "NOTICE", "Use_Policy.md"} < first.keys()
    assert all_files(extract_layer(donor, 1, tmp_path / "out", force=True).path).keys() == first.keys()


@pytest.mark.parametrize("name", ["notes.md", "data/train.csv"])
def test_files_next_to_an_artifact_are_not_deleted(donor, tmp_path, name):
    extract_layer(donor, 0, tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    before = all_files(tmp_path / "out")
    with pytest.raises(ArtifactError, match=f"also files that are not part of one: {name}"):
        extract_layer(donor, 1, tmp_path / "out", force=True)
    assert all_files(tmp_path / "out") == before


@pytest.mark.parametrize("force", [False, True])
def test_what_comes_during_the_extraction_stays(donor, tmp_path, monkeypatch, force):
    from layer_surgeon.extract import extract

    card = extract.LayerCard

    def make_card(**facts):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/notes.md").write_text("mine")
        return card(**facts)

    monkeypatch.setattr(extract, "LayerCard", make_card)
    with pytest.raises(ArtifactError, match="already exists and is not a layer artifact"):
        extract_layer(donor, 0, tmp_path / "out", force=force)
    assert all_files(tmp_path / "out") == {"notes.md": b"mine"}


@pytest.mark.parametrize("name", ["model.safetensors", ".journal", ".lock", "README.md", "config.json"])
@pytest.mark.parametrize("hard", [False, True])
def test_nothing_is_written_through_a_planted_link(donor, tmp_path, name, hard):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".out.partial").mkdir()
    if hard:
        (tmp_path / ".out.partial" / name).hardlink_to(victim)
    else:
        (tmp_path / ".out.partial" / name).symlink_to(victim)
    if hard and name in ("README.md", "config.json"):
        # These names are replaced, not written into.
        extract_layer(donor, 0, tmp_path / "out")
    else:
        with pytest.raises(ArtifactError, match=r"no extraction has made|can't be written"):
            extract_layer(donor, 0, tmp_path / "out")
    assert victim.read_text() == "mine"


def test_a_staging_folder_that_is_a_link(donor, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.txt").write_text("mine")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="link to another place"):
        extract_layer(donor, 0, tmp_path / "out")
    assert all_files(tmp_path / "elsewhere") == {"mine.txt": b"mine"}


def test_planted_files_get_into_no_artifact(donor, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial/modeling.py").write_text("evil")
    with pytest.raises(ArtifactError, match=r"no extraction has made: modeling\.py\. Delete that folder"):
        extract_layer(donor, 0, tmp_path / "out")
    assert all_files(tmp_path / ".out.partial") == {"modeling.py": b"evil"}


def test_what_a_kill_leaves_is_no_hindrance(donor, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    for name in ("model.safetensors", ".journal", ".lock", ".config.json.abcd1234.tmp", "README.md", "LICENSE.old"):
        (tmp_path / ".out.partial" / name).write_text("half")
    artifact = extract_layer(donor, 0, tmp_path / "out")
    artifact.verify()
    assert all_files(artifact.path).keys() == {
        "config.json",
        "model.safetensors",
        "README.md",
        "license.txt",
        "NOTICE",
        "Use_Policy.md",
    }
    assert not (tmp_path / ".out.partial").exists()


def test_modes(donor, tmp_path):
    usual = 0o666 & ~os.umask(os.umask(0o022))
    for path in extract_layer(donor, 0, tmp_path / "out").path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == usual, path
