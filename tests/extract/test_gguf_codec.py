"""Every tensor of a layer equals the tensor that transformers loads from the same GGUF file."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.packaged_gguf import write_packaged_gguf
from layer_surgeon.checkpoint.gguf import GgufTable, GgufTensorInfo
from layer_surgeon.checkpoint.gguf_families import Layout
from layer_surgeon.checkpoint.sources import FileSource
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import CheckpointError, ConfigError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.gguf_codec import gguf_codec
from tests.support.gguf_models import METADATA, cut_out_layer, transformers_config, write_gguf, write_model

_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def _open(path: Path) -> GgufTable:
    return GgufTable(FileSource(path, name=str(path)), path.name)


def _layer_infos(table: GgufTable, layer: int) -> list[TensorInfo]:
    return table.tensors(name for name in table.files() if f".{layer}." in name)


def _source_bytes(path: Path, info: TensorInfo) -> bytes:
    with path.open("rb") as file:
        file.seek(info.offset)
        return file.read(info.num_bytes)


def _convert(path: Path, info: TensorInfo, dtype: str | None = None) -> np.ndarray[Any, Any]:
    codec = gguf_codec(info, dtype)
    out = codec.convert(_source_bytes(path, info))
    return np.frombuffer(out, dtype=_NUMPY[codec.dtype]).reshape(info.shape)


def _loaded(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype).state_dict()


def _assert_layer_equal(path: Path, layer: int) -> None:
    table, expected = _open(path), _loaded(path)
    infos = _layer_infos(table, layer)
    names = {name for name in expected if f".{layer}." in name}
    assert {info.name for info in infos} == names
    assert len(names) > 5
    for info in infos:
        assert np.array_equal(_convert(path, info), expected[info.name].numpy()), info.name


# The types that `gguf` can dequantise, from its own table.
_KINDS = [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, *gguf.quants._type_traits]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random scales may be infinite
@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.name)
def test_every_type_equals_gguf(kind: gguf.GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch) -> None:
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, blocks = 6, 1024 // block_elements
    raw = np.random.default_rng(0).integers(0, 256, size=(rows, blocks * block_bytes), dtype=np.uint8)
    info = GgufTensorInfo(
        name="model.layers.0.mlp.up_proj.weight",
        dtype=kind.name,
        shape=(rows, 1024),
        file="model.gguf",
        offset=0,
        num_bytes=raw.nbytes,
        layout=Layout.SAME,
        heads=1,
    )
    monkeypatch.setattr("layer_surgeon.extract.gguf_codec._PIECE_BYTES", 3 * block_bytes)
    codec = gguf_codec(info, None)
    half = 3 * blocks * codec.block_bytes
    content = raw.tobytes()
    out = b"".join((bytes(codec.convert(content[:half])), bytes(codec.convert(content[half:]))))
    # Compare bits, because random bytes may be NaN.
    assert out == gguf.quants.dequantize(raw, kind).astype("<f4").tobytes()


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_layer_equals_transformers(architecture: str, quantization: str, tmp_path: Path) -> None:
    _assert_layer_equal(write_model(tmp_path / "model.gguf", architecture, quantization), layer=1)


@pytest.mark.parametrize(
    "architecture",
    ["qwen3", "gemma2", "phi3", "falcon", "starcoder2", "nemotron", "lfm2", "gpt2", "bloom", "stablelm", "mamba"],
)
def test_other_families_equal_transformers(architecture: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, "Q8_0")
    _assert_layer_equal(path, layer=0)
    _assert_layer_equal(path, layer=1)


@pytest.mark.slow
@pytest.mark.real_weights
def test_gemma_equals_transformers(tmp_path: Path) -> None:
    """The config and the last layer of the real file equal those of a small copy with this layer and 64 tokens."""
    path = write_packaged_gguf("packaged:gemma-3-270m", tmp_path)
    small = cut_out_layer(path, tmp_path / "small.gguf", layer=17)
    table, expected = _open(path), _loaded(small)
    assert table.config == transformers_config(small) | {"num_hidden_layers": 18, "vocab_size": 262144}
    infos = _layer_infos(table, 17)
    names = {info.name.replace("layers.17.", "layers.0."): info for info in infos}
    assert set(names) == {name for name in expected if ".layers.0." in name}
    assert {info.dtype for info in infos} == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    for name, info in names.items():
        assert np.array_equal(_convert(path, info), expected[name].numpy()), info.name


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (8, 1)])
def test_llama_rows_are_put_back_in_order(heads: tuple[int, int], tmp_path: Path) -> None:
    """Undo llama.cpp's `permute`, in which rows (half, pair) of each head become (pair, half)."""
    num_heads, num_kv_heads = heads
    width = 256 // num_heads
    metadata = {
        **METADATA["llama"],
        "attention.head_count": num_heads,
        "attention.head_count_kv": num_kv_heads,
        "rope.dimension_count": width,
    }
    path = write_model(tmp_path / "model.gguf", "llama", **metadata)
    original = {
        "q": np.arange(256 * 256, dtype=np.float32).reshape(256, 256),
        "k": np.arange(width * num_kv_heads * 256, dtype=np.float32).reshape(-1, 256),
    }
    tensors = []
    for tensor in gguf.GGUFReader(path).tensors:
        content = np.array(tensor.data)
        for key, count in (("q", num_heads), ("k", num_kv_heads)):
            if tensor.name.endswith(f"attn_{key}.weight"):
                content = original[key].reshape(count, 2, width // 2, 256).swapaxes(1, 2).reshape(-1, 256)
        tensors.append((tensor.name, content, tensor.tensor_type))
    other = write_gguf(tmp_path / "permuted.gguf", "llama", tensors, metadata=metadata)
    table = _open(other)
    for key in ("q", "k"):
        (info,) = table.tensors([f"model.layers.1.self_attn.{key}_proj.weight"])
        codec = gguf_codec(info, None)
        assert codec.block_bytes == width * 256 * 4
        assert np.array_equal(_convert(other, info), original[key])


@pytest.mark.parametrize("dtype", ["BF16", "bfloat16", "F16", "float16"])
def test_rounding_equals_torch(dtype: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "gemma3", "Q4_K")
    torch_dtype = torch.bfloat16 if dtype in ("BF16", "bfloat16") else torch.float16
    table, expected = _open(path), _loaded(path, torch_dtype)
    for info in _layer_infos(table, 1):
        bits = expected[info.name].view(torch.uint16).numpy()
        assert np.array_equal(_convert(path, info, dtype).view(np.uint16), bits), info.name


@pytest.mark.parametrize(("architecture", "quantization"), [("llama", "Q4_K"), ("gemma3", "Q8_0"), ("gpt2", "F16")])
def test_blocks_are_independent(architecture: str, quantization: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, quantization)
    table = _open(path)
    for info in _layer_infos(table, 0):
        codec: Codec = gguf_codec(info, "BF16")
        raw = _source_bytes(path, info)
        assert len(raw) % codec.block_bytes == 0
        assert len(raw) // codec.block_bytes * codec.out_block_bytes == info.num_elements * 2
        blocks = range(0, len(raw), codec.block_bytes * max(1, len(raw) // codec.block_bytes // 3))
        step = blocks.step
        pieces = [bytes(codec.convert(memoryview(raw)[start : start + step])) for start in blocks]
        assert b"".join(pieces) == bytes(codec.convert(raw)), info.name


def test_long_tensors_are_converted_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen2", "Q4_K")
    table = _open(path)
    (info,) = table.tensors(["model.layers.0.mlp.up_proj.weight"])
    whole = bytes(gguf_codec(info, None).convert(_source_bytes(path, info)))
    longest = 0
    dequantize = gguf.quants.dequantize

    def watched(data: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> Any:
        nonlocal longest
        longest = max(longest, data.nbytes)
        return dequantize(data, kind)

    monkeypatch.setattr("layer_surgeon.extract.gguf_codec._PIECE_BYTES", 1000)
    monkeypatch.setattr("gguf.quants.dequantize", watched)
    assert bytes(gguf_codec(info, None).convert(_source_bytes(path, info))) == whole
    assert longest == 6 * 144


def test_part_of_a_block_is_refused(tmp_path: Path) -> None:
    table = _open(write_model(tmp_path / "model.gguf", "qwen2", "Q8_0"))
    (info,) = table.tensors(["model.layers.0.mlp.up_proj.weight"])
    with pytest.raises(ValueError, match=r"35 bytes are not a whole number of blocks of 34 bytes"):
        gguf_codec(info, None).convert(bytes(35))


def test_integer_dtype_is_refused(tmp_path: Path) -> None:
    table = _open(write_model(tmp_path / "model.gguf", "qwen2"))
    (info,) = table.tensors(["model.layers.0.mlp.up_proj.weight"])
    with pytest.raises(ConfigError, match=r"dtype is 'int8', but .* only be written as float32"):
        gguf_codec(info, "int8")


def test_type_that_gguf_cannot_dequantise_is_refused() -> None:
    info = GgufTensorInfo(
        name="model.layers.0.mlp.up_proj.weight",
        dtype="I8",
        shape=(4, 4),
        file="model.gguf",
        offset=0,
        num_bytes=16,
        layout=Layout.SAME,
        heads=1,
    )
    with pytest.raises(CheckpointError, match=r"has the type I8, which the installed gguf package can't dequantise"):
        gguf_codec(info, None)
