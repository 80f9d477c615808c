"""Assembling from every format and place that `extract` reads, and from vision-language checkpoints."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from layer_surgeon import AssemblyRecipe, LayerSlice, assemble_model, plan_assembly
from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.stack import family_record
from layer_surgeon.errors import AssemblyError, UnsupportedArchitectureError
from tests.assemble.test_assemble import IDS, logits, raw_tensors
from tests.extract.test_formats_and_places import FORMATS, make
from tests.support.http_folder import HttpFolder
from tests.support.loopback_hub import LoopbackHub
from tests.support.tiny_models import save_quietly, tiny_llama
from tests.support.torch_files import tiny_state_dict, write_checkpoint


@pytest.fixture
def remote(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """A checkpoint of one format on this disk, and the same in another place. Each format has a place of its own."""
    form = request.param
    folder, file = make(form, tmp_path / "model")
    for name in ("LICENSE", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text(f'"{name}"')
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    memory = fsspec.filesystem("memory")
    with LoopbackHub() as hub, HttpFolder({f"m/{name}": content for name, content in files.items()}) as web:
        monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint, token=False))
        hub.add_repo("owner/flat", folder)
        hub.add_repo("owner/deep", {f"sub/{name}": content for name, content in files.items()})
        for name, content in files.items():
            memory.pipe_file(f"/assembly/{name}", content)
        places = {
            "safetensors": f"{web.url}/m",
            "safetensors, sharded": "hf://owner/deep/sub",
            "PyTorch `.bin`": f"memory://assembly/{file}",
            "PyTorch `.bin`, sharded": f"{web.url}/m",
            "GGUF": f"{web.url}/m/{file}",
            "GGUF, split": "owner/flat",
        }
        yield folder / file, places[form]
    memory.rm("/assembly", recursive=True)


@pytest.mark.parametrize("remote", FORMATS, indirect=True)
def test_every_format(remote: tuple[Path, str], tmp_path: Path) -> None:
    local, address = remote
    settings = {"layers": "1,0,1", "expand": 3}
    model = assemble_model(address, tmp_path / "out", **settings)
    model.verify()
    assert raw_tensors(model.path) == raw_tensors(assemble_model(local, tmp_path / "local", **settings).path)
    for name in ("LICENSE", "tokenizer.json", "chat_template.jinja"):
        assert (model.path / name).read_text() == f'"{name}"'


def test_two_revisions_of_a_repo(siblings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = assemble_model(siblings / "other", tmp_path / "half", dtype="float16")
    with LoopbackHub() as hub:
        monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint, token=False))
        repo = hub.add_repo("owner/m", siblings / "base")
        commits = [repo.refs["main"], repo.commit(siblings / "other"), repo.commit(half.path)]
        slices = [LayerSlice(source=f"hf://owner/m@{commit}", layers=0) for commit in commits]
        model = assemble_model(AssemblyRecipe(slices=tuple(slices[:2])), tmp_path / "out")
        with pytest.raises(AssemblyError, match=f"owner/m@{commits[0][:12]} are float32, and those of owner/m@"):
            plan_assembly(AssemblyRecipe(slices=tuple(slices)))
        twice = AssemblyRecipe(slices=(slices[2], LayerSlice(source="owner/m", layers=1)))
        newest = f"owner/m@{commits[2][:12]}"
        assert [layer.source for layer in plan_assembly(twice).layers] == [newest, f"{newest} (2)"]
    names = [f"owner/m@{commit[:12]}" for commit in commits[:2]]
    assert [layer["source"] for layer in model.record["layers"]] == names
    card = (model.path / "README.md").read_text()
    assert f"| {names[1]} | {commits[1]} | layers 0 (of 4 layers) |" in card


def test_matrix_and_its_transpose_in_one_storage(tmp_path: Path) -> None:
    state = tiny_state_dict(torch.float32)
    query, output = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qo")
    state[output] = state[query].t()
    model = assemble_model(write_checkpoint(tmp_path / "model", state), tmp_path / "out", dtype="float32")
    tensors = load_file(model.path / "model.safetensors")
    assert torch.equal(tensors[output], state[query].t())
    assert torch.equal(tensors[query], state[query])
    model.verify()


def test_head_of_another_model_is_a_change(siblings: Path, tmp_path: Path) -> None:
    recipe = AssemblyRecipe(slices=(LayerSlice(source=siblings / "base"),), head=siblings / "other")
    model = assemble_model(recipe, tmp_path / "out")
    assert model.record["changed"]
    assert "It has not been trained in this form" in (model.path / "README.md").read_text()


def test_every_licence_is_kept(siblings: Path, tmp_path: Path) -> None:
    names = ("base/base", "org1/Llama", "org2/Llama", "org3/Llama")
    for name in names:
        shutil.copytree(siblings / "base", tmp_path / name)
        (tmp_path / name / "LICENSE").write_text(name.replace("3", "2"))
    slices = tuple(LayerSlice(source=tmp_path / name, layers=0) for name in names)
    model = assemble_model(AssemblyRecipe(slices=slices), tmp_path / "out")
    texts = {path.name: path.read_text() for path in model.path.glob("LICENSE*")}
    assert texts == dict(zip(("LICENSE", "LICENSE-Llama", "LICENSE-Llama-2"), names[:3], strict=True))


def test_gguf_becomes_what_transformers_loads(tmp_path: Path) -> None:
    folder, file = make("GGUF", tmp_path / "model")
    model = assemble_model(folder / file, tmp_path / "out", dtype="bfloat16")
    assert model.config["dtype"] == "bfloat16"
    expected = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).state_dict()
    actual = AutoModelForCausalLM.from_pretrained(model.path).state_dict()
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor.to(torch.bfloat16)), name
    whole = assemble_model(folder / file, tmp_path / "whole")
    assert torch.equal(
        logits(whole.path), AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).eval()(IDS).logits
    )


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language model with the same llama as `tiny_llama` in it."""
    folder = tmp_path_factory.mktemp("llava") / "model"
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    config = LlavaConfig(vision_config=vision, text_config=tiny_llama().config.to_dict(), tie_word_embeddings=False)
    model = LlavaForConditionalGeneration(config)
    text = tiny_llama()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    save_quietly(model, folder)
    return folder


