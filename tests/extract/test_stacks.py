"""Stack artifacts: the first layers with what acts before them, from every format and place, and the same journal."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from layer_surgeon import DonorStack, LayerArtifact, Workspace, extract_layer, open_checkpoint, plan_extraction
from layer_surgeon.checkpoint.gguf import GgufTable
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import HubLimits
from layer_surgeon.checkpoint.stack import family_record
from layer_surgeon.errors import CheckpointError, ConfigError, SourceError, UnsupportedArchitectureError
from layer_surgeon.extract import copy as copy_module
from layer_surgeon.extract import extraction_plan
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.extract.embeddings import find_embeddings
from layer_surgeon.extract.extract import plan_stack
from layer_surgeon.extract.vocabulary import TABLE_FILE
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.command_line import surgeon_here
from tests.support.gguf_models import VOCABULARY as GGUF_VOCABULARY
from tests.support.gguf_models import write_model
from tests.support.hub_reading import note_waits, read_from, weight_bytes
from tests.support.loopback_hub import LoopbackHub
from tests.support.numbered_texts import save_numbered_tokenizer
from tests.support.recorder import Recorder
from tests.support.small_tokenizers import byte_level, sentencepiece, word_level, wordpiece
from tests.support.tiny_models import save_quietly, tiny_llama, tiny_model
from tests.support.tiny_stacks import states_after

TABLE = "embeddings.embed_tokens.weight"


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def donor(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stacks") / "donor"
    save_quietly(model, folder, max_shard_size="40KB")
    save_numbered_tokenizer(folder)
    return folder


def test_layers_embeddings_and_tokenizer(model, donor, tmp_path):
    progress = Recorder()
    artifact = extract_layer(
        donor, range(3), embeddings=True, progress=progress, workspace=Workspace(tmp_path / "surgery")
    )
    assert artifact.path == tmp_path / "surgery" / "layers" / "donor-first-3"
    assert progress.done == progress.total == plan_extraction(open_checkpoint(donor), "0:3", embeddings=True).num_bytes
    artifact.verify()
    assert artifact.config["embeddings"] == {"token_table": "embed_tokens.weight", "vocabulary": None}
    assert artifact.config["architectures"] == ["DonorStack"]
    stored = load_file(artifact.path / "model.safetensors")
    assert torch.equal(stored[TABLE], model.model.embed_tokens.weight)
    assert len(stored) == 1 + 3 * 9
    tokens = AutoTokenizer.from_pretrained(artifact.path)("w3 w17 w5 w4", return_tensors="pt")
    assert tokens.input_ids.tolist() == [[3, 17, 5, 4]]
    stack = DonorStack.from_pretrained(artifact.path)
    with torch.no_grad():
        assert torch.equal(stack(tokens.input_ids), states_after(model, 3, tokens.input_ids, None))
    again = extract_layer(donor, "0:3", artifact.path, embeddings=True)
    assert again.sha256 == artifact.sha256
    card = (artifact.path / "README.md").read_text()
    assert "# Embeddings and layers 0, 1, 2 of" in card
    assert "ls.DonorStack.from_pretrained(" in card
    assert "no embeddings" not in card


def test_needs_no_torch(model, tmp_path):
    """Only a tokenizer does, to find its class."""
    save_quietly(model, tmp_path / "model")
    code = (
        "import sys; from layer_surgeon import extract_layer; "
        "extract_layer(sys.argv[1], '0:2', sys.argv[2], embeddings=True); "
        "print(*{'torch', 'transformers', 'numpy'}.intersection(sys.modules))"
    )
    command = [sys.executable, "-c", code, tmp_path / "model", tmp_path / "out"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []
    LayerArtifact.open(tmp_path / "out").verify()


@pytest.mark.parametrize("kind", ["torch", "gguf"])
def test_other_formats(kind, tmp_path):
    if kind == "gguf":
        source = tmp_path / "model.gguf"
        write_model(source, "llama", "F32")
        folder = source
    else:
        folder = tmp_path / "model"
        model = tiny_llama()
        save_quietly(model, folder)
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    progress = Recorder()
    artifact = extract_layer(folder, "0:2", tmp_path / "out", embeddings=True, progress=progress)
    artifact.verify()
    assert "embeddings.embed_tokens.weight" in {tensor.name for tensor in artifact.tensors()}
    assert any("has no tokenizer files, so the artifact has none" in notice for notice in progress.notices)
    input_ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        states = DonorStack.from_pretrained(artifact.path)(input_ids)
    if kind == "torch":
        assert torch.equal(states, states_after(model, 2, input_ids, None))
    assert states.isfinite().all()


def test_tokenizer_of_a_gguf_file(tmp_path):
    write_model(tmp_path / "model.gguf", "llama", "Q8_0", general=GGUF_VOCABULARY)
    host = wordpiece(["ab", "##ab", "c"], tmp_path / "host")
    for name, vocabulary in (("own", None), ("mapped", str(host))):
        artifact = extract_layer(
            tmp_path / "model.gguf", 0, tmp_path / name, embeddings=True, vocabulary=vocabulary, dtype="bfloat16"
        )
        artifact.verify()
    own, mapped = (load_file(tmp_path / name / "model.safetensors")[TABLE] for name in ("own", "mapped"))
    tokenizer, host_tokenizer = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("own", "mapped"))
    assert tokenizer.tokenize("ab abc") == ["ab", "Ġab", "c"]
    for word, counterpart in {"ab": "Ġab", "##ab": "ab", "[CLS]": "<s>", "[UNK]": "<unk>"}.items():
        ours, theirs = host_tokenizer.convert_tokens_to_ids(word), tokenizer.convert_tokens_to_ids(counterpart)
        assert torch.equal(mapped[ours], own[theirs]), word


@pytest.mark.parametrize(
    ("model_type", "stated"), [("gpt2", None), ("phi3", "LlamaTokenizer"), ("mistral", "LlamaTokenizer")]
)
def test_tokenizer_whose_class_follows_from_the_family(model_type, stated, tmp_path):
    """An artifact has another model type, so the class would be another, with other tokens or without special ones."""
    donor = tmp_path / "donor"
    save_quietly(tiny_model(model_type, vocab_size=400), donor)
    if model_type == "gpt2":
        byte_level(["the", "cat"], donor)
    else:
        sentencepiece(["the", "cat"], donor, adds_space=True)
    path = donor / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "tokenizer_class": stated}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    artifact = extract_layer(donor, "0:2", tmp_path / "out", embeddings=True)
    expected, found = (AutoTokenizer.from_pretrained(folder) for folder in (donor, artifact.path))
    text = "the cat<|chat|> \n the cat"
    assert (type(found), found(text)) == (type(expected), expected(text))
    assert found.special_tokens_map == expected.special_tokens_map


def test_tokenizer_next_to_a_gguf_file(tmp_path):
    write_model(tmp_path / "model.gguf", "llama", "Q8_0", general=GGUF_VOCABULARY)
    sentencepiece(["the", "cat"], tmp_path, adds_space=True)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    artifact = extract_layer(tmp_path / "model.gguf", "0:2", tmp_path / "out", embeddings=True)
    assert list(json.loads((artifact.path / "tokenizer_config.json").read_text())) == ["tokenizer_class"]


def test_config_that_transformers_refuses(donor, tmp_path):
    """The layers are extracted all the same."""
    shutil.copytree(donor, tmp_path / "donor")
    path = tmp_path / "donor/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attn_implementation": "kernels-community/flash-attn"}))
    artifact = extract_layer(tmp_path / "donor", "0:2", tmp_path / "out", embeddings=True)
    stored = json.loads((donor / "tokenizer_config.json").read_text())
    assert json.loads((artifact.path / "tokenizer_config.json").read_text()) == stored


def test_tokenizer_that_the_network_cuts_off(tmp_path, monkeypatch):
    def fail(_):
        raise SourceError("the connection broke")

    write_model(tmp_path / "model.gguf", "llama", "Q8_0", general=GGUF_VOCABULARY)
    monkeypatch.setattr(GgufTable, "header_bytes", fail)
    with pytest.raises(SourceError, match="connection broke"):
        extract_layer(tmp_path / "model.gguf", 0, tmp_path / "out", embeddings=True)
    assert not (tmp_path / "out").exists()


def test_command(donor, tmp_path):
    arguments = ("extract", donor, "--layer", "0:2", "--embeddings")
    plan = surgeon_here(*arguments, "--dry-run", "--json", cwd=tmp_path).document()
    done = surgeon_here(*arguments, "--output", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "embeddings" in done.out
    artifact = LayerArtifact.open(tmp_path / "out")
    assert plan["num_bytes"] == artifact.num_bytes == sum(tensor["num_bytes"] for tensor in plan["tensors"])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["1:3"], r"must be the first ones.*but they are 1, 2\. Use --layer 0:3 \(in Python: layer=range\(3\)\)"),
        (["0", "2"], r"without gaps and in order, but they are 0, 2\."),
        (["1", "0"], r"without gaps and in order, but they are 1, 0\."),
    ],
)
def test_layers_that_are_not_the_first(donor, tmp_path, layers, message):
    with pytest.raises(ConfigError, match=message):
        extract_layer(donor, layers, tmp_path / "out", embeddings=True)
    assert not (tmp_path / "out").exists()


def test_vocabulary_without_embeddings(donor, tmp_path):
    done = surgeon_here("extract", donor, "--vocabulary", "host", cwd=tmp_path)
    assert done.code == 2
    assert "add --embeddings" in done.err


def test_family_that_is_not_known(donor, tmp_path, monkeypatch):
    monkeypatch.setattr("layer_surgeon.extract.embeddings.family_record", lambda _: None)
    with pytest.raises(UnsupportedArchitectureError, match="before layer 0 of llama is not known .*the table of famil"):
        extract_layer(donor, 0, tmp_path / "out", embeddings=True)
    record = {"embeddings_refused": "its states differ by 1"}
    monkeypatch.setattr("layer_surgeon.extract.embeddings.family_record", lambda _: record)
    with pytest.raises(UnsupportedArchitectureError, match=r"llama is not known \(its states differ by 1\)"):
        extract_layer(donor, 0, tmp_path / "out", embeddings=True)


def test_missing_tensor(donor, monkeypatch):
    record = {**family_record("llama"), "embeddings": ["wpe.weight"]}
    monkeypatch.setattr("layer_surgeon.extract.embeddings.family_record", lambda _: record)
    with pytest.raises(CheckpointError, match=r"has no tensor model\.wpe\.weight, which acts before layer 0 of llama"):
        find_embeddings(open_checkpoint(donor))


def test_8_bit_embeddings(donor, monkeypatch):
    monkeypatch.setattr("layer_surgeon.extract.embeddings.has_fp8", lambda _: True)
    with pytest.raises(UnsupportedArchitectureError, match="embeddings of .* are 8-bit floats"):
        find_embeddings(open_checkpoint(donor))


def test_embeddings_that_only_some_models_have(tmp_path):
    for width, expected in ((32, 2), (16, 3)):
        save_quietly(tiny_model("opt", word_embed_proj_dim=width), tmp_path / str(width))
        names = find_embeddings(open_checkpoint(tmp_path / str(width))).names
        assert len(names) == expected
        assert ("decoder.project_in.weight" in names) == (width == 16)


VOCABULARY = 4000
SPACED = LLAMA_8B | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": VOCABULARY,
}


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """A donor on the disk with 4,000 words, and a host that has every third of the first thousand."""
    folder = tmp_path_factory.mktemp("spaced")
    donor = write_sparse_checkpoint(folder / "donor", SPACED, range(2))
    word_level([f"w{number}" for number in range(VOCABULARY)], donor)
    host = word_level([f"w{number}" for number in range(0, 1000, 3)], folder / "host")
    info = open_checkpoint(donor).table.tensors(["model.embed_tokens.weight"])[0]
    with (donor / info.file).open("r+b") as file:
        file.seek(info.offset)
        numbers = np.random.default_rng(0).standard_normal(VOCABULARY * 256, dtype="f4")
        file.write((numbers.view("u4") >> 16).astype("<u2").tobytes())
    return donor, host


@pytest.fixture
def hub(spaced, monkeypatch):
    note_waits(monkeypatch)
    limits = HubLimits(tries=2, contact_tries=2, bad_answer_tries=2, base_wait=0.001, max_wait=0.002)
    monkeypatch.setattr(HubSource, "limits", limits)
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        hub.add_repo("owner/model", spaced[0])
        yield hub


@pytest.mark.parametrize("max_gap", [512, 4096])
def test_only_the_needed_rows_are_read(hub, spaced, tmp_path, max_gap, monkeypatch):
    donor, host = spaced
    monkeypatch.setattr(extraction_plan, "MAX_TABLE_GAP_BYTES", max_gap)
    local = extract_layer(donor, "0:2", tmp_path / "local", embeddings=True, vocabulary=str(host))
    hub.reset_log()
    arguments = {"embeddings": True, "vocabulary": str(host), "progress": (progress := Recorder())}
    artifact = extract_layer("owner/model", "0:2", tmp_path / "out", **arguments)
    assert artifact.sha256 == local.sha256
    # The bytes of the table are computed, and don't count.
    assert progress.done == progress.total == weight_bytes(hub)
    table = load_file(artifact.path / "model.safetensors")[TABLE]
    layers = artifact.num_bytes - table.numel() * 2
    rows = (334 if max_gap == 512 else 1000) * 512
    assert weight_bytes(hub) == pytest.approx(layers + rows, abs=2 * 512)
    assert artifact.config["embeddings"]["vocabulary"]["donor_rows"] == 334


def confirmed_bytes(plan, journal):
    """Source bytes that a journal has, without those of the computed table."""
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]] if journal.exists() else []
    own = [line for line in lines if plan.pieces[line["piece"]].range.file != TABLE_FILE]
    return sum(line["end"] - line["start"] for line in own)


@pytest.mark.parametrize("phase", ["rows", "layers"])
def test_an_interrupted_stack_is_continued(hub, spaced, tmp_path, phase, monkeypatch):
    """The rows and the rest have a journal each: what they confirm is not read again."""
    donor, host = spaced
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", 100_000)
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", 20_000)
    monkeypatch.setattr("layer_surgeon.checkpoint.sources.gather.CHUNK_BYTES", 16_384)
    arguments = {"embeddings": True, "vocabulary": str(host)}
    expected = extract_layer(donor, "0:2", tmp_path / "expected", **arguments)
    limit = {"rows": 200_000, "layers": 1_200_000}[phase]
    original, sent = HubSource.stream_range, 0

    def stop(self, file, start, length):
        nonlocal sent
        for chunk in original(self, file, start, length):
            sent += len(chunk)
            if sent > limit:
                raise SourceError("cut")
            yield chunk

    with monkeypatch.context() as patch:
        patch.setattr(HubSource, "stream_range", stop)
        with pytest.raises(SourceError, match="cut"):
            extract_layer("owner/model", "0:2", tmp_path / "out", **arguments)
    staged = tmp_path / ".out.partial"
    assert (staged / ".journal").exists() == (phase == "layers")
    checkpoint = open_checkpoint("owner/model")
    plan = plan_stack(checkpoint, "0:2", dtype=None, embeddings=True, vocabulary=str(host), token=False)
    confirmed = confirmed_bytes(plan.rows, staged / ".journal-rows") + confirmed_bytes(plan, staged / ".journal")
    assert confirmed > limit / 4
    hub.reset_log()
    progress = Recorder()
    artifact = extract_layer("owner/model", "0:2", tmp_path / "out", **arguments, progress=progress)
    artifact.verify()
    assert artifact.sha256 == expected.sha256
    assert weight_bytes(hub) == plan.num_bytes_read - confirmed
    assert progress.done == progress.total == plan.num_bytes_read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]
    assert not [path.name for path in artifact.path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_stack_of_the_8b_shape(tmp_path, monkeypatch):
    """From the Hub, for a host of 30,000 tokens: the plan to the byte, and one of its layers in full."""
    donor = write_sparse_checkpoint(tmp_path / "donor", LLAMA_8B, [0])
    word_level([f"w{number}" for number in range(LLAMA_8B["vocab_size"])], donor)
    # Of a list of words by frequency, a smaller vocabulary has most of the first, and few of the last.
    chosen = np.random.default_rng(0).exponential(30_000, 200_000).astype(int)
    words = [f"w{number}" for number in dict.fromkeys(chosen.tolist()) if number < LLAMA_8B["vocab_size"]][:30_000]
    host = word_level(words, tmp_path / "host")
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        hub.add_repo("owner/model", donor)
        checkpoint = open_checkpoint("owner/model")
        layers = plan_extraction(checkpoint, "0:9")
        plan = plan_stack(checkpoint, "0:9", dtype=None, embeddings=True, vocabulary=str(host), token=False)
        assert layers.num_bytes == 9 * 436_224_000
        assert plan.num_bytes == layers.num_bytes + len(plan.vocabulary.donor_rows) * 8192
        between = plan.num_bytes_read - plan.num_bytes
        assert between < 0.2 * plan.num_bytes
        assert plan.num_requests - layers.num_requests < 1000
        print(
            f"{len(plan.vocabulary.donor_rows):,} rows of 8,192 bytes; {between:,} bytes between them "
            f"({between / plan.num_bytes:.0%} more); {plan.num_requests - layers.num_requests} more requests"
        )
        hub.reset_log()
        artifact = extract_layer("owner/model", "0:1", tmp_path / "out", embeddings=True, vocabulary=str(host))
        one = plan_extraction(checkpoint, 0)
        assert weight_bytes(hub) == one.num_bytes + plan.num_bytes_read - layers.num_bytes
        artifact.verify()
