"""DonorLayer as a module: frozen, complete, loaded and saved unchanged, causal and bidirectional."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, LlamaModel

from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import ArtifactError, UnsupportedArchitectureError
from layer_surgeon.extract import LayerArtifact, extract_layer
from tests.support.command_line import surgeon_here
from tests.support.exactness import watch
from tests.support.tiny_models import (
    WIDTH,
    model_from,
    save_artifact,
    save_quietly,
    tiny_config,
    tiny_llama,
    tiny_model,
)


def states(batch=2, length=9, seed=0):
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_has_the_weights_of_the_layer_and_nothing_else(donor, llama):
    expected = {f"layers.0.{name}": tensor for name, tensor in llama.model.layers[2].state_dict().items()}
    assert donor.state_dict().keys() == expected.keys() == dict(donor.named_parameters()).keys()
    assert all(torch.equal(donor.state_dict()[name], tensor) for name, tensor in expected.items())
    assert not any(buffer.is_meta for buffer in donor.buffers())


def test_attributes(donor):
    assert (donor.hidden_size, donor.layer_indices) == (WIDTH, (2,))
    assert donor.config.hidden_size == WIDTH


def test_stays_frozen_and_in_eval_mode_inside_a_model_in_training(donor):
    outer = nn.ModuleDict({"donor": donor, "other": nn.Linear(2, 2)}).train()
    assert outer["other"].training
    assert not any(module.training for module in donor.modules())
    assert not any(parameter.requires_grad for parameter in donor.parameters())


def test_unfreezes_and_freezes_again(donor):
    donor.unfreeze().train()
    assert donor.layers[0].training
    assert all(parameter.requires_grad for parameter in donor.parameters())
    donor.freeze()
    assert not donor.layers[0].training
    assert not any(parameter.requires_grad for parameter in donor.parameters())


def test_hidden_states_get_gradients_through_frozen_weights(donor):
    hidden_states = states().requires_grad_()
    donor(hidden_states).sum().backward()
    assert hidden_states.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in donor.parameters())


def test_does_not_modify_its_input(tmp_path):
    # ctrl scales its embeddings in place.
    donor = DonorLayer.from_pretrained(save_artifact(tiny_model("ctrl"), [1], tmp_path / "ctrl"))
    hidden_states = states()
    donor(hidden_states)
    assert torch.equal(hidden_states, states())


def test_several_layers_run_in_order(llama, tmp_path):
    both = DonorLayer.from_pretrained(save_artifact(llama, [3, 1, 1], tmp_path / "both"))
    single_layers = {i: DonorLayer.from_pretrained(save_artifact(llama, [i], tmp_path / str(i))) for i in (1, 3)}
    assert both.layer_indices == (3, 1, 1)
    assert torch.equal(both(states()), single_layers[1](single_layers[1](single_layers[3](states()))))


def test_neighbouring_layers_are_exact(llama, tmp_path):
    donor = DonorLayer.from_pretrained(save_artifact(llama, [2, 3], tmp_path / "two"))
    input_ids = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(1))
    before, after = watch(llama, 2, input_ids, None).before, watch(llama, 3, input_ids, None).after
    assert torch.equal(donor(before), after)


def test_a_run_finds_the_layers_of_the_family_once(tmp_path, monkeypatch):
    """Building a model of 80 layers takes 0.05 s. A run over all layers loads one after the other."""
    config = tiny_config("llama", intermediate_size=56)
    save_artifact(model_from(config), [0, 1], tmp_path / "two")
    save_artifact(model_from(config), [2], tmp_path / "one")
    built = []
    monkeypatch.setattr(LlamaModel, "__init__", count_calls(LlamaModel.__init__, built))
    DonorLayer.from_pretrained(tmp_path / "two")
    DonorLayer.from_pretrained(tmp_path / "one")
    assert len(built) == 1 + 3


def count_calls(function, calls):
    def counted(*arguments, **keywords):
        calls.append(function.__qualname__)
        return function(*arguments, **keywords)

    return counted


def test_positions_matter(donor):
    shifted = donor(states(), position_ids=torch.arange(9)[None].expand(2, 9) * 3)
    assert not torch.allclose(shifted, donor(states()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_dtype_of_weights_and_of_outputs(artifact, dtype):
    donor = DonorLayer.from_pretrained(artifact, dtype=dtype)
    assert {parameter.dtype for parameter in donor.parameters()} == {torch.bfloat16}
    assert donor(states()).dtype == torch.float32
    assert donor(states().bfloat16()).dtype == torch.bfloat16


def test_default_dtype_is_the_artifacts(llama, tmp_path):
    folder = save_artifact(llama, [0], tmp_path / "bf16", dtype="bfloat16")
    assert DonorLayer.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_weights_are_the_files_in_the_requested_dtype(llama, stored, asked, tmp_path):
    folder = save_artifact(llama, [0], tmp_path / "layer", dtype=stored)
    loaded = DonorLayer.from_pretrained(folder, dtype=asked).state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(loaded[name], tensor.to(getattr(torch, asked)))
        assert loaded[name].data_ptr() % 64 == 0


def test_converting_the_weights_keeps_rotary_frequencies_in_float32(donor, artifact):
    frequencies = {name: buffer.clone() for name, buffer in donor.named_buffers() if "inv_freq" in name}
    converted = donor.to(torch.bfloat16)
    assert frequencies
    assert all(torch.equal(dict(converted.named_buffers())[name], value) for name, value in frequencies.items())
    assert torch.equal(converted(states()), DonorLayer.from_pretrained(artifact, dtype=torch.bfloat16)(states()))


def test_copies_have_their_own_weights(donor):
    for copied in (copy.deepcopy(donor), pickle.loads(pickle.dumps(donor))):  # noqa: S301 - our own bytes
        assert torch.equal(copied(states()), donor(states()))
        copied.layers[0].mlp.up_proj.weight.data.zero_()
        assert not torch.equal(copied(states()), donor(states()))


# Causal and bidirectional ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral", "falcon", "gpt2", "opt", "mixtral", "gpt_neox"])
def test_bidirectional_attends_to_later_positions_but_not_to_padding(family, tmp_path):
    donor = DonorLayer.from_pretrained(save_artifact(tiny_model(family), [0], tmp_path / family))
    changed = states()
    changed[:, -1] *= -2
    mask = torch.ones(2, 9, dtype=torch.long)
    assert torch.equal(donor(states(), mask)[:, 0], donor(changed, mask)[:, 0])
    # Nine positions exceed the sliding window of five, which must not apply.
    assert not torch.allclose(donor(states(), mask, causal=False)[:, 0], donor(changed, mask, causal=False)[:, 0])
    mask[:, -1] = 0
    padded = donor(states(), mask, causal=False)[:, :-1]
    torch.testing.assert_close(padded, donor(changed, mask, causal=False)[:, :-1], rtol=0, atol=0)
    torch.testing.assert_close(padded, donor(states()[:, :-1], causal=False), rtol=1e-5, atol=1e-5)


def test_one_position_is_the_same_causally_and_bidirectionally(donor):
    torch.testing.assert_close(donor(states(length=1), causal=False), donor(states(length=1)))


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [("bloom", {}, "mask"), ("mpt", {}, "bias per key"), ("falcon", {"alibi": True}, "mask")],
)
def test_layers_that_only_work_causally_are_refused_bidirectionally(family, settings, reason, tmp_path):
    donor = DonorLayer.from_pretrained(save_artifact(tiny_model(family, **settings), [1], tmp_path / family))
    donor(states())
    with pytest.raises(UnsupportedArchitectureError, match=f"bidirectionally: .*{reason}.*causal=True"):
        donor(states(), causal=False)


# Random weights ---------------------------------------------------------------------------------------------------


def test_from_config_uses_the_familys_initialisation(donor):
    random = DonorLayer.from_config(donor.config)
    assert {n: p.shape for n, p in random.named_parameters()} == {n: p.shape for n, p in donor.named_parameters()}
    weight = random.layers[0].mlp.up_proj.weight
    assert weight.std().item() == pytest.approx(random.scaffolds[0].config.initializer_range, rel=0.2)
    assert torch.equal(random.layers[0].input_layernorm.weight, torch.ones(WIDTH))
    assert not any(parameter.requires_grad for parameter in random.parameters())
    assert (random.config.sha256, random.config.source) == (None, None)
    assert donor.config.sha256 is not None


def test_from_config_follows_the_seed(donor):
    torch.manual_seed(1)
    first = DonorLayer.from_config(donor.config).state_dict()
    torch.manual_seed(1)
    again = DonorLayer.from_config(donor.config).state_dict()
    other = DonorLayer.from_config(donor.config).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.mlp.up_proj.weight"], other["layers.0.mlp.up_proj.weight"])


def test_from_config_with_the_donors_weights_computes_what_the_donor_computes(donor):
    random = DonorLayer.from_config(donor.config)
    random.load_state_dict(donor.state_dict())
    assert torch.equal(random(states()), donor(states()))


def test_donor_without_weights(donor):
    with torch.device("meta"):
        empty = DonorLayer(copy.deepcopy(donor.config))
    assert all(parameter.is_meta for parameter in empty.parameters())


# Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "phi3", "qwen3_moe"])
def test_saving_restores_the_artifact_bit_for_bit(family, tmp_path):
    model = tiny_llama() if family == "llama" else tiny_model(family)
    first = save_artifact(model, [1, 3], tmp_path / "first")
    DonorLayer.from_pretrained(first).save_pretrained(tmp_path / "second")
    before, after = load_file(first / "model.safetensors"), load_file(tmp_path / "second" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (first, tmp_path / "second"))
    assert all(old[key] == new[key] for key in old if key != "sha256")
    again = DonorLayer.from_pretrained(tmp_path / "second")
    assert again.config.sha256 == new["sha256"]
    assert torch.equal(again(states()), DonorLayer.from_pretrained(first)(states()))


def test_a_saved_artifact_passes_its_own_verification_after_training(llama, tmp_path):
    first = save_artifact(llama, [1], tmp_path / "first")
    config = json.loads((first / "config.json").read_text())
    config["source"]["tensors"] = {
        name: {"name": name, "sha256": "0"} for name in load_file(first / "model.safetensors")
    }
    config["source"]["tensors"]["layers.0.attn.bias"] = {"name": "not used by the family", "sha256": "0"}
    (first / "config.json").write_text(json.dumps(config))
    (first / "LICENSE").write_text("terms")
    donor = DonorLayer.from_pretrained(first)
    donor.layers[0].mlp.up_proj.weight.data.mul_(2)
    donor.save_pretrained(tmp_path / "second")
    saved = LayerArtifact.open(tmp_path / "second")
    saved.verify()
    assert saved.config["source"]["changed"] is True
    assert {(entry["dtype"], len(entry["shape"]) > 0) for entry in saved.recorded.values()} == {("F32", True)}
    assert "layers.0.attn.bias" not in saved.recorded
    assert (tmp_path / "second" / "LICENSE").read_text() == "terms"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changed_weights_are_not_taken_for_the_donors(llama, tmp_path, dtype):
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("a" * 40)
    save_quietly(llama, snapshot)
    artifact = extract_layer(snapshot, 1, tmp_path / "out")
    donor = DonorLayer.from_pretrained(artifact.path, dtype=dtype)
    if dtype == "float32":
        donor.layers[0].mlp.up_proj.weight.data.mul_(2)
    donor.save_pretrained(artifact.path)
    assert {entry["dtype"] for entry in LayerArtifact.open(artifact.path).recorded.values()} == {
        {"float32": "F32", "bfloat16": "BF16"}[dtype]
    }
    result = surgeon_here("extract", "--verify", artifact.path, cwd=tmp_path)
    assert "byte for byte as they were saved after a change" in result.out
    with pytest.raises(ArtifactError, match="already holds another layer, or another version"):
        extract_layer(snapshot, 1, artifact.path)


def test_random_weights_can_be_saved_and_loaded(donor, tmp_path):
    random = DonorLayer.from_config(donor.config)
    random.save_pretrained(tmp_path / "random")
    loaded = DonorLayer.from_pretrained(tmp_path / "random")
    assert torch.equal(loaded(states()), random(states()))


def test_experts_are_fused_by_the_familys_conversion(tmp_path):
    folder = save_artifact(tiny_model("mixtral"), [1], tmp_path / "mixtral")
    names = load_file(folder / "model.safetensors").keys()
    assert any("experts.0.w1" in name for name in names)
    assert not any("experts.0.w1" in name for name, _ in DonorLayer.from_pretrained(folder).named_parameters())


def test_auto_model_returns_a_donor_layer(artifact):
    donor = AutoModel.from_pretrained(artifact, dtype=torch.bfloat16, attn_implementation="eager")
    assert isinstance(donor, DonorLayer)
    assert (donor.dtype, donor.config._attn_implementation) == (torch.bfloat16, "eager")
    assert donor.scaffolds[0].config._attn_implementation == "eager"


def test_multimodal_donor_uses_its_text_part(tmp_path):
    text = tiny_config("gemma3_text")
    folder = save_artifact(model_from(text), [1], tmp_path / "text")
    alone = DonorLayer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["donor_config"] = {"model_type": "gemma3", "text_config": config["donor_config"], "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(DonorLayer.from_pretrained(folder)(states()), alone(states()))
