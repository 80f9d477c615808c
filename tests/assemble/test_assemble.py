"""`assemble_model` on folders: each layer is the right one, the folder is complete, and a failure leaves nothing."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from layer_surgeon import AssembledModel, AssemblyRecipe, LayerSlice, Workspace, assemble_model, plan_assembly
from layer_surgeon.assemble import assembly as assembly_module
from layer_surgeon.checkpoint.sources.local import FolderSource
from layer_surgeon.errors import (
    ArtifactError,
    AssemblyError,
    ConfigError,
    LayerNotFoundError,
    LayerSurgeonError,
    SourceError,
    UnsupportedArchitectureError,
)
from tests.support.checkpoints import TINY, write_sparse_checkpoint
from tests.support.recorder import Recorder
from tests.support.tiny_models import save_quietly, tiny_llama

IDS = torch.arange(12)[None]


def raw_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor of a folder, by name."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name] = entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end]
    return tensors


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


def reference_logits(layers: list[tuple[int, int]]) -> torch.Tensor:
    """The logits of a model whose layers are those of the siblings, as (seed, layer): made by moving modules."""
    models = [tiny_llama(seed=seed) for seed in (0, 1)]
    whole = tiny_llama(num_hidden_layers=len(layers))
    whole.load_state_dict(models[0].state_dict(), strict=False)
    for position, (seed, layer) in enumerate(layers):
        whole.model.layers[position].load_state_dict(models[seed].model.layers[layer].state_dict())
    with torch.no_grad():
        return whole.eval()(IDS).logits


class TestWhatComesOut:
    @pytest.mark.parametrize("shard_size", ["5GB", "50KB", 1])
    def test_keep_all_is_the_same_model(self, siblings, tmp_path, shard_size):
        model = assemble_model(siblings / "base", tmp_path / "out", max_shard_size=shard_size)
        assert raw_tensors(model.path) == raw_tensors(siblings / "base")
        assert model.config == json.loads((siblings / "base" / "config.json").read_text())
        model.verify()

    @pytest.mark.parametrize(
        ("settings", "layers"),
        [
            ({"keep": "0:2"}, [(0, 0), (0, 1)]),
            ({"drop": "1:3"}, [(0, 0), (0, 3)]),
            ({"layers": "0:4,1:3"}, [(0, 0), (0, 1), (0, 2), (0, 3), (0, 1), (0, 2)]),
            ({"layers": "-1, 0"}, [(0, 3), (0, 0)]),
            ({"layers": [2, "0:2"]}, [(0, 2), (0, 0), (0, 1)]),
            ({"replace": "1=OTHER:2"}, [(0, 0), (1, 2), (0, 2), (0, 3)]),
            ({"layers": "0:2,3", "replace": ["1=OTHER:-1", "2=OTHER:0"]}, [(0, 0), (1, 3), (1, 0)]),
        ],
        ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
    )
    def test_each_layer_is_the_right_one(self, siblings, tmp_path, monkeypatch, settings, layers):
        monkeypatch.chdir(siblings)
        (siblings / "OTHER").exists() or (siblings / "OTHER").symlink_to("other")
        model = assemble_model(siblings / "base", tmp_path / "out", max_shard_size="50KB", **settings)
        originals = [raw_tensors(siblings / name) for name in ("base", "other")]
        tensors = raw_tensors(model.path)
        assert len(tensors) == 3 + 9 * len(layers)
        for position, (source, layer) in enumerate(layers):
            for name in [name for name in tensors if name.startswith(f"model.layers.{position}.")]:
                inner = name.split(".", 3)[3]
                assert tensors[name] == originals[source][f"model.layers.{layer}.{inner}"], name
        assert torch.equal(logits(model.path), reference_logits(layers))
        model.verify()

    def test_expanded_model_computes_the_same(self, siblings, tmp_path):
        model = assemble_model(siblings / "base", tmp_path / "out", expand="every:2")
        assert [layer["layer"] for layer in model.record["layers"]] == [0, 1, 1, 2, 3, 3]
        assert [layer.get("silent", False) for layer in model.record["layers"]] == [False, False, True] * 2
        assert torch.equal(logits(model.path), reference_logits([(0, layer) for layer in range(4)]))
        model.verify()
        assert not model.record["changed"]

    def test_scaled_layer(self, siblings, tmp_path):
        model = assemble_model(siblings / "base", tmp_path / "out", scale="2=0.5")
        tensors, originals = raw_tensors(model.path), raw_tensors(siblings / "base")
        changed = [name for name in tensors if tensors[name] != originals[name]]
        assert sorted(changed) == ["model.layers.2.mlp.down_proj.weight", "model.layers.2.self_attn.o_proj.weight"]
        for name in changed:
            values, plain = (
                torch.frombuffer(bytearray(raw[name][2]), dtype=torch.float32) for raw in (tensors, originals)
            )
            assert torch.equal(values, plain * 0.5)
        model.verify()

    def test_scale_that_makes_numbers_infinite(self, siblings, tmp_path):
        with pytest.raises(AssemblyError, match=r"Times 1e\+39, numbers of .*layers.2.* are too large for its dtype"):
            assemble_model(siblings / "base", tmp_path / "out", scale={2: 1e39})
        assert not (tmp_path / "out").exists()

    def test_layer_that_is_used_twice_is_read_once(self, siblings, tmp_path):
        once = plan_assembly(siblings / "base")
        recorder = Recorder()
        twice = assemble_model(
            siblings / "base", tmp_path / "out", layers="0:4,0:4", max_shard_size="50KB", progress=recorder
        )
        assert recorder.done == recorder.total == once.num_bytes
        assert twice.record["num_bytes_read"] == once.num_bytes
        twice.verify()

    def test_dtype_is_converted(self, siblings, tmp_path):
        model = assemble_model(siblings / "base", tmp_path / "out", keep="0:1", dtype="bfloat16")
        assert model.config["dtype"] == "bfloat16"
        with safe_open(model.path / "model.safetensors", "pt") as file:
            weight = file.get_tensor("model.layers.0.mlp.up_proj.weight")
        original = tiny_llama().model.layers[0].mlp.up_proj.weight
        assert torch.equal(weight, original.to(torch.bfloat16))

    def test_the_folder_is_complete(self, siblings, tmp_path):
        recipe = AssemblyRecipe(
            slices=(
                LayerSlice(source=siblings / "base", layers="0:2"),
                LayerSlice(source=siblings / "other", layers=3),
            ),
            head=siblings / "other",
        )
        model = assemble_model(recipe, tmp_path / "out", max_shard_size="80KB")
        shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        texts = ["LICENSE", "LICENSE-other", "README.md", "assembly.yaml", "chat_template.jinja", "config.json"]
        tokenizer = ["tokenizer.json", "tokenizer_config.json"]
        assert names_below(model.path) == sorted(
            [*shards, *texts, *tokenizer, "generation_config.json", "model.safetensors.index.json"]
        )
        index = json.loads((model.path / "model.safetensors.index.json").read_text())
        tensors = raw_tensors(model.path)
        assert set(index["weight_map"]) == set(tensors)
        assert index["metadata"]["total_size"] == sum(len(raw) for _, _, raw in tensors.values()) == model.num_bytes
        record = yaml.safe_load((model.path / "assembly.yaml").read_text())
        assert record["sha256"] == {name: hashlib.sha256(raw).hexdigest() for name, (_, _, raw) in tensors.items()}
        assert record["layers"] == [
            {"source": str(siblings / name), "layer": layer} for name, layer in (("base", 0), ("base", 1), ("other", 3))
        ]
        assert (record["embeddings"], record["head"]) == (str(siblings / "base"), str(siblings / "other"))
        assert tensors["lm_head.weight"] == raw_tensors(siblings / "other")["lm_head.weight"]
        assert tensors["model.embed_tokens.weight"] == raw_tensors(siblings / "base")["model.embed_tokens.weight"]
        assert AutoTokenizer.from_pretrained(model.path).vocab_size
        card = (model.path / "README.md").read_text()
        assert "license: other\nlicense_name: apache-2.0-and-llama3.1" in card
        assert "The sources state different licences" in card
        assert "layers 0-1, embeddings (of 4 layers)" in card
        assert "norm and head" in card
        assert str(siblings) not in card

    def test_tied_embeddings_stay_tied(self, tmp_path):
        tied = tiny_llama(tie_word_embeddings=True)
        save_quietly(tied, tmp_path / "tied")
        model = assemble_model(tmp_path / "tied", tmp_path / "out", keep="0:1")
        assert "lm_head.weight" not in raw_tensors(model.path)
        loaded = AutoModelForCausalLM.from_pretrained(model.path)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight

    def test_layers_beyond_the_last_one_only_stay_in_a_whole_model(self, tmp_path):
        """DeepSeek-V3 has a layer that predicts ahead, numbered after the last one."""
        folder = write_sparse_checkpoint(tmp_path / "model", TINY, range(3))
        (folder / "config.json").write_text(json.dumps(TINY | {"num_hidden_layers": 2}))
        recorder = Recorder()
        cut = assemble_model(folder, tmp_path / "cut", layers="1,0", progress=recorder)
        assert not [name for name in raw_tensors(cut.path) if name.startswith("model.layers.2.")]
        assert any("9 tensors of layers beyond its last one" in notice for notice in recorder.notices)
        whole = assemble_model(folder, tmp_path / "whole")
        assert raw_tensors(whole.path) == raw_tensors(folder)


class TestThePlan:
    @pytest.mark.parametrize("settings", [{}, {"layers": "0,0,2"}, {"dtype": "bfloat16"}, {"expand": 1}])
    def test_it_is_right_to_the_byte(self, siblings, tmp_path, settings):
        plan = plan_assembly(siblings / "base", max_shard_size="60KB", **settings)
        recorder = Recorder()
        model = assemble_model(
            siblings / "base", tmp_path / "out", max_shard_size="60KB", progress=recorder, **settings
        )
        sizes = {file.name: file.stat().st_size for file in model.path.glob("*.safetensors")}
        assert {shard.file: shard.num_out_bytes for shard in plan.shards} == sizes
        assert plan.num_out_bytes == sum(sizes.values())
        assert recorder.done == plan.num_bytes_read == plan.num_bytes
        assert plan.config == model.config
        assert plan.num_source_bytes == (siblings / "base" / "model.safetensors").stat().st_size

    def test_it_reads_no_weights(self, siblings, monkeypatch):
        monkeypatch.setattr(FolderSource, "stream_range", None)
        assert plan_assembly(siblings / "base", keep="0:2").num_requests == 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"keep": ""}, ConfigError, "layers is empty"),
            ({"drop": ""}, ConfigError, "drop is empty. Name at least one layer"),
            ({"keep": "2:2"}, ConfigError, "'2:2' selects no layer"),
            ({"drop": ":"}, ConfigError, "drops every layer"),
            ({"keep": "0:5"}, LayerNotFoundError, "has 4 layers, so there is no layer 5"),
            ({"layers": "7"}, LayerNotFoundError, "there is no layer 7"),
            ({"keep": "one"}, ConfigError, "must be a number such as 31"),
            ({"layers": 1.5}, ConfigError, "layers is 1.5; it must be"),
            ({"layers": [1.5]}, ConfigError, "layers has the entry 1.5"),
            ({"keep": "0", "drop": "1"}, ConfigError, "keep and drop can't be combined"),
            ({"colour": "red"}, ConfigError, "no setting 'colour'"),
            ({"dtype": "int8"}, ConfigError, "dtype is 'int8'"),
            ({"replace": "4=/no/model:0"}, SourceError, "no folder or file '/no/model'"),
            ({"replace": "1"}, ConfigError, "must be POSITION=SOURCE:LAYER"),
            ({"replace": {1: "x"}}, ConfigError, "must be POSITION=SOURCE:LAYER"),
            ({"replace": {1: ("x", "2")}}, ConfigError, "replace maps 1 to"),
            ({"replace": ["1=x:0", "1=x:1"]}, ConfigError, "replace names a position twice"),
            ({"scale": "1"}, ConfigError, "must be POSITION=FACTOR"),
            ({"scale": "1=loud"}, ConfigError, "has the factor 'loud'"),
            ({"scale": {1: float("nan")}}, ConfigError, "has the factor nan"),
            ({"scale": {-1: 2.0}}, ConfigError, "has the position -1"),
            ({"scale": ["1=2", "1=3"]}, ConfigError, "scale names a position twice"),
            ({"scale": "9=2"}, ConfigError, "scale names layer 9 of the new model, which has 4 layers"),
            ({"expand": "often"}, ConfigError, "must be every:N"),
            ({"expand": 5}, ConfigError, "every 5 layers, but there are only 4"),
            ({"layers": "0:4," * 2501}, ConfigError, "10,004 layers were requested; at most 10,000"),
            ({"layers": ",".join(["0:4"] * 2500), "expand": 1}, ConfigError, "20,000 layers were requested"),
            ({"text_only": "yes"}, ConfigError, "text_only is 'yes'"),
            ({"max_shard_size": "big"}, ConfigError, "max_shard_size is 'big'"),
            ({"max_shard_size": 0}, ConfigError, "max_shard_size is 0"),
        ],
    )
    def test_bad_settings(self, siblings, tmp_path, settings, error, message):
        with pytest.raises(error, match=message):
            assemble_model(siblings / "base", tmp_path / "out", **settings)
        assert names_below(tmp_path) == []

    def test_position_beyond_the_model(self, siblings, tmp_path):
        with pytest.raises(ConfigError, match="replace names layer 2 of the new model, which has 2 layers"):
            assemble_model(siblings / "base", tmp_path / "out", keep="0:2", replace={2: (siblings / "other", 0)})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "mistral"}, "A layer of mistral can't be a layer of llama"),
            ({"hidden_size": 32, "num_attention_heads": 2}, "The sources differ in hidden_size: 64 and 32"),
            ({"vocab_size": 120}, "vocabulary of 100 tokens, and .* one of 120"),
        ],
        ids=["family", "width", "vocabulary"],
    )
    def test_models_that_do_not_fit(self, tmp_path, change, message):
        write_sparse_checkpoint(tmp_path / "base", TINY, [0])
        write_sparse_checkpoint(tmp_path / "other", TINY | change, [0])
        with pytest.raises(AssemblyError, match=message):
            assemble_model(tmp_path / "base", tmp_path / "out", replace={0: (tmp_path / "other", 0)})
        assert not (tmp_path / "out").exists()

    def test_different_tokenizers(self, siblings, tmp_path):
        base, other = (tmp_path / name for name in ("base", "other"))
        for folder in (base, other):
            write_sparse_checkpoint(folder, TINY, [0])
        tokenizer = json.loads((siblings / "base" / "tokenizer.json").read_text())
        (base / "tokenizer.json").write_text(json.dumps(tokenizer))
        added = tokenizer | {"added_tokens": [*tokenizer["added_tokens"], {"id": 99, "content": "<chat>"}]}
        (other / "tokenizer.json").write_text(json.dumps(added))
        settings: dict[str, Any] = {"replace": {0: (other, 0)}}
        assemble_model(base, tmp_path / "out", **settings)
        first, second, *_ = tokenizer["model"]["vocab"]
        swapped = tokenizer["model"]["vocab"] | {first: 1, second: 0}
        (other / "tokenizer.json").write_text(
            json.dumps(tokenizer | {"model": tokenizer["model"] | {"vocab": swapped}})
        )
        with pytest.raises(AssemblyError, match="have different tokenizers: they number"):
            assemble_model(base, tmp_path / "another", **settings)
        (other / "tokenizer.json").write_text("{")
        with pytest.raises(AssemblyError, match=r"tokenizer\.json of .* can't be read"):
            assemble_model(base, tmp_path / "another", **settings)

    @pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model", "tiktoken.model"])
    def test_vocabularies_in_other_formats(self, tmp_path, name):
        for folder in ("base", "other"):
            write_sparse_checkpoint(tmp_path / folder, TINY, [0])
            (tmp_path / folder / name).write_text('{"vocab": ["a"]}')
        settings: dict[str, Any] = {"replace": {0: (tmp_path / "other", 0)}}
        assert (assemble_model(tmp_path / "base", tmp_path / "out", **settings).path / name).is_file()
        (tmp_path / "other" / name).write_text('{"vocab": ["b"]}')
        with pytest.raises(AssemblyError, match=r"base and .*other have different tokenizers\. Their layers"):
            assemble_model(tmp_path / "base", tmp_path / "another", **settings)

    def test_different_dtypes(self, siblings, tmp_path):
        half = assemble_model(siblings / "other", tmp_path / "half", dtype="float16").path
        settings: dict[str, Any] = {"replace": {0: (half, 0)}}
        with pytest.raises(AssemblyError, match=r"base are float32, and those of .*half float16\. .* --dtype float32"):
            assemble_model(siblings / "base", tmp_path / "out", **settings)
        assemble_model(siblings / "base", tmp_path / "out", dtype="float32", **settings).verify()

    def test_embeddings_and_head_that_do_not_fit(self, siblings, tmp_path):
        save_quietly(tiny_llama(tie_word_embeddings=True), tmp_path / "tied")
        slices = (LayerSlice(source=siblings / "base"),)
        with pytest.raises(AssemblyError, match=r"Only one of .* has the tensor 'lm_head.weight' after its layers"):
            plan_assembly(AssemblyRecipe(slices=slices, head=tmp_path / "tied"))
        folder = assemble_model(siblings / "base", tmp_path / "odd").path
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes().replace(b"model.norm.weight", b"model.odd1.weight"))
        with pytest.raises(AssemblyError, match=r"not clear whether 'model.odd1.weight'"):
            plan_assembly(AssemblyRecipe(slices=(LayerSlice(source=folder),), head=siblings / "base"))

    def test_a_head_of_another_size(self, siblings, tmp_path):
        save_quietly(tiny_llama(vocab_size=52), tmp_path / "added")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "added" / name).write_bytes((siblings / "base" / name).read_bytes())
        slices = (LayerSlice(source=siblings / "base"),)
        with pytest.raises(AssemblyError, match=r"'lm_head.weight' has the shape \[96, 32\] in .*base and \[52, 32\]"):
            plan_assembly(AssemblyRecipe(slices=slices, head=tmp_path / "added"))

    def test_a_tied_head_is_that_of_the_embeddings(self, tmp_path):
        for seed in (0, 1):
            save_quietly(tiny_llama(seed=seed, tie_word_embeddings=True), tmp_path / f"tied{seed}")
        recipe = AssemblyRecipe(slices=(LayerSlice(source=tmp_path / "tied0"),), head=tmp_path / "tied1")
        progress = Recorder()
        model = assemble_model(recipe, tmp_path / "out", progress=progress)
        assert any("tied1 stores no head of its own, so only the norm" in notice for notice in progress.notices)
        card = (model.path / "README.md").read_text()
        assert "norm and head" not in card
        assert any("tied1" in line and "norm" in line for line in card.splitlines())

    def test_unknown_family(self, tmp_path):
        folder = write_sparse_checkpoint(tmp_path / "model", TINY | {"model_type": "novel"}, [0])
        with pytest.raises(UnsupportedArchitectureError, match="novel"):
            assemble_model(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_settings_next_to_a_recipe(self, siblings, tmp_path):
        recipe = AssemblyRecipe.of(siblings / "base", keep="0:2")
        with pytest.raises(ConfigError, match="keep can't be combined with a recipe"):
            assemble_model(recipe, tmp_path / "out", keep="0:1")
        assert plan_assembly(recipe, dtype="float16").config["dtype"] == "float16"


class TestTheFolder:
    def test_it_is_replaced_only_with_force(self, siblings, tmp_path):
        assemble_model(siblings / "base", tmp_path / "out", keep="0:1", max_shard_size="20KB")
        with pytest.raises(ArtifactError, match="already holds an assembled model.*--force"):
            assemble_model(siblings / "base", tmp_path / "out", keep="0:2")
        model = assemble_model(siblings / "base", tmp_path / "out", keep="0:2", force=True)
        model.verify()
        assert len(raw_tensors(model.path)) == 3 + 18
        assert names_below(tmp_path) == ["out", *(f"out/{name}" for name in names_below(model.path))]

    @pytest.mark.parametrize("force", [False, True])
    def test_other_files_are_never_changed(self, siblings, tmp_path, force):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("years of work")
        with pytest.raises(ArtifactError, match="already exists and is not an assembled model"):
            assemble_model(siblings / "base", tmp_path / "home", force=force)
        model = assemble_model(siblings / "base", tmp_path / "out", keep="0:1")
        (model.path / "notes.txt").write_text("mine")
        with pytest.raises(ArtifactError, match="files that are not part of one" if force else "already holds"):
            assemble_model(siblings / "base", tmp_path / "out", force=force)
        assert (model.path / "notes.txt").read_text() == "mine"

    def test_the_default_is_in_the_workspace(self, siblings, tmp_path):
        workspace = Workspace(tmp_path / "surgery")
        settings: list[tuple[dict[str, Any], str]] = [
            ({"keep": "0:2"}, "base-L0-1"),
            ({"drop": "1"}, "base-L0+2-3"),
            ({"expand": 4}, "base-5-layers-"),
            ({"replace": {0: (siblings / "other", 0)}}, "base+other-4-layers-"),
        ]
        for values, name in settings:
            model = assemble_model(siblings / "base", workspace=workspace, **values)
            assert model.path.parent == tmp_path / "surgery" / "models"
            assert model.path.name.startswith(name)

    def test_full_disk(self, siblings, tmp_path, monkeypatch):
        plain, written, limits = os.pwrite, [], [0]

        def pwrite(descriptor: int, content: Any, offset: int) -> int:
            if sum(written) > limits[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(plain(descriptor, content, offset))
            return written[-1]

        monkeypatch.setattr(os, "pwrite", pwrite)
        # In the middle of the copy, and in the middle of the copies of copies.
        for limits[0] in (20_000, 170_000):
            written.clear()
            with pytest.raises(ArtifactError, match="disk of .* is full.*--output"):
                assemble_model(siblings / "base", tmp_path / "new" / "out", layers="0:4,0:4")
            assert names_below(tmp_path) == []

    def test_missing_space_is_reported_before_reading(self, siblings, tmp_path, monkeypatch):
        usage = __import__("shutil").disk_usage(tmp_path)
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100))
        with pytest.raises(ArtifactError, match="The model needs .* has 100 left"):
            assemble_model(siblings / "base", tmp_path / "new" / "out")
        assert names_below(tmp_path) == []

    def test_interruption_of_a_local_copy_leaves_nothing(self, siblings, tmp_path, monkeypatch):
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(assembly_module, "fill_range", interrupt)
        with pytest.raises(KeyboardInterrupt):
            assemble_model(siblings / "base", tmp_path / "out", expand=1)
        assert names_below(tmp_path) == []

    def test_weights_of_a_killed_run_with_other_shards(self, siblings, tmp_path):
        (tmp_path / ".out.partial").mkdir()
        (tmp_path / ".out.partial" / "model.safetensors").write_bytes(b"stale")
        model = assemble_model(siblings / "base", tmp_path / "out", max_shard_size="50KB")
        assert not (model.path / "model.safetensors").exists()

    def test_verify_finds_changes(self, siblings, tmp_path):
        model = assemble_model(siblings / "base", tmp_path / "out", keep="0:1", max_shard_size="20KB")
        shard = sorted(model.path.glob("*.safetensors"))[-1]
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{shard.name}: the sha256 of 'model.* differs"):
            AssembledModel.open(model.path).verify()
        shard.unlink()
        with pytest.raises(ArtifactError, match="is not a complete model"):
            AssembledModel.open(model.path).verify()

    def test_folders_that_are_no_assembled_models(self, siblings, tmp_path):
        with pytest.raises(ArtifactError, match=r"it has no assembly\.yaml"):
            AssembledModel.open(siblings / "base")
        with pytest.raises(ArtifactError, match=r"config\.json: No such file"):
            AssembledModel.open(tmp_path)
        model = assemble_model(siblings / "base", tmp_path / "out", keep="0:1")
        record = model.path / "assembly.yaml"
        text = record.read_text()
        for content, message in {
            text.replace("model.norm.weight", "model.odd.weight"): "only one of assembly.yaml and the files",
            "layers: []": "has no sha256",
            "*x": "can't be read",
        }.items():
            record.write_text(content)
            with pytest.raises(ArtifactError, match=message):
                AssembledModel.open(model.path).verify()


def test_plain_bytes_need_no_heavy_library(tmp_path):
    write_sparse_checkpoint(tmp_path / "model", TINY, [0])
    code = (
        "import sys, layer_surgeon as ls; ls.assemble_model('model', 'out', keep='0:1'); "
        "print({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_errors_are_ours():
    assert issubclass(AssemblyError, LayerSurgeonError)
