"""Repos that are fully or partly in the local Hub cache are read from it, and offline only from it."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import constants

import layer_surgeon as ls
from layer_surgeon.checkpoint.sources import CHUNK_BYTES, open_source
from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.hub_cache import part_of_repo
from layer_surgeon.errors import SourceError, SourceNotFoundError
from tests.support.checkpoints import TINY, write_sparse_checkpoint
from tests.support.loopback_hub import LoopbackHub

REPO = "owner/name"
SHARD = os.urandom(2 * CHUNK_BYTES + 1234)
FILES = {"config.json": '{"a": 1}', "model.safetensors": SHARD, "sub/model.safetensors": SHARD[:99], "x.gguf": "GGUF"}


@pytest.fixture
def cache(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache. Repo ids refer to the loopback Hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
    return tmp_path / "cache"


def download(hub: LoopbackHub, cache: Path, *files: str, revision: str | None = None) -> None:
    """Download files like `hf download`, in a subprocess, because huggingface_hub reads its environment only once."""
    code = (
        "import sys; from huggingface_hub import hf_hub_download as get\n"
        f"for file in sys.argv[1:]: get({REPO!r}, file, revision={revision!r})"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    subprocess.run([sys.executable, "-c", code, *files], check=True, env=environment)
    hub.reset_log()


def blob_of(cache: Path, file: str) -> Path:
    return next(cache.glob(f"models--owner--name/snapshots/*/{file}")).resolve()


def share(cache: Path, file: str) -> Path:
    """Move the content of a file to the cache's shared store, as huggingface_hub 2.4 does with large files."""
    blob = blob_of(cache, file)
    shared = cache / "blobs/ab" / f"ab{'0' * 62}"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(f"../../blobs/ab/{shared.name}")
    return shared


@pytest.mark.parametrize("is_shared", [False, True])
def test_cached_files_are_not_read_from_the_network(hub: LoopbackHub, cache: Path, is_shared: bool) -> None:
    commit = hub.add_repo(REPO, FILES).refs["main"]
    download(hub, cache, "config.json", "model.safetensors", "sub/model.safetensors")
    if is_shared:
        share(cache, "model.safetensors")
    source = open_source(REPO)
    assert (source.kind, source.commit) == ("hub", commit)
    assert source.read_file("config.json", 100) == b'{"a": 1}'
    assert source.read_range("model.safetensors", 10, len(SHARD) - 10) == SHARD[10:]
    assert source.read_range("sub/model.safetensors", 0, 9) == SHARD[:9]
    assert [request.path for request in hub.requests] == [f"/api/models/{REPO}"]
    assert source.read_file("x.gguf", 9) == b"GGUF"
    assert len(hub.requests) > 1


def test_a_layer_of_a_cached_shard_needs_no_download(hub: LoopbackHub, cache: Path, tmp_path: Path) -> None:
    donor = write_sparse_checkpoint(tmp_path / "donor", TINY, [0, 1, 2], max_shard_bytes=120_000)
    expected = ls.extract_layer(donor, -1, tmp_path / "expected")
    hub.add_repo(REPO, donor)
    shards = expected.config["source"]["files"]
    assert len(shards) < len(list(donor.glob("*.safetensors")))
    download(hub, cache, "model.safetensors.index.json", *shards)
    artifact = ls.extract_layer(REPO, -1, tmp_path / "found")
    assert artifact.sha256 == expected.sha256
    assert artifact.config["source"]["commit"] is not None
    assert hub.count(path=".safetensors") == 0


def test_another_commit_in_the_cache_is_not_read(hub: LoopbackHub, cache: Path) -> None:
    repo = hub.add_repo(REPO, FILES)
    download(hub, cache, "model.safetensors")
    repo.commit({**FILES, "model.safetensors": SHARD[::-1]})
    assert open_source(REPO).read_range("model.safetensors", 0, 100) == SHARD[::-1][:100]
    assert hub.count(path="model.safetensors") > 0


@pytest.mark.parametrize("fault", ["truncated", "other blob"])
def test_a_cached_file_that_differs_from_the_listing(
    hub: LoopbackHub, cache: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    hub.add_repo(REPO, FILES)
    download(hub, cache, "model.safetensors")
    blob = blob_of(cache, "model.safetensors")
    if fault == "truncated":
        os.truncate(blob, 1000)
    else:
        link = next(cache.glob("models--owner--name/snapshots/*/model.safetensors"))
        link.unlink()
        blob.rename(blob.with_name("0" * 64))
        link.symlink_to(blob.with_name("0" * 64))
    with caplog.at_level(logging.WARNING):
        assert open_source(REPO).read_range("model.safetensors", 900, 500) == SHARD[900:1400]
    assert "differs from what the Hub lists" in caplog.text


def test_the_error_names_a_damaged_file_of_the_cache(hub: LoopbackHub, cache: Path) -> None:
    hub.add_repo(REPO, FILES)
    download(hub, cache, "config.json")
    blob_of(cache, "config.json").write_text('{"a": 2}')
    with pytest.raises(SourceError, match=r"config.json in the local Hub cache is damaged"):
        open_source(REPO).read_file("config.json", 100)


def test_a_link_out_of_the_cache_is_refused(hub: LoopbackHub, cache: Path, tmp_path: Path) -> None:
    hub.add_repo(REPO, FILES)
    download(hub, cache, "model.safetensors")
    (tmp_path / "secret").write_bytes(bytes(len(SHARD)))
    link = next(cache.glob("models--owner--name/snapshots/*/model.safetensors"))
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="symbolic link"):
        open_source(REPO).read_range("model.safetensors", 0, 10)


