"""PyTorch checkpoints for tests: tiny models as torch saves them, and hand-made zips and pickles that lie."""

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.support.checkpoints import LLAMA_8B, llama_shapes

TINY = LLAMA_8B | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 40,
}
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)


def tiny_state_dict(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict of a tiny Llama with random weights."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in llama_shapes(TINY).items()}


def write_checkpoint(folder: Path, state: Mapping[str, Any], *, shards: int = 0, **settings: Any) -> Path:
    """A folder with config.json and `pytorch_model.bin`, or with an index and that many shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY))
    if not shards:
        torch.save(state, folder / "pytorch_model.bin", **settings)
        return folder
    names = list(state)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        torch.save({name: state[name] for name in part}, folder / file, **settings)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_zip(path: Path, pickled: bytes, entries: Mapping[str, bytes] | None = None, method: int = 0) -> Path:
    """A checkpoint file from a pickle's bytes and its other entries (by default: one storage of four floats)."""
    entries = {"data/0": struct.pack("<4f", 1, 2, 3, 4)} if entries is None else entries
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, content in entries.items():
            archive.writestr(f"x/{name}", content)
    return path


def state_dict_pickle(value: bytes = TENSOR) -> bytes:
    """The pickle of a dict with one tensor, `a`, whose description can be replaced."""
    return b"\x80\x02}X\x01\x00\x00\x00a" + value + b"s."


def reduce_pickle(module: str, name: str, *arguments: Any, protocol: int = 2) -> bytes:
    """A dict with a tensor, and something that calls `module.name(*arguments)` when it is loaded."""
    packed = pickle.dumps(arguments, protocol)[2:-1]
    if protocol >= 4:
        packed = pickle.dumps(arguments, 3)[2:-1]
        call = b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
    else:
        call = f"c{module}\n{name}\n".encode()
    return (
        bytes([0x80, protocol])
        + b"}X\x01\x00\x00\x00b"
        + call
        + packed
        + b"Rs"
        + b"X\x01\x00\x00\x00a"
        + TENSOR
        + b"s."
    )
