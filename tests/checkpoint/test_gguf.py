"""GGUF tensor tables have the names, shapes and config of transformers."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from benchmarks.packaged_gguf import write_packaged_gguf
from layer_surgeon.checkpoint.gguf import GgufTable, GgufTensorInfo
from layer_surgeon.checkpoint.gguf_families import Layout
from layer_surgeon.checkpoint.gguf_header import read_gguf_header
from layer_surgeon.checkpoint.sources import FileSource
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError
from tests.support.gguf_models import METADATA, NUM_TOKENS, transformers_config, write_gguf, write_model


class CountingSource(FileSource):
    """A file source that counts the bytes that are read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, name=str(path))
        self.num_bytes = 0

    def read_range(self, file: str, start: int, length: int) -> bytes:
        self.num_bytes += length
        return super().read_range(file, start, length)


def _open(path: Path) -> GgufTable:
    return GgufTable(FileSource(path, name=str(path)), path.name)


def _rewrite(path: Path, architecture: str, keep: Any = lambda name: True, **metadata: Any) -> Path:
    """Write a copy of the file with fewer tensors or other metadata."""
    tensors = [
        (tensor.name, np.array(tensor.data), tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
        if keep(tensor.name)
    ]
    settings = {key: value for key, value in {**METADATA[architecture], **metadata}.items() if value is not None}
    return write_gguf(path.parent / "other.gguf", architecture, tensors, metadata=settings)


def test_untied_output_is_read_from_the_tensors(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    assert _open(path).config["tie_word_embeddings"] is True
    tensors = [(t.name, np.array(t.data), t.tensor_type) for t in gguf.GGUFReader(path).tensors]
    output = np.zeros((NUM_TOKENS, 256), dtype=np.float32)
    other = write_gguf(
        tmp_path / "untied.gguf", "llama", [*tensors, ("output.weight", output, gguf.GGMLQuantizationType.F32)]
    )
    table = _open(other)
    assert table.config["tie_word_embeddings"] is False
    assert table.tensors(["lm_head.weight"])[0].shape == (NUM_TOKENS, 256)
    assert table.config == transformers_config(other)


def test_tensors_are_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", "Q8_0")
    table = _open(path)
    assert table.format == "gguf"
    library_tensors = {tensor.data_offset: tensor for tensor in gguf.GGUFReader(path).tensors}
    infos = table.tensors(table.files())
    assert set(table.files().values()) == {"model.gguf"}
    assert {info.offset for info in infos} == set(library_tensors)
    for info in infos:
        tensor = library_tensors[info.offset]
        assert (info.num_bytes, info.dtype) == (tensor.n_bytes, tensor.tensor_type.name)
        assert list(info.shape) == list(tensor.shape)[::-1]


def test_shapes_are_those_of_transformers(tmp_path: Path) -> None:
    table = _open(write_model(tmp_path / "model.gguf", "gpt2"))
    (info,) = table.tensors(["transformer.h.1.attn.c_attn.weight"])
    assert info.shape == (256, 768)
    assert isinstance(info, GgufTensorInfo)
    assert info.layout is Layout.TRANSPOSED


def test_tensors_that_transformers_ignores_are_not_listed(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen2")
    tensors = [(t.name, np.array(t.data), t.tensor_type) for t in gguf.GGUFReader(path).tensors]
    extra = ("blk.0.attn_sinks.weight", np.zeros(4, dtype=np.float32), gguf.GGMLQuantizationType.F32)
    table = _open(write_gguf(tmp_path / "more.gguf", "qwen2", [*tensors, extra]))
    assert list(table.files()) == list(_open(path).files())


def test_only_the_header_is_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    source = CountingSource(path)
    GgufTable(source, path.name)
    assert path.stat().st_size > 4_000_000
    assert source.num_bytes <= 262_144


@pytest.mark.real_weights
def test_header_of_gemma(tmp_path: Path) -> None:
    path = write_packaged_gguf("packaged:gemma-3-270m", tmp_path)
    source = CountingSource(path)
    header = read_gguf_header(source, path.name)
    assert header.metadata["tokenizer.ggml.tokens"].count == 262_144
    assert source.num_bytes < 2 * min(tensor.offset for tensor in header.tensors)
    table = _open(path)
    assert table.config["model_type"] == "gemma3_text"
    assert table.config["vocab_size"] == 262_144
    assert len(table.files()) == 236


def test_licence_that_the_file_states(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    assert _open(path).license is None
    tensors = [(t.name, np.array(t.data), t.tensor_type) for t in gguf.GGUFReader(path).tensors]
    other = write_gguf(tmp_path / "other.gguf", "llama", tensors, general={"general.license": "apache-2.0"})
    assert _open(other).license == "apache-2.0"


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    table = _open(write_model(tmp_path / "model.gguf", "llama"))
    with pytest.raises(CheckpointError, match=r"has no tensor with the transformers name 'model.layers.9.mlp'"):
        table.tensors(["model.layers.9.mlp"])


def test_missing_tensor_of_a_layer_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    other = _rewrite(path, "llama", lambda name: name != "blk.1.ffn_up.weight")
    with pytest.raises(CheckpointError, match=r"has no tensor 'blk.1.ffn_up.weight', which the model needs as"):
        _open(other)


def test_transposed_table_of_tokens_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    tensors = [
        (
            tensor.name,
            np.array(tensor.data.T if tensor.name == "token_embd.weight" else tensor.data),
            tensor.tensor_type,
        )
        for tensor in gguf.GGUFReader(path).tensors
    ]
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' has the shape .* requires \[\d+, 256\]"):
        _open(write_gguf(tmp_path / "other.gguf", "llama", tensors))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"embedding_length": 128}, r"has the shape \[.*\], but the metadata of the file requires"),
        ({"feed_forward_length": 1024}, r"'blk.0.ffn_.*' has the shape \[.*\], but the metadata"),
        ({"block_count": 10**9}, r"states 1000000000 layers .* and has \d+ tensors\. Expected are 1 to 512"),
        ({"block_count": 0}, r"states 0 layers"),
        ({"block_count": "two"}, r"states 'two' layers"),
        ({"block_count": None}, r"states None layers"),
    ],
)
def test_metadata_of_another_model_is_refused(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    with pytest.raises(CheckpointError, match=message):
        _open(_rewrite(path, "llama", **metadata))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (0, r"metadata of other.gguf has 0 as num_attention_heads\. Get the file again"),
        (5, r"'blk.0.attn_q.weight' has the shape \[256, 256\], but .* requires \[320, 256\]"),
        (4.0, r"has 4.0 as num_attention_heads"),
        ("four", r"'llama.attention.head_count' is 'four', but a number is expected"),
        ([4, 4], r"'llama.attention.head_count' is an array of 2 values, but a number is expected"),
    ],
)
def test_impossible_number_of_heads_is_refused(heads: Any, message: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    with pytest.raises(CheckpointError, match=message):
        _open(_rewrite(path, "llama", **{"attention.head_count": heads, "attention.head_count_kv": heads}))


@pytest.mark.parametrize(
    ("architecture", "metadata", "message"),
    [
        ("llama", {"attention.head_count": 300, "rope.dimension_count": None}, r"has a size of zero .*is 256 // 300"),
        ("llama", {"attention.head_count": 3, "rope.dimension_count": None}, r"has 3 heads for the 255 rows of model"),
        ("llama", {"rope.dimension_count": 63}, r"has 4 heads for the 252 rows of model.layers.0.self_attn.q_proj"),
        ("bloom", {"attention.head_count": 3}, r"has 3 heads for the 768 rows of transformer.h.0.self_attention"),
        ("bloom", {"attention.head_count": None}, r"has no n_head"),
        ("mamba", {"ssm.time_step_rank": None}, r"has no time_step_rank"),
        ("lfm2", {"attention.head_count_kv": [0, 2, 2]}, r"must be a number for each of the 2 layers"),
        ("lfm2", {"attention.head_count_kv": ["a", "b"]}, r"must be a number for each of the 2 layers"),
        ("lfm2", {"attention.head_count_kv": 2}, r"must be a number for each of the 2 layers"),
        ("lfm2", {"attention.head_count_kv": None}, r"has no layer_types"),
    ],
)
def test_metadata_that_contradicts_the_layers_is_refused(
    architecture: str, metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", architecture)
    with pytest.raises(CheckpointError, match=message):
        _open(_rewrite(path, architecture, **metadata))


def test_rotary_scaling_that_transformers_does_not_read_is_noted(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    assert _open(path).notes == ()
    tensors = [(t.name, np.array(t.data), t.tensor_type) for t in gguf.GGUFReader(path).tensors]
    factors = ("rope_freqs.weight", np.ones(32, dtype=np.float32), gguf.GGMLQuantizationType.F32)
    (note,) = _open(write_gguf(tmp_path / "llama31.gguf", "llama", [*tensors, factors])).notes
    assert "llama31.gguf scales its rotary positions (rope_freqs.weight)" in note
    (note,) = _open(_rewrite(path, "llama", **{"rope.scaling.type": "linear", "rope.scaling.factor": 8.0})).notes
    assert "(llama.rope.scaling.type)" in note


def _write_without_layers(folder: Path, architecture: str, **general: Any) -> Path:
    embedding = ("token_embd.weight", np.zeros((NUM_TOKENS, 256), dtype=np.float32), gguf.GGMLQuantizationType.F32)
    tensors = [embedding, ("x.weight", *embedding[1:])]
    return write_gguf(folder / "model.gguf", architecture, tensors, metadata={"block_count": 1}, general=general)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("qwen2moe", "transformers merges the tensors blk.0.ffn_gate_exps, blk.0.ffn_up_exps into"),
        ("qwen3moe", "transformers merges the tensors"),
        ("minimax-m2", "transformers merges the tensors"),
        ("gpt-oss", "transformers does not load .* from a single tensor"),
        ("qwen35", "transformers rearranges its tensors"),
        ("gemma4", ".* can't be run without the rest of its model"),
        ("t5", "it is not a decoder"),
        ("mistral", "transformers can't build a decoder from it"),
        ("martian", r"transformers \d.* has no rules for it"),
    ],
)
def test_unsupported_architecture_is_refused(architecture: str, reason: str, tmp_path: Path) -> None:
    path = _write_without_layers(tmp_path, architecture)
    message = f"architecture '{architecture}', whose layers can't be extracted: {reason}.* Use the model's safetensors"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        _open(path)


def test_mistral_is_refused_by_its_name_like_in_transformers(tmp_path: Path) -> None:
    path = _write_without_layers(tmp_path, "llama", **{"general.name": "mistral"})
    with pytest.raises(UnsupportedArchitectureError, match=r"architecture 'mistral', whose layers can't be extracted"):
        _open(path)


def test_layers_without_a_few_settings_have_those_of_the_config_class(tmp_path: Path) -> None:
    metadata = {"attention.head_count_kv": None, "rope.dimension_count": None}
    table = _open(write_model(tmp_path / "model.gguf", "llama", **metadata))
    (info,) = table.tensors(["model.layers.0.self_attn.k_proj.weight"])
    assert info.shape == (256, 256)
    assert isinstance(info, GgufTensorInfo)
    # As in transformers, which doesn't know the number of heads either.
    assert info.layout is Layout.SAME
