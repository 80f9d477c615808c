"""What `diff_checkpoints` finds and reads, in all formats and places."""

import hashlib
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from layer_surgeon import diff_checkpoints, extract_layer, open_checkpoint
from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.errors import CheckpointError, SourceError, UnsupportedArchitectureError
from layer_surgeon.run import difference as difference_module
from tests.support.gguf_models import write_model
from tests.support.hub_reading import read_from, weight_bytes
from tests.support.loopback_hub import LoopbackHub
from tests.support.numbered_weights import SMALL, random_weights, write_weights
from tests.support.recorder import Recorder
from tests.support.torch_files import write_checkpoint

UP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        yield hub


def changed(weights, *names, by=0.5):
    """The weights with one number of each named tensor changed."""
    copy = dict(weights)
    for name in names:
        copy[name] = weights[name].copy()
        copy[name].flat[3] += np.float32(by)
    return copy


def differing(difference):
    """The layers that differ, and the names of their tensors."""
    return {
        group.layer: [tensor.name for tensor in group.tensors if tensor.status != "equal"]
        for group in difference.groups
        if not group.equal
    }


def num_bytes(weights, item_bytes=4):
    return sum(numbers.size * item_bytes for numbers in weights.values())


class TestNumbers:
    def test_per_tensor_and_per_layer(self, tmp_path):
        before, after = random_weights(0), random_weights(1)
        result = diff_checkpoints(write_weights(tmp_path / "a", before), write_weights(tmp_path / "b", after))
        for group in result.groups:
            names = [name for name in before if (f"layers.{group.layer}." in name) == (group.layer is not None)]
            if group.layer is None:
                names = [name for name in before if ".layers." not in name]
            a = np.concatenate([before[name].ravel() for name in names]).astype("f8")
            b = np.concatenate([after[name].ravel() for name in names]).astype("f8")
            assert group.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-6)
            assert group.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
            assert group.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-6)
            assert len(group.tensors) == len(names)
        tensor = next(tensor for tensor in result.layers[1].tensors if tensor.name == "mlp.up_proj.weight")
        a, b = before[UP.format(1)].astype("f8"), after[UP.format(1)].astype("f8")
        assert tensor.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-6)

    def test_one_changed_layer_is_found_and_only_it(self, tmp_path):
        weights = random_weights(num_hidden_layers=32)
        a = write_weights(tmp_path / "a", weights, "BF16", shards=4, num_hidden_layers=32)
        b = write_weights(tmp_path / "b", changed(weights, UP.format(17)), "BF16", shards=3, num_hidden_layers=32)
        result = diff_checkpoints(a, b)
        assert differing(result) == {17: ["mlp.up_proj.weight"]}
        assert not result.equal
        assert result.num_layers == (32, 32)

    def test_parts_of_tensors_on_several_threads_give_the_same_numbers(self, tmp_path, monkeypatch):
        a = write_weights(tmp_path / "a", random_weights(0), "BF16")
        b = write_weights(tmp_path / "b", random_weights(1), "F32")
        whole = diff_checkpoints(a, b)
        monkeypatch.setattr(difference_module, "_PART_BYTES", 100)
        parts = diff_checkpoints(a, b)
        assert parts.bytes_read == whole.bytes_read == num_bytes(random_weights(), 2) + num_bytes(random_weights(), 4)
        for one, other in zip(whole.groups, parts.groups, strict=True):
            assert one.relative_l2 == pytest.approx(other.relative_l2, rel=1e-6)

    def test_dtypes_are_converted(self, tmp_path):
        weights = random_weights()
        a = write_weights(tmp_path / "a", weights, "BF16")
        b = write_weights(tmp_path / "b", weights, "F32")
        result = diff_checkpoints(a, b)
        assert result.equal
        assert result.layers[0].tensors[0].dtypes == ("BF16", "F32")
        half = diff_checkpoints(a, write_weights(tmp_path / "c", changed(weights, UP.format(2)), "F16"))
        assert 2 in differing(half)

    def test_progress_counts_the_bytes(self, tmp_path):
        a = write_weights(tmp_path / "a", random_weights())
        recorder = Recorder()
        result = diff_checkpoints(a, a, progress=recorder)
        assert result.bytes_read == 2 * num_bytes(random_weights())
        assert recorder.total == result.bytes_read


