"""`run_layers`: pooling, depths, files, resuming, and what is read."""

import contextlib
import json
from dataclasses import replace
from itertools import pairwise
from shutil import copytree, ignore_patterns

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from layer_surgeon import HiddenStates, Workspace, measure_layers, run_layers
from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.checkpoint.sources import CutSource, FileSource, FolderSource
from layer_surgeon.checkpoint.sources.base import STOPPED
from layer_surgeon.donor.exit import DonorExit
from layer_surgeon.errors import ArtifactError, CheckpointError, ConfigError, DataError, LayerNotFoundError, SourceError
from layer_surgeon.progress import NullProgress
from layer_surgeon.run import scoring
from layer_surgeon.run.fetching import ByteCounter, LayerFetcher
from layer_surgeon.run.identity import _file_version, run_identity
from layer_surgeon.run.inputs import prepare_run, walk_inputs
from layer_surgeon.run.settings import RunConfig
from tests.support.hub_reading import read_from, weight_bytes
from tests.support.loopback_hub import LoopbackHub
from tests.support.numbered_texts import as_text
from tests.support.recorder import Recorder


@pytest.fixture(scope="module")
def expected(model, tokens):
    """The whole model's states of each text, by depth, before the final norm."""
    last = []
    handle = model.model.layers[-1].register_forward_hook(lambda _, args, output: last.append(output[0]))
    states = []
    for ids in tokens:
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        states.append([*(state[0] for state in hidden[:-1]), last[-1] if last[-1].ndim == 2 else last[-1][0]])
    handle.remove()
    return states


def check_close(states, expected):
    """Unpooled states of all texts."""
    offsets = states.offsets.tolist()
    for index, of_text in enumerate(expected):
        for depth in states:
            torch.testing.assert_close(states[depth][offsets[index] : offsets[index + 1]], of_text[depth])


@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_pooling(source, texts, expected, batch_tokens):
    options = {"batch_tokens": batch_tokens}
    check_close(run_layers(source, texts, pool="none", **options), expected)
    mean = run_layers(source, texts, **options)
    last = run_layers(source, texts, pool="last", **options)
    for depth in range(5):
        torch.testing.assert_close(mean[depth], torch.stack([of_text[depth].mean(0) for of_text in expected]))
        torch.testing.assert_close(last[depth], torch.stack([of_text[depth][-1] for of_text in expected]))


def test_a_long_text_changes_no_other_text(source, texts, tokens, tmp_path):
    """Its length decides the rotary frequencies of a whole batch."""
    copytree(source, tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    factors = {"short_factor": [1.0, 1.5, 1.0, 1.0], "long_factor": [2.0, 3.0, 2.0, 4.0], "factor": 4.0}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 6, **factors}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    states = run_layers(tmp_path / "model", texts, layers="3", pool="none", dtype="float32")
    offsets = states.offsets.tolist()
    for index, ids in enumerate(tokens):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]
        torch.testing.assert_close(states[3][offsets[index] : offsets[index + 1]], alone)


def test_fp8_weights_are_multiplied_by_their_scales(source, texts, tmp_path):
    tensors = {name: tensor for path in source.glob("*.safetensors") for name, tensor in load_file(path).items()}
    packed, plain = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        packed[name] = (4 * tensors[name]).to(torch.float8_e4m3fn)
        packed[f"{name}_scale"] = torch.full((len(tensors[name]), 1), 0.25)
        plain[name] = packed[name].float() / 4
    config = json.loads((source / "config.json").read_text())
    for folder, weights, settings in (
        (tmp_path / "packed", packed, {"quantization_config": {"quant_method": "fbgemm_fp8"}}),
        (tmp_path / "plain", plain, {}),
    ):
        copytree(source, folder, ignore=ignore_patterns("*.safetensors*"))
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | settings))
    states = run_layers(tmp_path / "packed", texts, dtype="float32")
    expected = run_layers(tmp_path / "plain", texts, dtype="float32")
    assert all(torch.equal(states[depth], expected[depth]) for depth in range(5))


