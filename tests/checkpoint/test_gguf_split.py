"""Split GGUF models from every source give the layer of the whole file, or a message that names the wrong part."""

import shutil
import struct
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import gguf
import numpy as np
import pytest

import layer_surgeon as ls
from layer_surgeon import open_checkpoint
from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources.http_files import HttpFiles
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import HubLimits
from layer_surgeon.checkpoint.sources.shards import parts_of
from layer_surgeon.errors import CheckpointError, SourceError, SourceNotFoundError
from tests.support.gguf_models import write_gguf, write_model
from tests.support.http_folder import HttpFolder
from tests.support.loopback_hub import LoopbackHub

F32 = gguf.GGMLQuantizationType.F32


@pytest.fixture(scope="module")
def split_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as one file, in three parts, and in four parts, the first without tensors."""
    folder = tmp_path_factory.mktemp("split")
    for name, options in (
        ("many", {"split_max_tensors": 8}),
        ("bare", {"split_max_tensors": 8, "small_first_shard": True}),
    ):
        (folder / name).mkdir()
        write_model(folder / name / "model.gguf", "llama", "Q8_0", split=options)
        (folder / name / "model.gguf").rename(folder / "whole.gguf")
    assert len(list((folder / "many").iterdir())) == 3
    assert len(list((folder / "bare").iterdir())) == 4
    return folder


@pytest.fixture(scope="module")
def expected(split_models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of the weights of both layers in the whole file."""
    return ls.extract_layer(split_models / "whole.gguf", [0, 1], tmp_path_factory.mktemp("whole") / "layer").sha256


@pytest.fixture
def parts(split_models: Path, tmp_path: Path) -> Path:
    """A folder with three parts that a test may modify."""
    shutil.copytree(split_models / "many", tmp_path / "many")
    return tmp_path / "many"


@pytest.mark.parametrize("kind", ["many", "bare"])
@pytest.mark.parametrize("part", [None, 0, 1, -1], ids=["folder", "first", "second", "last"])
def test_any_part_opens_the_whole_model(
    split_models: Path, expected: str, kind: str, part: int | None, tmp_path: Path
) -> None:
    files = sorted((split_models / kind).iterdir())
    checkpoint = open_checkpoint(split_models / kind if part is None else files[part])
    artifact = ls.extract_layer(checkpoint, [0, 1], tmp_path / "layer")
    assert artifact.sha256 == expected
    # Only the parts with tensors of the layers are read, not those with only embeddings or the final norm.
    assert set(artifact.config["source"]["files"]) == {
        info.file for index in (0, 1) for info in checkpoint.layer_tensors(index)
    }
    assert checkpoint.config == open_checkpoint(split_models / "whole.gguf").config


def test_a_tensor_is_located_in_its_part(split_models: Path) -> None:
    checkpoint = open_checkpoint(split_models / "many")
    files = {info.file for info in checkpoint.table.tensors(checkpoint.table.files())}
    assert files == {f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)}
    for info in checkpoint.layer_tensors(-1):
        reader = gguf.GGUFReader(split_models / "many" / info.file)
        assert (info.offset, info.num_bytes) in {(tensor.data_offset, tensor.n_bytes) for tensor in reader.tensors}


def test_a_list_of_parts_in_different_folders(split_models: Path, tmp_path: Path) -> None:
    whole = ls.extract_layer(split_models / "whole.gguf", [0, 1], tmp_path / "whole")
    files = []
    for number, part in enumerate(sorted((split_models / "many").iterdir())):
        folder = tmp_path / f"disk{number}"
        folder.mkdir()
        files.append(shutil.copy(part, folder / f"{'cab'[number]}.gguf"))
    (tmp_path / "disk0" / "LICENSE").write_text("Do what you like.")
    for order in ((0, 1, 2), (2, 0, 1)):
        artifact = ls.extract_layer([files[index] for index in order], [0, 1], tmp_path / "layer", force=True)
        # `recorded` lists the tensors in the order of the model, whatever the names of the files.
        assert artifact.recorded == whole.recorded
    first = ls.extract_layer(files, -1, tmp_path / "with licence")
    assert (first.path / "LICENSE").read_text() == "Do what you like."
    assert open_checkpoint([split_models / "whole.gguf"]).format == "gguf"


