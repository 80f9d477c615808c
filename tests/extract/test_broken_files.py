"""Broken and malicious checkpoint files, on a Hub and in a folder, are refused before any weights are read."""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from layer_surgeon import extract_layer
from layer_surgeon.errors import CheckpointError, SourceError
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.hub_reading import read_from
from tests.support.loopback_hub import LoopbackHub

CONFIG = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken") / "donor"
    return write_sparse_checkpoint(folder, CONFIG, [0, 1], max_shard_bytes=85_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        yield hub


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A change to a file of a repo, and the expected error message."""

    error: str
    index: Callable[[dict[str, Any]], object] = field(default=lambda index: None)
    header: Callable[[dict[str, Any]], object] = field(default=lambda tensors: None)
    raw: Callable[[bytes], bytes] = field(default=lambda content: content)


NORM = "model.layers.1.input_layernorm.weight"
BROKEN = {
    "an empty header": Broken(raw=lambda raw: bytes(8) + raw[8:], error="header length of 0 bytes"),
    "a header of over 25 MB": Broken(
        raw=lambda raw: struct.pack("<Q", 25_000_001) + raw[8:] + bytes(26_000_000),
        error="header length of 25,000,001 bytes",
    ),
    "a header past the end": Broken(
        raw=lambda raw: struct.pack("<Q", len(raw)) + raw[8:], error="but the whole file has"
    ),
    "a header that is not JSON": Broken(raw=lambda raw: raw[:8] + b"}" + raw[9:], error="not valid JSON"),
    "tensors that overlap": Broken(
        header=lambda tensors: tensors[NORM].update(data_offsets=[0, 128]), error="begins at byte"
    ),
    "a tensor past the end of the file": Broken(
        header=lambda tensors: tensors[NORM].update(data_offsets=[10**9, 10**9 + 128]), error="begins at byte"
    ),
    "an index with a missing shard": Broken(
        index=lambda index: index["weight_map"].update({NORM: "model-9.safetensors"}), error="model-9.*is missing"
    ),
    "an index with a missing tensor": Broken(
        index=lambda index: index["weight_map"].update(
            {"model.layers.1.x.weight": next(iter(index["weight_map"].values()))}
        ),
        error=r"contains the tensor 'model.layers.1.x.weight', but its header does not list it",
    ),
    "an index with a parent path": Broken(
        index=lambda index: index["weight_map"].update({NORM: "../x.safetensors"}), error="outside the checkpoint"
    ),
    "an index with an absolute path": Broken(
        index=lambda index: index["weight_map"].update({NORM: "/etc/x.safetensors"}),
        error="outside the checkpoint",
    ),
    "an index with a Windows path": Broken(
        index=lambda index: index["weight_map"].update({NORM: "..\\x.safetensors"}), error="outside the checkpoint"
    ),
    "an index without shards": Broken(index=lambda index: index.update(weight_map={}), error="has no weight_map"),
}


def shard_of(donor: Path) -> Path:
    """The file of the last layer."""
    return max(donor.glob("*.safetensors"))


def break_files(donor: Path, broken: Broken) -> dict[str, bytes]:
    """Return the files of a repo with the change applied."""
    files = {path.name: path.read_bytes() for path in donor.iterdir()}
    index = json.loads(files["model.safetensors.index.json"])
    broken.index(index)
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    shard = shard_of(donor).name
    (length,) = struct.unpack("<Q", files[shard][:8])
    tensors = json.loads(files[shard][8 : 8 + length])
    broken.header(tensors)
    text = json.dumps(tensors, separators=(",", ":")).encode().ljust(length)
    files[shard] = broken.raw(struct.pack("<Q", len(text)) + text + files[shard][8 + length :])
    return files


@pytest.mark.parametrize("where", ["hub", "folder"])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_broken_file_is_refused(hub: LoopbackHub, tmp_path: Path, donor: Path, broken: Broken, where: str) -> None:
    files = break_files(donor, broken)
    source = "owner/broken"
    if where == "folder":
        source = str(tmp_path / "broken")
        (tmp_path / "broken").mkdir()
        for name, content in files.items():
            (tmp_path / "broken" / name).write_bytes(content)
    else:
        hub.add_repo("owner/broken", files)
    hub.reset_log()
    with pytest.raises(CheckpointError, match=broken.error):
        extract_layer(source, -1, tmp_path / "made" / "out")
    assert not (tmp_path / "made").exists()
    ranges = [request.range for request in hub.requests if request.server == "cdn"]
    assert all(str(wanted).startswith(("bytes=0-", "bytes=8-")) for wanted in ranges)


def test_link_outside_of_the_checkpoint_is_refused(tmp_path: Path, donor: Path) -> None:
    """A shard that links outside of the checkpoint is refused. Links to the blobs of the Hub cache are normal."""
    secret = tmp_path / "secret.safetensors"
    shard = shard_of(donor)
    secret.write_bytes(shard.read_bytes())
    repo = tmp_path / "models--owner--model"
    for folder in (tmp_path / "folder", repo / "snapshots" / ("a" * 40)):
        folder.mkdir(parents=True)
        for path in donor.iterdir():
            if path != shard:
                (folder / path.name).write_bytes(path.read_bytes())
        (folder / shard.name).symlink_to(secret)
        with pytest.raises(SourceError, match="symbolic link.*outside the checkpoint's folder"):
            extract_layer(folder, -1, tmp_path / "made" / "out")
        assert not (tmp_path / "made").exists()
    (repo / "blobs").mkdir()
    (repo / "blobs" / "b").write_bytes(shard.read_bytes())
    snapshot = repo / "snapshots" / ("a" * 40)
    (snapshot / shard.name).unlink()
    (snapshot / shard.name).symlink_to(Path("..") / ".." / "blobs" / "b")
    artifact = extract_layer(snapshot, -1, tmp_path / "made" / "out")
    artifact.verify()
    assert artifact.sha256 == extract_layer(donor, -1, tmp_path / "expected").sha256
