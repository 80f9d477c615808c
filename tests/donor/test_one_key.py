"""With one position per sequence, unneeded outputs are skipped, and the result equals the full computation."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig, influence
from layer_surgeon.donor.influence import needed_by_shape
from layer_surgeon.donor.one_key import Needed, OneKeyLinear, installed
from tests.support.tiny_models import WIDTH, save_artifact, tiny_config, tiny_llama, tiny_model

NOTHING = Needed(blocks=1, start=0, stop=0)

# The outputs that count, by map. In fused maps: the rows of the values, 4 heads or 2 key-value heads of width 8.
NEEDED = {
    "llama": {"self_attn.q_proj": NOTHING, "self_attn.k_proj": NOTHING},
    "gemma2": {"self_attn.q_proj": NOTHING, "self_attn.k_proj": NOTHING},
    "qwen3": {"self_attn.q_proj": NOTHING, "self_attn.k_proj": NOTHING},
    "opt": {"self_attn.q_proj": NOTHING, "self_attn.k_proj": NOTHING},
    "mixtral": {"self_attn.q_proj": NOTHING, "self_attn.k_proj": NOTHING},
    "phimoe": {"self_attn.q_proj": NOTHING, "self_attn.k_proj": NOTHING},
    "gpt2": {"attn.c_attn": Needed(blocks=1, start=64, stop=96)},
    "phi3": {"self_attn.qkv_proj": Needed(blocks=1, start=48, stop=64)},
    "falcon": {"self_attention.query_key_value": Needed(blocks=1, start=40, stop=48)},
    "gpt_neox": {"attention.query_key_value": Needed(blocks=4, start=16, stop=24)},
    "bloom": {"self_attention.query_key_value": Needed(blocks=4, start=16, stop=24)},
    # Its gate is computed by the same map as the query, head by head, and counts.
    "qwen3_5_text": {"self_attn.q_proj": Needed(blocks=4, start=8, stop=16), "self_attn.k_proj": NOTHING},
    "minicpm3": {
        "self_attn.q_a_proj": NOTHING,
        "self_attn.q_b_proj": NOTHING,
        "self_attn.kv_a_proj_with_mqa": Needed(blocks=1, start=0, stop=16),
    },
    # The attention sink takes a share of the key's weight, depending on the score.
    "gpt_oss": {},
    "mamba": {},
}


def states(batch=5, length=1, seed=0):
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def both_ways(donor, hidden_states, **arguments):
    """Run a donor with the shortcut, and in full."""
    shortcut = donor(hidden_states, **arguments)
    donor.one_key_shortcut = False
    full = donor(hidden_states, **arguments)
    donor.one_key_shortcut = True
    return shortcut, full


def flops(donor, hidden_states):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        donor(hidden_states)
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder_of = {}

    def folder(family):
        if family not in folder_of:
            model = tiny_llama() if family == "llama" else tiny_model(family)
            folder_of[family] = save_artifact(model, [3], tmp_path_factory.mktemp("layer") / family)
        return folder_of[family]

    return folder


@pytest.fixture
def llama(folders):
    return DonorLayer.from_pretrained(folders("llama"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", NEEDED)
def test_unneeded_outputs_are_found_and_skipped(family, folders):
    donor = DonorLayer.from_pretrained(folders(family))
    needed = {name.removeprefix("layers.0."): module.needed for name, module in installed(donor)}
    assert needed == NEEDED[family]
    assert donor.one_key_shortcut == bool(needed)
    assert needed_by_shape(donor.config, 3) == (needed, donor.probe()[0].extras)
    arguments = {"position_ids": torch.tensor([[4], [0], [9], [2], [1]])} if donor.probe()[0].takes_position_ids else {}
    for mask in (None, torch.ones(5, 1, dtype=torch.long)):
        shortcut, full = both_ways(donor, states(), attention_mask=mask, **arguments)
        whole_maps = all(part == NOTHING for part in needed.values())
        torch.testing.assert_close(shortcut, full, rtol=0, atol=0 if whole_maps else 1e-6 * full.abs().max().item())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "minicpm3"])
def test_skipped_outputs_cost_no_flops(family, folders):
    donor = DonorLayer.from_pretrained(folders(family))
    saved_flops = 0
    for _, module in installed(donor):
        rows = module.weight.numel() // WIDTH if module.weight.shape[-1] == WIDTH else max(module.weight.shape)
        inputs = module.weight.numel() // rows
        saved_flops += 2 * 5 * inputs * (rows - module.needed.blocks * (module.needed.stop - module.needed.start))
    shortcut = flops(donor, states())
    donor.one_key_shortcut = False
    assert saved_flops > 0
    assert flops(donor, states()) - shortcut == saved_flops


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("shape", [(1, 4), (4, 4)])
def test_longer_sequences_are_computed_in_full(family, shape, folders):
    donor = DonorLayer.from_pretrained(folders(family))
    shortcut, full = both_ways(donor, states(*shape))
    assert torch.equal(shortcut, full)
    counted = flops(donor, states(*shape))
    donor.one_key_shortcut = False
    assert flops(donor, states(*shape)) == counted


def test_zero_weights_are_not_mistaken_for_unneeded_outputs(folders):
    """With an output projection of zeros, the values don't affect the result either, until it is trained."""
    model = tiny_llama()
    model.model.layers[3].self_attn.o_proj.weight.data.zero_()
    model.model.layers[3].mlp.down_proj.weight.data.zero_()
    donor = DonorLayer.from_config(SurgeonDonorConfig(donor_config=model.config.to_dict(), layer_indices=[3]))
    donor.layers[0].load_state_dict(model.model.layers[3].state_dict())
    donor._traits = None
    donor.probe()
    assert {name for name, _ in installed(donor)} == {"layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"}
    donor.layers[0].self_attn.o_proj.weight.data.normal_()
    shortcut, full = both_ways(donor, states())
    assert torch.equal(shortcut, full)
    assert not torch.equal(shortcut, states())


