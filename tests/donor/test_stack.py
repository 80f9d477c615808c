"""`DonorStack`: hidden states of the whole model from token ids, and the files it is loaded from and saved to."""

import copy
import json
import pickle

import pytest
import torch
from transformers import AutoModel

import layer_surgeon as ls
from layer_surgeon.errors import ArtifactError
from tests.support.exactness import padding
from tests.support.tiny_models import save_artifact, tiny_llama, tiny_model
from tests.support.tiny_stacks import save_stack, states_after


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def artifact(llama, tmp_path_factory):
    return save_stack(llama, 2, tmp_path_factory.mktemp("stack") / "artifact")


@pytest.mark.parametrize("kind", ["none", "left", "right"])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "bloom"])
def test_equals_the_states_of_the_whole_model(family, num_layers, kind, tmp_path):
    model = tiny_model(family)
    stack = ls.DonorStack.from_pretrained(save_stack(model, num_layers, tmp_path / "stack"))
    input_ids = torch.randint(3, 96, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = padding(kind, 3, 9)
    kept = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask.bool()
    with torch.no_grad():
        states = stack(input_ids, mask)
    assert torch.equal(states[kept], states_after(model, num_layers, input_ids, mask)[kept])
    assert (stack.num_layers, stack.hidden_size, stack.vocabulary) == (num_layers, 32, None)


def test_is_frozen(artifact):
    stack = ls.DonorStack.from_pretrained(artifact)
    stack.train()
    assert not any(module.training for module in stack.modules())
    assert not any(parameter.requires_grad for parameter in stack.parameters())
    stack.unfreeze().train()
    assert stack.layers.training
    assert all(parameter.requires_grad for parameter in stack.parameters())
    stack.freeze()
    assert not any(module.training for module in stack.modules())


def test_save_and_load(artifact, tmp_path):
    stack = ls.DonorStack.from_pretrained(artifact)
    stack.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert type(again) is ls.DonorStack
    assert again.state_dict().keys() == stack.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in stack.state_dict().items())
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "saved/model.safetensors").read_bytes()
    assert type(AutoModel.from_pretrained(artifact)) is ls.DonorStack


def test_walks_yield_the_states_after_each_layer(artifact, llama):
    stack = ls.DonorStack.from_pretrained(artifact)
    texts = [torch.arange(3, 3 + length)[None] for length in (9, 4)]
    with torch.no_grad():
        walks = [list(states) for states in zip(*map(stack.walk, texts), strict=True)]
        for depth, states in enumerate(walks, start=1):
            for input_ids, of_text in zip(texts, states, strict=True):
                assert torch.equal(of_text, states_after(llama, depth, input_ids, None))
    assert len(walks) == 2
    wrong = stack.walk(torch.arange(9))
    with pytest.raises(ValueError, match="input_ids has shape"):
        next(wrong)


def test_in_another_dtype(artifact, llama):
    stack = ls.DonorStack.from_pretrained(artifact, dtype="bfloat16")
    input_ids = torch.arange(3, 12)[None]
    expected = states_after(llama, 2, input_ids, None)
    with torch.no_grad():
        states = stack(input_ids)
    assert states.dtype == torch.bfloat16
    torch.testing.assert_close(states.float(), expected, rtol=0.1, atol=0.1)


def test_random_weights(artifact):
    config = ls.DonorStack.from_pretrained(artifact).config
    first, second = ls.DonorStack.from_config(config), ls.DonorStack.from_config(config)
    input_ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert first(input_ids).isfinite().all()
        assert not torch.equal(first(input_ids), second(input_ids))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(input_ids), second(input_ids))
    with torch.device("meta"):
        empty = ls.DonorStack(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in first.state_dict().items()
    }


def test_copies_and_gradients(artifact):
    stack = ls.DonorStack.from_pretrained(artifact)
    input_ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        states = stack(input_ids)
        for copied in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):  # noqa: S301 - our own
            assert torch.equal(copied(input_ids), states)
        assert torch.equal(stack(input_ids, position_ids=torch.arange(9)[None]), states)
    stack.unfreeze()(input_ids).sum().backward()
    assert all(parameter.grad is not None for parameter in stack.parameters())


def test_compiles(artifact):
    stack = ls.DonorStack.from_pretrained(artifact)
    input_ids = torch.arange(3, 12)[None]
    compiled = torch.compile(stack, backend="eager", fullgraph=False)
    with torch.no_grad():
        assert torch.equal(compiled(input_ids), stack(input_ids))
    # Several layers are one graph.
    stack.layers.probe()
    states = torch.randn(1, 9, stack.hidden_size)
    with torch.no_grad():
        expected = stack.layers(states)
        assert torch.equal(torch.compile(stack.layers, backend="eager", fullgraph=True)(states), expected)


def test_wrong_shapes(artifact):
    stack = ls.DonorStack.from_pretrained(artifact)
    with pytest.raises(ValueError, match=r"input_ids has shape \[9\], but must have shape \[batch, seq\]"):
        stack(torch.arange(9))
    with pytest.raises(ValueError, match=r"attention_mask has shape \[1, 5\], but must have .* = \[1, 9\]"):
        stack(torch.arange(9)[None], torch.ones(1, 5))


def test_the_other_kind_of_artifact(artifact, llama, tmp_path):
    with pytest.raises(ArtifactError, match="has embeddings next to its layers.*Load it with DonorStack"):
        ls.DonorLayer.from_pretrained(artifact)
    layer = save_artifact(llama, [0], tmp_path / "layer")
    with pytest.raises(ArtifactError, match="has no embeddings, so it is not a stack artifact.*--embeddings"):
        ls.DonorStack.from_pretrained(layer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_indices": [1, 2]}, r"layer_indices \[1, 2\].* must be 0, 1, 2, \.\.\."),
        ({"embeddings": []}, "must be an object whose vocabulary is null or has a size"),
        ({"embeddings": {"vocabulary": {"size": 0}}}, "must be an object whose vocabulary is null or has a size"),
        ({"embeddings": {"vocabulary": {"size": 10**12}}}, r"1,000,000,000,000 tokens of a vocabulary were requested"),
        ({"embeddings": {"vocabulary": {"size": 95}}}, r"shape \[96, 32\], but must have 95 rows"),
    ],
)
def test_config_that_does_not_fit(artifact, tmp_path, changes, message):
    config = json.loads((artifact / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(artifact / "model.safetensors")
    with pytest.raises(ArtifactError, match=message):
        ls.DonorStack.from_pretrained(tmp_path)
