"""Checkpoints in S3, with a loopback server that implements its protocol."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

import layer_surgeon as ls
from layer_surgeon.checkpoint.sources import fsspec_files, open_source
from layer_surgeon.checkpoint.sources.fsspec_files import FsspecFiles
from layer_surgeon.errors import SourceChangedError, SourceError, SourceNotFoundError
from layer_surgeon.extract import copy as copy_module
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.s3_server import IGNORED, run_s3

pytestmark = pytest.mark.filterwarnings(IGNORED)
TINY = LLAMA_8B | {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@pytest.fixture(scope="module")
def store() -> Iterator[s3fs.S3FileSystem]:
    with run_s3() as store:
        yield store


@pytest.fixture(scope="module")
def donor(store: s3fs.S3FileSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose files are also at s3://bucket/models/tiny."""
    folder = write_sparse_checkpoint(tmp_path_factory.mktemp("donor"), TINY, [0, 1, 2], max_shard_bytes=6_000_000)
    (folder / "LICENSE").write_text("terms")
    for path in folder.iterdir():
        store.pipe_file(f"bucket/models/tiny/{path.name}", path.read_bytes())
    return folder


def test_a_layer_from_a_bucket(donor: Path, tmp_path: Path) -> None:
    expected = ls.extract_layer(donor, -1, tmp_path / "expected")
    artifact = ls.extract_layer("s3://bucket/models/tiny", -1, tmp_path / "found")
    assert artifact.sha256 == expected.sha256
    assert artifact.config["source"]["name"] == "s3://bucket/models/tiny"
    assert (artifact.path / "LICENSE").read_text() == "terms"


def test_the_command_reads_a_bucket(donor: Path, tmp_path: Path) -> None:
    expected = ls.extract_layer(donor, 1, tmp_path / "expected")
    arguments = ["extract", "s3://bucket/models/tiny", "--layer", "1", "--output", str(tmp_path / "found")]
    script = "import sys; from layer_surgeon_cli.main import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, env=dict(os.environ))
    assert ls.LayerArtifact.open(tmp_path / "found").sha256 == expected.sha256


def test_the_files_of_a_bucket(donor: Path) -> None:
    source = open_source("s3://bucket/models/tiny/")
    assert source.list_files() == {path.name: path.stat().st_size for path in sorted(donor.iterdir())}
    shard = next(path for path in donor.glob("*.safetensors"))
    assert source.read_range(shard.name, 3, 4_500_000) == shard.read_bytes()[3:4_500_003]
    file_source = open_source(f"s3://bucket/models/tiny/{shard.name}")
    assert set(file_source.list_files()) == {"LICENSE", "config.json", shard.name}


def test_an_object_that_is_replaced_is_noticed(store: s3fs.S3FileSystem) -> None:
    store.pipe_file("bucket/moving/model.safetensors", b"a" * 1000)
    source = open_source("s3://bucket/moving")
    assert source.read_range("model.safetensors", 0, 10) == b"a" * 10
    store.pipe_file("bucket/moving/model.safetensors", b"b" * 1000)
    with pytest.raises(SourceChangedError, match="changed while it was being read"):
        source.read_range("model.safetensors", 10, 10)


@pytest.mark.parametrize("replaced", [False, True])
def test_an_extraction_that_was_cut_off(
    store: s3fs.S3FileSystem, donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    for path in donor.iterdir():
        store.pipe_file(f"bucket/cut/{path.name}", path.read_bytes())
    monkeypatch.setattr(fsspec_files, "PIECE_BYTES", 500_000)
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", 400_000)
    read, sent, allowed = FsspecFiles._read_piece, [0], [1_200_000]

    def read_piece(self: FsspecFiles, path: str, start: int, stop: int) -> bytes:
        if stop - start > 100_000:
            if sent[0] >= allowed[0]:
                raise SourceError("the line is dead")
            sent[0] += stop - start
        return read(self, path, start, stop)

    monkeypatch.setattr(FsspecFiles, "_read_piece", read_piece)
    with pytest.raises(SourceError, match="the line is dead"):
        ls.extract_layer("s3://bucket/cut", -1, tmp_path / "found")
    sent[0], allowed[0] = 0, 1 << 60
    if replaced:
        for path in donor.glob("*.safetensors"):
            store.pipe_file(f"bucket/cut/{path.name}", path.read_bytes()[:-1000] + bytes(1000))
    artifact = ls.extract_layer("s3://bucket/cut", -1, tmp_path / "found")
    artifact.verify()
    expected = ls.extract_layer(donor, -1, tmp_path / "expected")
    assert (artifact.sha256 == expected.sha256) is not replaced
    # If the objects are unchanged, only the remaining bytes are read; otherwise all of them.
    assert (artifact.num_bytes - sent[0] < 100_000) is replaced


@pytest.mark.parametrize("url", ["s3://bucket/nothing", "s3://no-such-bucket/x", "s3://bucket/models/tiny/x.gguf"])
def test_missing_files_and_buckets(donor: Path, url: str) -> None:
    with pytest.raises(SourceNotFoundError):
        open_source(url)


def test_an_unreachable_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SourceError):
        open_source("s3://bucket/models/tiny")
