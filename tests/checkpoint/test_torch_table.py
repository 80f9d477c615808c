"""PyTorch checkpoints written by torch: every tensor equals that of torch.load, and little else is read."""

import json

import pytest
import torch

from layer_surgeon import extract_layer, open_checkpoint
from layer_surgeon.checkpoint.checkpoint import Checkpoint
from layer_surgeon.checkpoint.formats import TORCH_INDEX_FILE, open_table
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.summary import summarize
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract.dtypes import NAME_OF_CODE
from tests.support.checkpoints import write_sparse_checkpoint
from tests.support.command_line import surgeon
from tests.support.loopback_hub import LoopbackHub
from tests.support.torch_files import TINY, tiny_state_dict, write_checkpoint

CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


def raw_bytes(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def bytes_in_files(checkpoint, folder):
    """Read the bytes of each tensor at the position in the table."""
    infos = checkpoint.table.tensors(checkpoint.table.files())
    return {info.name: (folder / info.file).read_bytes()[info.offset : info.end] for info in infos}


def count_reads(source):
    reads = []
    read_range, stream_range = source.read_range, source.stream_range
    source.read_range = lambda file, start, length: reads.append(length) or read_range(file, start, length)
    source.stream_range = lambda file, start, length: reads.append(length) or stream_range(file, start, length)
    return reads


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("dtype", list(CODES))
def test_a_layer_equals_that_of_torch_load(tmp_path, dtype, shards):
    folder = write_checkpoint(tmp_path / "donor", tiny_state_dict(dtype), shards=shards)
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.format, checkpoint.model_type, checkpoint.num_layers) == ("torch", "llama", 4)
    loaded = {}
    for file in folder.glob("*.bin"):
        loaded |= torch.load(file, weights_only=True)
    assert bytes_in_files(checkpoint, folder) == {name: raw_bytes(tensor) for name, tensor in loaded.items()}
    assert {info.dtype for info in checkpoint.layer_tensors(0)} == {CODES[dtype]}
    artifact = extract_layer(folder, 2, tmp_path / "out")
    raw = (artifact.path / "model.safetensors").read_bytes()
    for info in artifact.tensors():
        assert raw[info.offset : info.end] == raw_bytes(loaded[info.name.replace("layers.0.", "model.layers.2.")])
    artifact.verify()


def test_a_dtype_is_converted(tmp_path):
    state = tiny_state_dict(torch.float32)
    artifact = extract_layer(write_checkpoint(tmp_path / "donor", state), -1, tmp_path / "out", dtype="bfloat16")
    raw = (artifact.path / "model.safetensors").read_bytes()
    for info in artifact.tensors():
        tensor = state[info.name.replace("layers.0.", "model.layers.3.")]
        assert raw[info.offset : info.end] == raw_bytes(tensor.bfloat16())


def test_the_summary_counts_everything(tmp_path):
    state = tiny_state_dict(torch.bfloat16)
    summary = summarize(open_checkpoint(write_checkpoint(tmp_path, state, shards=2)))
    assert summary.whole.num_bytes == sum(tensor.nbytes for tensor in state.values())
    assert len(summary.layers) == 4


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle(tmp_path, protocol):
    state = tiny_state_dict(torch.float16)
    folder = write_checkpoint(tmp_path, state, pickle_protocol=protocol)
    assert bytes_in_files(open_checkpoint(folder), folder) == {name: raw_bytes(t) for name, t in state.items()}


ODD_DTYPES = [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", ODD_DTYPES, ids=str)
def test_every_dtype_of_safetensors(tmp_path, dtype):
    odd = torch.arange(6).reshape(2, 3).to(dtype)
    state = tiny_state_dict(torch.bfloat16) | {"model.odd": odd, "model.more": torch.zeros(4, 2).to(dtype)[1:]}
    folder = write_checkpoint(tmp_path, state)
    assert bytes_in_files(open_checkpoint(folder), folder) == {name: raw_bytes(t) for name, t in state.items()}
    (info,) = open_checkpoint(folder).table.tensors(["model.odd"])
    assert NAME_OF_CODE[info.dtype] == str(dtype).removeprefix("torch.")


def test_views_parameters_and_tied_weights(tmp_path):
    state = tiny_state_dict(torch.float32)
    fused = torch.randn(48, 16)
    state["model.layers.0.self_attn.q_proj.weight"] = fused[16:32]
    state["model.layers.1.self_attn.q_proj.weight"] = fused[32:]
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state["model.norm.weight"] = torch.nn.Parameter(torch.randn(16))
    state["model.empty"] = torch.zeros(0, 3)
    state["model.one"] = torch.tensor(3.0)
    state["model.ids"] = torch.arange(5).expand(1, -1)
    state["num_updates"] = 7
    folder = write_checkpoint(tmp_path, state)
    tensors = {name: tensor for name, tensor in state.items() if name != "num_updates"}
    assert bytes_in_files(open_checkpoint(folder), folder) == {name: raw_bytes(t) for name, t in tensors.items()}


def test_the_state_dict_of_a_module(tmp_path):
    # state_dict() returns an OrderedDict with an attribute, so its pickle sets a state.
    module = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList()})})
    for _ in range(4):
        module["model"]["layers"].append(torch.nn.Linear(3, 2))
    assert module.state_dict()._metadata
    folder = write_checkpoint(tmp_path, module.state_dict())
    assert len(open_checkpoint(folder).layer_tensors(0)) == 2


