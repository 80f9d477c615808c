"""Which of a donor's tokens stand for each token of a host, for each kind of vocabulary, and the table made of them."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from layer_surgeon import DonorStack, LayerArtifact, extract_layer, open_checkpoint
from layer_surgeon._vocabulary import map_vocabulary
from layer_surgeon.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    SourceNotFoundError,
    UnsupportedArchitectureError,
)
from layer_surgeon.extract.extraction_plan import plan_extraction
from tests.support.small_tokenizers import byte_level, sentencepiece, word_level, wordpiece
from tests.support.tiny_models import save_quietly, tiny_llama, tiny_model
from tests.support.tiny_stacks import states_after

HOSTS = {
    "wordpiece": lambda folder: wordpiece(["the", "cat", "cats", "##ing", "##s", ".", "é", "[unused1]"], folder),
    "byte_level": lambda folder: byte_level(["Ġthe", "Ġcat", "ing", "Ġcats", "."], folder),
    "sentencepiece": lambda folder: sentencepiece(["▁the", "▁cat", "ing", "▁cats", ".", "é"], folder, adds_space=True),
}
DONORS = {
    "wordpiece": lambda folder: wordpiece(["the", "cat", "##ing", "##s", "."], folder),
    "byte_level": lambda folder: byte_level(["Ġthe", "Ġcat", "ing", "s", "."], folder),
    "llama": lambda folder: sentencepiece(["▁the", "▁cat", "ing", "s", "."], folder, adds_space=True),
    "gemma": lambda folder: sentencepiece(["▁the", "▁cat", "ing", "s", "."], folder, adds_space=False),
}
WORD = {"wordpiece": "", "byte_level": "Ġ", "sentencepiece": "▁", "llama": "▁", "gemma": "▁"}
INSIDE = {"wordpiece": "##", "byte_level": "", "sentencepiece": "", "llama": "", "gemma": ""}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in HOSTS.items()}


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    """A model with a tokenizer of each kind."""
    folders = {}
    for kind, make in DONORS.items():
        folder = make(tmp_path_factory.mktemp(kind))
        save_quietly(tiny_llama(vocab_size=len(AutoTokenizer.from_pretrained(folder))), folder)
        folders[kind] = folder
    return folders


def mapped(host, donor):
    """The donor's tokens, as text, by the host's."""
    vocabulary = map_vocabulary(str(host), open_checkpoint(donor))
    tokens, theirs = AutoTokenizer.from_pretrained(host), AutoTokenizer.from_pretrained(donor)
    assert len(vocabulary.tokens) == len(tokens)
    return {
        tokens.convert_ids_to_tokens(index): None if ids is None else theirs.convert_ids_to_tokens(list(ids))
        for index, ids in enumerate(vocabulary.tokens)
    }


@pytest.mark.parametrize("donor", DONORS)
@pytest.mark.parametrize("host", HOSTS)
def test_words_and_their_parts(hosts, donors, host, donor):
    found = mapped(hosts[host], donors[donor])
    for word in ("the", "cat"):
        assert found[WORD[host] + word] == [WORD[donor] + word]
    assert found[f"{INSIDE[host]}ing"] == [f"{INSIDE[donor]}ing"]
    # One token of the host is several of the donor.
    assert found[f"{WORD[host]}cats"] == [f"{WORD[donor]}cat", f"{INSIDE[donor]}s"]
    assert found["."] == ["."]


@pytest.mark.parametrize("donor", ["byte_level", "llama", "gemma"])
def test_bytes(hosts, donors, donor):
    """A part of a character has no string. The first byte of é is 0xC3, which byte-level vocabularies write as Ã."""
    name = "Ã" if donor == "byte_level" else "<0xC3>"
    assert mapped(hosts["byte_level"], donors[donor])["Ã"] == [name]
    assert mapped(hosts["sentencepiece"], donors[donor])["<0xC3>"] == [name]
    of_character = ["Ã", "©"] if donor == "byte_level" else ["<0xC3>", "<0xA9>"]
    if donor == "byte_level":
        assert mapped(hosts["wordpiece"], donors[donor])["é"] == ["Ġ", *of_character]
    assert mapped(hosts["sentencepiece"], donors[donor])["é"] == of_character


def test_byte_without_counterpart(hosts, donors):
    found = mapped(hosts["byte_level"], donors["wordpiece"])
    assert found["Ã"] is None
    assert found["Ġ"] is None


@pytest.mark.parametrize(
    ("host", "donor", "expected"),
    [
        (
            "wordpiece",
            "llama",
            {"[CLS]": "<s>", "[SEP]": "</s>", "[UNK]": "<unk>", "[PAD]": None, "[MASK]": None},
        ),
        ("byte_level", "wordpiece", {"<|begin|>": "[CLS]", "<|end|>": "[SEP]", "<|chat|>": None}),
        ("byte_level", "llama", {"<|begin|>": "<s>", "<|end|>": "</s>", "<|chat|>": "<|chat|>"}),
    ],
)
def test_special_tokens(hosts, donors, host, donor, expected):
    vocabulary = map_vocabulary(str(hosts[host]), open_checkpoint(donors[donor]))
    assert vocabulary.special == expected
    found = mapped(hosts[host], donors[donor])
    assert {token: tokens and tokens[0] for token, tokens in found.items() if token in expected} == expected


def test_text_that_looks_special(hosts, donors):
    """[unused1] is an ordinary token for tokenizers, so it is split as text."""
    assert mapped(hosts["wordpiece"], donors["llama"])["[unused1]"][0] == "▁"


def test_table_of_wide_numbers(hosts, tmp_path):
    """float64 rows become float32, because the means are computed in float32."""
    donor = DONORS["byte_level"](tmp_path / "donor")
    model = tiny_llama(vocab_size=len(AutoTokenizer.from_pretrained(donor)))
    save_quietly(model.double(), donor)
    artifact = extract_layer(donor, 0, tmp_path / "out", embeddings=True, vocabulary=str(hosts["wordpiece"]))
    table = load_file(artifact.path / "model.safetensors")["embeddings.embed_tokens.weight"]
    assert table.dtype == torch.float32
    row = AutoTokenizer.from_pretrained(artifact.path).convert_tokens_to_ids("the")
    donors_row = AutoTokenizer.from_pretrained(donor).convert_tokens_to_ids("Ġthe")
    assert torch.equal(table[row], model.model.embed_tokens.weight[donors_row].float())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_table(hosts, donors, tmp_path, dtype):
    host, donor = hosts["wordpiece"], donors["byte_level"]
    artifact = extract_layer(
        donor, "0:2", tmp_path / "out", embeddings=True, vocabulary=str(host), dtype=dtype, token=False
    )
    artifact.verify()
    theirs = load_file(donor / "model.safetensors")["model.embed_tokens.weight"]
    table = load_file(artifact.path / "model.safetensors")["embeddings.embed_tokens.weight"]
    vocabulary = map_vocabulary(str(host), open_checkpoint(donor))
    neutral = theirs[list(vocabulary.donor_rows)].double().mean(dim=0).float()
    expected = torch.stack([neutral if ids is None else theirs[list(ids)].mean(dim=0) for ids in vocabulary.tokens])
    assert table.dtype == (torch.float32 if dtype is None else torch.float16)
    torch.testing.assert_close(table, expected.to(table.dtype), rtol=1e-6 if dtype is None else 1e-3, atol=1e-7)
    single = [index for index, ids in enumerate(vocabulary.tokens) if ids and len(ids) == 1]
    assert torch.equal(table[single], expected[single].to(table.dtype))
    record = json.loads((artifact.path / "config.json").read_text())["embeddings"]
    assert record == {"token_table": "embed_tokens.weight", "vocabulary": vocabulary.record()}
    assert record["vocabulary"]["size"] == len(table) == len(AutoTokenizer.from_pretrained(artifact.path))


def test_stack_reads_the_hosts_tokens(hosts, donors, tmp_path):
    """If every token of a text is one of the donor's, the states are those of the donor."""
    host, donor = hosts["wordpiece"], donors["byte_level"]
    model = tiny_llama(vocab_size=len(AutoTokenizer.from_pretrained(donor)))
    artifact = extract_layer(donor, range(2), tmp_path / "out", embeddings=True, vocabulary=str(host))
    stack = DonorStack.from_pretrained(artifact.path)
    assert stack.vocabulary["name"] == str(host)
    tokens = AutoTokenizer.from_pretrained(artifact.path)("the cat.", add_special_tokens=False, return_tensors="pt")
    ids = AutoTokenizer.from_pretrained(donor)(" the cat.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(stack(tokens.input_ids), states_after(model, 2, ids, None))
    stack.save_pretrained(tmp_path / "saved")
    saved = LayerArtifact.open(tmp_path / "saved")
    saved.verify()
    assert (saved.path / "tokenizer.json").read_bytes() == (artifact.path / "tokenizer.json").read_bytes()
    assert torch.equal(
        DonorStack.from_config(stack.config).entrance.tensors()["embed_tokens.weight"].mean(dim=0).isfinite(),
        torch.ones(32, dtype=torch.bool),
    )


def test_needs_embeddings(hosts, donors):
    with pytest.raises(ConfigError, match="A vocabulary needs embeddings.*add --embeddings"):
        extract_layer(donors["llama"], 0, vocabulary=str(hosts["wordpiece"]))


def test_host_without_tokenizer(donors, tmp_path):
    with pytest.raises(SourceNotFoundError, match="has no tokenizer that can be loaded.*Name a host with"):
        extract_layer(donors["llama"], 0, embeddings=True, vocabulary=str(tmp_path))


def test_donor_without_tokenizer(hosts, tmp_path):
    save_quietly(tiny_llama(), tmp_path)
    with pytest.raises(SourceNotFoundError, match=f"{tmp_path} has no tokenizer that can be loaded"):
        extract_layer(tmp_path, 0, embeddings=True, vocabulary=str(hosts["wordpiece"]))


def test_slow_tokenizer(donors, monkeypatch):
    class Slow:
        pass

    monkeypatch.setattr("layer_surgeon._vocabulary.load_tokenizer", lambda *_, **__: Slow())
    with pytest.raises(DataError, match=r"tokenizer of host is a Slow, which has no tokenizer\.json"):
        map_vocabulary("host", open_checkpoint(donors["llama"]))


def test_tokenizer_that_knows_no_word(donors, tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "two words": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(DataError, match="knows no word of its own vocabulary"):
        map_vocabulary(str(tmp_path), open_checkpoint(donors["llama"]))


def test_nothing_in_common(tmp_path):
    """The donor has no token for unknown words, so it drops them."""
    host, donor = word_level(["one", "two"], tmp_path / "host"), tmp_path / "donor"
    save_quietly(tiny_llama(), donor)
    tokenizer = Tokenizer(models.BPE({"k": 0}, []))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(donor)
    with pytest.raises(DataError, match="has no tokens for any of the 2 tokens of .*Check that both"):
        map_vocabulary(str(host), open_checkpoint(donor))


def test_implausible_ids(hosts, donors, monkeypatch):
    monkeypatch.setattr("layer_surgeon._vocabulary.MAX_VOCABULARY", 10)
    with pytest.raises(DataError, match=r"token ids of .* were requested; at most 10 are allowed"):
        map_vocabulary(str(hosts["wordpiece"]), open_checkpoint(donors["llama"]))


def test_family_without_a_table_alone(hosts, tmp_path):
    """roberta counts positions from the ids that are not padding."""
    save_quietly(tiny_model("roberta", is_decoder=True), tmp_path)
    with pytest.raises(UnsupportedArchitectureError, match="In roberta, token ids are used for more than the rows"):
        extract_layer(tmp_path, 0, embeddings=True, vocabulary=str(hosts["wordpiece"]))


def test_table_that_is_no_matrix(hosts, donors, tmp_path):
    shutil.copytree(donors["byte_level"], tmp_path / "donor")
    tensors = load_file(tmp_path / "donor" / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].flatten()
    save_file(tensors, tmp_path / "donor" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has the shape \[\d+\], but must be a matrix"):
        extract_layer(tmp_path / "donor", 0, embeddings=True, vocabulary=str(hosts["wordpiece"]))


def test_plan_has_only_the_rows(hosts, donors):
    checkpoint = open_checkpoint(donors["byte_level"])
    vocabulary = map_vocabulary(str(hosts["wordpiece"]), checkpoint)
    plan = plan_extraction(checkpoint, 0, embeddings=True, vocabulary=vocabulary)
    layer = plan_extraction(checkpoint, 0)
    (rows,) = (info for info in plan.tensors if info.name == "model.embed_tokens.weight")
    assert rows.shape == (len(vocabulary.donor_rows), 32)
    assert plan.num_bytes == layer.num_bytes + rows.num_bytes == sum(info.num_bytes for info in plan.tensors)
    assert rows.num_bytes == 32 * 4 * len(vocabulary.donor_rows)
    assert plan.files == layer.files
    assert np.prod(rows.shape) * 4 == rows.num_bytes
