"""Split GGUF models, from every place: the layer is that of the whole file, or the message says which part is wrong."""

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
from layer_surgeon.checkpoint.sources.hub_errors import HubLimits
from layer_surgeon.checkpoint.sources.shards import parts_of
from layer_surgeon.errors import CheckpointError, SourceError, SourceNotFoundError
from tests.support.gguf_models import write_gguf, write_model
from tests.support.http_folder import HttpFolder
from tests.support.loopback_hub import LoopbackHub

F32 = gguf.GGMLQuantizationType.F32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whole, in three parts, and in four of which the first has no tensor."""
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
def expected(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of both layers' weights, from the whole file."""
    return ls.extract_layer(made / "whole.gguf", [0, 1], tmp_path_factory.mktemp("whole") / "layer").sha256


@pytest.fixture
def parts(made: Path, tmp_path: Path) -> Path:
    """A folder with three parts that a test may spoil."""
    shutil.copytree(made / "many", tmp_path / "many")
    return tmp_path / "many"


@pytest.mark.parametrize("kind", ["many", "bare"])
@pytest.mark.parametrize("named", [None, 0, 1, -1], ids=["folder", "first", "second", "last"])
def test_any_part_stands_for_all(made: Path, expected: str, kind: str, named: int | None, tmp_path: Path) -> None:
    files = sorted((made / kind).iterdir())
    checkpoint = open_checkpoint(made / kind if named is None else files[named])
    artifact = ls.extract_layer(checkpoint, [0, 1], tmp_path / "layer")
    assert artifact.sha256 == expected
    # Embeddings and final norm lie in a part of their own kind: only parts that hold a layer are read.
    assert set(artifact.config["source"]["files"]) == {
        info.file for index in (0, 1) for info in checkpoint.layer_tensors(index)
    }
    assert checkpoint.config == open_checkpoint(made / "whole.gguf").config


def test_a_tensor_is_located_in_its_part(made: Path) -> None:
    checkpoint = open_checkpoint(made / "many")
    found = {info.file for info in checkpoint.table.tensors(checkpoint.table.files())}
    assert found == {f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)}
    for info in checkpoint.layer_tensors(-1):
        readers = {tensor.name: tensor for tensor in gguf.GGUFReader(made / "many" / info.file).tensors}
        assert readers[info.gguf_name].data_offset == info.offset  # type: ignore[attr-defined]  # a GGUF's own info


def test_a_list_names_parts_wherever_they_lie(made: Path, tmp_path: Path) -> None:
    whole = ls.extract_layer(made / "whole.gguf", [0, 1], tmp_path / "whole")
    files = []
    for number, part in enumerate(sorted((made / "many").iterdir())):
        folder = tmp_path / f"disk{number}"
        folder.mkdir()
        files.append(shutil.copy(part, folder / f"{'cab'[number]}.gguf"))
    (tmp_path / "disk0" / "LICENSE").write_text("Do what you like.")
    for order in ((0, 1, 2), (2, 0, 1)):
        artifact = ls.extract_layer([files[index] for index in order], [0, 1], tmp_path / "layer", force=True)
        # Tensors lie in the order of their files' names, which are others here.
        assert artifact.recorded == whole.recorded
    first = ls.extract_layer(files, -1, tmp_path / "with licence")
    assert (first.path / "LICENSE").read_text() == "Do what you like."
    assert open_checkpoint([made / "whole.gguf"]).format == "gguf"