def test_vision_language_model_is_refused_by_name(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"\(llava\) is a vision-language checkpoint.*--text-only"):
        assemble_model(llava, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_language_model_alone(llava: Path, tmp_path: Path) -> None:
    model = assemble_model(llava, tmp_path / "out", text_only=True)
    assert model.config["model_type"] == "llama"
    with torch.no_grad():
        expected = tiny_llama()(IDS).logits
    loaded, report = AutoModelForCausalLM.from_pretrained(model.path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(loaded.eval()(IDS).logits, expected)
    cut = assemble_model(llava, tmp_path / "cut", text_only=True, keep="0:2")
    assert AutoModelForCausalLM.from_pretrained(cut.path).config.num_hidden_layers == 2
    swapped = plan_assembly(llava, text_only=True, replace={0: (tmp_path / "cut", 1)})
    assert swapped.layers[0].source == str(tmp_path / "cut")


def test_language_model_with_the_usual_number_of_layers(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions of transformers left it out of the section."""
    record = family_record("llama")
    assert record is not None
    monkeypatch.setitem(record, "default_layers", 4)
    shutil.copytree(llava, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    assert config["text_config"].pop("num_hidden_layers") == 4
    path.write_text(json.dumps(config))
    for layers in (4, 2):
        plan = plan_assembly(tmp_path / "model", text_only=True, keep=f"0:{layers}")
        assert plan.config["num_hidden_layers"] == layers


def test_the_outer_config_decides_whether_the_head_is_tied(llava: Path, tmp_path: Path) -> None:
    """As in transformers: some families' outer default is another one than that of their language model."""
    model = LlavaForConditionalGeneration.from_pretrained(llava, tie_word_embeddings=True)
    model.tie_weights()
    save_quietly(model, tmp_path / "tied")
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
    path = tmp_path / "tied" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["tie_word_embeddings"] = False
    for outer in ({"tie_word_embeddings": True}, {}):
        path.write_text(
            json.dumps({name: value for name, value in config.items() if name != "tie_word_embeddings"} | outer)
        )
        made = assemble_model(tmp_path / "tied", tmp_path / "out", text_only=True, force=True)
        loaded, report = AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
        assert not any(report.values())
        assert torch.equal(loaded.eval()(IDS).logits, expected)


def test_language_model_that_is_none_on_its_own(llava: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    config = json.loads((llava / "config.json").read_text())
    config["text_config"]["model_type"] = "novel"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitectureError, match=r"novel\) can't be taken out"):
        assemble_model(folder, tmp_path / "out", text_only=True)
