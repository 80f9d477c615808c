"""Uploads to a local Hub: every file once, with a card that names both models; bad input is refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from layer_surgeon.graft import GraftedModel, graft_layer
from layer_surgeon.hub.push import push_graft
from tests.graft.conftest import host_model, make_inputs
from tests.support.command_line import surgeon
from tests.support.hub_uploads import serve_here
from tests.support.preloaded import run_code


@pytest.fixture
def stored(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "my-graft")
    return tmp_path / "my-graft"


def uploaded(hub, repo_id, branch="main"):
    repo = hub.router.repos["models", repo_id]
    return {name: content.whole() for name, content in repo.commits[repo.refs[branch]].items() if name[0] != "."}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_the_repo(files, repo_id):
    """The uploaded content of a folder's files: the examples in the card name the repo."""
    card = files["README.md"].replace(b"path/to/this/folder", repo_id.encode())
    return {**files, "README.md": card}


def test_push_uploads_the_folder(hub, settings, stored, tmp_path):
    whole = files(stored)
    (stored / ".note.tmp").write_text("mine")
    (stored / "checkpoint-3").mkdir()
    (stored / "checkpoint-3/optimizer.pt").write_text("large")
    result = surgeon("push", "me/graft", stored, "--json", "-m", "First", cwd=tmp_path, env=settings)
    assert result.code == 0, result.err
    document = result.document()
    whole = in_the_repo(whole, "me/graft")
    assert b'model="me/graft"' in whole["README.md"]
    assert uploaded(hub, "me/graft") == whole
    assert set(document["files"]) == set(whole)
    assert document["num_bytes"] == sum(map(len, whole.values()))
    assert document["commit"] == hub.router.repos["models", "me/graft"].refs["main"]
    assert document["private"] is True
    assert hub.router.messages == ["First"]
    assert hub.router.created["me/graft"].get("private", hub.router.created["me/graft"].get("visibility")) in (
        True,
        "private",
    )
    assert "has weights of other models; its licence is not stated" in result.err
    # Again, to a branch, without the donor layer.
    arguments = ("push", "me/graft", stored, "--without-donor", "--revision", "small", "--public")
    result = surgeon(*arguments, cwd=tmp_path, env=settings)
    assert result.code == 0, result.err
    assert "weights of other models" not in result.err
    assert "The donor layer is deleted, but earlier commits of the repo still hold it." in result.err
    assert set(uploaded(hub, "me/graft", "small")) == {name for name in whole if not name.startswith("donor/")}
    assert uploaded(hub, "me/graft") == whole
    hub.add_repo("me/other", {"README.md": "x"})
    result = surgeon("push", "me/other", stored, "--without-donor", cwd=tmp_path, env=settings)
    assert result.code == 0, result.err
    assert set(uploaded(hub, "me/other")) == {name for name in whole if not name.startswith("donor/")}
    assert b'model="me/other"' in uploaded(hub, "me/other")["README.md"]


def test_an_upload_needs_no_torch():
    script = "import sys, layer_surgeon.hub.push; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"


