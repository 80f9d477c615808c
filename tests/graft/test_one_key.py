"""The one-key shortcut in a graft: the results, the gradients and the work of the backward pass."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from layer_surgeon.donor import DonorLayer
from layer_surgeon.graft.build import graft_layer
from layer_surgeon.graft.modeling import GraftedModel
from tests.graft.conftest import host_model
from tests.support.tiny_models import WIDTH, save_artifact, tiny_llama


def batch():
    ids = torch.randint(3, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}


def results(model):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    output = model(**batch())
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach(), "loss": output.loss.detach(), **gradients}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train_donor": True},
        {"residual": "gated", "dropout": 0.5},
        {"donor_dtype": "bfloat16"},
        {"donor_dtype": "float16", "projection_bias": True},
        {"donor_init": "random", "train_donor": True, "pooling": "mean"},
        {"attention": "causal", "pooling": "last"},
    ],
)
def test_a_graft_computes_what_it_computes_in_full(settings, tmp_path):
    folder = save_artifact(tiny_llama(), [1, 3], tmp_path / "two")
    torch.manual_seed(0)
    model = graft_layer(host_model("bert"), folder, **settings).train()
    if model.gate is not None:
        torch.nn.init.ones_(model.gate)
    assert model.donor.one_key_shortcut
    short = results(model)
    model.donor.one_key_shortcut = False
    full = results(model)
    assert short.keys() == full.keys()
    assert any(name.startswith("donor.") for name in short) == settings.get("train_donor", False)
    assert "proj_in.weight" in short
    for name, value in full.items():
        torch.testing.assert_close(short[name], value, rtol=1e-6, atol=1e-6)


def test_it_is_there_after_loading(artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact).eval()
    model.save_pretrained(tmp_path / "graft")
    loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    assert loaded.donor.one_key_shortcut
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)


@pytest.mark.parametrize("length", [1, 6])
def test_backward_computes_the_gradient_to_the_input_and_nothing_for_frozen_weights(artifact, length):
    """Forward and backward need two products with each weight of a frozen layer, and three for a trained one."""
    flops = {}
    for trained in (False, True):
        donor = DonorLayer.from_pretrained(artifact)
        if trained:
            donor.unfreeze()
        states = torch.randn(4, length, WIDTH, requires_grad=True)
        output = donor(states)
        with FlopCounterMode(display=False) as counter:
            output.sum().backward()
        flops[trained] = counter.flop_counts["Global"].get(torch.ops.aten.mm, 0)
        assert states.grad.abs().sum() > 0
        assert all((p.grad is not None) == trained for p in donor.parameters())
    weights = dict(donor.layers[0].named_parameters())
    counted = [
        weight.numel()
        for name, weight in weights.items()
        if weight.ndim == 2 and (length > 1 or not ("q_proj" in name or "k_proj" in name))
    ]
    assert flops[False] == 2 * 4 * length * sum(counted)
    assert flops[True] == 2 * flops[False]


def test_nothing_is_kept_for_frozen_weights(artifact):
    """Autograd keeps a product's input only for the gradient of its weight, so a frozen layer keeps none."""
    kept = {}
    for trained in (False, True):
        donor = DonorLayer.from_pretrained(artifact)
        if trained:
            donor.unfreeze()
        pointers = {p.data_ptr() for p in donor.parameters()}
        sizes = []

        def keep(tensor, sizes=sizes, pointers=pointers):
            if tensor.data_ptr() not in pointers:
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            donor(torch.randn(4, 6, WIDTH, requires_grad=True))
        kept[trained] = sum(sizes)
    assert kept[False] < kept[True]