def test_a_list_names_the_pieces_of_a_file_that_was_cut(made: Path, expected: str, tmp_path: Path) -> None:
    content = (made / "whole.gguf").read_bytes()
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
    made: Path, expected: str, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
    monkeypatch.setattr(HttpFiles, "limits", HubLimits(base_wait=0.001, max_wait=0.002, read_timeout=5.0))
    files = {path.name: path.read_bytes() for path in sorted((made / "many").iterdir())}
    names = list(files)
    hub.add_repo("owner/flat", files)
    hub.add_repo("owner/deep", {f"Q8_0/{name}": content for name, content in files.items()})
    system = fsspec.filesystem("memory")
    for name, content in files.items():
        system.pipe_file(f"/split/{name}", content)
    with HttpFolder({f"m/{name}": content for name, content in files.items()}) as web:
        places: list[Any] = [
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
        for place in places:
            artifact = ls.extract_layer(place, [0, 1], tmp_path / "layer", force=True)
            assert artifact.sha256 == expected, place
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


def rewritten(path: Path, **numbers: int) -> None:
    """Replace numbers of `split.*` in a header in place."""
    content = bytearray(path.read_bytes())
    for key, value in numbers.items():
        name = f"split.{key.replace('_', '.')}".encode()
        at = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        kind = struct.unpack_from("<I", content, at)[0]
        struct.pack_into({2: "<H", 5: "<i"}[kind], content, at + 4, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("part", "numbers", "message"),
    [
        (1, {"count": 4}, r"model-00001.* says that the model has 4 parts, but there are 3"),
        (3, {"count": 2}, r"model-00003.* says that the model has 2 parts, but there are 3"),
        (2, {"no": 0}, r"model-00001.* and model-00002.* both say that they are part 0, counted from 0"),
        (2, {"no": 3}, r"model-00002.* says that it is part 3, counted from 0, of 3"),
        (1, {"tensors_count": 99}, r"says that the model has 99 tensors, but its 3 parts hold 20"),
        (3, {"tensors_count": -1}, r"says that the model has -1 tensors"),
    ],
)
def test_parts_that_contradict_each_other(parts: Path, part: int, numbers: dict[str, int], message: str) -> None:
    rewritten(parts / f"model-0000{part}-of-00003.gguf", **numbers)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(parts)


def test_a_part_by_another_name_says_what_to_do(parts: Path) -> None:
    for part in sorted(parts.iterdir()):
        part.rename(parts / f"{part.name[6:11]}.gguf")
    with pytest.raises(
        CheckpointError, match=r"00002\.gguf is one of the 3 parts .*model-00001-of-00003\.gguf.*a list"
    ):
        open_checkpoint(parts / "00002.gguf")


def test_a_whole_file_in_a_parts_place(made: Path, parts: Path) -> None:
    shutil.copy(made / "whole.gguf", parts / "model-00002-of-00003.gguf")
    with pytest.raises(CheckpointError, match=r"model-00002.* is no part of a split model, but there are 3"):
        open_checkpoint(parts)


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    names = ["a.weight", "b.weight", "a.weight"]
    for number, name in enumerate(names):
        split = {"split.no": number, "split.count": 3, "split.tensors.count": 3}
        tensors = [(name, np.zeros((4, 32), dtype=np.float32), F32)]
        write_gguf(tmp_path / f"m-{number + 1:05}-of-00003.gguf", "llama", tensors, general=split)
    with pytest.raises(CheckpointError, match=r"'a\.weight' is in several parts: m-00001-of-00003\.gguf, m-00003"):
        open_checkpoint(tmp_path)


def test_lists_that_name_no_parts(made: Path, parts: Path, tmp_path: Path) -> None:
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


def test_one_part_of_one_is_a_whole_model(made: Path, tmp_path: Path, expected: str) -> None:
    shutil.copy(made / "whole.gguf", tmp_path / "model-00001-of-00001.gguf")
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
def test_what_a_name_makes_a_part(file: str, number: int) -> None:
    assert len(parts_of(file)) == number
    assert file in parts_of(file)


@pytest.fixture
def several(made: Path, tmp_path: Path) -> Path:
    """A folder as people publish them: one model in several quantisations, one of them split."""
    for name in ("m-F16.gguf", "m-Q4_K_M.gguf"):
        shutil.copy(made / "whole.gguf", tmp_path / name)
    for part in (made / "many").iterdir():
        shutil.copy(part, tmp_path / part.name.replace("model", "m-Q8_0"))
    (tmp_path / "mmproj-m-F16.gguf").write_bytes(b"GGUF")
    return tmp_path


def test_several_quantisations_are_listed_with_how_to_choose(several: Path, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(several)
    message = str(caught.value)
    assert "has 3 GGUF files" in message
    for name in ("m-F16.gguf", "m-Q4_K_M.gguf", "m-Q8_0-00001-of-00003.gguf", f"as in {several}/m-F16.gguf"):
        assert name in message
    assert "00002-of-00003" not in message
    assert "mmproj" not in message
    for name in ("m-Q4_K_M.gguf", "m-Q8_0-00002-of-00003.gguf"):
        assert ls.extract_layer(several / name, [0, 1], tmp_path / "out" / name).sha256 == expected
    for name in ("m-F16.gguf", "m-Q4_K_M.gguf"):
        (several / name).unlink()
    assert open_checkpoint(several).num_layers == 2


def test_a_repo_of_several_quantisations(
    several: Path, expected: str, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
    hub.add_repo("owner/name", {path.name: path.read_bytes() for path in several.iterdir()})
    with pytest.raises(CheckpointError, match=r"such as hf://owner/name/m-F16\.gguf"):
        open_checkpoint("owner/name")
    artifact = ls.extract_layer("hf://owner/name/m-Q8_0-00003-of-00003.gguf", [0, 1], tmp_path / "out")
    assert artifact.sha256 == expected
