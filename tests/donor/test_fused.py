"""Families that fuse or transpose weights or store them per expert: the layer is exact for every form of checkpoint.

Each test writes a checkpoint, extracts a layer, loads it as a DonorLayer, and compares it bit for bit with the layer
inside the whole model.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from layer_surgeon import extract_layer
from layer_surgeon.donor import DonorLayer
from tests.support.exactness import difference, watch
from tests.support.gguf_models import write_model
from tests.support.tiny_models import save_quietly, tiny_model

# Queries, keys and values in one matrix (in rows or interleaved by head), fused gates, transposed matrices (GPT-2), and
# experts, which are fused in current models and mostly separate in checkpoints.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, one key": ("falcon", {"multi_query": True, "new_decoder_architecture": False, "alibi": False}),
    "falcon, groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "falcon, heads": ("falcon", {"multi_query": False, "new_decoder_architecture": False, "alibi": True}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "llama4": ("llama4_text", {}),
    "deepseek_v3": ("deepseek_v3", {}),
}
# Families whose checkpoints have separate experts, and therefore different names than the model.
PER_EXPERT = ("mixtral", "qwen3_moe", "deepseek_v3")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    family, sizes = FAMILIES[request.param]
    return tiny_model(family, **sizes)


def write(model: PreTrainedModel, folder: Path, form: str) -> None:
    """Write a checkpoint in one of the common forms."""
    save_quietly(model, folder)
    if form == "as saved":
        return
    saved = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if form == "as saved, .bin":
        torch.save(saved, folder / "pytorch_model.bin")
    elif form == "own names, .bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        transposed = {name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in saved.items()}
        torch.save(transposed, folder / "pytorch_model.bin")


@pytest.mark.parametrize("form", ["as saved", "as saved, .bin", "own names, .bin", "as saved, transposed in .bin"])
def test_every_form_gives_the_same_layer(model: PreTrainedModel, form: str, tmp_path: Path) -> None:
    write(model, tmp_path / "donor", form)
    donor = DonorLayer.from_pretrained(extract_layer(tmp_path / "donor", -1, tmp_path / "layer").path)
    assert difference(model, donor, 3, "left") == 0.0


@pytest.mark.parametrize("family", PER_EXPERT)
def test_experts_are_separate_in_a_checkpoint_and_fused_in_the_model(family: str, tmp_path: Path) -> None:
    # Otherwise, two of the forms above would be the same and the test would be useless.
    model = tiny_model(family)
    save_quietly(model, tmp_path)
    saved = [name for name in load_file(tmp_path / "model.safetensors") if ".3." in name and ".experts." in name]
    model_names = [name for name in model.state_dict() if ".layers.3." in name and ".experts." in name]
    assert len(saved) > 3 * len(model_names) > 0


@pytest.mark.parametrize("form", ["as saved", "own names, .bin"])
@pytest.mark.parametrize("family", ["falcon, groups", "mixtral"])
def test_several_layers_run_in_order(family: str, form: str, tmp_path: Path) -> None:
    name, sizes = FAMILIES[family]
    model = tiny_model(name, **sizes)
    write(model, tmp_path / "donor", form)
    artifact = extract_layer(tmp_path / "donor", "1:3", tmp_path / "layers")
    assert artifact.layer_indices == (1, 2)
    assert_computes(model, DonorLayer.from_pretrained(artifact.path), 1, 2)


def assert_computes(model: PreTrainedModel, donor: DonorLayer, first: int, last: int) -> None:
    """Assert that a donor of the layers `first` to `last` computes the same as these layers inside the model."""
    tokens = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(0))
    begin, end = watch(model, first, tokens, None), watch(model, last, tokens, None)
    with torch.no_grad():
        assert torch.equal(donor(begin.before), end.after)


# Fused in three ways (falcon, phi3, bloom), transposed (gpt2), with permuted rotary rows (llama) and changed norms
# (gemma3), of several kinds (lfm2).
GGUF = ["falcon", "phi3", "bloom", "gpt2", "llama", "gemma3", "lfm2", "stablelm"]


def whole_model(path: Path) -> PreTrainedModel:
    """Load a GGUF file with transformers in float32.

    The loader leaves GPT-2's matrices as transposed views. Matrix products of such views use other kernels on some
    processors, which round differently.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    for parameter in loaded.parameters():
        parameter.data = parameter.data.contiguous()
    return loaded.eval()


@pytest.mark.parametrize("architecture", GGUF)
def test_gguf_layer_equals_transformers(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    path = write_model(tmp_path / "whole" / "model.gguf", architecture, "Q8_0", split={"split_max_tensors": 7})
    model = whole_model(path)
    donor = DonorLayer.from_pretrained(extract_layer(path, -1, tmp_path / "layer").path)
    assert difference(model, donor, 1, "left") == 0.0
    # Extract both layers to one artifact, from the file and from its parts.
    part = min(path.parent.glob("*-of-*.gguf"))
    for number, source in enumerate((path, part)):
        artifact = extract_layer(source, [0, 1], tmp_path / f"layers{number}")
        assert_computes(model, DonorLayer.from_pretrained(artifact.path), 0, 1)
