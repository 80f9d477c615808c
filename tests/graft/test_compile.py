"""torch.compile compiles a whole graft without a graph break, and the result is the same."""

import pytest
import torch

from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.graft.build import graft_layer
from tests.graft.conftest import host_model
from tests.support.tiny_models import tiny_config


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def new_donor(family="llama"):
    return DonorLayer.from_config(SurgeonDonorConfig(donor_config=tiny_config(family).to_dict(), layer_indices=[2]))


def batch(labels):
    ids = torch.randint(3, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def losses_and_gradients(model, compiled, inputs):
    results = []
    for call in (model, compiled):
        model.zero_grad(set_to_none=True)
        output = call(**inputs)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append({"loss": output.loss.detach(), "logits": output.logits.detach(), **gradients})
    return results


@pytest.mark.parametrize(
    ("host", "donor", "settings"),
    [
        ("bert", "llama", {}),
        ("llama", "llama", {}),
        ("gpt2", "gpt_neox", {}),
        ("bert", "qwen3", {"residual": "gated"}),
        ("bert", "llama", {"task": "token-classification"}),
        ("bert", "gemma2", {"site": 0}),
        ("bert", "llama", {"train_donor": True}),
    ],
)
def test_forward_and_backward_in_one_graph(host, donor, settings):
    # In eval mode: dropout draws other numbers when it is compiled.
    model = graft_layer(host_model(host), new_donor(donor), **settings).eval()
    if model.gate is not None:
        torch.nn.init.ones_(model.gate)
    by_token = settings.get("task") == "token-classification"
    inputs = batch(torch.zeros(3, 7, dtype=torch.long) if by_token else torch.tensor([0, 1, 1]))
    plain, compiled = losses_and_gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"), inputs)
    assert plain.keys() == compiled.keys()
    assert "proj_in.weight" in plain
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6)


def test_compiled_graft_doesnt_remember_the_last_batch():
    """State of one batch must not affect the next batch, or a run without the compiler."""
    model = graft_layer(host_model("bert"), new_donor()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    first, second = batch(torch.tensor([0, 1, 1])), batch(torch.tensor([1, 1, 0]))
    second["input_ids"] = second["input_ids"].flip(1)
    for inputs in (first, second, first):
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-6)
