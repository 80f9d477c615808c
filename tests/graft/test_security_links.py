"""The targets of links out of a folder are not stored with a graft."""

import hashlib
import json
import shutil

import pytest
import torch

from layer_surgeon._folders import leaving_link
from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import ArtifactError, GraftError
from layer_surgeon.graft import GraftedModel, graft_layer
from tests.graft.conftest import host_model


@pytest.fixture
def stored(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    return tmp_path / "graft"


def test_only_the_files_of_an_artifact_are_stored_with_a_graft(artifact, tmp_path):
    layer = shutil.copytree(artifact, tmp_path / "layer")
    for name in (
        "LICENSE",
        "licence.txt",
        "NOTICE.md",
        "USE_POLICY.md",
        "COPYING",
        "README.md",
        "diary.txt",
        "tokens.json",
    ):
        (layer / name).write_text(name)
    graft_layer(host_model("bert"), layer).save_pretrained(tmp_path / "graft")
    assert {path.name for path in (tmp_path / "graft/donor").iterdir()} == {
        *("config.json", "model.safetensors", "README.md"),
        *("LICENSE", "licence.txt", "NOTICE.md", "USE_POLICY.md", "COPYING"),
    }


def test_a_donor_whose_files_are_links_is_refused(artifact, secret, tmp_path):
    layer = shutil.copytree(artifact, tmp_path / "layer")
    (layer / "NOTICE").symlink_to(secret)
    with pytest.raises(ArtifactError, match=r"NOTICE leads out of .* through a symbolic link, to .*token"):
        graft_layer(host_model("bert"), layer)
    donor = DonorLayer.from_pretrained(layer)
    with pytest.raises(ArtifactError, match=r"NOTICE leads out of"):
        donor.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/NOTICE").exists()


def test_a_graft_whose_donor_folder_is_a_link_is_refused(stored, secret):
    shutil.move(stored / "donor", secret.parent / "layer")
    (stored / "donor").symlink_to(secret.parent / "layer")
    with pytest.raises(GraftError, match=r"donor leads out of .* through a symbolic link"):
        GraftedModel.from_pretrained(stored)


def test_saving_a_layer_doesnt_change_hard_links_of_its_file(artifact, stored, tmp_path):
    """A graft's donor layer is a hard link to the artifact's file, so saving to one must not change the other."""
    layer = tmp_path / "layer"
    shutil.copytree(stored / "donor", layer)
    (layer / "model.safetensors").unlink()
    (layer / "model.safetensors").hardlink_to(stored / "donor/model.safetensors")
    DonorLayer.from_pretrained(layer).to(torch.bfloat16).save_pretrained(layer)
    GraftedModel.from_pretrained(stored)


def test_links_of_the_hubs_cache_are_allowed(tmp_path):
    repo = tmp_path / "models--me--graft"
    blob = repo / "blobs" / hashlib.sha256(b"x").hexdigest()
    for path, content in ((blob, "x"), (repo / "blobs/notes", "x"), (repo / "token", "x")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    donor = repo / "snapshots/0123/donor"
    donor.mkdir(parents=True)
    for name, target in (("a", blob), ("b", repo / "blobs/notes"), ("c", repo / "token")):
        (donor / name).symlink_to(target)
    shared = tmp_path / "blobs" / "ab" / f"ab{'0' * 62}"
    shared.parent.mkdir(parents=True)
    shared.write_text("x")
    shared_blob = blob.with_name("1" * 64)
    shared_blob.symlink_to(f"../../blobs/ab/{shared.name}")
    (donor / "d").symlink_to(shared_blob)
    (donor / "e").symlink_to(shared)
    assert leaving_link(donor / "d", donor) is None
    assert leaving_link(donor / "e", donor) == shared
    assert leaving_link(donor / "a", donor) is None
    assert leaving_link(donor / "a", donor.parent) is None
    assert leaving_link(donor / "b", donor) == repo / "blobs/notes"
    assert leaving_link(donor / "c", donor.parent) == repo / "token"


def test_aliases_in_a_card_are_not_expanded(stored, tmp_path):
    model = GraftedModel.from_pretrained(stored)
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    (stored / "README.md").write_text("---\nlicense: mit\n" + "\n".join(lines) + "\n---\n\n# A graft\n")
    assert json.loads((stored / "config.json").read_text())["host"]["license"] is None
    assert model.config.host["license"] is None
    shutil.copy(stored / "README.md", tmp_path / "home.md")
    host_model("bert").save_pretrained(tmp_path / "host")
    shutil.copy(stored / "README.md", tmp_path / "host/README.md")
    assert graft_layer(tmp_path / "host", stored / "donor").config.host["license"] == "mit"
