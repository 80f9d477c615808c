"""Graft settings: the paper's defaults, and values that are refused."""

import copy
import dataclasses
import subprocess
import sys

import pytest
import torch

from layer_surgeon.errors import ConfigError
from layer_surgeon.graft.build import graft_layer
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel
from tests.graft.conftest import host_model
from tests.support.tiny_models import save_artifact, tiny_llama

TEXT = {"donor_reads": "text"}


def test_defaults_are_the_papers():
    config = GraftConfig()
    assert dataclasses.asdict(config) == {
        "task": "text-classification",
        "num_labels": None,
        "id2label": None,
        "pooling": None,
        "attention": None,
        "site": "encoder_output",
        "residual": "none",
        "donor_init": "pretrained",
        "train_donor": False,
        "dropout": 0.2,
        "projection_bias": False,
        "donor_dtype": "float32",
        "projection_init": "auto",
        "proj_out_norm": False,
        "donor_reads": "host",
        "donor_tokens": "host",
        "join": None,
        "donor_pooling": None,
    }
    assert config.labels == ("LABEL_0", "LABEL_1")


def test_every_field_is_documented():
    assert all(field.metadata["help"] for field in dataclasses.fields(GraftConfig))


def test_labels_come_from_json_too():
    config = GraftConfig(id2label={"1": "good", "0": "bad"})
    assert config.id2label == {0: "bad", 1: "good"}
    assert config.labels == ("bad", "good")
    assert GraftConfig(num_labels=1).labels == ("LABEL_0",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "translation"}, "task is 'translation'; it must be one of text-classification, token-class"),
        ({"pooling": "max"}, "pooling is 'max'; it must be one of cls, mean, mean_with_padding, last"),
        ({"pooling": "none"}, "needs one vector per text"),
        ({"attention": "both"}, "bidirectional, causal"),
        ({"residual": True}, "none, gated"),
        ({"donor_init": "zeros"}, "pretrained, random"),
        ({"donor_dtype": "float16", "train_donor": True}, "weights become NaN. Choose donor_dtype float32 or bfloat16"),
        ({"donor_dtype": "int8"}, "must be one of float32, bfloat16, float16"),
        ({"train_donor": 1}, "train_donor is 1; it must be true or false"),
        ({"projection_bias": None}, "true or false"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be from 0 to below 1"),
        ({"dropout": float("nan")}, "dropout is nan; it must be a number"),
        ({"dropout": "0.1"}, "dropout is '0.1'; it must be a number"),
        ({"site": "pooler"}, "site is 'pooler'; it must be 'encoder_output', 'embeddings' or the number of a layer"),
        ({"site": True}, "site is True; it must be"),
        ({"site": 1.0}, "site is 1.0; it must be"),
        (
            {"task": "question-answering", "pooling": "mean"},
            "pooling is 'mean', but question-answering works on single",
        ),
        ({"task": "token-classification", "pooling": "cls"}, "pools nothing. Leave pooling out"),
        (
            {"task": "seq2seq", "num_labels": 2},
            "You passed labels, but seq2seq has none. Leave out num_labels and id2label",
        ),
        ({"task": "question-answering", "id2label": {"0": "a"}}, "question-answering has none"),
        (
            {"task": "causal-lm", "dropout": 0.1},
            "dropout is 0.1, but .* and causal-lm has none. Leave dropout out",
        ),
        ({"task": "causal-lm", "attention": "bidirectional"}, "a token must not see later tokens"),
        ({"site": "embeddings", "attention": "causal", "pooling": "cls"}, "the first token sees nothing of the text"),
        ({"donor_reads": "both"}, "donor_reads is 'both'; it must be one of host, text"),
        ({**TEXT, "donor_tokens": "mine"}, "donor_tokens is 'mine'; it must be one of host, own"),
        ({**TEXT, "join": "sum"}, "join is 'sum'; it must be one of concat, gated, replace"),
        ({**TEXT, "donor_pooling": "cls"}, "donor_pooling is 'cls'; it must be one of mean, last"),
        (
            {"donor_tokens": "own"},
            "donor_tokens is 'own', but it only applies to a donor that reads text. Leave it out",
        ),
        ({"join": "gated"}, "join is 'gated', but it only applies to a donor that reads text"),
        ({"donor_pooling": "mean"}, "donor_pooling is 'mean', but it only applies .* or set donor_reads to text"),
        ({**TEXT, "residual": "gated"}, "residual is 'gated', but the donor reads text: .* Set join instead"),
        (
            {**TEXT, "attention": "bidirectional"},
            "attention is 'bidirectional', .* earlier tokens. Leave attention out",
        ),
        ({**TEXT, "projection_init": "matched"}, "projection_init is 'matched', but .* there is no proj_in"),
        ({**TEXT, "train_donor": True}, "train_donor is True, but the donor reads text: such a donor is always frozen"),
        (
            {**TEXT, "donor_tokens": "own", "task": "causal-lm"},
            "causal-lm needs the donor's state of each of the host's tokens.*: text-classification, feature-extraction",
        ),
        (
            {**TEXT, "join": "concat", "task": "seq2seq"},
            "join is 'concat', .* seq2seq has no head of ours. Choose join",
        ),
        ({**TEXT, "join": "concat", "site": 1}, "join is 'concat', .* but site is 1. Choose join gated"),
        (
            {**TEXT, "donor_pooling": "last", "task": "token-classification"},
            "donor_pooling is 'last', but here .* token by token. Leave donor_pooling out",
        ),
        (
            {**TEXT, "task": "feature-extraction", "pooling": "cls"},
            "the donor's state of the first token has seen nothing of the text. Choose pooling mean or last",
        ),
        (
            {**TEXT, "site": "embeddings", "attention": "causal", "pooling": "cls"},
            "the first token sees nothing of the text. Choose pooling last or mean",
        ),
        ({"num_labels": 0}, "num_labels is 0; it must be a whole number of at least 1"),
        ({"num_labels": True}, "whole number"),
        ({"id2label": {}}, "a name for each id"),
        ({"id2label": {"0": "a", "2": "b"}}, "a name for each id from 0"),
        ({"id2label": {"0": "a", "1": "a"}}, "each name once"),
        ({"id2label": {"0": "a", "1": ""}}, "a name for each id"),
        ({"id2label": ["a", "b"]}, "a name for each id"),
        ({"id2label": {"0": "a", "x": "b"}}, "a name for each id"),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels is 3, but id2label names 2 labels"),
    ],
)
def test_bad_values_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GraftConfig(**settings)