def test_inexact_shortcut_is_dropped(folders, monkeypatch):
    monkeypatch.setattr(influence, "find_needed", lambda *_: {"self_attn.v_proj": NOTHING})
    donor = DonorLayer.from_pretrained(folders("llama"))
    assert not list(installed(donor))
    assert not donor.one_key_shortcut
    assert type(donor.layers[0].self_attn.v_proj) is nn.Linear


def test_layer_that_fails_with_stand_ins_is_computed_in_full(folders, monkeypatch):
    def fail(*_):
        raise RuntimeError("not with stand-ins")

    monkeypatch.setattr(influence, "find_needed", fail)
    assert not DonorLayer.from_pretrained(folders("llama")).one_key_shortcut


def test_names_weights_and_files_do_not_change(llama, folders, tmp_path):
    plain = DonorLayer.from_pretrained(folders("llama"))
    for layer in plain.layers:
        influence.uninstall(layer)
    assert llama.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(llama.layers[0].self_attn.q_proj, OneKeyLinear)
    assert isinstance(llama.layers[0].self_attn.q_proj, nn.Linear)
    llama.save_pretrained(tmp_path / "saved")
    original, saved = (folder / "model.safetensors" for folder in (folders("llama"), tmp_path / "saved"))
    assert saved.read_bytes() == original.read_bytes()


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_copies_keep_the_shortcut(family, folders):
    donor = DonorLayer.from_pretrained(folders(family))
    expected = {name: module.needed for name, module in installed(donor)}
    for copied in (copy.deepcopy(donor), pickle.loads(pickle.dumps(donor))):  # noqa: S301 - our own bytes
        assert {name: module.needed for name, module in installed(copied)} == expected
        assert torch.equal(copied(states()), donor(states()))
        copied.one_key_shortcut = False
        assert donor.one_key_shortcut
        assert flops(copied, states()) > flops(donor, states())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_other_dtypes(dtype, family, folders):
    loaded = DonorLayer.from_pretrained(folders(family), dtype=dtype)
    converted = DonorLayer.from_pretrained(folders(family)).to(dtype)
    for donor in (loaded, converted):
        assert donor.one_key_shortcut
        shortcut, full = both_ways(donor, states().to(dtype))
        assert shortcut.dtype == dtype
        torch.testing.assert_close(shortcut, full, rtol=0, atol=2 * torch.finfo(dtype).eps * full.abs().max().item())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_autocast_and_attention_implementations(attention, family, folders):
    donor = DonorLayer.from_pretrained(folders(family), attn_implementation=attention)
    assert donor.one_key_shortcut
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shortcut, full = both_ways(donor, states())
    torch.testing.assert_close(shortcut, full, rtol=0, atol=2**-7 * full.abs().max().item())
    shortcut, full = both_ways(donor, states())
    torch.testing.assert_close(shortcut, full, rtol=0, atol=1e-6 * full.abs().max().item())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_gradients_equal_the_full_computation(family, folders):
    gradients = []
    for enabled in (True, False):
        donor = DonorLayer.from_pretrained(folders(family)).unfreeze()
        donor.one_key_shortcut = enabled
        hidden_states = states().requires_grad_()
        donor(hidden_states).pow(2).sum().backward()
        gradients.append({name: p.grad for name, p in donor.named_parameters()} | {"input": hidden_states.grad})
    shortcut, full = gradients
    assert all(gradient is not None for gradient in shortcut.values())
    for name, gradient in full.items():
        torch.testing.assert_close(shortcut[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item() + 1e-7)


def test_several_layers_have_their_own_shortcuts(tmp_path):
    donor = DonorLayer.from_pretrained(save_artifact(tiny_llama(), [3, 1, 1], tmp_path / "three"))
    assert len(list(installed(donor))) == 6
    shortcut, full = both_ways(donor, states())
    assert torch.equal(shortcut, full)


def test_probing_twice_gives_the_same_result(llama):
    """Probing again, as after loading weights, gives the same result."""
    before = {name: module.needed for name, module in installed(llama)}
    llama._traits = None
    llama.probe()
    assert {name: module.needed for name, module in installed(llama)} == before
    assert torch.equal(*both_ways(llama, states()))


def test_shape_without_weights():
    config = tiny_config("llama", hidden_size=8192, intermediate_size=28672, num_attention_heads=64, head_dim=128)
    shape = SurgeonDonorConfig(donor_config=config.to_dict(), layer_indices=[0])
    assert needed_by_shape(shape, 0)[0] == NEEDED["llama"]