def test_a_layer_artifact(hub, settings, artifact, tmp_path):
    result = surgeon("push", "me/layer", artifact, cwd=tmp_path, env=settings)
    assert result.code == 0, result.err
    assert uploaded(hub, "me/layer") == files(artifact)
    with_paths = shutil.copytree(artifact, tmp_path / "with paths")
    tokenizer = {"name_or_path": "/home/alice/llm", "tokenizer_file": "/home/alice/llm/tokenizer.json"}
    (with_paths / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert surgeon("push", "me/layer", with_paths, cwd=tmp_path, env=settings).code == 0
    assert b"alice" not in uploaded(hub, "me/layer")["tokenizer_config.json"]
    result = surgeon("push", "me/layer", artifact, "--without-donor", cwd=tmp_path, env=settings)
    assert result.code == 2
    assert "has no frozen donor layer in a folder of its own, so nothing can be left out" in result.err


def test_other_weights_are_deleted(hub, artifact, tmp_path, monkeypatch):
    """transformers takes model.safetensors first, so old weights would be loaded with the new config."""
    serve_here(hub, monkeypatch)
    model = graft_layer(host_model("bert"), artifact)
    model.save_pretrained(tmp_path / "graft")
    kept = {"notes.txt": "mine", "onnx/model.safetensors": "mine"}
    hub.add_repo("me/graft", {"model-00001-of-00002.safetensors": "old", "model.safetensors.index.json": "{}", **kept})
    result = push_graft(tmp_path / "graft", "me/graft")
    assert result.deleted == ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    assert set(uploaded(hub, "me/graft")) == set(files(tmp_path / "graft")) | set(kept)
    model.push_to_hub("me/graft", max_shard_size="20KB")
    names = set(uploaded(hub, "me/graft"))
    assert "model.safetensors" not in names
    assert {"model.safetensors.index.json", "donor/model.safetensors", *kept} <= names


def test_a_donor_of_earlier_commits_is_deleted(hub, artifact, tmp_path, monkeypatch):
    serve_here(hub, monkeypatch)
    model = graft_layer(host_model("bert"), artifact)
    model.save_pretrained(tmp_path / "whole", push_to_hub=True, repo_id="me/graft")
    assert "donor/model.safetensors" in uploaded(hub, "me/graft")
    model.save_pretrained(tmp_path / "bare", include_donor=False, push_to_hub=True, repo_id="me/graft")
    assert not [name for name in uploaded(hub, "me/graft") if name.startswith("donor/")]
    model.push_to_hub("me/graft")
    trained = graft_layer(host_model("bert"), artifact, train_donor=True)
    trained.save_pretrained(tmp_path / "trained")
    assert "donor/model.safetensors" in push_graft(tmp_path / "trained", "me/graft").deleted
    model.push_to_hub("me/graft")
    trained.push_to_hub("me/graft")
    assert not [name for name in uploaded(hub, "me/graft") if name.startswith("donor/")]


def test_a_layer_artifact_leaves_other_folders_alone(hub, artifact, monkeypatch):
    serve_here(hub, monkeypatch)
    hub.add_repo("me/layer", {"donor/notes.txt": "mine"})
    assert push_graft(artifact, "me/layer").deleted == ()


def test_what_is_refused(hub, settings, stored, artifact, tmp_path):
    def fails(*arguments, env=None):
        result = surgeon("push", *arguments, cwd=tmp_path, env=settings | (env or {}))
        assert result.code in (1, 2)
        assert "Traceback" not in result.err
        return result.err

    assert "not a graft, a run, a layer artifact or an assembled model. Name" in fails("me/x", artifact.parent / "llm")
    assert "not a graft" in fails("me/x", tmp_path / "nowhere")
    assert "holds no run yet" in fails("me/x")
    assert "'a b c' is not a repo id. Choose one such as me/my-graft" in fails("a b c", stored)
    error = fails("me/x", stored, env={"HF_TOKEN": "hf_other"})
    assert "doesn't let this account write to me/x (status 403). Log in with `hf auth login`" in error
    error = fails("me/x", stored, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "The Hub can't be reached to upload me/x" in error
    (stored / "notes.md").write_bytes("Größe".encode("latin-1"))
    assert "notes.md is not valid UTF-8" in fails("me/x", stored)
    (stored / "notes.md").unlink()
    (stored / "model.safetensors").rename(tmp_path / "weights")
    assert "holds no weights (model.safetensors)" in fails("me/x", stored)
    (tmp_path / "weights").rename(stored / "model.safetensors")
    (stored / "donor").rename(tmp_path / "donor")
    error = fails("me/x", stored)
    assert "was saved without its donor layer. Load it and save it with include_donor=True" in error
    assert hub.router.created == {}
    assert hub.router.messages == []


_SCRIPT = """
import sys
import layer_surgeon
from layer_surgeon.graft import GraftedModel
model = GraftedModel.from_pretrained(sys.argv[1])
print(model.push_to_hub("me/one", private=True, tags=["mine"], commit_message="One").oid)
model.save_pretrained("saved", push_to_hub=True, repo_id="me/two")
print(type(GraftedModel.from_pretrained("me/one")).__name__)
"""


def test_push_to_hub_of_a_model(hub, settings, stored, tmp_path):
    """Run in a new process, because HF_ENDPOINT is read at import."""
    done = run_code(_SCRIPT, stored, cwd=tmp_path, env=settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        hub.router.repos["models", "me/one"].refs["main"],
        "GraftedModelForSequenceClassification",
    ]
    one, two = uploaded(hub, "me/one"), uploaded(hub, "me/two")
    assert one["model.safetensors"] == two["model.safetensors"] == files(stored)["model.safetensors"]
    assert one["donor/model.safetensors"] == two["donor/model.safetensors"]
    assert two == in_the_repo(files(tmp_path / "saved"), "me/two")
    assert hub.router.messages[0] == "One"
    front = yaml.safe_load(one["README.md"].decode().split("---")[1])
    assert front["tags"] == ["layer-surgeon", "mine"]
    assert b"| donor | the layer |" in one["README.md"]


@pytest.mark.parametrize(
    ("host", "donor", "expected"),
    [
        ("mit", "llama3.1", {"license": "other", "license_name": "mit-and-llama3.1"}),
        ("apache-2.0", "apache-2.0", {"license": "apache-2.0"}),
        (None, "gemma", {}),
        ("mit", None, {}),
        (None, None, {}),
    ],
)
@torch.no_grad()
def test_the_card_names_both_licences(host, donor, expected, artifact, tmp_path):
    host_model("bert").save_pretrained(tmp_path / "host")
    if host is not None:
        (tmp_path / "host/README.md").write_text(f"---\nlicense: {host}\n---\n\n# A host\n")
    model = graft_layer(tmp_path / "host", artifact)
    assert model.config.host["license"] == host
    model.config.host = {**model.config.host, "name": "owner/host"}
    model.config.donor = {**model.config.donor, "name": "meta/donor", "base_model": "meta/donor", "license": donor}
    model.save_pretrained(tmp_path / "graft")
    text = (tmp_path / "graft/README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected
    assert front["base_model"] == ["owner/host", "meta/donor"]
    assert front["base_model_relation"] == "merge"
    assert front["pipeline_tag"] == "text-classification"
    assert f"| host | owner/host | {host or 'not stated'} |" in text
    assert f"| donor | meta/donor | {donor or 'not stated'} |" in text
    total = sum(p.numel() for p in model.parameters())
    assert f"| **all** | | {total:,} |" in text
    loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    assert torch.equal(loaded(**make_inputs()).logits, model(**make_inputs()).logits)
