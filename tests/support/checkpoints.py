"""Checkpoints for tests and benchmarks: full-size shapes without full-size disks, and hand-made safetensors files.

A sparse checkpoint has the real config, index, headers and shard layout of a model, and files of the full length; only
the chosen layers hold bytes, so that the 141 GB of a 70B model take 2 GB.
"""

import json
import random
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA_70B: dict[str, Any] = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
# Small enough to be written whole, and large enough that a layer is not all of it.
TINY = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def llama_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tensors of a Llama model, in the order in which the model registers them."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}self_attn.k_proj.weight": (kv, hidden),
            f"{layer}self_attn.v_proj.weight": (kv, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}mlp.gate_proj.weight": (ffn, hidden),
            f"{layer}mlp.up_proj.weight": (ffn, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, ffn),
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def write_sparse_checkpoint(
    folder: Path, config: Mapping[str, Any], layers: Sequence[int], *, max_shard_bytes: int = 5_000_000_000
) -> Path:
    """A bfloat16 Llama checkpoint of full length in which only `layers` (counted from 0) hold bytes.

    Tensors fill shards of at most `max_shard_bytes` in the model's order and lie in them in the order of their names,
    as `save_pretrained` wrote the originals.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Shapes] = [{}]
    filled = 0
    for name, shape in llama_shapes(config).items():
        size = 2 * prod(shape)
        if filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    weight_map = {}
    kept = tuple(f"model.layers.{layer}." for layer in layers)
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shapes, file)
        _write_sparse_shard(folder / file, dict(sorted(shapes.items())), kept)
    total = sum(2 * prod(shape) for shapes in shards for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def _write_sparse_shard(path: Path, shapes: Shapes, kept: tuple[str, ...]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        size = 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    header = pad_header(entries)
    generator = random.Random(path.name)
    with path.open("wb") as file:
        file.write(header)
        for name, entry in entries.items():
            if name.startswith(kept):
                begin, end = entry["data_offsets"]
                file.seek(len(header) + begin)
                while begin < end:
                    begin += file.write(generator.randbytes(min(1 << 20, end - begin)))
        file.truncate(len(header) + position)


def pad_header(entries: Mapping[str, Any]) -> bytes:
    """The first bytes of a safetensors file: the header's length, and the header."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> Path:
    """A safetensors file from (dtype code, shape, bytes) by name, in the given order; nothing is checked."""
    entries: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(content)]}
        position += len(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pad_header(entries) + b"".join(content for _, _, content in tensors.values()))
    return path
