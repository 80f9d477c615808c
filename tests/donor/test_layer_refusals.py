"""Bad artifacts, configs and arguments of a DonorLayer: each error names the problem and what to do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.errors import ArtifactError, SourceError, UnsupportedArchitectureError
from tests.support.tiny_models import (
    WIDTH,
    save_artifact,
    save_quietly,
    tiny_config,
    tiny_model,
)


def copy_artifact(artifact: Path, folder: Path, change) -> Path:
    folder.mkdir()
    tensors = load_file(artifact / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text((artifact / "config.json").read_text())
    return folder


def states(batch=2, length=9, seed=0):
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_missing_tensor(artifact, tmp_path):
    folder = copy_artifact(artifact, tmp_path / "x", lambda t: t.pop("layers.0.mlp.up_proj.weight"))
    with pytest.raises(ArtifactError, match=r"missing: layers\.0\.mlp\.up_proj\.weight"):
        DonorLayer.from_pretrained(folder)


def test_unexpected_tensor(artifact, tmp_path):
    folder = copy_artifact(artifact, tmp_path / "x", lambda t: t.update({"layers.0.mlp.extra": torch.ones(1)}))
    with pytest.raises(ArtifactError, match=r"unexpected: layers\.0\.mlp\.extra"):
        DonorLayer.from_pretrained(folder)


def test_tensor_of_wrong_shape(artifact, tmp_path):
    folder = copy_artifact(
        artifact, tmp_path / "x", lambda t: t.update({"layers.0.mlp.up_proj.weight": torch.ones(3, 3)})
    )
    with pytest.raises(ArtifactError, match=r"layers\.0 .*mlp\.up_proj\.weight|layers\.0 "):
        DonorLayer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_tensor_outside_of_the_layers(artifact, tmp_path, name):
    folder = copy_artifact(artifact, tmp_path / "x", lambda t: t.update({name: torch.ones(1)}))
    with pytest.raises(ArtifactError, match=f"{name}.*Extract the layer again"):
        DonorLayer.from_pretrained(folder)


def test_layer_without_tensors(artifact, tmp_path):
    folder = copy_artifact(artifact, tmp_path / "x", lambda t: None)
    config = json.loads((folder / "config.json").read_text()) | {"layer_indices": [2, 3]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"no tensor layers\.1\.\*"):
        DonorLayer.from_pretrained(folder)


def test_unknown_dtype_in_the_file(artifact, tmp_path):
    folder = copy_artifact(artifact, tmp_path / "x", lambda t: None)
    header = b'{"layers.0.w":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    with pytest.raises(ArtifactError, match="of type F4"):
        DonorLayer.from_pretrained(folder)


def test_damaged_file(artifact, tmp_path):
    folder = copy_artifact(artifact, tmp_path / "x", lambda t: None)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ArtifactError, match="is damaged"):
        DonorLayer.from_pretrained(folder)


def test_folder_without_weights(artifact, tmp_path):
    folder = copy_artifact(artifact, tmp_path / "x", lambda t: None)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"has no model\.safetensors"):
        DonorLayer.from_pretrained(folder)


def test_whole_model_is_refused(llama, tmp_path):
    save_quietly(llama, tmp_path / "content")
    with pytest.raises(ArtifactError, match="model of type 'llama', not a layer artifact.*surgeon extract"):
        DonorLayer.from_pretrained(tmp_path / "content")


def test_missing_folder(tmp_path):
    with pytest.raises(SourceError, match=r"no config\.json to be read"):
        DonorLayer.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("donor_config", "error", "message"),
    [
        ({"model_type": "nobody_knows"}, UnsupportedArchitectureError, "has no code for model_type 'nobody_knows'"),
        ({"model_type": "t5"}, UnsupportedArchitectureError, "encoder-decoder"),
        ({"hidden_size": 8}, ArtifactError, "model_type None"),
        ({"model_type": "llama", "hidden_size": "wide"}, ArtifactError, "can't read the donor's config"),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}},
            UnsupportedArchitectureError,
            r"quantised \(gptq\)",
        ),
    ],
)
def test_bad_donor_config(donor_config, error, message):
    with pytest.raises(error, match=message):
        SurgeonDonorConfig(donor_config=donor_config, layer_indices=[0])


def test_incomplete_config(donor):
    donor_config = donor.config.donor_config
    with pytest.raises(ArtifactError, match="no layer_indices"):
        SurgeonDonorConfig(donor_config=donor_config)
    with pytest.raises(ArtifactError, match="no donor_config"):
        SurgeonDonorConfig(layer_indices=[0])
    with pytest.raises(ArtifactError, match="has 4, but the donor has 4 layers, 0 to 3"):
        SurgeonDonorConfig(donor_config=donor_config, layer_indices=[4])
    with pytest.raises(ArtifactError, match="doesn.t describe a donor layer"):
        DonorLayer(SurgeonDonorConfig())


@pytest.mark.parametrize(
    ("family", "reason"),
    [("cpmant", "reads token ids only"), ("roformer", "weights outside of the layer")],
)
def test_families_that_need_their_whole_model_are_refused(family, reason):
    config = SurgeonDonorConfig(donor_config=tiny_config(family).to_dict(), layer_indices=[1])
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        DonorLayer.from_config(config)


def test_wrong_shapes(donor):
    with pytest.raises(ValueError, match=r"shape \[2, 9, 31\], but must have shape \[batch, seq, 32\]"):
        donor(states()[..., :-1])
    with pytest.raises(ValueError, match=r"attention_mask has shape \[2, 8\]"):
        donor(states(), attention_mask=torch.ones(2, 8))


def test_unsupported_position_ids(tmp_path):
    donor = DonorLayer.from_pretrained(save_artifact(tiny_model("bloom"), [1], tmp_path / "bloom"))
    with pytest.raises(UnsupportedArchitectureError, match="doesn.t accept position_ids"):
        donor(states(), position_ids=torch.arange(9)[None])


def test_integer_dtype_is_refused(artifact):
    with pytest.raises(ArtifactError, match="'int8' is no element type for weights"):
        DonorLayer.from_pretrained(artifact, dtype="int8")