def test_some_depths(source, texts, expected):
    states = run_layers(source, texts, layers="0,2:4", pool="none")
    assert states.layers == (0, 2, 3)
    check_close(states, expected)
    assert torch.equal(states[-2], states[3])
    with pytest.raises(LayerNotFoundError, match="no states after 4 layers. It has those after 0, 2, 3"):
        states[4]
    # The last layer was not read.
    layer_bytes = sum(tensor.num_bytes for tensor in open_checkpoint(source).layer_tensors(3))
    whole = run_layers(source, texts)
    assert whole.info["num_bytes_read"] == states.info["num_bytes_read"] + layer_bytes


def test_padding_side_of_the_tokenizer_does_not_matter(source, texts, tmp_path):
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(run_layers(source, texts)[3], run_layers(tmp_path, texts)[3])


def test_folder(source, texts, tokens, tmp_path):
    states = run_layers(source, texts, output=tmp_path / "out", pool="none")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "run.json",
        "states.safetensors",
        "texts.jsonl",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    stored = load_file(tmp_path / "out" / "states.safetensors")
    assert set(stored) == {*(f"layer.{depth}" for depth in range(5)), "offsets", "token_ids"}
    assert stored["token_ids"].tolist() == [token for ids in tokens for token in ids]
    assert states.texts() == [{"text": text, "num_tokens": len(ids)} for text, ids in zip(texts, tokens, strict=True)]
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["source"]["name"] == str(source)
    assert {"tokenizer", "layers", "pool", "dtype", "versions"} <= info.keys()
    opened = HiddenStates.open(tmp_path / "out")
    assert torch.equal(opened[2], states[2])
    with pytest.raises(ArtifactError, match=r"has no hidden states. Expected was a folder that `surgeon run` wrote"):
        HiddenStates.open(tmp_path)
    with pytest.raises(ArtifactError, match="has no log-likelihoods. Run the model again with --score"):
        _ = opened.log_likelihoods


def test_result_is_reused_or_replaced(source, texts, tmp_path):
    run_layers(source, texts, output=tmp_path / "out", layers=2)
    progress = Recorder()
    run_layers(source, texts, output=tmp_path / "out", layers=2, progress=progress)
    assert progress.notices == [f"{tmp_path / 'out'} already holds these states; nothing was computed."]
    with pytest.raises(ArtifactError, match="already holds a folder of hidden states. Replace it with --force"):
        run_layers(source, texts[:2], output=tmp_path / "out", layers=2)
    assert len(run_layers(source, texts[:2], output=tmp_path / "out", layers=2, force=True)[2]) == 2
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"files that are not part of one: mine\.txt"):
        run_layers(source, texts, output=tmp_path / "out", layers=2, force=True)


def test_a_changed_config_is_another_run(model, source, texts, tmp_path):
    copytree(source, tmp_path / "model")
    first = run_layers(tmp_path / "model", texts, output=tmp_path / "out")[2]
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(ArtifactError, match="already holds a folder of hidden states"):
        run_layers(tmp_path / "model", texts, output=tmp_path / "out")
    again = run_layers(tmp_path / "model", texts, output=tmp_path / "out", force=True)[2]
    assert not torch.equal(again, first)