class TestNames:
    def test_different_numbers_of_layers(self, tmp_path):
        a = write_weights(tmp_path / "a", random_weights())
        b = write_weights(tmp_path / "b", random_weights(num_hidden_layers=2), num_hidden_layers=2)
        result = diff_checkpoints(a, b)
        assert result.num_layers == (3, 2)
        assert [tensor.status for tensor in result.layers[2].tensors] == ["only in A"] * 9
        assert result.layers[2].relative_l2 is None
        swapped = diff_checkpoints(b, a)
        assert [tensor.status for tensor in swapped.layers[2].tensors] == ["only in B"] * 9

    def test_different_names_and_shapes(self, tmp_path):
        weights = random_weights()
        other = dict(weights)
        other["model.embed_tokens.weight"] = np.ones((43, 16), dtype="f4")
        other["model.layers.0.self_attn.q_norm.weight"] = np.ones(4, dtype="f4")
        del other["lm_head.weight"]
        a, b = write_weights(tmp_path / "a", weights), write_weights(tmp_path / "b", other)
        result = diff_checkpoints(a, b)
        rest = {tensor.name: tensor for tensor in result.rest.tensors}
        assert rest["embed_tokens.weight"].status == "different shape"
        assert rest["embed_tokens.weight"].shapes == ((40, 16), (43, 16))
        assert rest["embed_tokens.weight"].relative_l2 is None
        assert rest["lm_head.weight"].status == "only in A"
        assert rest["norm.weight"].status == "equal"
        assert result.rest.relative_l2 == 0.0
        assert differing(result)[0] == ["self_attn.q_norm.weight"]
        assert result.layers[1].equal

    def test_a_base_model_has_the_same_layers_and_norm(self, tmp_path):
        weights = random_weights()
        base = {name.removeprefix("model."): numbers for name, numbers in weights.items() if name != "lm_head.weight"}
        a, b = write_weights(tmp_path / "a", weights), write_weights(tmp_path / "b", base)
        assert differing(diff_checkpoints(a, b)) == {None: ["lm_head.weight"]}

    def test_models_with_nothing_in_common_are_refused(self, tmp_path):
        a = write_weights(tmp_path / "a", random_weights())
        small = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 9}
        b = write_weights(tmp_path / "b", random_weights(**small), **small)
        with pytest.raises(CheckpointError, match="no tensor with the same name and shape"):
            diff_checkpoints(a, b)

    def test_empty_tensors_are_equal(self, tmp_path):
        weights = random_weights() | {"model.layers.0.self_attn.empty": np.empty((0, 3), dtype="f4")}
        a = write_weights(tmp_path / "a", weights)
        assert diff_checkpoints(a, a).equal


