"""Saving, loading, and finding the donor again."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.utils import logging

import layer_surgeon as ls
from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import ArtifactError, ConfigError, GraftError
from layer_surgeon.graft import GraftedModel, GraftedModelForSequenceClassification, graft_layer
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import (
    host_model,
    make_inputs,
    word_tokenizer,
)
from tests.support.tiny_models import cut_artifact, save_quietly

# torch 2.11 says so where transformers compiles parts of DeBERTa.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Use a workspace of the test's own."""
    monkeypatch.delenv("SURGEON_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)


@torch.no_grad()
def logits(model):
    return model(**make_inputs()).logits


def tensor_names(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def test_graft_saved_with_int8_loads_in_bfloat16(artifact, tmp_path, caplog):
    graft_layer(host_model("bert"), artifact, donor_dtype="bfloat16").save_pretrained(tmp_path / "graft")
    expected = logits(GraftedModel.from_pretrained(tmp_path / "graft"))
    path = tmp_path / "graft" / "config.json"
    path.write_text(path.read_text().replace('"donor_dtype": "bfloat16"', '"donor_dtype": "int8"'))
    loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    assert loaded.donor.dtype == torch.bfloat16
    assert torch.equal(logits(loaded), expected)
    assert "saved with donor_dtype int8" in caplog.text


@pytest.mark.parametrize("model_type", ["bert", "deberta", "llama", "t5"])
def test_loading_logs_nothing(model_type, artifact, tmp_path, caplog):
    model = graft_layer(host_model(model_type), artifact)
    model.save_pretrained(tmp_path / "graft")
    logging.enable_propagation()
    try:
        loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    finally:
        logging.disable_propagation()
    assert caplog.text == ""
    assert type(loaded) is GraftedModelForSequenceClassification
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.settings == model.config.settings


@pytest.mark.parametrize(
    "settings",
    [
        {"residual": "gated"},
        {"donor_dtype": "bfloat16"},
        {"donor_init": "random"},
        {"train_donor": True},
        {"train_donor": True, "donor_dtype": "bfloat16"},
        {"projection_bias": True, "id2label": {"0": "no", "1": "perhaps", "2": "yes"}, "pooling": "mean"},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_round_trip_of_settings(settings, artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact, **settings)
    if model.gate is not None:
        model.gate.data.fill_(0.3)
    model.save_pretrained(tmp_path / "graft")
    loaded, info = GraftedModel.from_pretrained(tmp_path / "graft", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.settings == model.config.settings
    assert loaded.donor.dtype == model.donor.dtype
    assert loaded.parameter_counts() == model.parameter_counts()


def test_control_arm_round_trip(tmp_path):
    model = graft_layer(host_model("bert"), None)
    model.save_pretrained(tmp_path / "graft")
    assert not (tmp_path / "graft" / "donor").exists()
    assert torch.equal(logits(GraftedModel.from_pretrained(tmp_path / "graft")), logits(model))


def test_files_of_a_saved_graft(artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact)
    folder = tmp_path / "graft"
    model.save_pretrained(folder)
    assert {name.split(".")[0] for name in tensor_names(folder)} == {"host", "proj_in", "proj_out", "head"}
    stored, source = folder / "donor" / "model.safetensors", artifact / "model.safetensors"
    assert stored.samefile(source)
    assert not (folder / "donor" / "config.json").samefile(artifact / "config.json")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "surgeon_graft"
    assert config["host_config"]["model_type"] == "bert"
    assert config["donor"]["sha256"] == json.loads((artifact / "config.json").read_text())["sha256"]
    assert config["donor"]["layer_indices"] == [3]
    assert config["graft"]["pooling"] == "cls"
    assert config["graft"]["attention"] == "bidirectional"
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "| donor | the layer |" in card


def test_donor_is_copied_if_hard_links_fail(artifact, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    model = graft_layer(host_model("bert"), artifact)
    model.save_pretrained(tmp_path / "graft")
    stored = tmp_path / "graft" / "donor" / "model.safetensors"
    assert not stored.samefile(artifact / "model.safetensors")
    assert stored.read_bytes() == (artifact / "model.safetensors").read_bytes()


def test_a_link_in_the_hubs_cache_is_followed(artifact, tmp_path):
    repo = tmp_path / "models--me--layer"
    snapshot, blobs = repo / "snapshots/0123", repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in artifact.iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    graft_layer(host_model("bert"), snapshot).save_pretrained(tmp_path / "graft")
    stored = tmp_path / "graft/donor/model.safetensors"
    assert not stored.is_symlink()
    assert stored.samefile(snapshot / "model.safetensors")


def test_another_number_of_labels_at_loading(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    loaded = GraftedModel.from_pretrained(tmp_path / "graft", num_labels=5, ignore_mismatched_sizes=True)
    assert logits(loaded).shape == (3, 5)
    bound = loaded.head.out.in_features**-0.5
    assert 0.5 * bound < loaded.head.out.weight.abs().max() <= bound


def test_saving_again_keeps_the_donor_and_the_card(artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact)
    folder = tmp_path / "graft"
    model.save_pretrained(folder)
    (folder / "README.md").write_text("my own words")
    loaded = GraftedModel.from_pretrained(folder)
    loaded.head.out.bias.data.add_(1)
    loaded.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my own words"
    assert torch.equal(logits(GraftedModel.from_pretrained(folder)), logits(loaded))
    loaded.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other/donor/model.safetensors").samefile(artifact / "model.safetensors")


def test_a_donor_in_memory_is_linked_only_while_it_is_the_same(artifact, tmp_path):
    donor = DonorLayer.from_pretrained(artifact)
    graft_layer(host_model("bert"), donor).save_pretrained(tmp_path / "same")
    assert (tmp_path / "same/donor/model.safetensors").samefile(artifact / "model.safetensors")
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(1)
    model = graft_layer(host_model("bert"), donor, projection_init="default")
    model.save_pretrained(tmp_path / "without", include_donor=False)
    with pytest.raises(GraftError, match="because the layer was never stored"):
        GraftedModel.from_pretrained(tmp_path / "without")
    model.save_pretrained(tmp_path / "changed")
    assert torch.equal(logits(GraftedModel.from_pretrained(tmp_path / "changed")), logits(model))


def test_a_donor_that_was_trained_after_all_is_written_from_memory(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    model = GraftedModel.from_pretrained(tmp_path / "graft")
    model.donor.unfreeze()
    with torch.no_grad():
        for parameter in model.donor.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(logits(GraftedModel.from_pretrained(tmp_path / "trained")), logits(model))
    assert not torch.equal(logits(GraftedModel.from_pretrained(tmp_path / "graft")), logits(model))
    assert (tmp_path / "trained/donor/model.safetensors").stat().st_nlink == 1


def test_donor_gone_from_disk_is_written_from_memory(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "layer")
    model = graft_layer(host_model("bert"), tmp_path / "layer")
    shutil.rmtree(tmp_path / "layer")
    model.save_pretrained(tmp_path / "graft")
    assert torch.equal(logits(GraftedModel.from_pretrained(tmp_path / "graft")), logits(model))


def test_donor_replaced_on_disk_is_written_from_memory(artifact, llm, tmp_path):
    shutil.copytree(artifact, tmp_path / "layer")
    model = graft_layer(host_model("bert"), tmp_path / "layer")
    shutil.rmtree(tmp_path / "layer")
    save_quietly(llm, tmp_path / "llm")
    cut_artifact(tmp_path / "llm", [1], tmp_path / "layer")
    model.save_pretrained(tmp_path / "graft")
    assert torch.equal(logits(GraftedModel.from_pretrained(tmp_path / "graft")), logits(model))


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
def test_donor_damaged_on_disk_is_written_from_memory(damaged, artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "layer")
    model = graft_layer(host_model("bert"), tmp_path / "layer")
    (tmp_path / "layer" / damaged).write_bytes(b"{")
    model.save_pretrained(tmp_path / "graft")
    (tmp_path / "layer" / damaged).unlink()
    model.save_pretrained(tmp_path / "again")
    for name in ("graft", "again"):
        assert torch.equal(logits(GraftedModel.from_pretrained(tmp_path / name)), logits(model))


def test_auto_classes(artifact, tmp_path):
    assert ls.__version__
    model = graft_layer(host_model("bert"), artifact)
    model.save_pretrained(tmp_path / "graft")
    assert type(AutoConfig.from_pretrained(tmp_path / "graft")) is ls.SurgeonGraftConfig
    for auto in (AutoModel, AutoModelForSequenceClassification):
        loaded = auto.from_pretrained(tmp_path / "graft")
        assert type(loaded) is GraftedModelForSequenceClassification
        assert torch.equal(logits(loaded), logits(model))
    fresh = AutoModelForSequenceClassification.from_config(model.config)
    assert logits(fresh).shape == (3, 2)
    assert not torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize("form", [str, Path, DonorLayer.from_pretrained])
def test_auto_classes_pass_the_donor_on(form, artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact)
    model.save_pretrained(tmp_path / "graft", include_donor=False)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "graft", donor=form(artifact))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.donor == AutoConfig.from_pretrained(tmp_path / "graft").donor


def test_other_processes_write_no_card(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft", is_main_process=False)
    assert not (tmp_path / "graft/README.md").exists()


def test_an_unknown_argument_creates_no_repo(artifact, monkeypatch):
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: pytest.fail("created a repo"))
    with pytest.raises(ConfigError, match="push_to_hub has no argument 'variant'"):
        graft_layer(host_model("bert"), artifact).push_to_hub("owner/name", variant="fp16")


def test_pipeline(artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact, id2label={0: "bad", 1: "good"})
    model.save_pretrained(tmp_path / "graft")
    word_tokenizer().save_pretrained(tmp_path / "graft")
    classify = pipeline("text-classification", model=str(tmp_path / "graft"), device="cpu")
    texts = ["the film was good", "a slow and very dull plot , bad end"]
    found = classify(texts, top_k=None, batch_size=2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "graft")
    for text, scores in zip(texts, found, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        for score in scores:
            assert score["score"] == pytest.approx(expected[model.config.label2id[score["label"]]].item(), abs=1e-5)


def test_dtype_applies_to_all_parts_except_the_donor(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    for dtype in (torch.bfloat16, "bfloat16"):
        loaded = GraftedModel.from_pretrained(tmp_path / "graft", dtype=dtype)
        dtypes = {name: {p.dtype for p in getattr(loaded, name).parameters()} for name in ("host", "proj_in", "head")}
        assert dtypes == {name: {torch.bfloat16} for name in dtypes}
        assert loaded.donor.dtype == torch.float32
        assert logits(loaded).dtype == torch.bfloat16


def test_host_alone_in_attention_implementation(artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact)
    model.save_pretrained(tmp_path / "graft")
    loaded = GraftedModel.from_pretrained(tmp_path / "graft", attn_implementation="eager")
    assert loaded.host.config._attn_implementation == "eager"
    assert model.host.config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits(loaded), logits(model))


class TestWithoutDonor:
    """include_donor=False, as for training checkpoints."""

    @pytest.fixture
    def saved(self, artifact, tmp_path):
        shutil.copytree(artifact, tmp_path / "layer")
        model = graft_layer(host_model("bert"), tmp_path / "layer")
        model.save_pretrained(tmp_path / "checkpoint", include_donor=False)
        assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == ["config.json", "model.safetensors"]
        return model

    def test_donor_path_is_not_in_the_config(self, saved, tmp_path):
        assert "path" not in json.loads((tmp_path / "checkpoint/config.json").read_text())["donor"]
        with pytest.raises(GraftError, match=r"name its folder: donor=\.\.\. in Python, --donor SOURCE on the command"):
            GraftedModel.from_pretrained(tmp_path / "checkpoint")

    @pytest.mark.parametrize("place", ["layers/any-name", "grafts/any/donor", "runs/any/donor"])
    def test_it_is_found_in_the_workspace_by_its_sha256(self, saved, place, tmp_path):
        target = Workspace().root / place
        target.parent.mkdir(parents=True)
        (tmp_path / "layer").rename(target)
        assert torch.equal(logits(GraftedModel.from_pretrained(tmp_path / "checkpoint")), logits(saved))

    def test_it_is_found_in_the_workspace_that_holds_the_checkpoint(self, saved, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        Workspace(elsewhere).set_latest("run", elsewhere / "runs/r")
        (elsewhere / "layers").mkdir()
        (tmp_path / "layer").rename(elsewhere / "layers/l")
        (elsewhere / "runs/r").mkdir(parents=True)
        (tmp_path / "checkpoint").rename(elsewhere / "runs/r/checkpoint-1")
        assert torch.equal(logits(GraftedModel.from_pretrained(elsewhere / "runs/r/checkpoint-1")), logits(saved))

    def test_it_can_be_named(self, saved, artifact, tmp_path):
        shutil.rmtree(tmp_path / "layer")
        for donor in (artifact, str(artifact), DonorLayer.from_pretrained(artifact)):
            assert torch.equal(
                logits(GraftedModel.from_pretrained(tmp_path / "checkpoint", donor=donor)), logits(saved)
            )

    def test_missing_donor_is_an_error(self, saved, tmp_path):
        shutil.rmtree(tmp_path / "layer")
        with pytest.raises(
            GraftError, match=r"layer 3 of tiny, sha256 [0-9a-f]{64}.*surgeon extract tiny --layer 3.*donor=\.\.\."
        ):
            GraftedModel.from_pretrained(tmp_path / "checkpoint")

    def test_another_donor_is_refused(self, saved, artifact, llm, tmp_path):
        other = cut_artifact(artifact.parent / "llm", [2], tmp_path / "other")
        with pytest.raises(GraftError, match="but the graft was made with layer 3 of tiny, sha256"):
            GraftedModel.from_pretrained(tmp_path / "checkpoint", donor=other)

    def test_random_weights_that_were_never_stored(self, artifact, tmp_path):
        model = graft_layer(host_model("bert"), artifact, donor_init="random")
        model.save_pretrained(tmp_path / "checkpoint", include_donor=False)
        with pytest.raises(GraftError, match="because the layer was never stored"):
            GraftedModel.from_pretrained(tmp_path / "checkpoint")


def test_a_donor_that_was_swapped_is_refused(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    shutil.rmtree(tmp_path / "graft/donor")
    cut_artifact(artifact.parent / "llm", [2], tmp_path / "graft/donor")
    with pytest.raises(GraftError, match="but the graft was made with layer 3"):
        GraftedModel.from_pretrained(tmp_path / "graft")


def test_a_damaged_layer_is_refused(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "layer")
    path = tmp_path / "layer/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="changed or damaged. Extract the layer again"):
        graft_layer(host_model("bert"), tmp_path / "layer")


@pytest.mark.parametrize("settings", [None, {"train_donor": True}])
def test_passed_donor_without_use_is_refused(settings, artifact, tmp_path):
    model = (
        graft_layer(host_model("bert"), None)
        if settings is None
        else graft_layer(host_model("bert"), artifact, **settings)
    )
    model.save_pretrained(tmp_path / "graft")
    with pytest.raises(GraftError, match="You passed a donor layer, but this graft.* Load the graft without donor"):
        GraftedModel.from_pretrained(tmp_path / "graft", donor=artifact)


def test_folders_that_are_not_grafts(artifact, tmp_path):
    host_model("bert").save_pretrained(tmp_path / "bert")
    with pytest.raises(GraftError, match="is not a grafted model"):
        GraftedModel.from_pretrained(tmp_path / "bert")
    with pytest.raises(ls.SourceError, match="neither a local folder nor a repo"):
        GraftedModel.from_pretrained(tmp_path / "nothing")
