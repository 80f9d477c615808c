"""Checkpoints with known numbers, for comparisons: any dtype, any number of shards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layer_surgeon.extract.dtypes import encode_floats
from tests.support.checkpoints import LLAMA_8B, llama_shapes, write_safetensors

Weights = dict[str, npt.NDArray[Any]]

SMALL = LLAMA_8B | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 40,
}


def random_weights(seed: int = 0, **settings: Any) -> Weights:
    """The weights of a small Llama in float32. All of them are also bfloat16 numbers."""
    generator = np.random.default_rng(seed)
    weights: Weights = {}
    for name, shape in llama_shapes(SMALL | settings).items():
        numbers = generator.standard_normal(shape, dtype=np.float32)
        weights[name] = (numbers.view("u4") & np.uint32(0xFFFF0000)).view("f4")
    return weights


def encoded(numbers: npt.NDArray[Any], dtype: str) -> bytes:
    """The numbers as the bytes of a safetensors dtype."""
    if dtype in ("F32", "BF16", "F16"):
        return bytes(encode_floats(numbers.reshape(-1), dtype))
    return numbers.astype({"F64": "<f8", "I64": "<i8", "U8": "u1"}[dtype]).tobytes()


def write_weights(
    folder: Path, weights: Mapping[str, npt.NDArray[Any]], dtype: str = "F32", *, shards: int = 1, **settings: Any
) -> Path:
    """Write a checkpoint in safetensors files; with several shards, also its index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMALL | settings))
    names = list(weights)
    shard_of = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        tensors = {name: (dtype, weights[name].shape, encoded(weights[name], dtype)) for name in part}
        write_safetensors(folder / file, tensors)
        shard_of |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": shard_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