def test_site_can_be_a_number_as_text():
    assert GraftConfig(site="-1").site == -1
    assert GraftConfig(site=3).site == 3
    with pytest.raises(ConfigError, match="site is '--5'"):
        GraftConfig(site="--5")


def test_only_some_tasks_have_labels():
    assert GraftConfig(task="question-answering").labels == ()
    assert GraftConfig(task="token-classification", num_labels=3).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_settings_override_a_config():
    config = GraftConfig.from_settings(GraftConfig(dropout=0.5, pooling="mean"), {"pooling": "cls"})
    assert (config.dropout, config.pooling) == (0.5, "cls")
    with pytest.raises(ConfigError, match="There is no setting 'layer'"):
        GraftConfig.from_settings(None, {"layer": 3})


def test_settings_dont_import_torch():
    code = "import sys, layer_surgeon.graft.config; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


@pytest.mark.parametrize("residual", ["none", "gated"])
@pytest.mark.parametrize("projection_bias", [False, True])
@pytest.mark.parametrize(
    "donor",
    [
        {"donor_dtype": "float16"},
        {"donor_dtype": "bfloat16", "train_donor": True},
        {"donor_init": "random", "donor_dtype": "bfloat16"},
        {"donor_init": "random", "train_donor": True},
    ],
)
def test_settings_work_together(residual, projection_bias, donor, tmp_path):
    """With two donor layers, a training step changes all trained weights, and they are stored and loaded."""
    torch.manual_seed(0)
    layers = save_artifact(tiny_llama(), [1, 3], tmp_path / "two")
    settings = {"residual": residual, "projection_bias": projection_bias, "dropout": 0.4, "site": "embeddings", **donor}
    model = graft_layer(host_model("bert"), layers, **settings).train()
    if model.gate is not None:
        torch.nn.init.ones_(model.gate)
    before = {name: parameter.detach().clone() for name, parameter in model.donor.named_parameters()}
    ids = torch.randint(3, 20, (4, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 1, 0])}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model(**inputs).loss.backward()
    optimizer.step()
    changed = {name for name, parameter in model.donor.named_parameters() if not torch.equal(parameter, before[name])}
    assert ("layers.0.mlp.up_proj.weight" in changed) == ("layers.1.mlp.up_proj.weight" in changed)
    assert bool(changed) == settings.get("train_donor", False)
    model.eval().save_pretrained(tmp_path / "graft")
    loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    assert loaded.donor.dtype == getattr(torch, settings.get("donor_dtype", "float32"))
    assert loaded.config.settings == model.config.settings
    assert torch.isfinite(loaded(**inputs).logits).all()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_settings_are_validated_once_and_follow_changes(artifact, monkeypatch):
    config = graft_layer(host_model("bert"), artifact, dropout=0.1, id2label={0: "no", 1: "yes"}).config
    settings = config.settings
    with monkeypatch.context() as patch:
        patch.setattr(GraftConfig, "__post_init__", lambda _: pytest.fail("validated again"))
        assert config.settings == copy.deepcopy(config).settings == settings
    config.graft["dropout"] = 0.3
    config.id2label = {0: "bad", 1: "good"}
    assert (config.settings.dropout, config.settings.labels) == (0.3, ("bad", "good"))
    assert SurgeonGraftConfig.from_dict(config.to_dict()).settings == config.settings
    assert settings.labels == ("no", "yes")
    for value, message in ((3, "dropout is 3"), (torch.tensor(0.1), "dropout is 'tensor")):
        config.graft["dropout"] = value
        with pytest.raises(ConfigError, match=message):
            _ = config.settings


def test_labels_are_validated_when_the_config_is_made(artifact):
    config = graft_layer(host_model("bert"), artifact).config
    with pytest.raises(ConfigError, match="id2label is .*each name once"):
        SurgeonGraftConfig.from_dict({**config.to_dict(), "id2label": {"0": "same", "1": "same"}})
