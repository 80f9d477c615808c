"""Loudness and `projection_init`: matched satisfies its two equations; auto matches loud grafts and tells the user."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import ConfigError, GraftError
from layer_surgeon.finetune.parts import part_of
from layer_surgeon.graft import GraftConfig, GraftedModel, adapter_settings, graft_layer, save_graft
from layer_surgeon.graft.matching import match_projections, matching_batch, measure_loudness
from tests.graft.conftest import host_config, host_model, make_inputs
from tests.support.command_line import surgeon_here
from tests.support.tiny_models import save_artifact, tiny_model

# By DeBERTa, of the oldest transformers that is supported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

LOUD = 20000.0


def rms(values):
    return float(values.double().square().mean().sqrt())


@torch.no_grad()
def loudness(model, batch=None):
    """RMS of the host's vectors, of the donor layer's input, of what it adds, and of the graft's output."""
    seen = {}
    hooks = [
        getattr(model, name).register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args[0], out)}))
        for name in ("proj_in", "donor", "proj_out")
    ]
    model(**(batch or matching_batch(model)))
    for hook in hooks:
        hook.remove()
    hidden, inside = seen["proj_in"]
    return rms(hidden), rms(inside), rms(seen["donor"][1].double() - inside.double()), rms(seen["proj_out"][1])


def assert_matched(model):
    hidden, inside, added, out = loudness(model)
    assert inside == pytest.approx(added, rel=0.01)
    assert out == pytest.approx(hidden, rel=0.01)


def graft(host_type, donor, task="text-classification", *, seed=3, dtype=None, **settings):
    auto = {"seq2seq": AutoModelForSeq2SeqLM, "causal-lm": AutoModelForCausalLM}.get(task, AutoModel)
    host = host_model(host_type, auto=auto)
    torch.manual_seed(seed)
    settings = {"projection_init": "default", **settings}
    return graft_layer(host if dtype is None else host.to(dtype), donor, task, **settings)


