"""int8 weights of a frozen donor are close to the originals, small, and never stored or trained."""

import copy
import json

import pytest
import torch
from torch import nn

from layer_surgeon.cost.measure import Workload
from layer_surgeon.cost.profile import profile_graft
from layer_surgeon.donor import DonorLayer, int8
from layer_surgeon.errors import ArtifactError, ConfigError, GraftError
from layer_surgeon.graft.build import graft_layer
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.modeling import GraftedModel
from tests.graft.conftest import host_config, host_model
from tests.support.tiny_models import WIDTH, save_artifact, tiny_model

needs_torchao = pytest.mark.skipif(not int8.is_available(), reason="needs the int8 extra")


def states(batch=5, length=1):
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(0))


def batch():
    ids = torch.randint(3, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 1])}


@needs_torchao
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "falcon", "mixtral"])
def test_int8_layer_stays_close_and_passes_gradients_on(family, tmp_path):
    folder = save_artifact(tiny_model(family), [2], tmp_path / family, dtype="bfloat16")
    full = DonorLayer.from_pretrained(folder, dtype=torch.float32)
    small = DonorLayer.from_pretrained(folder).to_int8()
    assert (small.int8, small.dtype, full.int8) == (True, torch.float32, False)
    for shape in ((5, 1), (2, 6)):
        inputs = [states(*shape).requires_grad_() for _ in range(2)]
        outputs = [donor(hidden) for donor, hidden in zip((full, small), inputs, strict=True)]
        for output in outputs:
            output.sum().backward()
        assert 0 < (outputs[0] - outputs[1]).abs().max() < 0.03 * outputs[0].abs().max()
        assert 0 < (inputs[0].grad - inputs[1].grad).abs().max() < 0.05 * inputs[0].grad.abs().max()
    assert all(parameter.grad is None for parameter in small.parameters())
    linear = [module for module in small.modules() if isinstance(module, nn.Linear)]
    assert linear
    assert all(module.weight.qdata.dtype == torch.int8 for module in linear)
    # A scale for each row, so that one large row costs the others nothing.
    assert all(module.weight.scale.numel() == module.out_features for module in linear)


@needs_torchao
def test_it_is_moved_and_copied_but_not_converted(artifact):
    donor = DonorLayer.from_pretrained(artifact).to_int8()
    expected = donor(states())
    for twin in (copy.deepcopy(donor), copy.deepcopy(donor).to(torch.bfloat16), copy.deepcopy(donor).half().cpu()):
        assert twin.int8
        assert twin.dtype == torch.float32
        assert torch.equal(twin(states()), expected)
    assert donor(states().bfloat16()).dtype == torch.bfloat16


@needs_torchao
def test_a_graft_keeps_the_artifact_as_it_is(artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact, donor_dtype="int8").eval()
    assert model.donor.int8
    model.save_pretrained(tmp_path / "graft")
    original, stored = artifact / "model.safetensors", tmp_path / "graft" / "donor" / "model.safetensors"
    assert stored.samefile(original)
    assert json.loads((tmp_path / "graft" / "config.json").read_text())["graft"]["donor_dtype"] == "int8"
    loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    assert loaded.donor.int8
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    model.save_pretrained(tmp_path / "without", include_donor=False)
    again = GraftedModel.from_pretrained(tmp_path / "without", donor=artifact)
    assert torch.equal(again(**batch()).logits, model(**batch()).logits)


@needs_torchao
def test_a_training_step_changes_all_but_the_donor(artifact):
    model = graft_layer(host_model("bert"), artifact, donor_dtype="int8").train()
    before = [parameter.qdata.clone() for parameter in model.donor.parameters() if hasattr(parameter, "qdata")]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    weight = model.proj_in.weight.clone()
    model(**batch()).loss.backward()
    optimizer.step()
    assert not torch.equal(model.proj_in.weight, weight)
    after = [parameter.qdata for parameter in model.donor.parameters() if hasattr(parameter, "qdata")]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert model.parameter_counts()["donor"][1] == 0


@needs_torchao
def test_loaded_layer_is_quantised_from_its_artifact(artifact, tmp_path):
    donor = DonorLayer.from_pretrained(artifact)
    model = graft_layer(host_model("bert"), donor, donor_dtype="int8")
    assert not donor.int8
    again = graft_layer(host_model("bert"), model.donor)
    assert not again.donor.int8
    assert torch.equal(again.donor(states()), donor(states()))
    donor.layers[0].mlp.up_proj.weight.data.mul_(2)
    with pytest.raises(GraftError, match="Save the layer first"):
        graft_layer(host_model("bert"), donor, donor_dtype="int8")


@needs_torchao
def test_integers_are_neither_trained_nor_saved(artifact, tmp_path):
    donor = DonorLayer.from_pretrained(artifact).unfreeze().to_int8()
    assert not any(parameter.requires_grad for parameter in donor.parameters())
    with pytest.raises(ConfigError, match="can't be trained"):
        donor.unfreeze()
    with pytest.raises(ArtifactError, match="Save the layer before to_int8"):
        donor.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@needs_torchao
def test_the_profile_counts_the_bytes(artifact):
    donor = DonorLayer.from_pretrained(artifact).to_int8()
    result = profile_graft(
        host_config("bert"), artifact, config=GraftConfig(donor_dtype="int8"), workload=Workload(batch=2, length=4)
    )
    held = 0
    for parameter in donor.parameters():
        tensors = [parameter.qdata, parameter.scale] if hasattr(parameter, "qdata") else [parameter]
        held += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert result.grafted.part("donor").num_bytes == held


@pytest.mark.parametrize(("setting", "value"), [("train_donor", True), ("donor_init", "random")])
def test_settings_that_contradict_integers_are_refused(setting, value):
    with pytest.raises(ConfigError, match=rf"donor_dtype is 'int8' and {setting}.*float32 or bfloat16"):
        GraftConfig(donor_dtype="int8", **{setting: value})


def test_missing_torchao_message(artifact, monkeypatch):
    monkeypatch.setattr(int8, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install torchao"):
        graft_layer(host_model("bert"), artifact, donor_dtype="int8")
    with pytest.raises(ConfigError, match=r"pip install torchao"):
        DonorLayer.from_pretrained(artifact).to_int8()