def test_logits_that_are_infinite_in_a_later_slice(model, source, texts, tmp_path, monkeypatch):
    """Of another token than the next one: then the sum is infinite, and nothing is NaN."""
    monkeypatch.setattr(scoring, "SLICE_ROWS", 40)
    monkeypatch.setattr(DonorExit, "check_slices", lambda *arguments: None)
    copytree(source, tmp_path / "model")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    path = tmp_path / "model" / index["weight_map"]["lm_head.weight"]
    tensors = load_file(path)
    tensors["lm_head.weight"][-1] = 0
    tensors["lm_head.weight"][-1, 0] = 3e38
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="The logits of some tokens are infinite or NaN"):
        run_layers(tmp_path / "model", texts, output=tmp_path / "out", score=True)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("model.embed_tokens.weight", {}, "The embeddings of some tokens are infinite or NaN"),
        (
            "model.layers.2.mlp.down_proj.weight",
            {},
            "After layer 2, the states of some tokens .* The weights may be damaged",
        ),
        ("lm_head.weight", {"score": True}, "The logits of some tokens are infinite or NaN"),
    ],
)
def test_numbers_that_are_not_finite(source, texts, tmp_path, name, settings, message):
    """Without this check, perplexity would leave them out, and the layers to drop would be any."""
    copytree(source, tmp_path / "model")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    path = tmp_path / "model" / index["weight_map"][name]
    tensors = load_file(path)
    tensors[name][-1] = torch.inf
    save_file(tensors, path, {"format": "pt"})
    texts = [*texts, as_text([len(tensors[name]) - 1] if "embed" in name else [3, 4])]
    with pytest.raises(CheckpointError, match=message):
        run_layers(tmp_path / "model", texts, output=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_current_folder_is_refused(source, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"so the folder can't be '.'\. Name a new folder with --output"):
        run_layers(source, texts, output=".")


class Interrupted(NullProgress):
    """Stops a run after so many tokens went through a layer."""

    def __init__(self, num_tokens):
        self.left = num_tokens

    def advance(self, amount):
        self.left -= amount
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("num_tokens", [0, 38, 39, 100])
def test_resuming(source, texts, expected, tmp_path, num_tokens):
    settings = {"output": tmp_path / "out", "pool": "none", "batch_tokens": 20}
    with pytest.raises(KeyboardInterrupt):
        run_layers(source, texts, progress=Interrupted(num_tokens), **settings)
    assert not (tmp_path / "out").exists()
    progress = Recorder()
    states = run_layers(source, texts, progress=progress, **settings)
    check_close(states, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    done = num_tokens // 38
    assert progress.notices == [f"Resuming: the states after {done} of 4 layers are left from a run."]
    assert progress.done == progress.total == 4 * 38


def test_the_version_of_a_file_in_pieces_is_that_of_all_of_them(tmp_path):
    names = ("model.gguf.part00", "model.gguf.part01")
    for name in names:
        (tmp_path / name).write_bytes(b"1234")
    cut = CutSource([(FileSource(tmp_path / name, name=name), name) for name in names])
    before = _file_version(cut, cut.file)
    assert before == _file_version(cut, cut.file)
    (tmp_path / names[1]).write_bytes(b"12345")
    assert before is not None
    assert _file_version(cut, cut.file) not in (None, before)


def test_states_of_a_gpu_are_not_mixed_with_those_of_a_cpu(source, texts):
    inputs = prepare_run(source, texts, RunConfig(device="cpu"), progress=NullProgress())
    there = run_identity(replace(inputs, device="cuda:1"))
    assert run_identity(inputs) == run_identity(inputs)
    assert there == run_identity(replace(inputs, device="cuda")) != run_identity(inputs)


def test_texts_without_a_token_to_predict(source):
    with pytest.raises(DataError, match="No text has two tokens"):
        run_layers(source, [as_text([3]), as_text([4])], score=True)


def test_home_folders(source, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run_layers(source, texts, output="~/states", pool="none")
    assert len(HiddenStates.open("~/states")) == 5
    assert measure_layers("~/states").num_texts == len(texts)


def test_files_of_another_run_are_not_used(source, texts, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_layers(source, texts[::-1], progress=Interrupted(50), output=tmp_path / "out", pool="none")
    progress = Recorder()
    check_close(run_layers(source, texts, progress=progress, output=tmp_path / "out", pool="none"), expected)
    assert progress.notices == []


def test_error_before_the_first_layer_leaves_nothing(source, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    with pytest.raises(ArtifactError, match=r"states take 39\.8 kB of disk, but the disk of .* has 1\d\.\d kB left"):
        run_layers(source, texts, output=tmp_path / "out", pool="none")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_complete_layers(source, texts, tmp_path, monkeypatch):
    def full(self, states):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("layer_surgeon.run.state_files.DepthWriter.add", full)
        with pytest.raises(ArtifactError, match="is full .No space left on device.. Free some space and run the same"):
            run_layers(source, texts, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_output_in_use(source, texts, tmp_path):
    class Second(NullProgress):
        def advance(self, amount):
            with pytest.raises(ArtifactError, match="Another process is writing .*out right now"):
                run_layers(source, texts, output=tmp_path / "out")

    run_layers(source, texts, output=tmp_path / "out", progress=Second())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_foreign_files_in_the_temporary_folder(source, texts, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds files that no run has made: mine\.txt. Delete that folder"):
        run_layers(source, texts, output=tmp_path / "out")
    assert (tmp_path / ".out.partial" / "mine.txt").read_text() == "mine"


def test_hub_streams_without_keeping(source, texts, tmp_path, monkeypatch):
    local = run_layers(source, texts)
    with LoopbackHub() as hub:
        hub.add_repo("owner/model", source)
        read_from(hub.endpoint, monkeypatch)
        states = run_layers("owner/model", texts, output=tmp_path / "out")
        num_bytes = weight_bytes(hub)
    assert all(torch.equal(states[depth], local[depth]) for depth in range(5))
    layers = sum(t.num_bytes for layer in range(4) for t in open_checkpoint(source).layer_tensors(layer))
    # Each byte of the layers once, and the part of the token table from the first to the last needed token.
    assert layers <= num_bytes <= layers + 96 * 32 * 4
    assert states.info["source"]["commit"] is not None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupted_fetch_stops_and_goes_on(source, texts, tmp_path, monkeypatch):
    """Ctrl-C doesn't wait for the layer that is being fetched, and its bytes are kept."""
    local = run_layers(source, texts)
    with LoopbackHub(bytes_per_second=200_000) as hub:
        hub.add_repo("owner/model", source)
        read_from(hub.endpoint, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            run_layers("owner/model", texts, output=tmp_path / "out", progress=Interrupted(40))
        first = weight_bytes(hub)
        hub.reset_log()
        states = run_layers("owner/model", texts, output=tmp_path / "out")
    assert all(torch.equal(states[depth], local[depth]) for depth in range(5))
    assert first > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stopped_counter_stops_reading(source, texts, tmp_path):
    counter = ByteCounter()
    counter.stop()
    inputs = prepare_run(source, texts, RunConfig(), progress=NullProgress())
    with pytest.raises(SourceError, match="The run was stopped"):
        walk_inputs(inputs, tmp_path, last_depth=1, counter=counter, progress=NullProgress())


def test_a_stopped_fetcher_does_not_wait_for_the_network(source, tmp_path):
    settings = {"dtype": None, "weights_dtype": torch.float32, "folder": tmp_path, "workspace": None, "force": False}
    fetcher = LayerFetcher(open_checkpoint(source), [0], counter=(counter := ByteCounter()), **settings)
    assert fetcher._pool.submit(STOPPED.get).result() is counter.stopped
    with contextlib.suppress(KeyboardInterrupt), fetcher:
        raise KeyboardInterrupt
    assert counter.stopped.is_set()


def test_layers_are_kept(source, texts, tmp_path):
    local = run_layers(source, texts)
    workspace = Workspace(tmp_path / "surgery")
    states = run_layers(source, texts, keep_layers=True, workspace=workspace)
    assert all(torch.equal(states[depth], local[depth]) for depth in range(5))
    assert sorted(path.name for path in (tmp_path / "surgery" / "layers").iterdir()) == [
        f"model-L{k}" for k in range(4)
    ]


def test_force_replaces_other_kept_layers(source, texts, tmp_path):
    workspace = Workspace(tmp_path / "surgery")
    run_layers(source, texts, keep_layers=True, workspace=workspace)
    other = {"layers": "1", "dtype": "float16", "keep_layers": True, "workspace": workspace}
    with pytest.raises(ArtifactError, match="force"):
        run_layers(source, texts, output=tmp_path / "states", **other)
    run_layers(source, texts, output=tmp_path / "states", force=True, **other)
    weights = load_file(tmp_path / "surgery/layers/model-L0/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_each_byte_is_read_once(source, texts, monkeypatch):
    ranges = []
    stream_range = FolderSource.stream_range

    def counting(self, file, start, length):
        ranges.append((file, start, start + length))
        return stream_range(self, file, start, length)

    monkeypatch.setattr(FolderSource, "stream_range", counting)
    states = run_layers(source, texts)
    ranges.sort()
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(ranges))
    assert sum(end - start for _, start, end in ranges) == states.info["num_bytes_read"]


class Watching:
    """An observer that checks that what it sees fits together."""

    history = 3

    def __init__(self):
        self.layers, self.num_tokens = [], 0

    def observe(self, layer, before, after, earlier):
        assert torch.equal(earlier(1), before)
        assert before.shape == after.shape == (len(before), 32)
        self.num_tokens += len(before)
        self.states = earlier(min(3, layer + 1))

    def finish_layer(self, layer):
        self.layers.append(layer)


def test_observer(source, texts, expected, tmp_path):
    observer = Watching()
    inputs = prepare_run(source, texts, RunConfig(), progress=NullProgress())
    walk_inputs(inputs, tmp_path, last_depth=3, counter=ByteCounter(), progress=NullProgress(), observer=observer)
    assert observer.layers == [0, 1, 2]
    assert observer.num_tokens == 3 * 38
    order = [text for batch in inputs.tokens.batches for text in batch.texts]
    torch.testing.assert_close(observer.states, torch.cat([expected[text][0] for text in order]))


def test_dtype(source, texts):
    states = run_layers(source, texts, dtype="bfloat16", pool="last")
    assert states[2].dtype == torch.bfloat16
    wide = run_layers(source, texts, pool="last")
    assert (states[2] - wide[2]).abs().max() < 0.1 * wide[2].abs().max()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layers": 5}, LayerNotFoundError, r"has 4 layers, so there are no states after 5. Choose 0 .* to 4, or -1"),
        ({"layers": "2:9"}, LayerNotFoundError, "no states after 9"),
        ({"layers": "2:1"}, ConfigError, "selects nothing"),
        ({"layers": "some"}, ConfigError, "layers has 'some'; write all, numbers of layers"),
        ({"pool": "max"}, ConfigError, "pool is 'max'; it must be one of mean, last, none"),
        ({"layers": None}, ConfigError, "layers is None; it must be all, numbers of layers"),
        ({"score": "no"}, ConfigError, "score is 'no'; it must be true or false"),
        ({"text_column": 3}, ConfigError, "text_column is 3; it must be a text of 1 to"),
        ({"dtype": "int8"}, ConfigError, "dtype is 'int8'; it must be one of float32, bfloat16, float16"),
        ({"batch_tokens": 0}, ConfigError, "batch_tokens is 0; it must be a whole number of at least 1"),
        ({"executor": "slurm"}, ConfigError, "executor is 'slurm'; it must be one of local, ray"),
        ({"layer": 3}, ConfigError, "There is no setting 'layer'. The settings are: address, batch_tokens, "),
        ({"device": "mps"}, ConfigError, "device is 'mps', but this machine has only"),
    ],
)
def test_settings_are_refused(source, texts, settings, error, message, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        run_layers(source, texts, **settings)
