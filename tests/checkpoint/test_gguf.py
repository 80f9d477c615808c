"""GGUF tensor tables have the names, shapes and config of transformers."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from layer_surgeon.checkpoint.gguf import GgufTable, GgufTensorInfo
from layer_surgeon.checkpoint.gguf_header import read_gguf_header
from layer_surgeon.checkpoint.packaged import packaged_gguf
from layer_surgeon.checkpoint.sources import FileSource
from layer_surgeon.errors import CheckpointError, SourceError, UnsupportedArchitectureError
from tests.support.gguf_models import METADATA, NUM_TOKENS, write_gguf, write_model


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


def _assert_config_equal(path: Path) -> None:
    theirs = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    ours = AutoConfig.for_model(**_open(path).config).to_dict()
    for config in (theirs, ours):
        for key in ("_name_or_path", "_model_name_or_path"):
            config.pop(key, None)
    assert ours == theirs


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "falcon", "nemotron", "lfm2", "gpt2"]
)
def test_config_equals_transformers(architecture: str, tmp_path: Path) -> None:
    _assert_config_equal(write_model(tmp_path / "model.gguf", architecture))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_config_with_a_long_vocabulary_equals_transformers(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Treat the vocabulary as too long to keep. GPT-2 has no other source for its size.
    monkeypatch.setattr("layer_surgeon.checkpoint.gguf_header._MAX_KEPT_BYTES", 100)
    path = write_model(tmp_path / "model.gguf", architecture)
    assert _open(path).config["vocab_size"] == NUM_TOKENS
    _assert_config_equal(path)


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
    _assert_config_equal(other)


def test_tensors_are_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", "Q8_0")
    table = _open(path)
    assert table.format == "gguf"
    library_tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    infos = table.tensors(table.files())
    assert set(table.files().values()) == {"model.gguf"}
    assert len(infos) == len(library_tensors)
    for info in infos:
        assert isinstance(info, GgufTensorInfo)
        tensor = library_tensors[info.gguf_name]
        assert (info.offset, info.num_bytes, info.dtype) == (
            tensor.data_offset,
            tensor.n_bytes,
            tensor.tensor_type.name,
        )
        assert list(info.shape) == list(tensor.shape)[::-1]


def test_shapes_are_those_of_transformers(tmp_path: Path) -> None:
    table = _open(write_model(tmp_path / "model.gguf", "gpt2"))
    (info,) = table.tensors(["transformer.h.1.attn.c_attn.weight"])
    assert info.shape == (256, 768)
    assert isinstance(info, GgufTensorInfo)
    assert info.gguf_shape == (768, 256)


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
    path = packaged_gguf("gemma-3-270m", tmp_path)
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


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "lfm2", "gpt2", "bloom"])
def test_names_are_those_of_the_whole_model(architecture: str, tmp_path: Path) -> None:
    """`_Outline` leaves out modules, but the name map is the same as for the whole model."""
    path = write_model(tmp_path / "model.gguf", architecture)
    table = _open(path)
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**table.config))
    expected_names = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={}))
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    assert list(table.files()) == [expected_names[name] for name in names]


@pytest.mark.slow
@pytest.mark.real_weights
def test_config_of_gemma_equals_transformers(tmp_path: Path) -> None:
    _assert_config_equal(packaged_gguf("gemma-3-270m", tmp_path))


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    table = _open(write_model(tmp_path / "model.gguf", "llama"))
    with pytest.raises(CheckpointError, match=r"has no tensor with the transformers name 'model.layers.9.mlp'"):
        table.tensors(["model.layers.9.mlp"])


def test_missing_tensor_of_a_layer_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    other = _rewrite(path, "llama", lambda name: name != "blk.1.ffn_up.weight")
    with pytest.raises(CheckpointError, match=r"has no tensor 'blk.1.ffn_up.weight', which the model needs as"):
        _open(other)


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


@pytest.mark.parametrize("heads", [0, 5, "four"])
def test_metadata_that_transformers_refuses_is_refused(heads: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    with pytest.raises(
        UnsupportedArchitectureError, match=r"can't build a decoder from other.gguf, .* 'llama': \w+: \S+"
    ):
        _open(_rewrite(path, "llama", **{"attention.head_count": heads, "attention.head_count_kv": heads}))


def test_rotary_scaling_that_transformers_does_not_read_is_noted(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    assert _open(path).notes == ()
    tensors = [(t.name, np.array(t.data), t.tensor_type) for t in gguf.GGUFReader(path).tensors]
    factors = ("rope_freqs.weight", np.ones(32, dtype=np.float32), gguf.GGMLQuantizationType.F32)
    (note,) = _open(write_gguf(tmp_path / "llama31.gguf", "llama", [*tensors, factors])).notes
    assert "llama31.gguf scales its rotary positions (rope_freqs.weight)" in note
    (note,) = _open(_rewrite(path, "llama", **{"rope.scaling.type": "linear", "rope.scaling.factor": 8.0})).notes
    assert "(llama.rope.scaling.type)" in note


def test_an_unusable_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(SourceError, match=r"Reading model.gguf needs a temporary folder, which can't be used"):
        _open(path)


def test_merged_experts_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen2moe")
    with pytest.raises(
        UnsupportedArchitectureError, match=r"transformers merges the GGUF tensors|does not load from a"
    ):
        _open(path)


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    embedding = ("token_embd.weight", np.zeros((NUM_TOKENS, 256), dtype=np.float32), gguf.GGMLQuantizationType.F32)
    path = write_gguf(tmp_path / "model.gguf", "t5", [embedding, ("x.weight", *embedding[1:])])
    with pytest.raises(UnsupportedArchitectureError, match=r"can't build a decoder from model.gguf"):
        _open(path)


def test_architecture_that_transformers_rearranges_is_refused(tmp_path: Path) -> None:
    embedding = ("token_embd.weight", np.zeros((NUM_TOKENS, 256), dtype=np.float32), gguf.GGMLQuantizationType.F32)
    path = write_gguf(tmp_path / "model.gguf", "qwen35", [embedding, ("x.weight", *embedding[1:])])
    with pytest.raises(UnsupportedArchitectureError, match=r"'qwen35'"):
        _open(path)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    embedding = ("token_embd.weight", np.zeros((NUM_TOKENS, 256), dtype=np.float32), gguf.GGMLQuantizationType.F32)
    path = write_gguf(tmp_path / "model.gguf", "martian", [embedding], metadata={"block_count": 1})
    with pytest.raises(
        UnsupportedArchitectureError, match=r"can't build a config from model.gguf, .* 'martian': ValueError"
    ):
        _open(path)
