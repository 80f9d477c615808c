"""`save_graft` writes a complete folder or nothing, and refuses bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import ArtifactError, ConfigError, GraftError, SourceNotFoundError, WorkspaceError
from layer_surgeon.extract import LayerArtifact
from layer_surgeon.graft import GraftConfig, GraftedModel, graft_layer, save_graft
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import host_model, make_inputs, word_tokenizer
from tests.support.command_line import surgeon


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "surgery")


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_default_output_is_in_the_workspace(host_folder, artifact, workspace):
    result = save_graft(host_folder("bert"), artifact, workspace=workspace)
    assert result.path == workspace.root / "grafts/bert+tiny-llama-L3"
    assert workspace.latest("graft").samefile(result.path)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "donor/model.safetensors"} <= set(
        files(result.path)
    )
    assert result.donor == "tiny-L3"
    assert result.settings == GraftConfig(
        pooling="cls", attention="bidirectional", id2label={0: "LABEL_0", 1: "LABEL_1"}, projection_init="default"
    )
    assert result.parameters["donor"][1] == 0
    assert result.num_parameters - result.num_trained_parameters == result.parameters["donor"][0]
    model = GraftedModel.from_pretrained(result.path)
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    assert model(**tokenizer(["a film", "the plot was good"], padding=True, return_tensors="pt")).logits.shape == (2, 2)
    assert [path.name for path in result.path.parent.iterdir()] == [result.path.name]


def test_the_installed_command_makes_the_same_graft(host_folder, artifact, workspace, tmp_path):
    """In a new Python, where no test has imported anything before."""
    made = surgeon("graft", host_folder("bert"), "--donor", artifact, "--output", "graft", "--json", cwd=tmp_path)
    assert made.code == 0, made.err
    assert made.document()["path"] == "graft"
    expected = save_graft(host_folder("bert"), artifact, output=tmp_path / "expected", workspace=workspace)
    assert files(tmp_path / "graft") == files(expected.path)
    weights = [path / "model.safetensors" for path in (tmp_path / "graft", expected.path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_seed_decides_the_weights_and_torchs_state_is_kept(host_folder, artifact, workspace, tmp_path):
    host = host_folder("bert")
    torch.manual_seed(0)
    state = torch.random.get_rng_state()

    def weights(name, seed):
        result = save_graft(host, artifact, output=tmp_path / name, seed=seed, workspace=workspace)
        return (result.path / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1) != weights("c", 2)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["folder", "text", "artifact", "layer", "none"])
def test_kinds_of_donors(kind, host_folder, artifact, workspace):
    donor = {
        "folder": lambda: artifact,
        "text": lambda: str(artifact),
        "artifact": lambda: LayerArtifact(artifact, json.loads((artifact / "config.json").read_text())),
        "layer": lambda: DonorLayer.from_pretrained(artifact),
        "none": lambda: None,
    }[kind]()
    result = save_graft(host_folder("bert"), donor, workspace=workspace)
    expected = {"layer": "bert+tiny-L3", "none": "bert-alone"}.get(kind, "bert+tiny-llama-L3")
    assert result.path.name == expected
    assert (result.donor is None) == (kind == "none")


def test_settings(host_folder, artifact, workspace):
    config = GraftConfig(id2label={0: "bad", 1: "good"}, pooling="mean", residual="gated", dropout=0.5)
    result = save_graft(host_folder("llama"), artifact, config=config, workspace=workspace)
    assert (result.settings.pooling, result.settings.attention) == ("mean", "causal")
    model = GraftedModel.from_pretrained(result.path)
    assert model.config.label2id == {"bad": 0, "good": 1}
    assert model.head.dropout.p == 0.5
    assert model.gate.item() == 0


def test_random_donor_is_stored_with_its_own_sha256(host_folder, artifact, workspace):
    result = save_graft(host_folder("bert"), artifact, config=GraftConfig(donor_init="random"), workspace=workspace)
    stored = json.loads((result.path / "donor/config.json").read_text())["sha256"]
    assert json.loads((result.path / "config.json").read_text())["donor"]["sha256"] == stored
    assert stored != json.loads((artifact / "config.json").read_text())["sha256"]
    first, second = (GraftedModel.from_pretrained(result.path)(**make_inputs()).logits for _ in range(2))
    assert torch.equal(first, second)


def test_a_tokenizer_without_padding_token_gets_one(artifact, workspace, tmp_path):
    host_model("gpt2", pad_token_id=None).save_pretrained(tmp_path / "gpt2")
    word_tokenizer(pad=False).save_pretrained(tmp_path / "gpt2")
    result = save_graft(tmp_path / "gpt2", artifact, workspace=workspace)
    tokenizer = AutoTokenizer.from_pretrained(result.path)
    assert tokenizer.pad_token == "</s>"
    model = GraftedModel.from_pretrained(result.path)
    assert model.config.pad_token_id == 2
    texts = ["a film", "the plot was good and the end was bad"]
    together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_existing_output_is_only_replaced_with_force(host_folder, artifact, workspace, tmp_path):
    save_graft(host_folder("bert"), artifact, output=tmp_path / "out", workspace=workspace)
    with pytest.raises(ArtifactError, match="already holds a graft. Replace it with --force"):
        save_graft(host_folder("roberta"), artifact, output=tmp_path / "out", workspace=workspace)
    assert GraftedModel.from_pretrained(tmp_path / "out").config.host_config.model_type == "bert"
    (tmp_path / "out/note.txt").write_text("x")
    before = files(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"also files that are not part of one: note.txt\. Replacing it would"):
        save_graft(host_folder("roberta"), artifact, output=tmp_path / "out", force=True, workspace=workspace)
    assert files(tmp_path / "out") == before
    (tmp_path / "out/note.txt").unlink()
    save_graft(host_folder("roberta"), artifact, output=tmp_path / "out", force=True, workspace=workspace)
    assert GraftedModel.from_pretrained(tmp_path / "out").config.host_config.model_type == "roberta"


def test_the_same_graft_made_again_stays_and_is_the_latest(host_folder, artifact, workspace):
    first = save_graft(host_folder("bert"), artifact, workspace=workspace)
    times = {name: (first.path / name).stat().st_mtime_ns for name in files(first.path)}
    other = save_graft(host_folder("roberta"), artifact, workspace=workspace)
    assert workspace.latest("graft").samefile(other.path)
    assert save_graft(host_folder("bert"), artifact, workspace=workspace) == first
    assert workspace.latest("graft").samefile(first.path)
    assert {name: (first.path / name).stat().st_mtime_ns for name in files(first.path)} == times


def test_a_graft_that_was_trained_in_its_folder_is_not_replaced(host_folder, artifact, workspace):
    path = save_graft(host_folder("bert"), artifact, workspace=workspace).path
    weights = path / "model.safetensors"
    trained = weights.read_bytes()[:-1] + b"\0"
    weights.unlink()
    weights.write_bytes(trained)
    with pytest.raises(ArtifactError, match="already holds a graft. Replace it with --force"):
        save_graft(host_folder("bert"), artifact, workspace=workspace)
    assert weights.read_bytes() == trained


@pytest.mark.parametrize("force", [False, True])
def test_folders_that_are_not_grafts_are_never_replaced(force, host_folder, artifact, workspace, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    for output in (tmp_path / "mine", tmp_path / "mine/thesis.txt"):
        with pytest.raises(ArtifactError, match="already exists and is not a graft. Choose another folder"):
            save_graft(host_folder("bert"), artifact, output=output, force=force, workspace=workspace)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_failed_write_leaves_nothing_and_keeps_the_old_graft(host_folder, artifact, workspace, tmp_path, monkeypatch):
    save_graft(host_folder("bert"), artifact, output=tmp_path / "out", workspace=workspace)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    for output, force in ((tmp_path / "new", False), (tmp_path / "out", True)):
        with pytest.raises(WorkspaceError, match="can't be written: No space left on device. Make room"):
            save_graft(host_folder("roberta"), artifact, output=output, force=force, workspace=workspace)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")} == before
    assert not (tmp_path / "new").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_old_graft_is_restored_if_the_rename_fails(host_folder, artifact, workspace, tmp_path, monkeypatch):
    save_graft(host_folder("bert"), artifact, output=tmp_path / "out", workspace=workspace)
    rename = Path.rename

    def refuse(self, target):
        if self.parent.suffix == ".tmp" and Path(target).name == "out":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(WorkspaceError, match="Input/output error"):
        save_graft(host_folder("roberta"), artifact, output=tmp_path / "out", force=True, workspace=workspace)
    assert GraftedModel.from_pretrained(tmp_path / "out").config.host_config.model_type == "bert"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_host_stored_in_bfloat16_is_trained_in_float32(artifact, workspace, tmp_path):
    host_model("bert").to(torch.bfloat16).save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    result = save_graft(tmp_path / "bert", artifact, workspace=workspace)
    assert {p.dtype for p in GraftedModel.from_pretrained(result.path).parameters()} == {torch.float32}


class TestBadInput:
    """No files are left, and the message says what to do."""

    @pytest.fixture(autouse=True)
    def _nothing_left(self, workspace):
        yield
        assert not workspace.root.exists()

    def test_host_folder_without_config(self, artifact, workspace, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(GraftError, match="holds no config.json, so it is not a transformers model"):
            save_graft(tmp_path / "empty", artifact, workspace=workspace)

    def test_missing_host(self, artifact, workspace, monkeypatch):
        with pytest.raises(SourceNotFoundError, match="The host 'no/such/model' is neither a local folder nor a repo"):
            save_graft("no/such/model", artifact, workspace=workspace)

    def test_host_with_unknown_model_type(self, artifact, workspace, tmp_path):
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd/config.json").write_text('{"model_type": "perpetuum"}')
        with pytest.raises(GraftError, match="transformers doesn't know the config.json of .*Choose another host"):
            save_graft(tmp_path / "odd", artifact, workspace=workspace)

    def test_host_without_weights(self, host_folder, artifact, workspace, tmp_path):
        shutil.copytree(host_folder("bert"), tmp_path / "bert")
        (tmp_path / "bert/model.safetensors").unlink()
        with pytest.raises(OSError, match=r"The host .* can't be loaded: .*model.safetensors"):
            save_graft(tmp_path / "bert", artifact, workspace=workspace)

    def test_host_with_damaged_weights(self, host_folder, artifact, workspace, tmp_path):
        shutil.copytree(host_folder("bert"), tmp_path / "bert")
        path = tmp_path / "bert/model.safetensors"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(GraftError, match="has weights that can't be loaded"):
            save_graft(tmp_path / "bert", artifact, workspace=workspace)

    def test_host_with_missing_tensors(self, host_folder, artifact, workspace, tmp_path):
        shutil.copytree(host_folder("bert"), tmp_path / "bert")
        config = json.loads((tmp_path / "bert/config.json").read_text())
        (tmp_path / "bert/config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(GraftError, match=r"lack 16 tensors of its model, such as encoder.layer.2"):
            save_graft(tmp_path / "bert", artifact, workspace=workspace)

    def test_host_weights_with_other_shapes_than_its_config(self, host_folder, artifact, workspace, tmp_path):
        shutil.copytree(host_folder("bert"), tmp_path / "bert")
        config = json.loads((tmp_path / "bert/config.json").read_text())
        (tmp_path / "bert/config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
        with pytest.raises(GraftError, match="has weights that can't be loaded"):
            save_graft(tmp_path / "bert", artifact, workspace=workspace)

    def test_host_without_tokenizer(self, artifact, workspace, tmp_path):
        host_model("bert").save_pretrained(tmp_path / "bert")
        with pytest.raises(GraftError, match="has no tokenizer .*: the tokenizer's files are missing. Put the"):
            save_graft(tmp_path / "bert", artifact, workspace=workspace)

    def test_missing_donor(self, host_folder, workspace, tmp_path):
        with pytest.raises(SourceNotFoundError, match="The folder .* doesn't exist. Extract a layer with: surgeon"):
            save_graft(host_folder("bert"), tmp_path / "nothing", workspace=workspace)

    def test_donor_that_is_a_whole_model(self, host_folder, artifact, workspace):
        with pytest.raises(ArtifactError, match="is not a layer artifact. If it is a language model, extract a layer"):
            save_graft(host_folder("bert"), artifact.parent / "llm", workspace=workspace)

    def test_donor_without_weights(self, host_folder, artifact, workspace, tmp_path):
        shutil.copytree(artifact, tmp_path / "layer")
        (tmp_path / "layer/model.safetensors").unlink()
        with pytest.raises(ArtifactError, match="lacks model.safetensors"):
            save_graft(host_folder("bert"), tmp_path / "layer", workspace=workspace)


def test_settings_of_graft_layer(artifact):
    host = host_model("bert")
    with pytest.raises(ConfigError, match="task is 'mind-reading'"):
        graft_layer(host, artifact, task="mind-reading")
    with pytest.raises(ConfigError, match="There is no setting 'poolings'"):
        graft_layer(host, artifact, poolings="cls")
    model = graft_layer(host, artifact, config=GraftConfig(dropout=0.5), pooling="mean")
    assert (model.config.settings.dropout, model.config.settings.pooling) == (0.5, "mean")


def test_the_task_overrides_the_config(artifact):
    host, config = host_model("bert"), GraftConfig(task="token-classification", residual="gated")
    assert graft_layer(host, artifact, config=config).config.task == "token-classification"
    model = graft_layer(host, artifact, "feature-extraction", config=config)
    assert (model.config.task, model.config.settings.residual) == ("feature-extraction", "gated")


@pytest.mark.parametrize("name", ["residual", "donor_init", "train_donor", "projection_bias", "proj_out_norm"])
def test_settings_that_need_a_donor(name):
    value = {"residual": "gated", "donor_init": "random"}.get(name, True)
    with pytest.raises(ConfigError, match=f"{name} is {value!r}, which needs a donor. Leave {name} out, or name a don"):
        graft_layer(host_model("bert"), None, **{name: value})


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_seeds_out_of_range(seed, host_folder, artifact, tmp_path):
    with pytest.raises(ConfigError, match=f"seed is {seed}; it must be a whole number from 0 to 4294967295"):
        save_graft(host_folder("bert"), artifact, output=tmp_path / "graft", seed=seed)


def test_paths_in_the_home_folder(host_folder, artifact, workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(host_folder("bert"), tmp_path / "bert")
    config = GraftConfig(task="feature-extraction")
    save_graft("~/bert", artifact, config=config, output=tmp_path / "graft", workspace=workspace)
    model = GraftedModel.from_pretrained("~/graft")
    assert model.config.host["name"] == str(tmp_path / "bert")
    expected = GraftedModel.from_pretrained(tmp_path / "graft")
    assert torch.equal(model(**make_inputs()).pooler_output, expected(**make_inputs()).pooler_output)


def test_donor_with_another_width_is_not_attached(artifact):
    model = graft_layer(host_model("bert"), artifact)
    model.donor.hidden_size = 40
    with pytest.raises(GraftError, match="is 40 wide, but the projections expect 32"):
        model.attach_donor(model.donor)
    with pytest.raises(GraftError, match="a host alone, without projections"):
        graft_layer(host_model("bert"), None).attach_donor(model.donor)
