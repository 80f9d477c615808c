"""Input that doesn't fit is refused with a helpful message. test_build and test_config have more cases."""

import json
import shutil

import pytest
import torch

from layer_surgeon.errors import ArtifactError, ConfigError, DataError, GraftError, LayerSurgeonError, SourceError
from layer_surgeon.graft import GraftedModel, graft_layer
from tests.graft.conftest import host_model, make_inputs
from tests.support.command_line import surgeon_here

TOKENS = "token-classification"


@pytest.fixture
def stored(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    return tmp_path / "graft"


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in (config | values).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def test_donor_width_differs_from_its_config(artifact, tmp_path):
    folder = shutil.copytree(artifact, tmp_path / "layer")
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, donor_config=config["donor_config"] | {"hidden_size": 40})
    with pytest.raises(LayerSurgeonError, match="tensors of layers.0 don't fit layer 3 .*Extract the layer again"):
        graft_layer(host_model("bert"), folder)


def test_graft_width_differs_from_its_weights(stored):
    config = json.loads((stored / "config.json").read_text())
    change_config(stored, donor=config["donor"] | {"hidden_size": 40})
    with pytest.raises(GraftError, match="has weights that can't be loaded: their shapes don't match its config"):
        GraftedModel.from_pretrained(stored)


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({}, [0, 1, 2], "contain the class id 2, but the model has 2 labels, 0 to 1. Name all labels with model.set_"),
        ({"num_labels": 3}, [0, -1, 2], "the class id -1, but the model has 3 labels"),
    ],
)
def test_labels_out_of_range_are_refused(settings, labels, message, artifact):
    model = graft_layer(host_model("bert"), artifact, **settings)
    with pytest.raises(DataError, match=message):
        model(**make_inputs(), labels=torch.tensor(labels))


def test_token_labels_out_of_range_are_refused(artifact):
    model = graft_layer(host_model("bert"), artifact, TOKENS)
    labels = torch.zeros(3, 9, dtype=torch.long)
    labels[0, 3] = -100
    model(**make_inputs(), labels=labels)
    labels[1, 2] = 5
    with pytest.raises(DataError, match="contain the class id 5, but the model has 2 labels"):
        model(**make_inputs(), labels=labels)


@pytest.mark.parametrize(
    ("task", "settings", "error", "message"),
    [
        ("seq2seq", {}, GraftError, "is of kind encoder, but seq2seq needs a host of kind encoder-decoder"),
        ("causal-lm", {}, GraftError, "needs a host of kind decoder with a language head.*Choose such a host"),
        ("text-classification", {"site": 2}, GraftError, "site is 2, but the host has 2 layers: choose 0 to 1"),
        ("text-classification", {"site": -3}, GraftError, "site is -3, but the host has 2 layers: choose 0 to 1"),
        (TOKENS, {"pooling": "cls"}, ConfigError, "pools nothing. Leave pooling out"),
        ("question-answering", {"pooling": "mean"}, ConfigError, "pools nothing. Leave pooling out"),
        ("text-classification", {"pooling": "none"}, ConfigError, "needs one vector per text. Choose cls, mean"),
        ("feature-extraction", {"num_labels": 3}, ConfigError, "You passed labels, but feature-extraction has none"),
        (TOKENS, {"num_labels": 3, "id2label": {0: "a"}}, ConfigError, "names 1 labels. Leave out one of the two"),
    ],
)
def test_settings_that_contradict_the_task_or_host(task, settings, error, message, artifact):
    with pytest.raises(error, match=message):
        graft_layer(host_model("bert"), artifact, task, **settings)


def test_folders_that_are_not_grafts(artifact, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        GraftError, match="holds no config.json, so it is not a grafted model. Name a folder that surgeon"
    ):
        GraftedModel.from_pretrained(tmp_path / "empty")
    for folder, kind in ((artifact, "surgeon_donor"), (artifact.parent / "llm", "llama")):
        with pytest.raises(GraftError, match=f"is not a grafted model: its model_type is '{kind}'.*surgeon graft"):
            GraftedModel.from_pretrained(folder)
    with pytest.raises(SourceError, match="is neither a local folder nor a repo on the Hub. Check the name"):
        GraftedModel.from_pretrained(tmp_path / "nowhere")


def test_grafts_with_missing_fields(stored):
    config = json.loads((stored / "config.json").read_text())
    for name in ("host_config", "graft"):
        change_config(stored, **{name: None})
        with pytest.raises(GraftError, match=f"has no valid {name}. It was changed or damaged. Get it again"):
            GraftedModel.from_pretrained(stored)
        change_config(stored, **config)
    (stored / "model.safetensors").unlink()
    with pytest.raises(LayerSurgeonError, match=r"The graft .* can't be loaded: .*model.safetensors"):
        GraftedModel.from_pretrained(stored)
    (stored / "config.json").write_text("{")
    with pytest.raises(SourceError, match="can't be loaded: .*not a valid JSON"):
        GraftedModel.from_pretrained(stored)


def test_unknown_arguments(stored):
    with pytest.raises(GraftError, match="can't be loaded with nonsense: .*'nonsense'"):
        GraftedModel.from_pretrained(stored, nonsense=1)


def test_invalid_values_of_arguments(stored):
    with pytest.raises(GraftError, match="can't be loaded with dtype: .*valid `torch.dtype`"):
        GraftedModel.from_pretrained(stored, dtype="float99")


def test_donors_of_stored_grafts(stored, artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("SURGEON_WORKSPACE", str(tmp_path / "surgery"))
    other = shutil.copytree(artifact, tmp_path / "other")
    change_config(other, sha256="0" * 64)
    sha256 = json.loads((artifact / "config.json").read_text())["sha256"]
    with pytest.raises(ArtifactError, match=f"has sha256 {sha256}, but its config.json records {'0' * 64}"):
        GraftedModel.from_pretrained(stored, donor=other)
    shutil.rmtree(stored / "donor")
    with pytest.raises(GraftError, match=f"saved without its donor layer: .*{sha256}.*surgeon extract tiny --layer 3"):
        GraftedModel.from_pretrained(stored)


def test_from_the_command_line(host_folder, artifact, tmp_path):
    result = surgeon_here("graft", host_folder("bert"), "--donor", artifact, "--site", "7", cwd=tmp_path)
    assert result.code == 1
    assert result.err.strip().endswith("error: site is 7, but the host has 2 layers: choose 0 to 1.")
    assert "Traceback" not in result.err
    assert list(tmp_path.glob("surgery*")) == []