def test_offline_a_cached_repo_is_read(hub: LoopbackHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.add_repo(REPO, FILES)
    first = repo.refs["main"]
    repo.refs["v1"] = first
    download(hub, cache, "config.json", "model.safetensors", "x.gguf", "sub/model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", first):
        source = open_source(REPO, revision=revision)
        assert (source.name, source.kind, source.commit, source.connections) == (REPO, "hub", first, 1)
        assert source.list_files() == {
            "config.json": 8,
            "model.safetensors": len(SHARD),
            "sub/model.safetensors": 99,
            "x.gguf": 4,
        }
        assert source.read_range("model.safetensors", 10, 100) == SHARD[10:110]
        assert source.read_range("sub/model.safetensors", 0, 9) == SHARD[:9]
    part = open_source("hf://owner/name/sub")
    assert (part.name, part.list_files()) == ("owner/name/sub", {"model.safetensors": 99})
    assert part.read_range("model.safetensors", 1, 9) == SHARD[1:10]
    assert open_source("hf://owner/name/x.gguf").list_files() == {"config.json": 8, "x.gguf": 4}
    assert not hub.requests


def test_a_file_in_the_shared_store_is_read_offline_and_from_the_snapshot(
    hub: LoopbackHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, FILES)
    download(hub, cache, "model.safetensors")
    shared = share(cache, "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    link = next(cache.glob("models--owner--name/snapshots/*/model.safetensors"))
    for source in (open_source(REPO), open_source(link.parent)):
        assert source.read_range("model.safetensors", 10, 100) == SHARD[10:110]
        assert source.sha256("model.safetensors") == hashlib.sha256(SHARD).hexdigest()
    # Only through a blob of the repo, and only to the store of this cache.
    blob = link.parent / link.readlink()
    link.unlink()
    link.symlink_to(shared)
    with pytest.raises(SourceError, match="symbolic link"):
        open_source(link.parent).read_range("model.safetensors", 0, 9)
    link.unlink()
    link.symlink_to(blob)
    foreign = cache.parent / "other/blobs/ab" / shared.name
    foreign.parent.mkdir(parents=True)
    shared.rename(foreign)
    blob.unlink()
    blob.symlink_to(foreign)
    with pytest.raises(SourceError, match="symbolic link"):
        open_source(link.parent).read_range("model.safetensors", 0, 9)


def test_offline_a_layer_is_extracted_from_the_cached_shards(
    hub: LoopbackHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor = write_sparse_checkpoint(tmp_path / "donor", TINY, [0, 1, 2], max_shard_bytes=120_000)
    expected = ls.extract_layer(donor, -1, tmp_path / "expected")
    hub.add_repo(REPO, donor)
    download(hub, cache, "config.json", "model.safetensors.index.json", *expected.config["source"]["files"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ls.extract_layer(REPO, -1, tmp_path / "found").sha256 == expected.sha256
    with pytest.raises(SourceNotFoundError, match=r"not in the local Hub cache.*HF_HUB_OFFLINE.*hf download"):
        ls.extract_layer(REPO, 0, tmp_path / "first")
    assert not hub.requests


def test_offline_the_error_explains_what_is_missing(
    hub: LoopbackHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        SourceError, match=r"HF_HUB_OFFLINE.*no files of the repo .* at its main branch.*hf download owner/name"
    ):
        open_source(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    download(hub, cache, "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE.*no weights of .* only has config.json"):
        open_source(REPO)
    for revision in ("v9", "../../../secret", "/etc/passwd", "f" * 40):
        with pytest.raises(SourceError, match="no files of the repo .* at the revision"):
            open_source(REPO, revision=revision)
    assert not hub.requests


def test_offline_a_hostile_index_adds_no_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    index = {"weight_map": {"a": "../x.safetensors", "b": "/x.safetensors", "c": "y.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = open_source(REPO, revision="a" * 40)
    assert set(source.list_files()) == {"model.safetensors.index.json", "y.safetensors"}


@pytest.mark.parametrize("path", ["sub", "sub/model.safetensors"])
def test_a_subfolder_without_papers_has_those_of_its_repo(path: str) -> None:
    files = ["LICENSE", "README.md", "config.json", "other/NOTICE", "sub/README.md", "sub/model.safetensors"]
    assert part_of_repo(files, path) == {
        "LICENSE": "LICENSE",
        "README.md": "sub/README.md",
        "model.safetensors": "sub/model.safetensors",
    }
    assert part_of_repo(files, "none") == {}
