"""A text in pieces, with a cache, gives what the text gives in one pass."""

import pytest
import torch

from layer_surgeon.donor import DonorLayer
from tests.support.tiny_models import WIDTH, save_artifact, tiny_model

PIECES = (13, 1, 1, 4, 1, 1, 9)
LENGTH = sum(PIECES)
# RoPE; sliding windows; alibi; learned positions; experts; one latent vector for all keys; chunks.
FAMILIES = ("llama", "mistral", "gemma3_text", "bloom", "mpt", "gpt2", "opt", "mixtral", "deepseek_v3", "llama4_text")


def load(family, layers, folder, **overrides):
    return DonorLayer.from_pretrained(save_artifact(tiny_model(family, **overrides), list(layers), folder / "donor"))


def texts():
    states = torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, :11] = 0
    return states, mask


def run_in_pieces(donor, states, mask, positions):
    cache, pieces, start = donor.new_cache(), [], 0
    for length in PIECES:
        stop = start + length
        piece_positions = None if positions is None else positions[:, start:stop]
        pieces.append(donor(states[:, start:stop], mask[:, :stop], piece_positions, cache=cache))
        start = stop
    assert cache.get_seq_length() == LENGTH
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pieces_equal_the_whole(family, tmp_path):
    donor = load(family, (0, 3), tmp_path)
    states, mask = texts()
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0) if donor.probe()[0].takes_position_ids else None
    whole = donor(states, mask, positions)
    pieces = run_in_pieces(donor, states, mask, positions)
    assert (pieces - whole)[mask.bool()].abs().max() <= 1e-5 * whole[mask.bool()].abs().max()


@torch.no_grad()
def test_without_mask_positions_go_on(donor):
    states, _ = texts()
    cache = donor.new_cache()
    pieces = [donor(piece, cache=cache) for piece in states.split(PIECES, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), donor(states), rtol=1e-5, atol=1e-5)


def test_refusals(donor):
    states, mask = texts()
    with pytest.raises(ValueError, match="A cache needs causal=True"):
        donor(states, causal=False, cache=donor.new_cache())
    cache = donor.new_cache()
    donor(states, mask, cache=cache)
    with pytest.raises(ValueError, match=r"shape \[3, 1\], but must have shape \[batch, cached \+ seq\] = \[3, 31\]"):
        donor(states[:, :1], mask[:, :1], cache=cache)


def test_finding_out_leaves_no_trace(artifact):
    donor = DonorLayer.from_pretrained(artifact)
    calls = []
    donor.layers[0].register_forward_hook(lambda *_: calls.append(1))
    assert donor.new_cache().get_seq_length() == 0
    assert not calls


def test_dropout_is_not_mistaken_for_an_error(tmp_path):
    donor = load("gpt2", (1,), tmp_path).unfreeze().train()
    assert donor.new_cache() is None
    assert donor.eval().new_cache() is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_half_precision(dtype, tmp_path):
    folder = save_artifact(tiny_model("llama"), [1], tmp_path / "donor")
    donor = DonorLayer.from_pretrained(folder, dtype=dtype)
    states, mask = texts()
    difference = (run_in_pieces(donor, states, mask, None) - donor(states, mask))[mask.bool()].abs().max()
    assert difference < 0.05


def test_layers_that_keep_another_state(tmp_path):
    layer_types = ["linear_attention", "full_attention"] * 2
    assert load("qwen3_next", (0,), tmp_path / "0", layer_types=layer_types).new_cache() is None
    assert load("qwen3_next", (3,), tmp_path / "3", layer_types=layer_types).new_cache() is not None
    assert load("qwen3_next", (0, 3), tmp_path / "03", layer_types=layer_types).new_cache() is None
