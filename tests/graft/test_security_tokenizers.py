"""Untrusted tokenizers: no other file of this machine is read into them and stored with a graft."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from layer_surgeon._loading import load_model, load_tokenizer
from layer_surgeon.errors import GraftError, LayerSurgeonError
from layer_surgeon.graft import save_graft
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import host_model

VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfilm\n"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "home/token"
    path.parent.mkdir()
    path.write_text(f"hf_secret\n{VOCABULARY}")
    return path


@pytest.fixture
def host(tmp_path):
    folder = tmp_path / "host"
    host_model("bert").save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (folder / "vocab.txt").write_text(VOCABULARY)
    return folder


def edit(host, name, **changes):
    path = host / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("tokenizer_config.json", "vocab"),
        ("tokenizer_config.json", "merges"),
        ("tokenizer_config.json", "donor_tokenizer_file"),
        ("tokenizer_config.json", "init_inputs"),
        ("tokenizer_config.json", "fast_tokenizer_files"),
        ("special_tokens_map.json", "vocab"),
        ("special_tokens_map.json", "vocab_file"),
        ("special_tokens_map.json", "tokenizer_file"),
    ],
)
def test_local_file_as_vocabulary_is_refused(name, key, host, secret, artifact, tmp_path):
    edit(host, name, **{key: [str(secret)] if key in ("init_inputs", "fast_tokenizer_files") else str(secret)})
    with pytest.raises(
        GraftError, match=rf"The {name} of .*host sets {key} .*token.*, but a tokenizer may only read files"
    ):
        save_graft(host, artifact, output=tmp_path / "graft", workspace=Workspace(tmp_path / "w"))
    assert not (tmp_path / "graft").exists()


@pytest.mark.parametrize("name", ["chat_template.jinja", "vocab.txt", "additional_chat_templates/x.jinja"])
def test_tokenizer_file_that_is_a_link_is_refused(name, host, secret, artifact, tmp_path):
    (host / name).unlink(missing_ok=True)
    (host / name).parent.mkdir(exist_ok=True)
    (host / name).symlink_to(secret)
    with pytest.raises(GraftError, match=r"leads out of .*host through a symbolic link, to .*home/token"):
        save_graft(host, artifact, output=tmp_path / "graft", workspace=Workspace(tmp_path / "w"))
    with pytest.raises(GraftError, match="through a symbolic link"):
        load_tokenizer(host)


def test_generation_config_that_is_a_link_is_refused(host, secret):
    secret.write_text('{"auths": "hf_secret"}')
    (host / "generation_config.json").symlink_to(secret)
    with pytest.raises(GraftError, match="generation_config.json leads out of"):
        load_model(AutoTokenizer, host)


@pytest.mark.parametrize("is_shared", [False, True])
def test_harmless_paths_and_links_are_accepted(is_shared, host, artifact, tmp_path):
    """Old versions stored paths of their machine, and for years the Hub's client made links into its cache."""
    edit(
        host, "tokenizer_config.json", vocab_file="/root/.cache/vocab.txt", special_tokens_map_file="/x", init_inputs=[]
    )
    edit(host, "special_tokens_map.json", pad_token="[PAD]", unk_token="[UNK]")
    blob = tmp_path / "hub/models--me--host/blobs" / ("0" * 40)
    blob.parent.mkdir(parents=True)
    (host / "vocab.txt").rename(blob)
    (host / "vocab.txt").symlink_to(blob)
    if is_shared:
        shared = tmp_path / "hub/blobs/ab" / f"ab{'0' * 62}"
        shared.parent.mkdir(parents=True)
        blob.rename(shared)
        blob.symlink_to(shared)
    graft = save_graft(host, artifact, output=tmp_path / "graft", workspace=Workspace(tmp_path / "w")).path
    assert "film" in AutoTokenizer.from_pretrained(graft).get_vocab()


def test_config_next_to_a_tokenizer_is_checked(host):
    edit(host, "config.json", num_hidden_layers=10**9)
    with pytest.raises(GraftError, match="num_hidden_layers to 1,000,000,000"):
        load_tokenizer(host)


@pytest.mark.parametrize("content", ["[" * 100_000, "{"])
def test_unreadable_tokenizer_config(content, host):
    Path(host / "tokenizer_config.json").write_text(content)
    with pytest.raises(GraftError, match=r"The tokenizer_config.json of .*host can't be read"):
        load_tokenizer(host)


def test_invalid_regular_expression_is_said(host, artifact, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(host)
    tokenizer.save_pretrained(host)
    content = json.loads((host / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}
    (host / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LayerSurgeonError, match="tokenizer"):
        save_graft(host, artifact, output=tmp_path / "graft", workspace=Workspace(tmp_path / "w"))