def test_a_list_of_pieces_of_one_file(split_models: Path, expected: str, tmp_path: Path) -> None:
    content = (split_models / "whole.gguf").read_bytes()
    files = [tmp_path / f"model.gguf.part{number}" for number in range(5)]
    step = -(-len(content) // 5)
    for number, file in enumerate(files):
        file.write_bytes(content[number * step : (number + 1) * step])
    checkpoint = open_checkpoint(files)
    assert checkpoint.source.name == str(tmp_path / "model.gguf")
    artifact = ls.extract_layer(checkpoint, [0, 1], tmp_path / "layer")
    assert artifact.sha256 == expected
    assert artifact.config["source"]["files"] == ["model.gguf"]
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(files[:-1])


def test_from_the_hub_a_web_server_and_a_store(
    split_models: Path, expected: str, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
    monkeypatch.setattr(HttpFiles, "limits", HubLimits(base_wait=0.001, max_wait=0.002, read_timeout=5.0))
    files = {path.name: path.read_bytes() for path in sorted((split_models / "many").iterdir())}
    names = list(files)
    hub.add_repo("owner/flat", files)
    hub.add_repo("owner/deep", {f"Q8_0/{name}": content for name, content in files.items()})
    system = fsspec.filesystem("memory")
    for name, content in files.items():
        system.pipe_file(f"/split/{name}", content)
    with HttpFolder({f"m/{name}": content for name, content in files.items()}) as web:
        sources: list[Any] = [
            "owner/flat",
            f"hf://owner/flat/{names[1]}",
            "hf://owner/deep/Q8_0",
            f"hf://owner/deep/Q8_0/{names[2]}",
            f"{web.url}/m/{names[0]}",
            f"{web.url}/m/{names[2]}",
            [f"{web.url}/m/{name}" for name in names],
            [f"hf://owner/flat/{name}" for name in names],
            "memory://split",
            f"memory://split/{names[1]}",
        ]
        for source in sources:
            artifact = ls.extract_layer(source, [0, 1], tmp_path / "layer", force=True)
            assert artifact.sha256 == expected, source
        commit = artifact.config["source"]["commit"]
        from_hub = open_checkpoint([f"hf://owner/flat/{name}" for name in names])
        assert commit is None
        assert from_hub.commit == open_checkpoint("owner/flat").commit
        del web.files[f"m/{names[1]}"]
        with pytest.raises(SourceNotFoundError, match=r"One of the 3 parts.* is missing.*model-00002-of-00003"):
            open_checkpoint(f"{web.url}/m/{names[0]}")
    with pytest.raises(CheckpointError, match=r"only in its subfolders: Q8_0\. .* hf://owner/deep/Q8_0$"):
        open_checkpoint("owner/deep")


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_part_is_missing(parts: Path, missing: int) -> None:
    (parts / f"model-0000{missing}-of-00003.gguf").unlink()
    for name in (parts, min(parts.iterdir())):
        with pytest.raises(
            SourceNotFoundError, match=rf"one of the 3 parts .*lacks model-0000{missing}-of-00003\.gguf\."
        ):
            open_checkpoint(name)


def rewrite_split_numbers(path: Path, **numbers: int) -> None:
    """Replace `split.*` numbers in the header of a file."""
    content = bytearray(path.read_bytes())
    for key, value in numbers.items():
        name = f"split.{key.replace('_', '.')}".encode()
        position = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        type_code = struct.unpack_from("<I", content, position)[0]
        struct.pack_into({2: "<H", 5: "<i"}[type_code], content, position + 4, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("part", "numbers", "message"),
    [
        (1, {"count": 4}, r"model-00001.* states that the model has 4 parts, but there are 3"),
        (3, {"count": 2}, r"model-00003.* states that the model has 2 parts, but there are 3"),
        (2, {"no": 0}, r"model-00001.* and model-00002.* both state that they are part 0, counted from 0"),
        (2, {"no": 3}, r"model-00002.* states that it is part 3 of 3, counted from 0"),
        (1, {"tensors_count": 99}, r"states that the model has 99 tensors, but its 3 parts contain 20"),
        (3, {"tensors_count": -1}, r"states that the model has -1 tensors"),
    ],
)
def test_parts_that_contradict_each_other(parts: Path, part: int, numbers: dict[str, int], message: str) -> None:
    rewrite_split_numbers(parts / f"model-0000{part}-of-00003.gguf", **numbers)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(parts)


def test_a_part_with_another_name_says_what_to_do(parts: Path) -> None:
    for part in sorted(parts.iterdir()):
        part.rename(parts / f"{part.name[6:11]}.gguf")
    with pytest.raises(
        CheckpointError, match=r"00002\.gguf is one of the 3 parts .*model-00001-of-00003\.gguf.*a list"
    ):
        open_checkpoint(parts / "00002.gguf")


def test_a_whole_file_in_place_of_a_part(split_models: Path, parts: Path) -> None:
    shutil.copy(split_models / "whole.gguf", parts / "model-00002-of-00003.gguf")
    with pytest.raises(CheckpointError, match=r"model-00002.* is not part of a split model, but there are 3"):
        open_checkpoint(parts)


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    names = ["a.weight", "b.weight", "a.weight"]
    for number, name in enumerate(names):
        split = {"split.no": number, "split.count": 3, "split.tensors.count": 3}
        tensors = [(name, np.zeros((4, 32), dtype=np.float32), F32)]
        write_gguf(tmp_path / f"m-{number + 1:05}-of-00003.gguf", "llama", tensors, general=split)
    with pytest.raises(CheckpointError, match=r"'a\.weight' is in several parts: m-00001-of-00003\.gguf, m-00003"):
        open_checkpoint(tmp_path)


def test_invalid_lists_of_parts(split_models: Path, parts: Path, tmp_path: Path) -> None:
    files = sorted(parts.iterdir())
    with pytest.raises(SourceNotFoundError, match="list of parts is empty"):
        open_checkpoint([])
    with pytest.raises(SourceError, match="is not a single file"):
        open_checkpoint([files[0], parts])
    with pytest.raises(SourceError, match=r"Two of the 3 parts are called model-00001-of-00003\.gguf"):
        open_checkpoint([files[0], files[1], files[0]])
    with pytest.raises(CheckpointError, match="has 3 parts, but there are 2"):
        open_checkpoint(files[:2])
    with pytest.raises(SourceNotFoundError, match="nowhere"):
        open_checkpoint([files[0], tmp_path / "nowhere.gguf"])


def test_one_part_of_one_is_a_whole_model(split_models: Path, tmp_path: Path, expected: str) -> None:
    shutil.copy(split_models / "whole.gguf", tmp_path / "model-00001-of-00001.gguf")
    assert ls.extract_layer(tmp_path, [0, 1], tmp_path / "layer").sha256 == expected


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("a-00002-of-00003.gguf", 3),
        ("a-00004-of-00003.gguf", 1),
        ("a-00000-of-00003.gguf", 1),
        ("a-2-of-3.gguf", 1),
        ("a-00001-of-00002.safetensors", 1),
        ("a.gguf", 1),
    ],
)
def test_names_of_parts(file: str, number: int) -> None:
    assert len(parts_of(file)) == number
    assert file in parts_of(file)


