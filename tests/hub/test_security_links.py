"""The targets of links out of a folder are not uploaded, nor is a folder whose local paths can't be removed."""

import shutil

import pytest

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import graft_layer
from layer_surgeon.hub.published import published_files
from tests.graft.conftest import host_model
from tests.support.command_line import surgeon


@pytest.fixture
def stored(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    return tmp_path / "graft"


def _file(graft, secret):
    (graft / "tokens.txt").symlink_to(secret)


def _in_a_subfolder(graft, secret):
    (graft / "notes").mkdir()
    (graft / "notes/README.md").symlink_to(secret)


def _folder(graft, secret):
    (graft / "notes").symlink_to(secret.parent)


def _donor(graft, secret):
    shutil.move(graft / "donor", secret.parent / "layer")
    (graft / "donor").symlink_to(secret.parent / "layer")


@pytest.mark.parametrize("link", [_file, _in_a_subfolder, _folder, _donor])
def test_link_targets_are_not_uploaded(link, stored, secret):
    link(stored, secret)
    with pytest.raises(GraftError, match=r"leads out of .*graft through a symbolic link, to .*home.*Remove the link"):
        published_files(stored, "me/graft")


def test_links_inside_of_the_folder_are_uploaded(stored):
    (stored / "COPY.md").symlink_to("README.md")
    (stored / "checkpoint-1").symlink_to("/")
    assert "COPY.md" in published_files(stored, "me/graft")


def test_push_uploads_no_link_and_shows_what_it_uploads(hub, settings, stored, secret, tmp_path):
    (stored / "notes.txt").write_text("mine")
    shown = surgeon("push", "me/graft", stored, cwd=tmp_path, env=settings)
    assert shown.code == 0, shown.err
    assert "donor/model.safetensors" in "".join(shown.out.split())
    assert "notes.txt" in "".join(shown.out.split())
    _file(stored, secret)
    refused = surgeon("push", "me/other", stored, cwd=tmp_path, env=settings)
    assert refused.code == 1
    assert str(secret) in "".join(refused.err.split())
    assert "me/other" not in hub.router.created


@pytest.mark.parametrize("name", ["config.json", "run.yaml", "results.json"])
def test_unreadable_configuration_is_not_uploaded(name, stored):
    bomb = "a: &a [x, x]\nb: [*a, *a]\nspec: /home/me\n" if name == "run.yaml" else '{"name": "/home/me",'
    (stored / name).write_text(bomb)
    with pytest.raises(GraftError, match=rf"{name} can't be read, so its local paths can't be removed"):
        published_files(stored, "me/graft")
