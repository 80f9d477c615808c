"""What acts before the first layer: exact with any padding and with a part of the tokens, or refused."""

import pytest
import torch

from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.donor.checkpoint_names import checkpoint_names
from layer_surgeon.donor.entrance import DonorEntrance, plan_entrance
from layer_surgeon.donor.family import family_config
from layer_surgeon.errors import ArtifactError, UnsupportedArchitectureError
from tests.support.exactness import padding
from tests.support.tiny_models import save_quietly, tiny_model

# Scaled, positions by index, positions by mask, projected from another width, alibi with a norm, token types.
MODELS = {
    "gemma3_text": {},
    "gpt2": {},
    "opt": {"word_embed_proj_dim": 16},
    "bloom": {},
    "bert": {"is_decoder": True},
    "mamba": {},
}


def make(family, token_ids=None, **settings):
    model = tiny_model(family, **settings)
    plan = plan_entrance(family_config(model.config.to_dict()))
    state = model.base_model.state_dict()
    tensors = {name: state[name] for name in plan.shapes}
    if token_ids is not None:
        tensors[plan.token_table] = tensors[plan.token_table][token_ids]
    return model, DonorEntrance.from_tensors(plan, tensors, token_ids=token_ids, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["none", "left", "right"])
@pytest.mark.parametrize("family", MODELS)
def test_equals_what_enters_the_first_layer(family, kind):
    token_ids = torch.arange(0, 96, 3)
    model, entrance = make(family, token_ids, **MODELS[family])
    input_ids = token_ids[torch.randint(len(token_ids), (3, 9), generator=torch.Generator().manual_seed(1))]
    mask = padding(kind, 3, 9)
    arrived = []
    layers = model.base_model.get_submodule(entrance.model.surgeon_stack_path)
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: arrived.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=input_ids, attention_mask=mask)
        states = entrance(input_ids, mask)
    kept = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask.bool()
    assert torch.equal(states[kept], arrived[0][kept])


def test_positions():
    model, entrance = make("gpt2")
    input_ids, positions = torch.tensor([[3, 4, 5]]), torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        expected = model(input_ids=input_ids, position_ids=positions, output_hidden_states=True).hidden_states[0]
        assert torch.equal(entrance(input_ids, position_ids=positions), expected)
    _, entrance = make("bloom")
    with pytest.raises(UnsupportedArchitectureError, match="BloomModel doesn't accept position_ids.*Leave"):
        entrance(input_ids, position_ids=positions)


def test_only_its_weights_are_held():
    _, entrance = make("gemma3_text", torch.tensor([3, 5]))
    assert {name: tuple(weight.shape) for name, weight in entrance.named_parameters()} == {
        "model.embed_tokens.weight": (2, 32)
    }


def test_weights_are_checked():
    model = tiny_model("gpt2")
    plan = plan_entrance(family_config(model.config.to_dict()))
    tensors = {name: torch.ones(shape) for name, shape in plan.shapes.items()}
    with pytest.raises(ArtifactError, match=r"tensors of the embeddings are not those .*missing: wpe\.weight"):
        DonorEntrance.from_tensors(plan, {"wte.weight": tensors["wte.weight"]}, dtype=torch.float32)
    tensors["wpe.weight"][0] = torch.nan
    with pytest.raises(UnsupportedArchitectureError, match="depends on more than wte, wpe, or these weights have NaN"):
        DonorEntrance.from_tensors(plan, tensors, dtype=torch.float32)


def test_family_that_fails_without_layers(monkeypatch):
    config = family_config(tiny_model("llama").config.to_dict())
    monkeypatch.setattr("transformers.LlamaModel.forward", lambda self, **_: self.layers[7])
    with pytest.raises(UnsupportedArchitectureError, match="LlamaModel can't be run without its layers .IndexError"):
        plan_entrance(config)


def test_checkpoint_without_the_weights(tmp_path):
    model = tiny_model("llama")
    save_quietly(model, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    plan = plan_entrance(family_config(model.config.to_dict()))
    assert checkpoint_names(plan.outline, plan.shapes, checkpoint) == {
        "embed_tokens.weight": "model.embed_tokens.weight"
    }
    with pytest.raises(UnsupportedArchitectureError, match="has no tensor 'table.weight' of LlamaModel under a known"):
        checkpoint_names(plan.outline, {"table.weight": (96, 32)}, checkpoint)
    with pytest.raises(
        UnsupportedArchitectureError, match=r"has the shape \[96, 32\], but LlamaModel needs \[96, 16\]"
    ):
        checkpoint_names(plan.outline, {"embed_tokens.weight": (96, 16)}, checkpoint)
