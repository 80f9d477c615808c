"""Tiny GGUF files of real architectures, with random weights, in any quantisation."""

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

NUM_TOKENS = 64

# Of the file format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_STRING, _ARRAY = 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_ALIGNMENT = 32

# Rows of 256: the K-quants have blocks of 256 numbers in a row.
_COMMON = {
    "context_length": 128,
    "embedding_length": 256,
    "block_count": 2,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "rope.freq_base": 5000.0,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "vocab_size": NUM_TOKENS,
}
_LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}

METADATA: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "rope.dimension_count": 64},
    "qwen2": _COMMON,
    "qwen3": {**_COMMON, "attention.key_length": 128},
    "gemma2": {**_COMMON, "attention.key_length": 64, "attention.sliding_window": 16},
    "gemma3": {**_COMMON, "attention.key_length": 64, "attention.sliding_window": 16},
    "phi3": _COMMON,
    "falcon": {**_COMMON, "attention.head_count_kv": 1},
    "starcoder2": {**_COMMON, **_LAYER_NORM},
    "nemotron": _COMMON,
    # transformers 5.17 always takes 1e-5.
    "lfm2": {
        **_COMMON,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.head_count_kv": [0, 2],
        "shortconv.l_cache": 3,
    },
    "gpt2": {**_COMMON, **_LAYER_NORM},
    "bloom": {**_COMMON, **_LAYER_NORM},
    "stablelm": {**_COMMON, **_LAYER_NORM},
    "mamba": {
        **_COMMON,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 8,
        "ssm.time_step_rank": 16,
        "ssm.inner_size": 512,
    },
    "gemma4": {**_COMMON, "attention.key_length": 64, "attention.sliding_window": 16},
    "qwen2moe": {**_COMMON, "expert_count": 4, "expert_used_count": 2},
    "qwen3moe": {**_COMMON, "expert_count": 4, "expert_used_count": 2},
    "gpt-oss": {**_COMMON, "expert_count": 4, "expert_used_count": 2},
    "qwen35": _COMMON,
    "t5": _COMMON,
}


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Sequence[tuple[str, np.ndarray, gguf.GGMLQuantizationType]],
    *,
    metadata: Mapping[str, Any] | None = None,
    general: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write a GGUF file; with `split_max_tensors` as parts, `<stem>-00001-of-00003.gguf`.

    Args:
        tensors: Name, content and type; of a quantised type the content is bytes, in rows.
        metadata: Keys of the architecture, without its name in front; None: those of `METADATA`.
        general: Other keys, written out.
        options: For `gguf.GGUFWriter`: `split_max_tensors`, `small_first_shard` (a first part without tensors).
    """
    writer = gguf.GGUFWriter(path, architecture, **options)
    for key, value in (METADATA[architecture] if metadata is None else metadata).items():
        _add(writer, f"{architecture}.{key}", value)
    for key, value in (general or {}).items():
        _add(writer, key, value)
    if "tokenizer.ggml.tokens" not in (general or {}):
        writer.add_token_list([f"token{number}" for number in range(NUM_TOKENS)])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)
    for name, content, quantization in tensors:
        writer.add_tensor(name, content, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# A tokenizer for the header of a file: `write_model(..., general=VOCABULARY)`.
VOCABULARY: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "<unk>", *"abcdefgh", "ab", "Ġ", "Ġab"],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 2,
}


def write_model(
    path: Path,
    architecture: str,
    quantization: str = "F32",
    *,
    seed: int = 0,
    split: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    general: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> Path:
    """Write a whole tiny model: every tensor that transformers' model wants, random.

    Vectors and convolutions stay F32, as llama.cpp leaves them. With `split`, options of `write_gguf`, the same tensors
    are also written in parts next to it. With `config`, the model has these settings, which transformers takes from the
    tensors of a file; `general` are other keys, written out. A key of the metadata that is None is left out.
    """
    generator = np.random.default_rng(seed)
    settings = {key: value for key, value in {**METADATA[architecture], **metadata}.items() if value is not None}
    write_gguf(path, architecture, [], metadata=settings)
    tensors = []
    for name, shape in _wanted_tensors(path, architecture, config or {}).items():
        kind = gguf.GGMLQuantizationType[quantization if len(shape) == 2 and shape[-1] % 256 == 0 else "F32"]
        content = random_content(generator, shape, kind)
        # Mamba's decay is -exp(weight).
        tensors.append((name, -np.abs(content) if name.endswith("ssm_a") else content, kind))
    if split is not None:
        write_gguf(path, architecture, tensors, metadata=settings, **split)
    return write_gguf(path, architecture, tensors, metadata=settings, general=general)


def random_content(
    generator: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType
) -> np.ndarray:
    """Random numbers, as the bytes of a quantised type where it is one."""
    if kind == gguf.GGMLQuantizationType.Q4_K:
        # gguf quantises to no K type. A block: two float16 (scale, minimum), 12 bytes of scales, 128 of numbers.
        blocks = generator.integers(0, 256, size=(*shape[:-1], shape[-1] // 256, 144), dtype=np.uint8)
        scales = generator.uniform(0.0005, 0.002, size=(*blocks.shape[:-1], 2)).astype(np.float16)
        blocks[..., :4] = scales.view(np.uint8)
        return blocks.reshape(*shape[:-1], -1)
    values = generator.normal(0, 0.1, size=shape).astype(np.float32)
    return gguf.quants.quantize(values, kind)


def transformers_config(path: Path) -> dict[str, Any]:
    """The config that transformers makes of a file, as stored in an artifact."""
    config, _ = PreTrainedConfig.get_config_dict(path.parent, gguf_file=path.name)
    # The first is the title of the model, the second is set by some versions.
    return {key: value for key, value in config.items() if key not in ("_model_name_or_path", "_commit_hash")}


def cut_out_layer(path: Path, target: Path, layer: int) -> Path:
    """Write a small copy of a GGUF file: one of its layers, as layer 0, and its first 64 tokens.

    gguf reads 262,144 tokens one by one, which takes 8 s, and transformers has it do so three times. All other metadata
    and the bytes of the tensors are copied as they are, without a GGUF library: only the file format counts.
    """
    raw = path.read_bytes()
    num_tensors, num_keys = struct.unpack_from("<QQ", raw, 8)
    position = 24
    metadata = []
    for _ in range(num_keys):
        start = position
        key, position = _read_string(raw, position)
        kind, end = _skip_value(raw, position + 4, struct.unpack_from("<I", raw, position)[0])
        if kind == _ARRAY and struct.unpack_from("<Q", raw, position + 8)[0] > NUM_TOKENS:
            _, cut = _skip_value(raw, position + 4, _ARRAY, NUM_TOKENS)
            entry = raw[start : position + 8] + struct.pack("<Q", NUM_TOKENS) + raw[position + 16 : cut]
        elif key.endswith(b".block_count"):
            entry = raw[start : position + 4] + struct.pack("<I", 1)
        else:
            entry = raw[start:end]
        metadata.append(entry)
        position = end
    tensors, infos, length = [], [], 0
    for _ in range(num_tensors):
        name, position = _read_string(raw, position)
        num_dimensions = struct.unpack_from("<I", raw, position)[0]
        shape = list(struct.unpack_from(f"<{num_dimensions}Q", raw, position + 4))
        kind, offset = struct.unpack_from("<IQ", raw, position + 4 + 8 * num_dimensions)
        position += 16 + 8 * num_dimensions
        if name.startswith(b"blk.") and not name.startswith(b"blk.%d." % layer):
            continue
        if name == b"token_embd.weight":
            shape[-1] = NUM_TOKENS
        name = name.replace(b"blk.%d." % layer, b"blk.0.")
        elements, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        size = math.prod(shape) // elements * num_bytes
        tensors.append((offset, size))
        numbers = struct.pack(f"<I{num_dimensions}QIQ", num_dimensions, *shape, kind, length)
        infos.append(struct.pack("<Q", len(name)) + name + numbers)
        length += size + -size % _ALIGNMENT
    data = position + -position % _ALIGNMENT
    header = raw[:8] + struct.pack("<QQ", len(tensors), num_keys) + b"".join(metadata) + b"".join(infos)
    parts = [header, *(raw[data + offset :][:size] for offset, size in tensors)]
    target.write_bytes(b"".join(part + bytes(-len(part) % _ALIGNMENT) for part in parts))
    return target


def _read_string(raw: bytes, position: int) -> tuple[bytes, int]:
    """The string at a position, and the position after it."""
    end = position + 8 + struct.unpack_from("<Q", raw, position)[0]
    return raw[position + 8 : end], end


def _skip_value(raw: bytes, position: int, kind: int, count: int | None = None) -> tuple[int, int]:
    """The kind of a value, and the position after it, or after its first `count` elements."""
    if kind == _STRING:
        return kind, _read_string(raw, position)[1]
    if kind != _ARRAY:
        return kind, position + _SCALAR_BYTES[kind]
    element, length = struct.unpack_from("<IQ", raw, position)
    position += 12
    for _ in range(length if count is None else count):
        _, position = _skip_value(raw, position, element)
    return kind, position


def _wanted_tensors(path: Path, architecture: str, settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """GGUF's names of the tensors that transformers takes, and their shapes in the file."""
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, **settings)
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted = {}
    for gguf_name, name in get_gguf_hf_weights_map(model, processor).items():
        shape = shapes.get(name)
        if shape is None or gguf_name == "output.weight":
            continue
        if len(shape) == 3 and "conv" in gguf_name:
            shape = (shape[0], shape[2])
        if architecture == "gpt2" and gguf_name.endswith(".weight") and gguf_name.startswith("blk.") and len(shape) > 1:
            shape = shape[::-1]
        wanted[gguf_name] = shape
    return wanted


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
