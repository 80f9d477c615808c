"""The three lines of the README, word for word, with a Hub on loopback."""

import json
import random
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizerFast, LlamaConfig, LlamaForCausalLM, pipeline, set_seed

from layer_surgeon import Workspace
from tests.support.command_line import surgeon, surgeon_forked
from tests.support.loopback_hub import LoopbackHub

THREE_LINES = """\
surgeon extract meta-llama/Llama-3.1-8B --layer -1
surgeon graft bert-base-uncased
surgeon finetune
"""
DONOR = "meta-llama/Llama-3.1-8B"
TOKEN = "hf_accepted"
GOOD, BAD = ["good", "lovely", "moving", "bright"], ["bad", "dull", "empty", "grey"]
FILLER = ["a", "the", "film", "story", "actor", "and", "of", "with", "scene"]


def make_donor(folder: Path) -> Path:
    """A tiny Llama in bfloat16, in shards, with the RoPE of Llama-3.1 and the other files of its repo."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="500KB")
    (folder / "README.md").write_text("---\nlicense: llama3.1\n---\n# Llama\n")
    (folder / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT")
    (folder / "USE_POLICY.md").write_text("Use policy")
    return folder


def make_host(folder: Path) -> Path:
    """A tiny BERT with a tokenizer that knows the words of the data."""
    set_seed(1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLER]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    BertTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_data() -> dict[str, bytes]:
    """A small `SetFit/sst2` with the files and columns of the real one."""
    generator = random.Random(2)
    files = {}
    for name, count in (("train", 192), ("dev", 32), ("test", 32)):
        rows = []
        for number in range(count):
            label = number % 2
            words = [*generator.choices(GOOD if label else BAD, k=2), *generator.choices(FILLER, k=5)]
            generator.shuffle(words)
            row = {"text": " ".join(words), "label": label, "label_text": ["negative", "positive"][label]}
            rows.append(json.dumps(row))
        files[f"{name}.jsonl"] = ("\n".join(rows) + "\n").encode()
    return files | {"README.md": b"# Stanford Sentiment Treebank\n"}


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """Run the three lines once in their own folder. The donor is gated, as the real one is."""
    folder = tmp_path_factory.mktemp("journey")
    donor, host = make_donor(folder / "donor"), make_host(folder / "host")
    working_folder = folder / "work"
    working_folder.mkdir()
    with LoopbackHub() as hub:
        hub.add_repo(DONOR, donor, gated="manual", accepted=(TOKEN,))
        hub.add_repo("bert-base-uncased", host)
        hub.add_repo("SetFit/sst2", make_data(), kind="datasets")
        steps = []
        for line in THREE_LINES.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "surgeon"
            hub.reset_log()
            # graft and finetune import torch.
            run = surgeon if arguments[0] == "extract" else surgeon_forked
            result = run(*arguments, cwd=working_folder, env={"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN})
            steps.append((result, list(hub.requests), hub.bytes_sent()))
    return {"donor": donor, "host": host, "folder": working_folder, "steps": steps}


@pytest.mark.slow
def test_every_line_succeeds(journey):
    for line, (result, _, _) in zip(THREE_LINES.splitlines(), journey["steps"], strict=True):
        assert result.code == 0, f"{line}\n{result.out}\n{result.err}"
        # torchao, if it is installed, says that it "Failed to load" its kernels, and torch warns about its classes.
        assert not re.search("Traceback|Warning|Failed to load|_pytree", result.err), result.err


@pytest.mark.slow
def test_tensors_are_byte_for_byte_those_of_the_source(journey):
    artifact = journey["folder"] / "surgery" / "layers" / "Llama-3.1-8B-L5"
    source = {}
    for shard in journey["donor"].glob("*.safetensors"):
        source |= load_file(shard)
    tensors = load_file(artifact / "model.safetensors")
    expected = {name for name in source if name.startswith("model.layers.5.")}
    assert {f"model.layers.5.{name.removeprefix('layers.0.')}" for name in tensors} == expected
    for name, tensor in tensors.items():
        original = source[f"model.layers.5.{name.removeprefix('layers.0.')}"]
        assert tensor.dtype == original.dtype
        assert torch.equal(tensor.view(torch.int16), original.view(torch.int16))
    config = json.loads((artifact / "config.json").read_text())
    assert config["donor_config"] == json.loads((journey["donor"] / "config.json").read_text())
    assert len(config["source"]["commit"]) == 40
    assert config["source"]["base_model"] == DONOR
    assert config["source"]["license"] == "llama3.1"
    assert (artifact / "LICENSE").read_bytes() == (journey["donor"] / "LICENSE").read_bytes()
    assert (artifact / "USE_POLICY.md").is_file()


def byte_ranges_of_the_layer(donor: Path) -> tuple[dict[str, list[tuple[int, int]]], int, int]:
    """Return the byte ranges that may be read of each shard with the last layer, and the bytes of layer and headers."""
    allowed: dict[str, list[tuple[int, int]]] = {}
    layer_bytes = header_bytes = 0
    for shard in donor.glob("*.safetensors"):
        raw = shard.read_bytes()
        length = 8 + int.from_bytes(raw[:8], "little")
        for name, tensor_info in json.loads(raw[8:length]).items():
            if name.startswith("model.layers.5."):
                begin, end = (length + offset for offset in tensor_info["data_offsets"])
                layer_bytes += end - begin
                allowed.setdefault(shard.name, []).append((begin, end))
        if shard.name in allowed:
            header_bytes += length
            # The size of the header is estimated, at 100 bytes per tensor and 256 for the rest.
            allowed[shard.name].append((0, length + 100 * raw[8:length].count(b"data_offsets") + 256))
    return allowed, layer_bytes, header_bytes


@pytest.mark.slow
def test_no_bytes_of_other_layers_are_read(journey):
    _, requests, received = journey["steps"][0]
    allowed, layer_bytes, header_bytes = byte_ranges_of_the_layer(journey["donor"])
    assert len(allowed) >= 2, "the layer should span two shards for this test to mean something"
    shard_requests = [request for request in requests if request.path.endswith(".safetensors")]
    for request in shard_requests:
        if request.method == "HEAD":
            continue
        shard = request.path.rsplit("/", 1)[-1]
        begin, end = map(int, request.range.removeprefix("bytes=").split("-"))
        other_bytes = set(range(begin, end + 1))
        for first, last in allowed.get(shard, []):
            other_bytes -= set(range(first, last))
        assert not other_bytes, f"{len(other_bytes)} bytes of {shard} are not part of the layer"
    assert received <= layer_bytes + header_bytes + 200_000
    whole = sum(shard.stat().st_size for shard in journey["donor"].glob("*.safetensors"))
    assert whole > layer_bytes + header_bytes + 200_000, (
        "the model should be so large that reading all of it would be noticed"
    )
    assert len(requests) <= 4 * len(allowed) + 10


@pytest.mark.slow
def test_the_token_never_reaches_the_cdn(journey):
    for _, requests, _ in journey["steps"]:
        assert not [request for request in requests if request.server == "cdn" and request.authorized]
    assert [request for request in journey["steps"][0][1] if request.server == "cdn"]
    assert [request for request in journey["steps"][0][1] if request.server == "hub" and request.authorized]


@pytest.mark.slow
def test_the_result_is_a_trained_model(journey):
    workspace = Workspace(journey["folder"] / "surgery")
    graft, run = workspace.latest("graft"), workspace.latest("run")
    # Random weights learn nothing in 18 steps at the paper's learning rate. The test is only that they changed.
    before, after = load_file(graft / "model.safetensors"), load_file(run / "model.safetensors")
    assert before.keys() == after.keys()
    for part in ("host.", "proj_in.", "proj_out.", "head."):
        names = [name for name in after if name.startswith(part)]
        assert names
        assert any(not torch.equal(after[name], before[name]) for name in names), part
    assert not [name for name in after if name.startswith("donor.")]
    artifact = load_file(workspace.latest("layer") / "model.safetensors")
    kept = load_file(run / "donor" / "model.safetensors")
    assert artifact.keys() == kept.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in artifact.items())


@pytest.mark.slow
def test_the_result_runs_in_a_pipeline(journey):
    run = Workspace(journey["folder"] / "surgery").latest("run")
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["examples"] == 32
    answers = pipeline("text-classification", model=str(run))(["a good film", "a bad film"], top_k=None)
    for answer in answers:
        assert {score["label"] for score in answer} == {"negative", "positive"}
        assert sum(score["score"] for score in answer) == pytest.approx(1)


@pytest.mark.slow
def test_a_second_extraction_reads_no_weights(journey):
    folder = journey["folder"]
    with LoopbackHub() as hub:
        hub.add_repo(DONOR, journey["donor"])
        result = surgeon("extract", DONOR, cwd=folder, env={"HF_ENDPOINT": hub.endpoint})
        assert result.code == 0, result.err
        assert "already holds this layer" in result.err
        ranges = [request.range for request in hub.requests if request.server == "cdn"]
    allowed, _, _ = byte_ranges_of_the_layer(journey["donor"])
    assert len(ranges) <= 2 * len(allowed)


def add_gated_donor(hub, donor):
    hub.add_repo(DONOR, donor, gated="manual", accepted=(TOKEN,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["extract", DONOR], {}, ["gated", "hf auth login", DONOR]),
        (["extract", DONOR], {"HF_TOKEN": "hf_refused"}, ["not", f"/{DONOR}"]),
        (["extract", "nobody/nothing"], {}, ["nobody/nothing"]),
        (["extract", DONOR, "--revision", "v9"], {"HF_TOKEN": TOKEN}, ["v9"]),
        (["extract", DONOR], {"HF_ENDPOINT": "http://127.0.0.1:9"}, ["check the network"]),
        (["extract", DONOR], {"HF_HUB_OFFLINE": "1"}, ["offline"]),
    ],
    ids=["no token", "token not accepted", "unknown repo", "unknown revision", "no network", "offline"],
)
def test_bad_input_shows_a_message_and_writes_nothing(journey, tmp_path, arguments, environment, words):
    with LoopbackHub() as hub:
        add_gated_donor(hub, journey["donor"])
        result = surgeon(*arguments, cwd=tmp_path, env={"HF_ENDPOINT": hub.endpoint} | environment)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word.lower() in result.err.lower()
    assert not (tmp_path / "surgery").exists()
