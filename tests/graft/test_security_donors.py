"""A graft's config.json can't make us read other files, and its sizes are limited."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from layer_surgeon._loading import load_model
from layer_surgeon.cost.profile import profile_graft
from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import ArtifactError, ConfigError, GraftError, LayerSurgeonError
from layer_surgeon.finetune import evaluate_model, finetune_model, predict
from layer_surgeon.graft import GraftConfig, GraftedModel, graft_layer, save_graft
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import host_model, make_inputs
from tests.support.command_line import surgeon_here
from tests.support.loopback_hub import LoopbackHub
from tests.support.preloaded import run_code
from tests.support.tiny_models import cut_artifact

ROWS = [{"text": "the film was good", "label": index % 2} for index in range(8)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Use a workspace of the test's own."""
    monkeypatch.delenv("SURGEON_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)


def edit(folder: Path, **changes) -> Path:
    """Change a graft's record of its donor."""
    config = json.loads((folder / "config.json").read_text())
    config["donor"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def set_in(folder: Path, path: str, value) -> Path:
    """Change a value of a config.json by its dotted path."""
    config = json.loads((folder / "config.json").read_text())
    *parts, last = path.split(".")
    place = config
    for part in parts:
        place = place[part]
    place[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def layer(artifact, tmp_path):
    """A layer outside the workspace, next to a private file."""
    layer = shutil.copytree(artifact, tmp_path / "private/layer")
    (layer / "diary.txt").write_text("secret")
    return layer


@pytest.fixture
def without(layer, host_folder, tmp_path):
    """A graft whose folder has no donor/."""
    graft = save_graft(host_folder("bert"), layer, output=tmp_path / "graft", workspace=Workspace(tmp_path / "w")).path
    shutil.rmtree(graft / "donor")
    return graft


@torch.no_grad()
def logits(model):
    return model(**make_inputs()).logits


@pytest.mark.parametrize("key", ["repo", "path"])
@pytest.mark.parametrize("sha256", ["recorded", None])
def test_donor_source_in_the_config_is_not_read(key, sha256, without, layer):
    edit(without, **{key: str(layer)}, **({} if sha256 else {"sha256": None}))
    with pytest.raises(GraftError) as caught:
        GraftedModel.from_pretrained(without)
    message = str(caught.value)
    kind = "repo" if key == "repo" else "folder"
    assert f"the layer is in the {kind} {layer}, but this is not read without your consent" in message
    assert f"pass donor='{layer}' or --donor {layer}" in message


_SCRIPT = """
import sys
from layer_surgeon.errors import LayerSurgeonError
from layer_surgeon.graft import GraftedModel
for donor in (None, "victim/private-layer"):
    try:
        print(type(GraftedModel.from_pretrained("mallory/graft", donor=donor)).__name__)
    except LayerSurgeonError as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("recorded", [True, False])
def test_donor_repo_in_the_config_is_not_fetched(recorded, without, layer, tmp_path):
    """Run in a new process, because HF_ENDPOINT is read at import."""
    (layer / "diary.txt").unlink()
    with LoopbackHub() as server:
        private = server.add_repo("victim/private-layer", layer, gated="manual", accepted={"hf_good"})
        edit(
            without,
            repo="victim/private-layer",
            repo_commit=private.refs["main"],
            **({} if recorded else {"sha256": None}),
        )
        server.add_repo("mallory/graft", without)
        environment = {"HF_ENDPOINT": server.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_good"}
        done = run_code(_SCRIPT, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        refused, confirmed = done.stdout.splitlines()
        assert refused.startswith("GraftError: ")
        assert f"the repo victim/private-layer at commit {private.refs['main']}" in refused
        assert "--donor victim/private-layer" in refused
        assert confirmed == "GraftedModelForSequenceClassification"


def test_passed_donor_must_have_the_recorded_sha256(without, layer, artifact, tmp_path):
    edit(without, sha256="0" * 64)
    liar = set_in(shutil.copytree(artifact, tmp_path / "liar"), "sha256", "0" * 64)
    with pytest.raises(ArtifactError, match=r"model.safetensors has sha256 \w+, but its config.json records 0000"):
        GraftedModel.from_pretrained(without, donor=liar)
    silent = set_in(shutil.copytree(artifact, tmp_path / "silent"), "sha256", None)
    with pytest.raises(GraftError, match="has sha256 .* but the graft was made with layer 3 of tiny, sha256 0000"):
        GraftedModel.from_pretrained(without, donor=silent)
    loaded = DonorLayer.from_pretrained(artifact)
    loaded.config.sha256 = "0" * 64
    with pytest.raises(GraftError, match="can't be verified, because no file holds its weights"):
        GraftedModel.from_pretrained(without, donor=loaded)


def test_changed_layer_is_not_loaded(artifact, tmp_path):
    """The layer of a graft is a hard link, so it can be changed through another folder."""
    layer = shutil.copytree(artifact, tmp_path / "layer")
    graft_layer(host_model("bert"), layer).save_pretrained(tmp_path / "graft")
    with (layer / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    for load in (GraftedModel, AutoModelForSequenceClassification):
        with pytest.raises(
            ArtifactError, match=r"graft/donor/model.safetensors has sha256 .*surgeon extract tiny --layer 3"
        ):
            load.from_pretrained(tmp_path / "graft")


def test_python_functions_take_the_donor(without, layer, tmp_path):
    expected = logits(GraftedModel.from_pretrained(without, donor=layer))
    assert predict(without, ["a film"], donor=layer)[0].score > 0
    assert evaluate_model(without, ROWS, donor=layer).metrics.examples == 8
    settings = {"num_epochs": 1, "batch_size": 4, "device": "cpu"}
    result = finetune_model(without, ROWS, ROWS, donor=layer, output=tmp_path / "run", **settings)
    assert {path.name for path in (result.path / "donor").iterdir()} <= {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert str(layer) not in (result.path / "run.yaml").read_text()
    assert "--donor" in (result.path / "run.yaml").read_text()
    assert logits(GraftedModel.from_pretrained(result.path)).shape == expected.shape
    host_model("bert").save_pretrained(tmp_path / "bert")
    with pytest.raises(GraftError, match="is not a graft. Omit the donor"):
        predict(tmp_path / "bert", ["a film"], donor=layer)


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "a film", "--model", "graft"),
        ("evaluate", "graft", "--dataset", "rows.csv"),
        ("export", "graft", "--format", "torch"),
        ("finetune", "graft", "--dataset", "rows.csv", "--num-epochs", "1", "--device", "cpu", "--dry-run"),
    ],
    ids=lambda command: command[0],
)
def test_commands_take_the_donor(command, without, layer, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS))
    edit(without, path=str(layer))
    refused = surgeon_here(*command, "--json", cwd=tmp_path)
    assert refused.code == 1, refused.err
    assert f"--donor {layer}" in refused.document()["error"]["message"]
    accepted = surgeon_here(*command, "--json", "--donor", layer, cwd=tmp_path)
    assert accepted.code == 0, accepted.err


@pytest.mark.parametrize(
    ("path", "value", "number"),
    [
        ("host_config.num_hidden_layers", 10**9, "1,000,000,000"),
        ("donor.config.donor_config.num_hidden_layers", 10**9, "1,000,000,000"),
        ("donor.config.layer_indices", [0] * 20_000, "20,000"),
        ("donor.layer_indices", [0] * 20_000, "20,000"),
        ("num_labels", 10**8, "100,000,000"),
        ("id2label", {str(index): str(index) for index in range(200_000)}, "200,000"),
        ("graft.num_labels", 10**8, "100,000,000"),
        ("donor", "layer", "donor"),
        ("donor.sha256", 7, "sha256"),
        ("donor.hidden_size", None, "hidden_size"),
        ("transformers_weights", "../../private/model.safetensors", "../../private"),
        ("_attn_implementation", "mallory/kernels", "mallory/kernels"),
        ("host_config.attn_implementation", "mallory/kernels", "mallory/kernels"),
    ],
)
def test_graft_config_sizes_are_checked_first(path, value, number, artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    set_in(tmp_path / "graft", path, value)
    for load in (GraftedModel.from_pretrained, AutoModelForSequenceClassification.from_pretrained, profile_graft):
        with pytest.raises(LayerSurgeonError) as caught:
            load(tmp_path / "graft")
        assert number in str(caught.value)


def test_a_config_that_is_nested_too_deeply(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    text = (tmp_path / "graft/config.json").read_text().rstrip().removesuffix("}")
    (tmp_path / "graft/config.json").write_text(f'{text}, "deep": {"[" * 100_000}{"]" * 100_000}}}')
    with pytest.raises(GraftError, match="nested too deeply"):
        GraftedModel.from_pretrained(tmp_path / "graft")


@pytest.mark.parametrize(
    ("path", "value", "number"),
    [
        ("donor_config.num_hidden_layers", 10**9, "1,000,000,000"),
        ("layer_indices", [0] * 20_000, "20,000"),
        ("donor_config.num_local_experts", 10**9, "1,000,000,000"),
        ("donor_config.num_attention_heads", -1, "num_attention_heads to -1, which is negative"),
    ],
)
def test_layer_config_sizes_are_checked_first(path, value, number, artifact, tmp_path):
    layer = set_in(shutil.copytree(artifact, tmp_path / "layer"), path, value)
    for use in (DonorLayer.from_pretrained, lambda folder: graft_layer(host_model("bert"), folder)):
        with pytest.raises(ArtifactError, match=number):
            use(layer)


@pytest.mark.parametrize("settings", [{"num_labels": 10**8}, {"id2label": dict.fromkeys(range(200_000), "x")}])
def test_too_many_labels_are_refused(settings):
    with pytest.raises(ConfigError, match=r"labels were requested; at most 100,000 are allowed"):
        GraftConfig(**settings)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_labels", 10**8),
        ("transformers_weights", "/private/x.safetensors"),
        ("_attn_implementation", "mallory/kernels"),
    ],
)
def test_host_config_sizes_are_checked_first(path, value, artifact, tmp_path):
    host_model("bert").save_pretrained(tmp_path / "host")
    set_in(tmp_path / "host", path, value)
    for use in (lambda host: graft_layer(host, artifact), lambda host: profile_graft(host, artifact)):
        with pytest.raises(GraftError, match=f"The config.json of .*host sets {path}"):
            use(tmp_path / "host")


@pytest.mark.parametrize(
    "quantisation", [{"quant_method": "quanto", "weights": "int8"}, {"quant_method": "torchao", "quant_type": "x"}]
)
def test_host_with_unsupported_quantisation(quantisation, artifact, tmp_path):
    host_model("bert").save_pretrained(tmp_path / "host")
    set_in(tmp_path / "host", "quantization_config", quantisation)
    with pytest.raises(GraftError, match="host' are quantised and can't be loaded: .* in float32, float16 or bfloat16"):
        graft_layer(tmp_path / "host", artifact)


@pytest.mark.parametrize(
    "text", ['{"base_model_name_or_path": "mallory/other"}', '{"broken": ', " " * 50_000_001 + "{}"]
)
@pytest.mark.parametrize("subfolder", ["", "part"])
def test_adapter_of_another_model_is_refused(text, subfolder, tmp_path):
    pytest.importorskip("peft")
    (tmp_path / "adapter/part").mkdir(parents=True)
    (tmp_path / "adapter/adapter_config.json").write_text(text)
    with pytest.raises(GraftError, match=r"a model that you didn't name|adapter_config.json can't be read"):
        load_model(AutoModel, tmp_path / "adapter", subfolder=subfolder)


def test_code_named_by_the_config_of_a_grafts_host_is_not_run(artifact, tmp_path, monkeypatch):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    set_in(tmp_path / "graft", "graft", {"task": "seq2seq"})
    set_in(tmp_path / "graft", "host_config.auto_map", {"AutoModelForSeq2SeqLM": "mallory/x--modeling.Evil"})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with pytest.raises(GraftError, match="trust_remote_code|custom code"):
        GraftedModel.from_pretrained(tmp_path / "graft")


def test_a_damaged_layer_in_the_workspace_hides_no_other(without, artifact, tmp_path):
    set_in(shutil.copytree(artifact, tmp_path / "surgery/layers/a-damaged"), "layer_indices", "x")
    shutil.copytree(artifact, tmp_path / "surgery/layers/sound")
    assert GraftedModel.from_pretrained(without).donor is not None


@pytest.mark.parametrize("shard", ["../private/model.safetensors", "{private}/model.safetensors"])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json", "own"])
@pytest.mark.parametrize("kind", ["host", "graft"])
def test_index_with_weights_of_another_folder_is_refused(kind, index, shard, artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    host_model("bert").save_pretrained(tmp_path / "host")
    folder = tmp_path / kind
    (tmp_path / "private").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "private/model.safetensors")
    names = [name for name, _ in host_model("bert").named_parameters()]
    content = {"metadata": {}, "weight_map": dict.fromkeys(names, shard.format(private=tmp_path / "private"))}
    if index == "own":
        index = "other.safetensors.index.json"
        set_in(folder, "transformers_weights", index)
    (folder / index).write_text(json.dumps(content))
    with pytest.raises(GraftError, match=rf"{index} names the file .*private/model.safetensors', which is not in the"):
        graft_layer(folder, artifact) if kind == "host" else GraftedModel.from_pretrained(folder)


def test_graft_in_a_subfolder_with_weights_of_another_folder_is_refused(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "all/graft")
    index = {"metadata": {}, "weight_map": {"x": "../../model.safetensors"}}
    (tmp_path / "all/graft/model.safetensors.index.fp16.json").write_text(json.dumps(index))
    with pytest.raises(GraftError, match=r"index.fp16.json names the file '../../model.safetensors'"):
        GraftedModel.from_pretrained(tmp_path / "all", subfolder="graft", variant="fp16")


def test_other_index_files_are_ignored(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    (tmp_path / "graft/search.index.json").write_text("[1, 2]")
    GraftedModel.from_pretrained(tmp_path / "graft")


def test_workspace_layer_with_another_sha256_is_not_used(without, artifact, tmp_path):
    cut_artifact(artifact.parent / "llm", [2], tmp_path / "surgery/layers/other")
    with pytest.raises(GraftError, match="doesn't have this layer either"):
        GraftedModel.from_pretrained(without)


def test_invalid_quantization_config(artifact, tmp_path):
    host_model("bert").save_pretrained(tmp_path / "host")
    set_in(tmp_path / "host", "quantization_config", "x")
    with pytest.raises(GraftError, match="has a quantization_config that is not a table"):
        graft_layer(tmp_path / "host", artifact)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("attn_implementation", "mallory/kernels"),
        ("donor_config._attn_implementation", "mallory/kernels"),
        ("donor_config.experts_implementation", {"": "mallory/kernels"}),
    ],
)
def test_layer_config_with_kernels_is_refused(path, value, artifact, tmp_path):
    layer = set_in(shutil.copytree(artifact, tmp_path / "layer"), path, value)
    for load in (DonorLayer.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ArtifactError, match="mallory/kernels.*, which is code from the Hub. Such code is not run"):
            load(layer)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("donor_config.quantization_config", "x"),
        ("donor_config.num_attention_heads", 0),
        ("donor_config.hidden_act", "evil"),
        ("donor_config.rope_parameters", {"rope_type": "yarn", "factor": "x"}),
        ("donor_config.dtype", "load"),
        ("dtype", "load"),
    ],
)
def test_layer_config_with_invalid_types(path, value, artifact, tmp_path):
    layer = set_in(shutil.copytree(artifact, tmp_path / "layer"), path, value)
    with pytest.raises(LayerSurgeonError):
        DonorLayer.from_pretrained(layer)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("graft.site", 10**9),
        ("host_config.model_type", []),
        ("host_config.hidden_act", "evil"),
        ("host", "x"),
        ("id2label", [1]),
        ("id2label", {"a": "b"}),
        ("num_labels", "x"),
        ("dtype", "load"),
        ("quantization_config", {"quant_method": "gptq"}),
    ],
)
def test_graft_config_with_invalid_types(path, value, artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    set_in(tmp_path / "graft", path, value)
    with pytest.raises(GraftError):
        GraftedModel.from_pretrained(tmp_path / "graft")


def test_graft_records_the_sha256_that_its_layer_lacks(artifact, tmp_path):
    layer = set_in(shutil.copytree(artifact, tmp_path / "layer"), "sha256", None)
    graft_layer(host_model("bert"), layer).save_pretrained(tmp_path / "graft")
    assert GraftedModel.from_pretrained(tmp_path / "graft").config.donor["sha256"]
