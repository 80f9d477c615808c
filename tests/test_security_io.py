"""Files and folders: one writer, locks that two processes can't both hold, and nothing deleted that is not ours."""

import json
import stat
import subprocess
import sys
from copy import copy

import pytest

from layer_surgeon._folders import check_replaceable, foreign_files, new_folder, put_in_place, remove_ours
from layer_surgeon._io import BusyError, FileLock, is_locked, new_file, read_json, write_text
from layer_surgeon.errors import ArtifactError
from layer_surgeon.workspace import Workspace
from tests.support.races import race, remember


def test_two_processes_dont_lose_each_others_entries(tmp_path):
    assert race(remember, 200, tmp_path) == [["done", "done"]] * 200
    for turn in range(200):
        assert json.loads((tmp_path / str(turn) / "workspace.json").read_text()).keys() == {"layer", "graft"}
        assert [path.name for path in (tmp_path / str(turn)).iterdir()] == ["workspace.json"]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"graft": "' + "x" * 60_000_000 + '"}', '{"graft": 3}', "[]"])
def test_a_hostile_workspace_file(tmp_path, content):
    (tmp_path / "workspace.json").write_text(content)
    with pytest.raises(OSError, match=r"workspace\.json"):
        Workspace(tmp_path).latest("graft")


def test_a_file_is_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").symlink_to(victim)
    write_text(tmp_path / "out", "new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "out").read_text() == "new"
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path, umask):
    code = (
        "import os, sys; from pathlib import Path; os.umask(int(sys.argv[1])); os.chdir(sys.argv[2]);"
        "from layer_surgeon._io import write_text, usual_modes; from layer_surgeon._folders import new_folder;"
        "write_text(Path('file'), 'x'); from safetensors.numpy import save_file; import numpy;\n"
        "with new_folder(Path('folder'), replace=False) as folder:\n"
        "    save_file({'a': numpy.ones(1)}, folder / 'model.safetensors'); usual_modes(folder)"
    )
    subprocess.run([sys.executable, "-c", code, str(umask), str(tmp_path)], check=True)
    for name, full in (("file", 0o666), ("folder/model.safetensors", 0o666), ("folder", 0o777)):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == full & ~umask, name


def test_a_lock_is_held_once_and_a_copy_of_it_is_not_held(tmp_path):
    lock = FileLock(tmp_path / "folder/.lock")
    lock.take()
    assert is_locked(tmp_path / "folder/.lock")
    with pytest.raises(BusyError):
        FileLock(tmp_path / "folder/.lock").take()
    copy(lock).release()
    assert is_locked(tmp_path / "folder/.lock")
    lock.release()
    assert not is_locked(tmp_path / "folder/.lock")
    assert not is_locked(tmp_path / "nowhere/.lock")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("link", ["folder", "lock"])
def test_a_lock_is_not_taken_through_a_link(tmp_path, link):
    (tmp_path / "elsewhere").mkdir()
    if link == "folder":
        (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/.lock").symlink_to(tmp_path / "elsewhere/made")
    with pytest.raises(OSError, match=r"link|Too many levels"):
        FileLock(tmp_path / "folder/.lock").take()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_links_and_other_files_are_foreign(tmp_path):
    for name in ("ours/a.txt", "ours/b.txt", "notes.md"):
        write_text(tmp_path / "folder" / name, "x")
    (tmp_path / "folder/ours/linked.txt").symlink_to(tmp_path)
    assert foreign_files(tmp_path / "folder", ["ours/*"]) == ["notes.md", "ours/linked.txt"]
    assert remove_ours(tmp_path / "folder", ["ours/*"]) == ["notes.md", "ours/linked.txt"]
    assert foreign_files(tmp_path / "folder", []) == ["notes.md", "ours/linked.txt"]
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert remove_ours(tmp_path / "link", ["*"]) == []
    assert (tmp_path / "folder/notes.md").exists()


def test_a_link_is_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="is a symbolic link"):
        check_replaceable(
            tmp_path / "link", ["*"], is_ours=lambda _: True, force=True, kind="graft", error=ArtifactError
        )


def test_a_folder_takes_the_place_of_a_dangling_link(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    put_in_place(tmp_path / "made", tmp_path / "out")
    assert (tmp_path / "out").is_dir()
    assert not (tmp_path / "out").is_symlink()


def test_a_new_folder_appears_only_where_nothing_is(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out", replace=False) as made:
        write_text(made / "a", "x")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "out", replace=False) as made:
        write_text(made / "b", "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "out") as file:
        file.write(bytes(1 // 0))
    assert list(tmp_path.iterdir()) == []


def test_json_that_is_too_deep_is_a_value_error(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")