class TestHashes:
    """What is equal by a hash is not read."""

    def test_equal_checkpoints_on_the_hub(self, hub, tmp_path):
        folder = write_weights(tmp_path / "a", random_weights(), shards=3)
        hub.add_repo("owner/a", folder)
        hub.add_repo("owner/b", folder)
        result = diff_checkpoints("owner/a", "owner/b")
        assert result.equal
        assert result.bytes_read == 0
        assert weight_bytes(hub) == 0
        assert {tensor.compared for group in result.groups for tensor in group.tensors} == {"hash"}

    def test_one_changed_layer_among_32_on_the_hub(self, hub, tmp_path):
        weights = random_weights(num_hidden_layers=32)
        hub.add_repo("owner/a", write_weights(tmp_path / "a", weights, shards=10, num_hidden_layers=32))
        tuned = changed(weights, UP.format(9))
        hub.add_repo("owner/b", write_weights(tmp_path / "b", tuned, shards=10, num_hidden_layers=32))
        result = diff_checkpoints("owner/a", "owner/b")
        assert differing(result) == {9: ["mlp.up_proj.weight"]}
        # One shard of ten has to be read on both sides, and a part of one side for the norm of the changed layer.
        assert 0 < result.bytes_read < 0.3 * num_bytes(weights)
        assert weight_bytes(hub) == result.bytes_read
        local = diff_checkpoints(tmp_path / "a", tmp_path / "b")
        assert result.layers[9].relative_l2 == pytest.approx(local.layers[9].relative_l2, rel=1e-6)
        assert result.layers[9].cosine == pytest.approx(local.layers[9].cosine, abs=1e-6)

    def test_hashes_can_be_ignored(self, hub, tmp_path):
        hub.add_repo("owner/a", write_weights(tmp_path / "a", random_weights()))
        result = diff_checkpoints("owner/a", "owner/a", use_hashes=False)
        assert result.equal
        assert result.bytes_read == weight_bytes(hub) == 2 * num_bytes(random_weights())

    def test_revisions(self, hub, tmp_path):
        weights = random_weights()
        first = hub.add_repo("owner/a", write_weights(tmp_path / "a", weights)).refs["main"]
        second = hub.add_repo("owner/b", write_weights(tmp_path / "b", changed(weights, UP.format(0)))).refs["main"]
        assert diff_checkpoints("owner/a", "owner/b", revision_a=first, revision_b=second).layers[0].equal is False

    def test_layer_artifacts(self, tmp_path):
        weights = random_weights()
        a = write_weights(tmp_path / "a", weights)
        b = write_weights(tmp_path / "b", changed(weights, UP.format(2)))
        for name, folder in (("la", a), ("lb", b)):
            extract_layer(folder, [1, 2], tmp_path / name)
        result = diff_checkpoints(tmp_path / "la", tmp_path / "lb")
        assert differing(result) == {2: ["mlp.up_proj.weight"]}
        assert [group.layer for group in result.layers] == [1, 2]
        assert result.rest.tensors == ()
        compared = {tensor.name: tensor.compared for tensor in result.layers[1].tensors}
        assert compared["mlp.up_proj.weight"] == "bytes"
        assert compared["mlp.down_proj.weight"] == "hash"
        assert diff_checkpoints(tmp_path / "la", tmp_path / "la").bytes_read == 0
        with pytest.raises(SourceError, match="no revisions"):
            diff_checkpoints(tmp_path / "la", tmp_path / "lb", revision_b="main")

    def test_stack_artifacts(self, tmp_path):
        """With embeddings. Another artifact without them, or the norm of a whole model, is not compared with them."""
        weights = random_weights()
        a = write_weights(tmp_path / "a", weights)
        b = write_weights(tmp_path / "b", changed(weights, "model.embed_tokens.weight"))
        for name, folder in (("la", a), ("lb", b)):
            extract_layer(folder, "0:2", tmp_path / name, embeddings=True)
        for pair in (("la", "lb"), ("la", "b"), ("a", "lb")):
            result = diff_checkpoints(*(tmp_path / name for name in pair))
            assert [tensor.name for tensor in result.rest.tensors] == ["embed_tokens.weight"]
            assert not result.equal
            assert differing(result) == {None: ["embed_tokens.weight"]}
        assert diff_checkpoints(tmp_path / "la", a).equal

    def test_records_of_assembled_models(self, tmp_path):
        weights = random_weights()
        for name, shards in (("a", 1), ("b", 3)):
            folder = write_weights(tmp_path / name, weights, shards=shards)
            digests = {key: hashlib.sha256(numbers.tobytes()).hexdigest() for key, numbers in weights.items()}
            (folder / "assembly.yaml").write_text(yaml.safe_dump({"sha256": digests}))
        extract_layer(tmp_path / "a", -1, tmp_path / "layer")
        assert diff_checkpoints(tmp_path / "a", tmp_path / "b").bytes_read == 0
        assert diff_checkpoints(tmp_path / "layer", tmp_path / "b").bytes_read == 0
        # Records of large models are longer than other YAML that is read.
        (folder / "assembly.yaml").write_text(yaml.safe_dump({"notes": "x" * 1_100_000, "sha256": digests}))
        assert diff_checkpoints(tmp_path / "a", tmp_path / "b").bytes_read == 0
        for record in ("sha256: [", "- a", "sha256: 3", "sha256: {model.norm.weight: 4}"):
            (tmp_path / "a/assembly.yaml").write_text(record)
            result = diff_checkpoints(tmp_path / "a", tmp_path / "b")
            assert (result.equal, result.bytes_read) == (True, 2 * num_bytes(weights))

    def test_a_layer_artifact_and_its_checkpoint(self, tmp_path):
        folder = write_weights(tmp_path / "a", random_weights())
        extract_layer(folder, -1, tmp_path / "layer")
        result = diff_checkpoints(tmp_path / "layer", folder)
        assert result.equal
        assert [group.layer for group in result.layers] == [2]

    def test_snapshots_in_the_hub_cache(self, tmp_path):
        weights = random_weights()
        folder = write_weights(tmp_path / "plain", weights)
        for commit in ("a" * 40, "b" * 40):
            snapshot = tmp_path / "models--x/snapshots" / commit
            snapshot.mkdir(parents=True)
            shutil.copy(folder / "config.json", snapshot)
            blob = tmp_path / "models--x/blobs" / ("c" * 64)
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(folder / "model.safetensors", blob)
            (snapshot / "model.safetensors").symlink_to(blob)
        result = diff_checkpoints(*(tmp_path / "models--x/snapshots" / commit for commit in ("a" * 40, "b" * 40)))
        assert (result.equal, result.bytes_read) == (True, 0)


