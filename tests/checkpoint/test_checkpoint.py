"""`open_checkpoint` on folders and files: what is read, and the messages when something is wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file

from layer_surgeon import open_checkpoint
from layer_surgeon.checkpoint.summary import summarize
from layer_surgeon.errors import CheckpointError, LayerNotFoundError, SourceError, SourceNotFoundError
from tests.support.checkpoints import LLAMA_8B, LLAMA_70B, llama_shapes, write_sparse_checkpoint

TINY = LLAMA_8B | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 40,
}


@pytest.fixture
def sharded(tmp_path):
    return write_sparse_checkpoint(tmp_path / "tiny", TINY, range(4), max_shard_bytes=8_000)


def test_a_sharded_folder(sharded):
    checkpoint = open_checkpoint(sharded)
    assert (checkpoint.model_type, checkpoint.num_layers, checkpoint.format) == ("llama", 4, "safetensors")
    assert checkpoint.commit is None
    assert checkpoint.config == TINY
    assert checkpoint.layer_prefix(-1) == "model.layers.3."
    tensors = checkpoint.layer_tensors(-1)
    shapes = llama_shapes(TINY)
    assert {t.name: t.shape for t in tensors} == {n: s for n, s in shapes.items() if n.startswith("model.layers.3.")}


def test_only_the_headers_that_are_needed_are_read(sharded):
    checkpoint = open_checkpoint(sharded)
    reads = []
    read_range = checkpoint.source.read_range
    checkpoint.source.read_range = lambda file, start, length: (
        reads.append((file, start)) or read_range(file, start, length)
    )
    tensors = checkpoint.layer_tensors(2)
    files = {tensor.file for tensor in tensors}
    assert {file for file, _ in reads} == files
    assert len(reads) == 2 * len(files) < 2 * len(set(checkpoint.table.files().values()))
    assert {start for _, start in reads} == {0, 8}


def test_a_single_file_and_a_folder_are_the_same(tmp_path):
    folder = write_sparse_checkpoint(tmp_path / "one", TINY, [1])
    file = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors.index.json").unlink()
    assert open_checkpoint(file).layer_tensors(1) == open_checkpoint(folder).layer_tensors(1)


def test_a_snapshot_of_the_hubs_cache_has_its_commit(sharded, tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "models--a--b" / "snapshots" / commit
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.commit == commit
    assert len(checkpoint.layer_tensors(0)) == 9


@pytest.mark.parametrize("layer", [4, 99, -5])
def test_a_layer_that_does_not_exist(sharded, layer):
    with pytest.raises(LayerNotFoundError, match=rf"has 4 layers, so there is no layer {layer}\. Choose 0 to 3"):
        open_checkpoint(sharded).layer_tensors(layer)


@pytest.mark.parametrize(
    ("name", "num_layers", "layer_bytes", "total"),
    [("8B", 32, 436_224_000, 16_060_522_496), ("70B", 80, 1_711_308_800, 141_107_412_992)],
)
def test_the_shapes_of_llama(tmp_path, name, num_layers, layer_bytes, total):
    folder = write_sparse_checkpoint(tmp_path / name, {"8B": LLAMA_8B, "70B": LLAMA_70B}[name], [])
    checkpoint = open_checkpoint(folder)
    assert checkpoint.num_layers == num_layers
    assert sum(tensor.num_bytes for tensor in checkpoint.layer_tensors(-1)) == layer_bytes
    summary = summarize(checkpoint)
    assert summary.whole.num_bytes == total
    assert {layer.num_bytes for layer in summary.layers} == {layer_bytes}
    assert summary.rest.num_bytes == total - num_layers * layer_bytes


def break_shard(folder, change):
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw[:40], "truncated"),
        (lambda raw: raw[:4], "too few"),
        (lambda raw: b"\0" * 8 + raw[8:], "2 to"),
        (lambda raw: raw.replace(b"model.layers.3", b"model.layers.9"), "does not list it"),
        (lambda raw: raw[:8] + b"[" + raw[9:], "not valid JSON"),
    ],
)
def test_a_damaged_shard(sharded, change, word):
    break_shard(sharded, change)
    checkpoint = open_checkpoint(sharded)
    with pytest.raises(CheckpointError, match=word):
        checkpoint.layer_tensors(-1)


def test_a_missing_shard(sharded):
    sorted(sharded.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(sharded)


def test_one_shard_is_not_a_model(sharded):
    """It can hold a part of a layer."""
    shard = min(sharded.glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"is one of \d+ files of a model\. Give the folder"):
        open_checkpoint(shard)


def test_an_index_names_the_whole_model(sharded):
    assert open_checkpoint(sharded / "model.safetensors.index.json").num_layers == 4


def test_all_shards_but_one_are_missing(sharded):
    for path in sorted(sharded.glob("*.safetensors"))[1:]:
        path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(sharded)


def test_an_adapter_is_not_taken_for_the_model(tmp_path):
    torch.save({"model.layers.0.w.weight": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    save_file({"lora_A": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 1}))
    assert [info.file for info in open_checkpoint(tmp_path).layer_tensors(0)] == ["pytorch_model.bin"]


def test_no_config(sharded):
    (sharded / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(sharded)


def test_a_config_that_is_not_json(sharded):
    (sharded / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("files", "error", "word"),
    [
        ([], SourceNotFoundError, "is empty"),
        (["README.md"], CheckpointError, "no checkpoint"),
        (["pytorch_model.bin"], CheckpointError, r"no config\.json"),
        (["training_args.bin", "optimizer.pt"], CheckpointError, "2 PyTorch files"),
        (["a.safetensors", "b.safetensors"], CheckpointError, "Get the index"),
        (["a.gguf", "b.gguf"], CheckpointError, "Give the name of one file"),
    ],
)
def test_folders_without_a_checkpoint(tmp_path, files, error, word):
    for file in files:
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(error, match=word):
        open_checkpoint(tmp_path)


def test_paths_that_the_system_refuses(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="can't be read: File name too long"):
        open_checkpoint(str(tmp_path / ("a" * 300)))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.exists", refuse)
    with pytest.raises(SourceError, match="not readable by this user"):
        open_checkpoint(str(tmp_path / "model"))


def test_no_such_path(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no folder or file"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_link_out_of_the_folder_is_refused(sharded, tmp_path):
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    checkpoint = open_checkpoint(sharded)
    with pytest.raises(SourceError, match="symbolic link"):
        checkpoint.layer_tensors(-1)


def test_a_quantised_checkpoint_can_be_opened(sharded):
    config = json.loads((sharded / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (sharded / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(sharded).quantization == "gptq, 4 bits"
