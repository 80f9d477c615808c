"""An interrupted extraction continues with the same bytes, reads each once, and never mixes two commits."""

import errno
import os
import shutil

import pytest

from layer_surgeon import extract_layer
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import HubLimits
from layer_surgeon.errors import ArtifactError, SourceError
from layer_surgeon.extract import copy as copy_module
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.extract.staging import Staging
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.hub_faults import cut, status
from tests.support.hub_reading import read_from, weight_bytes
from tests.support.loopback_hub import LoopbackHub
from tests.support.recorder import Recorder

SMALL = LLAMA_8B | {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}
PIECE, STRETCH = 2_000_000, 500_000


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(HubSource, "limits", HubLimits(tries=1, bad_answer_tries=1, base_wait=0.001, max_wait=0.002))
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", PIECE)
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", STRETCH)
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        hub.add_repo("owner/model", write_sparse_checkpoint(tmp_path / "donor", SMALL, [0, 1]))
        yield hub


def extract_expected(tmp_path):
    """Extract the expected artifact from the local folder."""
    return extract_layer(tmp_path / "donor", -1, tmp_path / "expected")


def cut_off(hub, tmp_path, after=1_500_000):
    """Run an extraction in which every connection breaks after some bytes."""
    hub.faults.add(cut(after), server="cdn", method="GET", path=r"\.safetensors", times=-1, skip=1)
    with pytest.raises(SourceError):
        extract_layer("owner/model", -1, tmp_path / "out")
    hub.faults.clear()


def test_continues_after_a_network_failure(hub, tmp_path):
    expected = extract_expected(tmp_path)
    cut_off(hub, tmp_path)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial").is_dir()
    hub.reset_log()
    progress = Recorder()
    artifact = extract_layer("owner/model", -1, tmp_path / "out", progress=progress)
    assert artifact.sha256 == expected.sha256
    artifact.verify()
    verified = artifact.num_bytes - weight_bytes(hub)
    assert verified >= 1_000_000  # at least one chunk arrived on one of the connections
    assert any(f"{verified:,} of {artifact.num_bytes:,}" in notice for notice in progress.notices)
    assert progress.done == progress.total == artifact.num_bytes
    assert not (tmp_path / ".out.partial").exists()
    assert not [path.name for path in artifact.path.iterdir() if path.name.startswith(".")]


def test_notice_says_how_to_continue(hub, tmp_path):
    progress = Recorder()
    hub.faults.add(cut(1_500_000), server="cdn", method="GET", path=r"\.safetensors", times=-1, skip=1)
    with pytest.raises(SourceError):
        extract_layer("owner/model", -1, tmp_path / "out", progress=progress)
    assert any("goes on from there" in notice for notice in progress.notices)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_full_disk_loses_nothing(hub, tmp_path, monkeypatch, when):
    cut_off(hub, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        if when == "before":
            patch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100))
        else:
            patch.setattr(copy_module, "write_all", no_space)
        with pytest.raises(ArtifactError, match=r"has 100 left\. Free some space|is full"):
            extract_layer("owner/model", -1, tmp_path / "out")
    progress = Recorder()
    extract_layer("owner/model", -1, tmp_path / "out", progress=progress).verify()
    assert any("Resuming" in notice for notice in progress.notices)


def test_failure_before_the_first_byte_leaves_nothing(hub, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    hub.faults.add(status(503), server="cdn", method="GET", path=r"\.safetensors", times=-1, skip=1)
    with pytest.raises(SourceError):
        extract_layer("owner/model", -1, tmp_path / "new" / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_bytes_are_read_again(hub, tmp_path):
    cut_off(hub, tmp_path)
    weights = tmp_path / ".out.partial" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    length = 8 + int.from_bytes(raw[:8], "little")
    for position in range(length, len(raw), 100_000):
        raw[position] ^= 0xFF
    weights.write_bytes(raw)
    hub.reset_log()
    artifact = extract_layer("owner/model", -1, tmp_path / "out")
    artifact.verify()
    assert artifact.sha256 == extract_expected(tmp_path).sha256
    assert weight_bytes(hub) == artifact.num_bytes


@pytest.mark.parametrize("damage", [lambda raw: raw[:-7], lambda raw: raw[:3], lambda raw: raw + b'{"piece": 0', bytes])
def test_damaged_journal_is_tolerated(hub, tmp_path, damage):
    cut_off(hub, tmp_path)
    journal = tmp_path / ".out.partial" / ".journal"
    journal.write_bytes(damage(journal.read_bytes()))
    artifact = extract_layer("owner/model", -1, tmp_path / "out")
    artifact.verify()
    assert artifact.sha256 == extract_expected(tmp_path).sha256


def test_another_commit_starts_over(hub, tmp_path):
    cut_off(hub, tmp_path)
    newer = write_sparse_checkpoint(tmp_path / "newer", SMALL | {"rms_norm_eps": 1e-6}, [0, 1])
    shard = next(newer.glob("*.safetensors"))
    raw = bytearray(shard.read_bytes())
    for position in range(len(raw) - 2_000, len(raw)):
        raw[position] ^= 1
    shard.write_bytes(raw)
    hub.router.repos["models", "owner/model"].commit(newer)
    hub.reset_log()
    artifact = extract_layer("owner/model", -1, tmp_path / "out")
    assert weight_bytes(hub) == artifact.num_bytes
    assert artifact.sha256 == extract_layer(newer, -1, tmp_path / "expected").sha256


def test_another_layer_starts_over(hub, tmp_path):
    cut_off(hub, tmp_path)
    artifact = extract_layer("owner/model", 0, tmp_path / "out")
    artifact.verify()
    assert artifact.layer_indices == (0,)
    assert artifact.sha256 == extract_layer(tmp_path / "donor", 0, tmp_path / "expected").sha256


def test_a_lock_that_fails_loses_nothing(hub, tmp_path, monkeypatch):
    cut_off(hub, tmp_path)
    staged = {path.name: path.stat().st_size for path in (tmp_path / ".out.partial").iterdir()}

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(ArtifactError, match="No locks available"):
        extract_layer("owner/model", -1, tmp_path / "out")
    left = {path.name: path.stat().st_size for path in (tmp_path / ".out.partial").iterdir()}
    assert left.items() >= staged.items()


def test_weights_are_on_the_disk_before_the_artifact_appears(hub, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    artifact = extract_layer("owner/model", -1, tmp_path / "out")
    assert {path.stat().st_ino for path in artifact.path.iterdir()} <= set(synced)


def test_second_process_is_refused(hub, tmp_path):
    with Staging(tmp_path / "out", 10):
        with pytest.raises(ArtifactError, match="Another process is writing"):
            extract_layer("owner/model", -1, tmp_path / "out")
        assert (tmp_path / ".out.partial").is_dir()