class TestFormats:
    def test_pytorch_files_with_transposed_tensors(self, tmp_path):
        weights = random_weights()
        state = {name: torch.from_numpy(numbers.copy()) for name, numbers in weights.items()}
        transposed = {
            name: tensor.t().contiguous().t() if name.endswith("q_proj.weight") else tensor
            for name, tensor in state.items()
        }
        write_checkpoint(tmp_path / "b", transposed)
        (tmp_path / "b/config.json").write_text(json.dumps(SMALL))
        a = write_weights(tmp_path / "a", weights, "BF16")
        assert diff_checkpoints(a, tmp_path / "b").equal

    def test_gguf_equals_what_transformers_loads(self, tmp_path):
        write_model(tmp_path / "model.gguf", "llama", "Q8_0")
        model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
        (tmp_path / "loaded").mkdir()
        save_file(
            {name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "loaded/model.safetensors"
        )
        (tmp_path / "loaded/config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
        result = diff_checkpoints(tmp_path / "model.gguf", tmp_path / "loaded")
        assert all(group.equal for group in result.layers)
        statuses = {tensor.name: tensor.status for tensor in result.rest.tensors}
        assert statuses["embed_tokens.weight"] == statuses["norm.weight"] == "equal"

    def test_fp8_weights_are_multiplied_by_their_scales(self, tmp_path):
        weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
        scale = torch.rand(8, 1)
        norm = torch.ones(16)
        prefix = "model.layers.0."
        config = {"model_type": "llama", "num_hidden_layers": 1}
        for name, tensors, settings in (
            (
                "a",
                {"q.weight": weight, "q.weight_scale": scale},
                {"quantization_config": {"quant_method": "fbgemm_fp8"}},
            ),
            ("b", {"q.weight": weight.float() * scale}, {}),
        ):
            (tmp_path / name).mkdir()
            named = {f"{prefix}{key}": tensor for key, tensor in (tensors | {"norm.weight": norm}).items()}
            save_file(named, tmp_path / name / "model.safetensors")
            (tmp_path / name / "config.json").write_text(json.dumps(config | settings))
        result = diff_checkpoints(tmp_path / "a", tmp_path / "b")
        assert result.equal
        assert [tensor.name for tensor in result.layers[0].tensors] == ["norm.weight", "q.weight"]

    def test_the_hash_of_an_fp8_weight_includes_its_scale(self, tmp_path):
        weight = torch.ones(8, 16).to(torch.float8_e4m3fn)
        config = {"model_type": "llama", "num_hidden_layers": 1, "quantization_config": {"quant_method": "fbgemm_fp8"}}
        snapshots = []
        for commit, size in (("a" * 40, 1.0), ("b" * 40, 2.0), ("c" * 40, 1.0)):
            snapshots.append(tmp_path / f"models--{commit[0]}/snapshots" / commit)
            snapshots[-1].mkdir(parents=True)
            index = {}
            # The weight and its scale are in files of their own.
            for name, tensor in {"weight": weight, "weight_scale": torch.full((8, 1), size)}.items():
                save_file({f"model.layers.0.q.{name}": tensor}, tmp_path / "file")
                digest = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
                (tmp_path / f"models--{commit[0]}/blobs").mkdir(exist_ok=True)
                (tmp_path / "file").rename(tmp_path / f"models--{commit[0]}/blobs" / digest)
                (snapshots[-1] / f"{name}.safetensors").symlink_to(f"../../blobs/{digest}")
                index[f"model.layers.0.q.{name}"] = f"{name}.safetensors"
            (snapshots[-1] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
            (snapshots[-1] / "config.json").write_text(json.dumps(config))
        assert not diff_checkpoints(snapshots[0], snapshots[1]).equal
        same = diff_checkpoints(snapshots[0], snapshots[2])
        assert (same.equal, same.bytes_read) == (True, 0)

    def test_packed_weights_are_refused(self, tmp_path):
        packed = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
        a = write_weights(tmp_path / "a", random_weights(), **packed)
        with pytest.raises(UnsupportedArchitectureError, match="gptq, 4 bits.*compare the unquantised models"):
            diff_checkpoints(a, a)

    def test_unknown_numbers_are_refused(self, tmp_path):
        weights = {f"model.layers.0.w{kind}": torch.ones(4) for kind in "ab"}
        weights["model.layers.0.wc"] = torch.ones(4, dtype=torch.complex64)
        save_file(weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 1}))
        with pytest.raises(CheckpointError, match="'model.layers.0.wc' has the dtype C64.*can be compared"):
            diff_checkpoints(tmp_path, tmp_path)

    def test_an_open_checkpoint_can_be_compared(self, tmp_path):
        folder = write_weights(tmp_path / "a", random_weights())
        assert diff_checkpoints(open_checkpoint(folder), folder).equal


def test_damage_on_the_way_ends_the_comparison(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint, token=False))
    a = write_weights(tmp_path / "a", random_weights())
    b = write_weights(tmp_path / "b", random_weights())
    path = b / "model.safetensors"
    opened = open_checkpoint(b)
    opened.layer_tensors(0)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(OSError, match="changed while it was being read|truncated"):
        diff_checkpoints(a, opened)
