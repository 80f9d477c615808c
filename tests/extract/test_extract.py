"""`extract_layer` on folders: it copies the donor's bytes, and a failure leaves nothing behind."""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from layer_surgeon import LayerArtifact, Workspace, assemble_model, extract_layer
from layer_surgeon.checkpoint.sources.base import STOPPED
from layer_surgeon.errors import ArtifactError, CheckpointError, LayerNotFoundError, SourceError
from layer_surgeon.extract import extract as extract_module
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.workspace import layer_name
from tests.support.checkpoints import LLAMA_8B, write_safetensors, write_sparse_checkpoint
from tests.support.recorder import Recorder

TINY = LLAMA_8B | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 40,
}


@pytest.fixture
def donor(tmp_path):
    folder = write_sparse_checkpoint(tmp_path / "donor", TINY, range(4), max_shard_bytes=8_000)
    (folder / "LICENSE").write_text("terms")
    (folder / "USE_POLICY.md").write_text("policy")
    (folder / "README.md").write_text("---\nlicense: llama3.1\nbase_model: x\n---\n# Donor\n")
    return folder


def everything_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def source_bytes(checkpoint_folder):
    """The raw bytes of every tensor of a folder, by name."""
    tensors = {}
    for file in checkpoint_folder.glob("*.safetensors"):
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        for name, tensor in json.loads(raw[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                tensors[name] = raw[8 + length + begin : 8 + length + end]
    return tensors


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("layer", [-1, 0, [2, 1]])
def test_bytes_equal_the_donors(donor, tmp_path, layer, connections, monkeypatch):
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", 64)
    monkeypatch.setattr("layer_surgeon.checkpoint.sources.local.FolderSource.connections", connections)
    artifact = extract_layer(donor, layer, tmp_path / "out")
    indices = [index % 4 for index in (layer if isinstance(layer, list) else [layer])]
    expected, actual = source_bytes(donor), source_bytes(artifact.path)
    assert len(actual) == 9 * len(indices)
    for name, content in actual.items():
        _, position, inner = name.split(".", 2)
        assert content == expected[f"model.layers.{indices[int(position)]}.{inner}"], name
    assert artifact.layer_indices == tuple(indices)
    assert artifact.num_bytes == sum(map(len, actual.values()))


def test_artifact_is_complete(donor, tmp_path):
    artifact = extract_layer(donor, -1, tmp_path / "out")
    texts = ["LICENSE", "README.md", "USE_POLICY.md"]
    assert everything_below(artifact.path) == [*texts, "config.json", "model.safetensors"]
    config = json.loads((artifact.path / "config.json").read_text())
    assert config["model_type"] == "surgeon_donor"
    assert config["donor_config"] == TINY
    assert config["layer_indices"] == [3]
    assert config["dtype"] == "bfloat16"
    assert config["source"]["license"] == "llama3.1"
    assert config["source"]["base_model"] is None
    assert config["source"]["layer_prefix"] == "model.layers.3."
    for name, content in source_bytes(artifact.path).items():
        assert config["source"]["tensors"][name]["sha256"] == hashlib.sha256(content).hexdigest()
    file_digest = hashlib.sha256((artifact.path / "model.safetensors").read_bytes()).hexdigest()
    assert config["sha256"] == artifact.sha256 == file_digest
    LayerArtifact.open(artifact.path).verify()
    card = (artifact.path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: layer_surgeon\n")
    assert "license: llama3.1" in card
    assert "Layer 3 of" in card


@pytest.mark.parametrize(("dtype", "kind"), [("float32", np.float32), ("float16", np.float16)])
def test_dtype_is_converted(donor, tmp_path, dtype, kind):
    plain = source_bytes(extract_layer(donor, 1, tmp_path / "plain").path)
    artifact = extract_layer(donor, 1, tmp_path / "converted", dtype=dtype)
    assert artifact.config["dtype"] == dtype
    tensors = load_file(artifact.path / "model.safetensors")
    with np.errstate(over="ignore", invalid="ignore"):
        for name, content in plain.items():
            wide = (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_array_equal(tensors[name].ravel(), wide.astype(kind))
    artifact.verify()


def test_default_output_is_in_the_workspace(donor, tmp_path):
    workspace = Workspace(tmp_path / "surgery")
    artifact = extract_layer(donor, workspace=workspace)
    assert artifact.path == tmp_path / "surgery" / "layers" / "donor-L3" == workspace.latest("layer")


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([0, 1], "m-L0-1"),
        ([2, 3, 4, 9], "m-L2-3-4-9"),
        ([*range(120), 5], "m-L0to119-5"),
        (range(0, 240, 2), "m-120-layers-7c2cd485"),
    ],
)
def test_folder_name_of_many_layers(layers, name):
    assert layer_name("org/m", layers) == name


def test_same_layer_is_replaced(donor, tmp_path):
    """Without a commit, only reading shows whether something changed. The config may have, with the same weights."""
    first = extract_layer(donor, -1, tmp_path / "out")
    before = everything_below(tmp_path)
    (donor / "config.json").write_text(json.dumps(TINY | {"rope_theta": 1_000_000.0}))
    again = extract_layer(donor, -1, tmp_path / "out")
    assert again.sha256 == first.sha256
    assert again.config["donor_config"]["rope_theta"] == 1_000_000.0
    assert everything_below(tmp_path) == before
    (again.path / "notes.md").write_text("mine")
    with pytest.raises(ArtifactError, match=r"files that are not part of one: notes\.md"):
        extract_layer(donor, -1, tmp_path / "out")


def test_an_incomplete_artifact_is_extracted_again(donor, tmp_path):
    """With a commit, nothing is read if the artifact is there. A power cut can leave its config without its weights."""
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("a" * 40)
    shutil.copytree(donor, snapshot)
    first = extract_layer(snapshot, -1, tmp_path / "out")
    weights = first.path / "model.safetensors"
    whole = weights.read_bytes()
    for left in (whole, whole[:1000], bytes(1000), None):
        weights.unlink()
        if left is not None:
            weights.write_bytes(left)
        progress = Recorder()
        extract_layer(snapshot, -1, tmp_path / "out", progress=progress).verify()
        state = "already holds this layer; nothing was read." if left == whole else "is not complete, perhaps after a"
        assert any(state in notice for notice in progress.notices)


def test_replacing_another_layer_needs_force(donor, tmp_path):
    first = extract_layer(donor, -1, tmp_path / "out")
    with pytest.raises(ArtifactError, match="already holds another layer"):
        extract_layer(donor, 0, tmp_path / "out")
    assert LayerArtifact.open(tmp_path / "out").layer_indices == (3,)
    second = extract_layer(donor, 0, tmp_path / "out", force=True)
    assert second.layer_indices == (0,)
    assert second.sha256 != first.sha256
    LayerArtifact.open(tmp_path / "out").verify()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_force_replaces_the_record_of_the_same_bytes(donor, tmp_path):
    extract_layer(donor, -1, tmp_path / "out")
    copy = write_sparse_checkpoint(tmp_path / "copy", TINY, range(4), max_shard_bytes=8_000)
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("a" * 40)
    shutil.copytree(copy, snapshot)
    with pytest.raises(ArtifactError, match="already holds another layer"):
        extract_layer(snapshot, -1, tmp_path / "out")
    artifact = extract_layer(snapshot, -1, tmp_path / "out", force=True)
    assert artifact.config["source"]["commit"] == "a" * 40
    assert extract_layer(snapshot, -1, tmp_path / "out").sha256 == artifact.sha256


def test_a_folder_may_be_spelled_in_another_way(donor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = extract_layer("donor", -1, "out")
    for name in ("donor/", "./donor", str(donor)):
        assert extract_layer(name, -1, "out").sha256 == first.sha256


def test_what_the_user_added_to_an_artifact_is_kept(donor, tmp_path):
    artifact = extract_layer(donor, -1, tmp_path / "out")
    card = artifact.path / "README.md"
    card.write_text(f"{card.read_text()}\nMy notes.")
    assert extract_layer(donor, -1, tmp_path / "out").sha256 == artifact.sha256
    assert card.read_text().endswith("My notes.")
    for name, advice in (
        ("LICENSE_notes.txt", r"but also LICENSE_notes\.txt, which this extraction doesn't make"),
        ("README_experiments.md", r"files that are not part of one: README_experiments\.md"),
    ):
        (artifact.path / name).write_text("mine")
        with pytest.raises(ArtifactError, match=advice):
            extract_layer(donor, -1, tmp_path / "out")
        (artifact.path / name).unlink()


def test_a_mount_point_is_refused_before_anything_is_read(donor, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "out")
    with pytest.raises(ArtifactError, match="is a mount point.* name a folder inside it, such as .*out/artifact"):
        extract_layer(donor, -1, tmp_path / "out")
    assert everything_below(tmp_path / "out") == []


def test_papers_of_any_size(donor, tmp_path):
    (donor / "README.md").write_text(f"---\nlicense:\n- apache-2.0\n- mit\n---\n{'#' * 2_100_000}")
    (donor / "LICENSE").write_text("x" * 2_100_000)
    artifact = extract_layer(donor, -1, tmp_path / "out")
    assert artifact.config["source"]["license"] == "apache-2.0, mit"
    assert (artifact.path / "LICENSE").stat().st_size == 2_100_000


def test_backup_of_another_artifact_is_kept(donor, tmp_path):
    """A run that is killed between its two renames leaves the only copy of `out.v2` next to it."""
    kept = extract_layer(donor, 0, tmp_path / ".out.v2.abcd1234.old" / "out.v2")
    leftover = tmp_path / ".out.abcd1234.old" / "out"
    leftover.mkdir(parents=True)
    extract_layer(donor, -1, tmp_path / "out")
    kept.verify()
    assert not leftover.parent.exists()


def test_changed_source_is_another_layer(donor, tmp_path):
    extract_layer(donor, -1, tmp_path / "out")
    shard = sorted(donor.glob("*.safetensors"))[-1]
    raw = bytearray(shard.read_bytes())
    offset = 8 + int.from_bytes(raw[:8], "little")
    for position in range(offset, len(raw)):
        raw[position] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(ArtifactError, match="already holds another layer"):
        extract_layer(donor, -1, tmp_path / "out")


@pytest.mark.parametrize("force", [False, True])
def test_folder_with_other_files_is_never_changed(donor, tmp_path, force):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="already exists and is not a layer artifact"):
        extract_layer(donor, -1, tmp_path / "home", force=force)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="already exists and is not a layer artifact"):
        extract_layer(donor, -1, tmp_path / "file", force=force)
    assert everything_below(tmp_path / "home") == ["thesis.tex"]


def test_current_folder_is_refused(donor, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for folder in (".", ".."):
        with pytest.raises(ArtifactError, match=rf"can't be '{folder}'\. Name a new folder"):
            extract_layer(donor, -1, folder)
        with pytest.raises(ArtifactError, match=rf"can't be '{folder}'\. Name a new folder"):
            assemble_model(donor, folder)
    assert everything_below(tmp_path / "empty") == []


def test_name_that_is_too_long(donor, tmp_path):
    before = everything_below(tmp_path)
    for extract in (extract_layer, assemble_model):
        with pytest.raises(ArtifactError, match=r"can't be written: File name too long\. Name another folder"):
            extract(donor, output=tmp_path / ("x" * 300))
    assert everything_below(tmp_path) == before


def test_empty_folder_is_used(donor, tmp_path):
    (tmp_path / "out").mkdir()
    assert extract_layer(donor, -1, tmp_path / "out").layer_indices == (3,)


def disk_full(monkeypatch):
    plain, written = os.pwrite, []

    def pwrite(descriptor, content, offset):
        if sum(written) > 2_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(plain(descriptor, content, offset))
        return written[-1]

    monkeypatch.setattr(os, "pwrite", pwrite)


def interrupted(monkeypatch):
    def pwrite(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", pwrite)


def shard_truncated_midway(monkeypatch):
    from layer_surgeon.checkpoint.sources import local

    plain = local.FolderSource.stream_range

    def stream_range(self, file, start, length):
        yield from plain(self, file, start, length // 2 // 2 * 2)
        raise SourceError("the disk went away")

    monkeypatch.setattr(local.FolderSource, "stream_range", stream_range)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (disk_full, ArtifactError, "disk of .* is full.*--output"),
        (interrupted, KeyboardInterrupt, None),
        (shard_truncated_midway, SourceError, "went away"),
    ],
)
def test_failure_leaves_nothing_behind(donor, tmp_path, monkeypatch, fault, error, message):
    before = everything_below(tmp_path)
    fault(monkeypatch)
    with pytest.raises(error, match=message):
        extract_layer(donor, -1, tmp_path / "new" / "deep" / "out")
    assert everything_below(tmp_path) == before


def test_a_failure_ends_the_waits_of_the_texts(donor, tmp_path, monkeypatch):
    """A Hub may ask to wait for minutes before the licence is read."""
    seen = []
    monkeypatch.setattr(extract_module, "read_licence_files", lambda _: seen.append(STOPPED.get().wait(60)) or ())
    interrupted(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        extract_layer(donor, -1, tmp_path / "out")
    assert seen == [True]


def test_failure_keeps_the_existing_artifact(donor, tmp_path, monkeypatch):
    extract_layer(donor, -1, tmp_path / "out")
    before = everything_below(tmp_path)
    disk_full(monkeypatch)
    with pytest.raises(ArtifactError, match="is full"):
        extract_layer(donor, 0, tmp_path / "out", force=True)
    assert everything_below(tmp_path) == before
    LayerArtifact.open(tmp_path / "out").verify()


def test_missing_disk_space_is_reported_before_reading(donor, tmp_path, monkeypatch):
    usage = __import__("shutil").disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100))
    before = everything_below(tmp_path)
    with pytest.raises(ArtifactError, match="has 100 left"):
        extract_layer(donor, -1, tmp_path / "new" / "out")
    assert everything_below(tmp_path) == before


def test_bad_source_leaves_nothing_behind(donor, tmp_path):
    before = everything_below(tmp_path)
    with pytest.raises(LayerNotFoundError):
        extract_layer(donor, 99, tmp_path / "new" / "out")
    shard = sorted(donor.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        extract_layer(donor, -1, tmp_path / "new" / "out")
    assert everything_below(tmp_path) == before


def test_verify_detects_a_changed_byte(donor, tmp_path):
    artifact = extract_layer(donor, -1, tmp_path / "out")
    path = artifact.path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match="differs from the one recorded during extraction"):
        LayerArtifact.open(artifact.path).verify()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is not a layer artifact"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "model_type is 'llama'"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "surgeon_donor"}'), "needs a donor_config"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"model_type": "surgeon_donor", "layer_indices": [0], "donor_config": {}, "embeddings": [1]}'
            ),
            "embeddings, if there are any, are an object",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "not a complete layer artifact"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"123"), "not a complete layer artifact"),
        (
            lambda folder: write_safetensors(folder / "model.safetensors", {"layers.0.a": ("U8", [1], b"a")}),
            "lacks the tensor",
        ),
    ],
)
def test_open_refuses_other_folders(donor, tmp_path, damage, message):
    artifact = extract_layer(donor, -1, tmp_path / "out")
    damage(artifact.path)
    with pytest.raises(ArtifactError, match=message):
        LayerArtifact.open(artifact.path)


def test_progress_counts_every_byte(donor, tmp_path):
    recorder = Recorder()
    artifact = extract_layer(donor, -1, tmp_path / "out", progress=recorder)
    assert recorder.done == recorder.total == artifact.num_bytes
    assert recorder.ended == 1