@pytest.fixture(autouse=True)
def folder_of_its_own(tmp_path, monkeypatch):
    """`save_graft` records the latest graft in ./surgery."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """A loud layer: the last weight matrix of its MLP is multiplied by 20,000."""
    llm = tiny_model("llama", seed=5)
    with torch.no_grad():
        llm.model.layers[3].mlp.down_proj.weight.mul_(LOUD)
    return save_artifact(llm, [2, 3], tmp_path_factory.mktemp("loud") / "two-layers")


@pytest.mark.parametrize(
    ("host_type", "task"),
    [
        ("bert", "text-classification"),
        ("roberta", "question-answering"),
        ("deberta-v2", "token-classification"),
        ("bert", "feature-extraction"),
        ("llama", "text-classification"),
        ("gpt2", "causal-lm"),
        ("qwen2", "causal-lm"),
        ("t5", "seq2seq"),
        ("bart", "seq2seq"),
        ("t5", "text-classification"),
    ],
)
def test_matched_graft_satisfies_both_equations(host_type, task, artifact):
    assert_matched(graft(host_type, artifact, task, projection_init="matched"))


@pytest.mark.parametrize("site", ["embeddings", 0, -1])
@pytest.mark.parametrize("host_type", ["bert", "llama"])
def test_every_site(host_type, site, artifact):
    assert_matched(graft(host_type, artifact, site=site, projection_init="matched"))


@pytest.mark.parametrize(
    "settings",
    [
        {"residual": "gated"},
        {"donor_init": "random"},
        {"train_donor": True},
        {"donor_dtype": "bfloat16"},
        {"donor_dtype": "float16"},
        {"projection_bias": True},
        {"pooling": "mean"},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_every_kind_of_donor_and_projection(settings, artifact):
    model = graft("bert", artifact, projection_init="matched", **settings)
    assert_matched(model)
    if model.gate is not None:
        assert model.gate.item() == 0
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_loud_layers(loud):
    hidden, inside, added, out = loudness(graft("bert", loud))
    assert added > 100 * inside
    assert out > 10 * hidden
    assert_matched(graft("bert", loud, projection_init="matched"))
    assert_matched(graft("bert", loud, "question-answering", projection_init="matched"))


@pytest.mark.parametrize(
    ("host_type", "task"), [("bert", "text-classification"), ("t5", "seq2seq"), ("gpt2", "causal-lm")]
)
def test_loudness_is_output_rms_divided_by_host_rms(host_type, task, loud):
    model = graft(host_type, loud, task)
    state = torch.get_rng_state()
    hidden, _, _, out = loudness(model, matching_batch(model, 4))
    assert measure_loudness(model) == pytest.approx(out / hidden)
    assert torch.equal(state, torch.get_rng_state())
    assert measure_loudness(graft(host_type, loud, task, projection_init="matched")) == pytest.approx(1, rel=0.2)


def test_loudness_is_none_if_it_cant_be_measured(artifact):
    nothing_to_read, no_number = graft("bert", artifact), graft("bert", artifact)
    assert measure_loudness(nothing_to_read) is not None
    nothing_to_read.config.host_config.vocab_size = 0
    assert measure_loudness(nothing_to_read) is None
    with torch.no_grad():
        no_number.proj_out.weight.fill_(float("nan"))
    assert measure_loudness(no_number) is None


def test_loud_graft_prints_a_notice(loud, artifact, host_folder, tmp_path):
    host, default = host_folder("bert"), GraftConfig(projection_init="default")
    result = save_graft(host, loud, config=default, output=tmp_path / "loud")
    assert result.is_loud
    assert not save_graft(host, artifact, output=tmp_path / "quiet").is_loud
    gated = save_graft(host, loud, config=GraftConfig(residual="gated"), output=tmp_path / "gated")
    assert gated.loudness == pytest.approx(result.loudness)
    assert not gated.is_loud
    assert save_graft(host, None, output=tmp_path / "alone").loudness is None
    told = surgeon_here("graft", host, "--donor", loud, "--recipe", "paper", "--output", "told", cwd=tmp_path)
    assert f"is {result.loudness:,.0f} times as large as the host's (RMS)" in " ".join(told.out.split())
    quiet = surgeon_here(
        "graft", host, "--donor", loud, "--projection-init", "matched", "-o", "x", "--json", cwd=tmp_path
    )
    assert json.loads(quiet.out)["loudness"] == pytest.approx(1, rel=0.2)


def test_donor_with_a_norm_on_its_output(tmp_path):
    layer = save_artifact(tiny_model("olmo2"), [3], tmp_path / "olmo2")
    assert_matched(graft("bert", layer, projection_init="matched"))


@pytest.mark.parametrize("settings", [{}, {"projection_bias": True}, {"donor_init": "random"}, {"residual": "gated"}])
def test_weights_are_those_of_the_default_and_scale_is_separate(settings, artifact):
    plain = graft("bert", artifact, **settings)
    matched = graft("bert", artifact, projection_init="matched", **settings)
    weights = dict(matched.named_parameters())
    assert set(weights) == {name for name, _ in plain.named_parameters()}
    for name, values in plain.named_parameters():
        assert torch.equal(values, weights[name])
    hidden = torch.randn(2, 5, plain.proj_in.in_features)
    for name in ("proj_in", "proj_out"):
        scale = getattr(matched, name).scale
        assert scale.shape == (1,)
        assert 0 < scale.item() != 1
        assert f"{name}.scale" in matched.state_dict()
        assert f"{name}.scale" not in plain.state_dict()
    torch.testing.assert_close(matched.proj_in(hidden), plain.proj_in(hidden) * matched.proj_in.scale)


def test_training_step_changes_the_output_in_proportion(loud):
    """Scaled weights would behave differently: Adam changes each by the learning rate, even if it is tiny."""
    model, inputs = graft("bert", loud, projection_init="matched"), make_inputs(8)
    optimizer = torch.optim.Adam([model.proj_out.weight], lr=1e-4)
    before = loudness(model, inputs)[3]
    model(**inputs, labels=torch.zeros(len(inputs["input_ids"]), dtype=torch.long)).loss.backward()
    optimizer.step()
    assert model.proj_out.scale.item() < 1e-2
    assert 0 < abs(loudness(model, inputs)[3] / before - 1) < 0.1


@pytest.mark.parametrize(("host_type", "task"), [("bert", "text-classification"), ("t5", "seq2seq")])
def test_torchs_random_state_is_neither_used_nor_changed(host_type, task, artifact):
    states = []
    for kind in ("default", "matched"):
        model = graft(host_type, artifact, task, projection_init=kind)
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)
    before = model.proj_in.scale.clone(), model.proj_out.scale.clone()
    torch.manual_seed(99)
    match_projections(model)
    # What is matched stays as it is, whatever the state: the batch is always the same.
    torch.testing.assert_close((model.proj_in.scale, model.proj_out.scale), before, rtol=1e-3, atol=0)
    assert torch.equal(matching_batch(model)["input_ids"], matching_batch(model)["input_ids"])


def test_equations_hold_approximately_on_other_texts(loud):
    hidden, inside, added, out = loudness(graft("bert", loud, projection_init="matched"), make_inputs(8))
    assert 0.5 < inside / added < 2
    assert 0.5 < out / hidden < 2


def test_scales_are_stored_and_loaded(artifact, host_folder, tmp_path):
    config = GraftConfig(projection_init="matched")
    result = save_graft(host_folder("bert"), artifact, config=config, output=tmp_path / "graft")
    plain = save_graft(host_folder("bert"), artifact, output=tmp_path / "plain")
    assert plain.settings.projection_init == "default"
    assert result.settings.projection_init == "matched"
    assert json.loads((result.path / "config.json").read_text())["graft"]["projection_init"] == "matched"
    assert "projection_init matched" in (result.path / "README.md").read_text()
    loaded, default = (GraftedModel.from_pretrained(folder.path) for folder in (result, plain))
    assert loaded.config.settings.projection_init == "matched"
    assert_matched(loaded)
    # Where the stored numbers are changed, they stay changed: nothing is matched on loading.
    with torch.no_grad():
        loaded.proj_in.weight.mul_(7)
    loaded.save_pretrained(tmp_path / "again")
    again = GraftedModel.from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in again.state_dict().items())
    assert torch.equal(default.proj_in.weight * 7, again.proj_in.weight)
    assert again.proj_in.scale.item() != 1


def test_older_graft_without_projection_init_loads_as_default(artifact, tmp_path):
    model = graft("bert", artifact)
    model.save_pretrained(tmp_path / "graft")
    path = tmp_path / "graft" / "config.json"
    content = json.loads(path.read_text())
    del content["graft"]["projection_init"]
    path.write_text(json.dumps(content))
    loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    assert loaded.config.settings.projection_init == "default"
    assert torch.equal(loaded.proj_in.weight, model.proj_in.weight)


def test_what_is_refused(artifact, tmp_path):
    with pytest.raises(ConfigError, match="which needs a donor. Leave projection_init out"):
        graft_layer(host_model("bert"), None, projection_init="matched")
    with pytest.raises(ConfigError, match="projection_init is 'xavier'; it must be one of auto, default, matched"):
        GraftConfig(projection_init="xavier")
    silent = tiny_model("llama")
    with torch.no_grad():
        for part in (silent.model.layers[3].self_attn.o_proj, silent.model.layers[3].mlp.down_proj):
            part.weight.zero_()
    layer = save_artifact(silent, [3], tmp_path / "silent")
    with pytest.raises(GraftError, match="the donor layer adds has an RMS of 0; .* Choose projection_init default"):
        graft("bert", layer, projection_init="matched")
    broken = DonorLayer.from_pretrained(artifact)
    nn.init.constant_(broken.layers[0].mlp.down_proj.weight, float("inf"))
    with pytest.raises(GraftError, match="an RMS of (nan|inf)"):
        graft("bert", broken, projection_init="matched")
    nameless = host_model("bert")
    nameless.config = host_config("bert", vocab_size=0)
    with pytest.raises(GraftError, match="has no vocab_size"):
        graft_layer(nameless, artifact, projection_init="matched")


def test_meta_device_has_no_scales_to_set(artifact):
    with torch.device("meta"):
        host = AutoModel.from_config(host_config("bert"))
        model = graft_layer(host, artifact, projection_init="matched", donor_init="random")
    assert model.config.settings.projection_init == "matched"


@pytest.mark.parametrize(("host_type", "task"), [("bert", "text-classification"), ("t5", "seq2seq")])
def test_auto_matches_a_loud_graft_and_warns(host_type, task, loud):
    default, matched = (graft(host_type, loud, task, projection_init=kind) for kind in ("default", "matched"))
    with pytest.warns(UserWarning, match=f"would be {measure_loudness(default):,.0f} times as large as the host's"):
        auto = graft(host_type, loud, task, projection_init="auto")
    assert auto.config.settings.projection_init == "matched"
    assert_matched(auto)
    expected = matched.state_dict()
    assert auto.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in auto.state_dict().items())


def test_auto_changes_nothing_if_the_graft_is_not_loud(artifact, loud):
    plain = graft("bert", artifact)
    auto = graft("bert", artifact, projection_init="auto")
    assert auto.config.settings.projection_init == "default"
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in auto.state_dict().items())
    # These start from the host, or have a norm that fixes the size of the output.
    for settings in ({"residual": "gated"}, {"proj_out_norm": True}):
        assert graft("bert", loud, projection_init="auto", **settings).config.settings.projection_init == "default"
    assert graft_layer(host_model("bert"), None).config.settings.projection_init == "default"


def test_auto_in_a_folder_and_on_the_command_line(loud, host_folder, tmp_path):
    host = host_folder("bert")
    result = save_graft(host, loud, output=tmp_path / "graft")
    assert result.settings.projection_init == "matched"
    assert result.loudness == pytest.approx(1, rel=0.2)
    assert result.loudness_unmatched > 10
    assert not result.is_loud
    assert_matched(GraftedModel.from_pretrained(result.path))
    shown = surgeon_here("graft", host, "--donor", loud, "-o", "auto", cwd=tmp_path)
    assert f"would be {result.loudness_unmatched:,.0f} times as large" in " ".join(shown.out.split())
    paper = surgeon_here("graft", host, "--donor", loud, "--recipe", "paper", "-o", "paper", "--json", cwd=tmp_path)
    assert paper.document()["settings"]["projection_init"] == "default"
    both = ("--recipe", "paper", "--projection-init", "matched")
    refused = surgeon_here("graft", host, "--donor", loud, *both, "-o", "x", cwd=tmp_path)
    assert refused.code == 2
    assert "the paper's initialisation is default. Leave one of the two options out." in refused.err


def test_grafts_with_other_settings_are_next_to_each_other(artifact, host_folder, tmp_path):
    host = host_folder("bert")
    folders = {
        Path(surgeon_here("graft", host, "--donor", artifact, *options, "--json", cwd=tmp_path).document()["path"]).name
        for options in (
            (),
            ("--projection-init", "matched"),
            ("--recipe", "paper"),
            ("--pooling", "mean", "--residual", "gated"),
            ("--id2label", '{"0": "a", "1": "b", "2": "c"}', "--seed", "7"),
            ("--train-donor", "--dropout", "0.1", "--site", "0"),
        )
    }
    stem = f"bert+{artifact.name}"
    endings = (
        "",
        "-matched",
        "-projection-init-default",
        "-mean-gated",
        "-3-labels-seed-7",
        "-site-0-train-donor-dropout-0.1",
    )
    assert folders == {stem + ending for ending in endings}


@torch.no_grad()
def test_proj_out_norm_is_a_layer_norm_after_proj_out(artifact, tmp_path):
    model = graft("bert", artifact, proj_out_norm=True)
    hidden = torch.randn(2, 5, model.proj_in.in_features)
    out = model.proj_out(model.donor(model.proj_in(hidden), attention_mask=None, causal=False))
    expected = (out - out.mean(-1, keepdim=True)) / (out.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(model.graft(hidden), expected)
    assert model.parameter_counts()["proj_out_norm"] == (2 * model.proj_in.in_features,) * 2
    model.proj_out_norm.weight.normal_()
    model.save_pretrained(tmp_path / "graft")
    assert "LayerNorm after proj_out" in (tmp_path / "graft/README.md").read_text()
    loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    assert torch.equal(loaded.graft(hidden), model.graft(hidden))


def test_proj_out_norm_is_trained_and_refused_with_matched(artifact):
    model = graft("bert", artifact, proj_out_norm=True)
    assert "proj_out_norm" in adapter_settings(model)["modules_to_save"]
    assert part_of("proj_out_norm.weight", model) == "projections"
    model(**make_inputs(4), labels=torch.zeros(4, dtype=torch.long)).loss.backward()
    assert model.proj_out_norm.weight.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="the norm would undo the scale of proj_out. Choose one of the two"):
        GraftConfig(projection_init="matched", proj_out_norm=True)
