"""`surgeon inspect` on every format, local and remote: what it shows, and that it reads no weights."""

import gguf
import pytest
import torch

from tests.support.checkpoints import write_sparse_checkpoint
from tests.support.command_line import surgeon, surgeon_here
from tests.support.gguf_models import write_gguf, write_model
from tests.support.http_folder import HttpFolder
from tests.support.loopback_hub import LoopbackHub
from tests.support.torch_files import TINY, tiny_state_dict, write_checkpoint

CARD = """---
language: en
license: other
license_name: llama3.1
license_link: LICENSE
tags: [a, b]
---

# A model
"""


def make(form, folder):
    """A checkpoint of a few small layers."""
    folder.mkdir()
    if form == "safetensors":
        write_sparse_checkpoint(folder, TINY, range(4), max_shard_bytes=8_000)
    elif form == "torch":
        write_checkpoint(folder, tiny_state_dict(torch.bfloat16), shards=3)
    elif form == "gguf":
        write_model(folder / "model.gguf", "llama", "Q8_0")
    else:
        write_model(folder / "model.gguf", "llama", "Q8_0", split={"split_max_tensors": 8})
        (folder / "model.gguf").unlink()
    return folder


FORMS = {
    # format, layers, dtypes of a layer, quantisation
    "safetensors": ("safetensors", 4, ["BF16"], None),
    "torch": ("torch", 4, ["BF16"], None),
    "gguf": ("gguf", 2, ["Q8_0", "F32"], "Q8_0"),
    "split gguf": ("gguf", 2, ["Q8_0", "F32"], "Q8_0"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_format_in_a_folder(form, tmp_path):
    folder = make(form, tmp_path / "donor")
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Text")
    document = surgeon_here("inspect", folder, "--json", cwd=tmp_path).document()
    kind, layers, dtypes, quantization = FORMS[form]
    assert (document["format"], document["num_layers"], document["quantization"]) == (kind, layers, quantization)
    assert document["model_type"] == "llama"
    assert document["kind"] == "folder"
    assert (document["license"], document["license_name"], document["license_link"]) == ("other", "llama3.1", "LICENSE")
    assert document["license_files"] == ["LICENSE"]
    weights = {path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf")}
    assert set(document["whole"]["files"]) == weights
    for group in ("num_tensors", "num_parameters", "num_bytes"):
        parts = [layer[group] for layer in document["layers"]] + [document["rest"][group]]
        assert sum(parts) == document["whole"][group] > 0
    for index, layer in enumerate(document["layers"]):
        assert layer["index"] == index
        assert layer["dtypes"] == dtypes
        assert set(layer["files"]) <= weights
    if len(weights) > 1:
        assert document["layers"][0]["files"] != document["layers"][-1]["files"]
    if form != "gguf":
        shown = surgeon_here("inspect", folder, cwd=tmp_path).out
        assert "other, llama3.1, LICENSE; see LICENSE" in shown
        assert (f"{quantization}; layers are extracted as float32" in shown) == (quantization is not None)


def test_a_checkpoint_without_a_licence(tmp_path):
    folder = make("safetensors", tmp_path / "donor")
    assert "not stated" in surgeon_here("inspect", folder, cwd=tmp_path).out
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert surgeon_here("inspect", folder, "--json", cwd=tmp_path).document()["license"] == "apache-2.0"


def test_licence_and_quantisation_come_from_the_gguf_file(tmp_path):
    path = write_model(tmp_path / "model.gguf", "llama")
    tensors = [(tensor.name, tensor.data.copy(), tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors]
    stated = {"general.license": "gemma", "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_K_M.value}
    write_gguf(path, "llama", tensors, general=stated)
    document = surgeon_here("inspect", path, "--json", cwd=tmp_path).document()
    assert (document["license"], document["quantization"]) == ("gemma", "Q4_K_M")


@pytest.mark.parametrize("form", ["safetensors", "torch", "split gguf"])
def test_on_the_hub_no_weights_are_read(form, tmp_path):
    folder = make(form, tmp_path / "donor")
    (folder / "README.md").write_text(CARD)
    with LoopbackHub() as hub:
        hub.add_repo("owner/name", folder)
        env = {"HF_ENDPOINT": hub.endpoint}
        remote = surgeon("inspect", "owner/name", "--json", cwd=tmp_path, env=env).document()
        local = surgeon_here("inspect", folder, "--json", cwd=tmp_path).document()
        assert (remote["kind"], len(remote["commit"])) == ("hub", 40)
        for key in ("source", "kind", "commit"):
            del remote[key], local[key]
        assert remote == local
        # Two reads per file: length and header, or the end of a zip file and its pickle. Or the start of a GGUF file.
        weight_reads = [request for request in hub.requests if request.server == "cdn" and request.range != "bytes=0-0"]
        assert len(weight_reads) <= 2 * len(local["whole"]["files"])


def test_on_a_web_server(tmp_path):
    folder = make("torch", tmp_path / "donor")
    with HttpFolder({path.name: path.read_bytes() for path in folder.iterdir()}) as web:
        remote = surgeon_here("inspect", web.url, "--json", cwd=tmp_path).document()
    local = surgeon_here("inspect", folder, "--json", cwd=tmp_path).document()
    assert remote["kind"] == "url"
    assert remote["layers"] == local["layers"]


def test_views_that_can_not_be_extracted_are_counted(tmp_path):
    state = tiny_state_dict(torch.float32)
    state["model.layers.0.mask"] = torch.ones(4, 1).expand(4, 8)
    folder = write_checkpoint(tmp_path / "donor", state)
    document = surgeon_here("inspect", folder, "--json", cwd=tmp_path).document()
    assert document["layers"][0]["num_tensors"] == 10
    refused = surgeon_here("extract", folder, "-l", "0", "-o", "out", cwd=tmp_path)
    assert refused.code == 1
    assert "is not contiguous" in refused.err


def test_a_quantised_checkpoint_shows_advice(tmp_path):
    config = TINY | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    folder = write_sparse_checkpoint(tmp_path / "donor", config, [])
    shown = surgeon_here("inspect", folder, cwd=tmp_path)
    assert "awq, 4 bits; its layers can't be extracted" in " ".join(shown.out.split())
