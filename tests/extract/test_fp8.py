"""FP8 checkpoints are dequantised as in torch, or refused with a reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from layer_surgeon import extract_layer, open_checkpoint, plan_extraction
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.extract.fp8 import _decode_powers_of_two, _value_of_byte

BLOCK = 16
SHAPES = {"self_attn.q_proj": (64, 40), "self_attn.k_proj": (24, 40), "mlp.down_proj": (40, 56)}


def quantised(folder, form, dtype=torch.float8_e4m3fn, method=None):
    """Write a checkpoint of one layer with FP8 matrices in one of the three layouts; return the dequantised tensors."""
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
    settings = settings if method is None else method
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": 1} | ({"quantization_config": settings} if settings else {})
    (folder / "config.json").write_text(json.dumps(config))
    return plain


@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", ["block", "row", "tensor"])
def test_dequantised_weights_equal_torch(tmp_path, form, dtype, connections, monkeypatch):
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


@pytest.mark.parametrize("fp8", [torch.float8_e5m2, torch.float8_e4m3fnuz])
def test_other_8_bit_floats_equal_torch(tmp_path, fp8):
    plain = quantised(tmp_path / "donor", "row", fp8)
    tensors = load_file(
        extract_layer(tmp_path / "donor", 0, tmp_path / "out", dtype="float32").path / "model.safetensors"
    )
    assert all(torch.equal(tensors[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("F8_E4M3FNUZ", torch.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", torch.float8_e5m2fnuz),
    ],
)
def test_every_byte_equals_torch(code, dtype):
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    actual = torch.from_numpy(_value_of_byte(code))
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


COMPRESSED_BLOCKS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"strategy": "block", "block_structure": [BLOCK, BLOCK]}}},
}


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("tensor", {"quant_method": "modelopt", "quant_algo": "FP8"}),
        # The settings are in hf_quant_config.json only, not in config.json.
        ("tensor", {}),
        ("row", {}),
        ("row", {"quant_method": "compressed-tensors", "format": "float-quantized"}),
        ("block", COMPRESSED_BLOCKS),
    ],
)
def test_checkpoints_of_other_tools(tmp_path, form, settings):
    plain = quantised(tmp_path / "donor", form, method=settings)
    if form == "block":
        file = tmp_path / "donor" / "model.safetensors"
        save_file({name.replace("_scale_inv", "_scale"): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UnsupportedArchitectureError, match="--dtype bfloat16"):
        plan_extraction(open_checkpoint(tmp_path / "donor"))
    artifact = extract_layer(tmp_path / "donor", 0, tmp_path / "out", dtype="float32")
    tensors = load_file(artifact.path / "model.safetensors")
    assert tensors.keys() == plain.keys()
    assert all(torch.equal(tensors[name], plain[name]) for name in plain)


def test_e8m0_scales_equal_torch(tmp_path):
    quantised(tmp_path / "donor", "block")
    file = tmp_path / "donor" / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors[name] = torch.rand_like(tensors[name]).mul(300).to(torch.float8_e8m0fnu)
    save_file(tensors, file)
    actual = load_file(
        extract_layer(tmp_path / "donor", 0, tmp_path / "out", dtype="float32").path / "model.safetensors"
    )
    name = "mlp.down_proj.weight"
    weight, scale = tensors[f"model.layers.0.{name}"].float(), tensors[f"model.layers.0.{name}_scale_inv"].float()
    full = scale.repeat_interleave(BLOCK, 0)[:40].repeat_interleave(BLOCK, 1)[:, :56]
    assert torch.equal(actual[f"layers.0.{name}"], weight * full)


def test_every_e8m0_byte_equals_torch():
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).float()
    assert torch.equal(torch.from_numpy(_decode_powers_of_two(bytes(range(256)))).nan_to_num(), expected.nan_to_num())


def test_fp8_without_dtype_is_refused(tmp_path):
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
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_method": "something of next year"},
    ],
)
def test_other_methods_are_refused_by_name(tmp_path, method):
    quantised(tmp_path / "donor", "block", method=method)
    with pytest.raises(
        UnsupportedArchitectureError, match=rf"quantised \({method['quant_method']}.*from the unquantised model"
    ):
        plan_extraction(open_checkpoint(tmp_path / "donor"), dtype="bfloat16")


@pytest.mark.parametrize(
    ("ending", "method"),
    [
        ("qweight", "gptq or awq"),
        ("weight_packed", "packed compressed-tensors"),
        ("weight_scale_2", "NVFP4"),
        ("gate_up_proj_blocks", "mxfp4"),
        ("absmax", "bitsandbytes"),
        ("SCB", "bitsandbytes"),
    ],
)
def test_packed_weights_are_recognised_by_tensor_names(tmp_path, ending, method):
    quantised(tmp_path / "donor", "block", method={})
    file = tmp_path / "donor" / "model.safetensors"
    save_file(load_file(file) | {f"model.layers.0.mlp.up_proj.{ending}": torch.ones(4, dtype=torch.int32)}, file)
    # Often the last layers are not quantised.
    plain_layer = {"model.layers.1.mlp.up_proj.weight": torch.ones(4, 4)}
    save_file(load_file(file) | plain_layer, file)
    config = tmp_path / "donor" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 2}))
    checkpoint = open_checkpoint(tmp_path / "donor")
    assert method in checkpoint.quantization
    with pytest.raises(UnsupportedArchitectureError, match=rf"quantised \(.*{method}.*unquantised model"):
        plan_extraction(checkpoint, dtype="bfloat16")


@pytest.mark.parametrize(
    ("card", "advice"),
    [
        ("---\nbase_model: Qwen/Qwen3-8B\n---\n", ": surgeon extract Qwen/Qwen3-8B."),
        ("---\nlicense: mit\nbase_model:\n- Qwen/Qwen3-8B\nbase_model_relation: quantized\n---\n", "Qwen/Qwen3-8B."),
        ('---\nbase_model: "Qwen/Qwen3-8B"\r\n---\n', "extract Qwen/Qwen3-8B."),
        ("---\nbase_model: somewhere else\n---\n", "bfloat16 or float16."),
        ("base_model: Qwen/Qwen3-8B", "bfloat16 or float16."),
    ],
)
def test_message_names_the_unquantised_model(tmp_path, card, advice):
    quantised(tmp_path / "donor", "block", method={"quant_method": "gptq", "bits": 4})
    (tmp_path / "donor" / "README.md").write_text(card)
    with pytest.raises(UnsupportedArchitectureError) as error:
        plan_extraction(open_checkpoint(tmp_path / "donor"))
    assert str(error.value).endswith(advice)


def test_weight_without_scale_is_refused(tmp_path):
    quantised(tmp_path / "donor", "block")
    tensors = load_file(tmp_path / "donor" / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight_scale_inv"]
    save_file(tensors, tmp_path / "donor" / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no scale for it"):
        plan_extraction(open_checkpoint(tmp_path / "donor"), dtype="bfloat16")


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_empty_weight_is_refused(tmp_path, shape):
    quantised(tmp_path / "donor", "tensor")
    tensors = load_file(tmp_path / "donor" / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(shape).to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "donor" / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected a matrix that is not empty"):
        plan_extraction(open_checkpoint(tmp_path / "donor"), dtype="bfloat16")


def test_scale_of_wrong_shape_is_refused(tmp_path):
    quantised(tmp_path / "donor", "block")
    tensors = load_file(tmp_path / "donor" / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight_scale_inv"] = torch.rand(2, 2)
    save_file(tensors, tmp_path / "donor" / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit .*down_proj"):
        plan_extraction(open_checkpoint(tmp_path / "donor"), dtype="bfloat16")