@pytest.fixture
def several_quantisations(split_models: Path, tmp_path: Path) -> Path:
    """A typical published folder: one model in several quantisations, one of them split."""
    for name in ("m-F16.gguf", "m-Q4_K_M.gguf"):
        shutil.copy(split_models / "whole.gguf", tmp_path / name)
    for part in (split_models / "many").iterdir():
        shutil.copy(part, tmp_path / part.name.replace("model", "m-Q8_0"))
    (tmp_path / "mmproj-m-F16.gguf").write_bytes(b"GGUF")
    return tmp_path


def test_several_quantisations_are_listed_with_how_to_choose(
    several_quantisations: Path, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(several_quantisations)
    message = str(caught.value)
    assert "has 3 GGUF files" in message
    for name in (
        "m-F16.gguf",
        "m-Q4_K_M.gguf",
        "m-Q8_0-00001-of-00003.gguf",
        f"such as {several_quantisations}/m-F16.gguf",
    ):
        assert name in message
    assert "00002-of-00003" not in message
    assert "mmproj" not in message
    for name in ("m-Q4_K_M.gguf", "m-Q8_0-00002-of-00003.gguf"):
        assert ls.extract_layer(several_quantisations / name, [0, 1], tmp_path / "out" / name).sha256 == expected
    for name in ("m-F16.gguf", "m-Q4_K_M.gguf"):
        (several_quantisations / name).unlink()
    assert open_checkpoint(several_quantisations).num_layers == 2


def test_a_repo_of_several_quantisations(
    several_quantisations: Path, expected: str, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
    hub.add_repo("owner/name", {path.name: path.read_bytes() for path in several_quantisations.iterdir()})
    with pytest.raises(CheckpointError, match=r"such as hf://owner/name/m-F16\.gguf"):
        open_checkpoint("owner/name")
    artifact = ls.extract_layer("hf://owner/name/m-Q8_0-00003-of-00003.gguf", [0, 1], tmp_path / "out")
    assert artifact.sha256 == expected