def test_a_state_dict_in_a_dict(tmp_path):
    state = tiny_state_dict(torch.bfloat16)
    folder = write_checkpoint(tmp_path, {"state_dict": state, "epoch": 3, "loss": 0.5, "history": [1, (2, None)]})
    assert set(open_checkpoint(folder).table.files()) == set(state)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"model": {"a": torch.zeros(2)}}, "dict without tensors"),
        ({}, "dict without tensors"),
        ([torch.zeros(2)], "contains a value of type list"),
        (torch.zeros(2), "contains a value of type tensor"),
    ],
)
def test_pickles_without_a_state_dict_are_refused(tmp_path, content, word):
    with pytest.raises(CheckpointError, match=word):
        open_checkpoint(write_checkpoint(tmp_path, content))


@pytest.mark.parametrize("view", [lambda t: t[:, :8], lambda t: t[::2], lambda t: t[:1].expand(16, 16)])
def test_views_with_gaps_are_refused(tmp_path, view):
    name = "model.layers.3.self_attn.q_proj.weight"
    state = tiny_state_dict(torch.float32)
    state[name] = view(state[name])
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
    checkpoint.layer_tensors(0)
    with pytest.raises(CheckpointError, match=f"{name}.* is not contiguous"):
        checkpoint.layer_tensors(3)


def test_a_negated_tensor_is_refused(tmp_path):
    state = {"a": torch.tensor([1j, 2j]).conj()}
    with pytest.raises(CheckpointError, match="negated or conjugated"):
        open_checkpoint(write_checkpoint(tmp_path, state))


def test_only_the_requested_bytes_are_read(tmp_path):
    # Larger than the last 65 kB, which are read to find the directory.
    state = {name: torch.zeros(20_000) for name in tiny_state_dict(torch.float32)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=3))
    reads = count_reads(checkpoint.source)
    infos = checkpoint.layer_tensors(0)
    files = {info.file for info in infos}
    assert len(files) == 1
    # the end of the file with the directory, the pickle, and the header of each of the nine entries
    assert len(reads) == 2 + 9
    assert sum(reads) < 65_650 + 8_000
    checkpoint.layer_tensors(0)
    assert len(reads) == 11


def test_from_the_hub(tmp_path, hub: LoopbackHub):
    state = {name: torch.randn(20_000) for name in tiny_state_dict(torch.float32)}
    folder = write_checkpoint(tmp_path / "donor", state, shards=2)
    hub.add_repo("owner/name", folder)
    source = HubSource("owner/name", endpoint=hub.endpoint)
    artifact = extract_layer(Checkpoint(source, open_table(source)), -1, tmp_path / "out")
    raw = (artifact.path / "model.safetensors").read_bytes()
    for info in artifact.tensors():
        assert raw[info.offset : info.end] == raw_bytes(state[info.name.replace("layers.0.", "model.layers.3.")])
    answers = [request for request in hub.requests if request.server == "cdn"]
    assert {request.status for request in answers} == {206}
    # the end of the shard, its pickle, the header of each of the nine tensors, and the bytes of all nine
    assert len(answers) == 2 + 9 + 1
    assert artifact.config["source"]["format"] == "torch"


def test_safetensors_are_preferred(tmp_path):
    write_checkpoint(tmp_path, tiny_state_dict(torch.float32))
    assert open_checkpoint(tmp_path).format == "torch"
    write_sparse_checkpoint(tmp_path, TINY, [0])
    assert open_checkpoint(tmp_path).format == "safetensors"
    assert open_checkpoint(tmp_path / "pytorch_model.bin").format == "torch"


@pytest.mark.parametrize("name", ["model.pt", "weights.pth", "other.bin"])
def test_opens_a_file_by_its_name(tmp_path, name):
    write_checkpoint(tmp_path, tiny_state_dict(torch.float32))
    (tmp_path / "pytorch_model.bin").rename(tmp_path / name)
    assert open_checkpoint(tmp_path / name).num_layers == 4
    assert open_checkpoint(tmp_path).num_layers == 4
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Get the index, or give the name of one file"):
        open_checkpoint(tmp_path)


def test_an_index_that_does_not_match(tmp_path):
    folder = write_checkpoint(tmp_path, tiny_state_dict(torch.float32), shards=2)
    index = json.loads((folder / TORCH_INDEX_FILE).read_text())
    index["weight_map"]["model.layers.3.extra.weight"] = "pytorch_model-00001-of-00002.bin"
    (folder / TORCH_INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="its pickle does not describe it"):
        open_checkpoint(folder).layer_tensors(3)
    index["weight_map"]["model.layers.3.extra.weight"] = "../elsewhere.bin"
    (folder / TORCH_INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        open_checkpoint(folder)
    index["weight_map"]["model.layers.3.extra.weight"] = "model.safetensors"
    (folder / TORCH_INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a bin file"):
        open_checkpoint(folder)


def test_the_command_line_needs_no_torch(tmp_path):
    write_checkpoint(tmp_path / "donor", tiny_state_dict(torch.bfloat16), shards=2)
    # A fake torch package that fails on import takes precedence over the real one.
    (tmp_path / "front" / "torch").mkdir(parents=True)
    (tmp_path / "front" / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')")
    env = {"PYTHONPATH": str(tmp_path / "front")}
    shown = surgeon("inspect", "donor", "--json", cwd=tmp_path, env=env)
    assert shown.code == 0, shown.err
    assert shown.document()["format"] == "torch"
    done = surgeon("extract", "donor", "--output", "out", "--json", cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    assert surgeon("inspect", "donor", cwd=tmp_path, env=env).code == 0
