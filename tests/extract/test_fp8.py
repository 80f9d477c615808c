"""Checkpoints in FP8 are multiplied out as torch does it, or refused with the reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from layer_surgeon import extract_layer, open_checkpoint, plan_extraction
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.extract.fp8 import _table

BLOCK = 16
SHAPES = {"self_attn.q_proj": (64, 40), "self_attn.k_proj": (24, 40), "mlp.down_proj": (40, 56)}


def quantised(folder, form, dtype=torch.float8_e4m3fn, method=None):
    """A checkpoint of one layer whose matrices are FP8 in one of the three forms, and what they stand for."""
    generator = torch.Generator().manual_seed(0)
    tensors, plain = {}, {}
    for name, (rows, columns) in SHAPES.items():
        weight = torch.randn(rows, columns, generator=generator).mul(20).to(dtype)
        if form == "block":
            scale = torch.rand(-(-rows // BLOCK), -(-columns // BLOCK), generator=generator)
            full = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
        elif form == "row":
            scale = torch.rand(rows, 1, generator=generator)
            full = scale.expand(rows, columns)
        else:
            scale = torch.rand(1, generator=generator)
            full = scale.expand(rows, columns)
        prefix = f"model.layers.0.{name}"
        tensors[f"{prefix}.weight"] = weight
        tensors[f"{prefix}.weight_scale_inv" if form == "block" else f"{prefix}.weight_scale"] = scale
        if form == "tensor":
            tensors[f"{prefix}.input_scale"] = torch.ones(1)
        plain[f"layers.0.{name}.weight"] = weight.float() * full
    tensors["model.layers.0.input_layernorm.weight"] = torch.randn(40, generator=generator).bfloat16()
    plain["layers.0.input_layernorm.weight"] = tensors["model.layers.0.input_layernorm.weight"].float()
    settings = {
        "block": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
        "row": {"quant_method": "fbgemm_fp8"},
        "tensor": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    }[form]
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": 1, "quantization_config": method or settings}
    (folder / "config.json").write_text(json.dumps(config))
    return plain


@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", ["block", "row", "tensor"])
def test_it_is_multiplied_out_as_torch_does_it(tmp_path, form, dtype, connections, monkeypatch):
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", 300)
    monkeypatch.setattr("layer_surgeon.checkpoint.sources.local.FolderSource.connections", connections)
    plain = quantised(tmp_path / "donor", form)
    artifact = extract_layer(tmp_path / "donor", -1, tmp_path / "out", dtype=dtype)
    tensors = load_file(artifact.path / "model.safetensors")
    assert tensors.keys() == plain.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, plain[name].to(getattr(torch, dtype))), name
    assert artifact.config["dtype"] == dtype
    assert "quantization_config" not in artifact.config["donor_config"]
    assert artifact.config["source"]["quantization"]


def test_the_other_form_of_8_bits(tmp_path):
    plain = quantised(tmp_path / "donor", "row", torch.float8_e5m2)
    tensors = load_file(
        extract_layer(tmp_path / "donor", 0, tmp_path / "out", dtype="float32").path / "model.safetensors"
    )
    assert all(torch.equal(tensors[name], plain[name]) for name in plain)


@pytest.mark.parametrize(("code", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_byte_stands_for_what_torch_says(code, dtype):
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    found = torch.from_numpy(_table(code))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_without_a_dtype_it_is_refused_with_what_to_do(tmp_path):
    quantised(tmp_path / "donor", "block")
    with pytest.raises(UnsupportedArchitectureError, match="--dtype bfloat16"):
        plan_extraction(open_checkpoint(tmp_path / "donor"))


@pytest.mark.parametrize(
    "method",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "mxfp4"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    ],
)
def test_other_methods_are_refused_by_name(tmp_path, method):
    quantised(tmp_path / "donor", "block", method=method)
    with pytest.raises(UnsupportedArchitectureError, match=rf"quantised \({method['quant_method']}.*made from"):
        plan_extraction(open_checkpoint(tmp_path / "donor"), dtype="bfloat16")


def test_a_weight_without_its_scale_is_refused(tmp_path):
    quantised(tmp_path / "donor", "block")
    tensors = load_file(tmp_path / "donor" / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight_scale_inv"]
    save_file(tensors, tmp_path / "donor" / "model.safetensors")
    with pytest.raises(CheckpointError, match="no scale lies beside it"):
        plan_extraction(open_checkpoint(tmp_path / "donor"), dtype="bfloat16")


def test_a_scale_of_another_shape_is_refused(tmp_path):
    quantised(tmp_path / "donor", "block")
    tensors = load_file(tmp_path / "donor" / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight_scale_inv"] = torch.rand(2, 2)
    save_file(tensors, tmp_path / "donor" / "model.safetensors")
    with pytest.raises(CheckpointError, match="fits neither"):
        plan_extraction(open_checkpoint(tmp_path / "donor"), dtype="bfloat16")
