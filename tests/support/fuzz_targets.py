"""What the fuzz tests spoil: small whole checkpoints and artifacts of each format, and where each of them is weak."""

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from random import Random

import torch

from layer_surgeon import extract_layer
from tests.support.checkpoints import LLAMA_8B, llama_shapes, write_safetensors
from tests.support.gguf_models import write_model
from tests.support.mutations import mutate_bytes, mutate_json
from tests.support.torch_files import write_checkpoint

Files = Mapping[str, bytes]
CONFIG = LLAMA_8B | {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": 4,
}
FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [4, 4],
}
CARD = """---
license: llama3.1
license_name: a name
license_link: https://example.org/licence
tags: [a, &x b, *x]
base_model:
- x/y
model-index: {a: 1.5, b: 2020-01-01, c: ~}
---
# A model
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A format, and how it is spoiled.

    Attributes:
        name: The format.
        files: The whole checkpoint or artifact, file by file.
        spoil: Makes the changed files of one case.
        opened: The file that is opened; empty for the folder.
        extracted: How many of the cases that open are extracted too.
        refusable: Whether damage to it can make the checkpoint unreadable.
        dtype: What the layer is converted to.
    """

    name: str
    files: Files
    spoil: Callable[[Files, Random], dict[str, bytes]]
    opened: str = ""
    extracted: float = 0.3
    refusable: bool = True
    dtype: str | None = None


def make_target(name: str, folder: Path) -> Target:
    """Make the files of one format in an empty folder."""
    return _MAKERS[name](folder)


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _tensors(config: Mapping[str, object], dtype: str = "BF16") -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    random = Random("weights")
    return {name: (dtype, shape, random.randbytes(2 * prod(shape))) for name, shape in llama_shapes(config).items()}


def _header_end(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def _safetensors(folder: Path) -> Target:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(folder / "model.safetensors", _tensors(CONFIG))

    def spoil(files: Files, random: Random) -> dict[str, bytes]:
        content = files["model.safetensors"]
        end = _header_end(content)
        if random.random() < 0.5:
            return {"model.safetensors": mutate_bytes(content, random, hot=(0, end))}
        # With the length of the header put right, so that what it says is looked at.
        header = mutate_json(content[8:end], random)
        return {"model.safetensors": struct.pack("<Q", len(header)) + header + content[end:]}

    return Target(name="safetensors", files=_read(folder), spoil=spoil)


def _index(folder: Path) -> Target:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = _tensors(CONFIG)
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        part = names[number::3]
        file = f"model-0000{number + 1}-of-00003.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))

    def spoil(files: Files, random: Random) -> dict[str, bytes]:
        change = mutate_json(files[index], random) if random.random() < 0.7 else mutate_bytes(files[index], random)
        return {index: change}

    return Target(name="index", files=_read(folder), spoil=spoil)


def _config(folder: Path) -> Target:
    """The LLM's own config.json, with and without weights of 8 bits and their scales."""
    config = CONFIG | {"quantization_config": FP8, "text_config": None}
    tensors = {}
    random = Random("weights")
    for name, shape in llama_shapes(CONFIG).items():
        if len(shape) == 2 and "layers" in name:
            scales = (-(-shape[0] // 4), -(-shape[1] // 4))
            tensors[name] = ("F8_E4M3", shape, random.randbytes(prod(shape)))
            tensors[f"{name}_scale_inv"] = ("F32", scales, struct.pack("<f", 0.5) * prod(scales))
        else:
            tensors[name] = ("BF16", shape, random.randbytes(2 * prod(shape)))
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)

    def spoil(files: Files, random: Random) -> dict[str, bytes]:
        content = files["config.json"]
        if random.random() < 0.2:
            return {"config.json": mutate_bytes(content, random)}
        changed = {"config.json": mutate_json(content, random)}
        if random.random() < 0.3:
            end = _header_end(files["model.safetensors"])
            header = mutate_json(files["model.safetensors"][8:end], random)
            weights = files["model.safetensors"][end:]
            changed["model.safetensors"] = struct.pack("<Q", len(header)) + header + weights
        return changed

    return Target(name="config", files=_read(folder), spoil=spoil, dtype="float32")


def _card(folder: Path) -> Target:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(folder / "model.safetensors", _tensors(CONFIG))
    (folder / "README.md").write_text(CARD)
    bombs = (
        "---\n" + "[" * 20_000 + "\n---\n",
        "---\n" + "- " * 20_000 + "\n---\n",
        "---\na: &a [x,x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1 or ''},*a]\n" for n in range(1, 2)) + "---\n",
        "---\nlicense: 2001-99-99\n---\n",
        "---\n? [a]\n: b\n---\n",
        "---\nlicense: !!python/object/apply:os.system [id]\n---\n",
        "---\n" + "x: y\n" * 200 + "---\n",
    )

    def spoil(files: Files, random: Random) -> dict[str, bytes]:
        if random.random() < 0.1:
            return {"README.md": random.choice(bombs).encode()}
        content = mutate_bytes(files["README.md"], random)
        return {random.choice(("README.md", "README.md", "LICENSE")): content}

    return Target(name="card", files=_read(folder), spoil=spoil, extracted=1.0, refusable=False)


def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in llama_shapes(CONFIG).items()}


def _zip(folder: Path) -> Target:
    write_checkpoint(folder, _state())
    (folder / "config.json").write_text(json.dumps(CONFIG))

    def spoil(files: Files, random: Random) -> dict[str, bytes]:
        content = files["pytorch_model.bin"]
        directory = content.index(b"PK\1\2")
        hot = random.choice(((directory, len(content)), (len(content) - 120, len(content)), (0, len(content))))
        return {"pytorch_model.bin": mutate_bytes(content, random, hot=hot)}

    return Target(name="zip", files=_read(folder), spoil=spoil)


def _pickle(folder: Path) -> Target:
    write_checkpoint(folder, _state(), shards=2)
    (folder / "config.json").write_text(json.dumps(CONFIG))

    def spoil(files: Files, random: Random) -> dict[str, bytes]:
        file = random.choice([name for name in files if name.endswith(".bin")])
        return {file: replace_pickle(files[file], lambda raw: mutate_bytes(raw, random))}

    return Target(name="pickle", files=_read(folder), spoil=spoil)


def replace_pickle(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A checkpoint's zip file with another pickle in it, and all else put right."""
    packed = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for entry in old.infolist():
            raw = old.read(entry)
            new.writestr(entry.filename, change(raw) if entry.filename.endswith("/data.pkl") else raw)
    return packed.getvalue()


_GGUF_SIZES = {
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "rope.dimension_count": 16,
}
_GGUF_NAMES = (b"llama.", b"gpt2.", b"general.", b"tokenizer.", b"blk.", b"split.")


def _gguf(folder: Path) -> Target:
    write_model(folder / "model.gguf", "llama", **_GGUF_SIZES)
    return Target(name="gguf", files=_read(folder), spoil=_spoil_gguf, opened="model.gguf")


def _gguf_transposed(folder: Path) -> Target:
    """A model whose tensors are not taken as they lie in the file."""
    sizes = {name: size for name, size in _GGUF_SIZES.items() if "rope" not in name and "kv" not in name}
    write_model(folder / "model.gguf", "gpt2", **sizes)
    return Target(name="gguf_transposed", files=_read(folder), spoil=_spoil_gguf, opened="model.gguf")


def _gguf_split(folder: Path) -> Target:
    split = {"split_max_tensors": 8, "small_first_shard": True}
    write_model(folder / "model.gguf", "llama", split=split, **_GGUF_SIZES)
    (folder / "model.gguf").unlink(missing_ok=True)
    files = _read(folder)
    return Target(name="gguf_split", files=files, spoil=_spoil_gguf, opened=min(files))


def _spoil_gguf(files: Files, random: Random) -> dict[str, bytes]:
    file = random.choice(sorted(files))
    content = files[file]
    end = content.rindex(b".weight") + 64 if b".weight" in content else len(content)
    if random.random() < 0.5:
        return {file: mutate_bytes(content, random, hot=(0, end))}
    # At the number or text behind a name, which is where headers lie.
    names = [name for name in _GGUF_NAMES if name in content]
    name = random.choice(names)
    places = [place for place in range(end) if content.startswith(name, place)]
    place = random.choice(places)
    return {file: mutate_bytes(content, random, hot=(place, place + 60))}


def _artifact(folder: Path) -> Target:
    donor = folder / "donor"
    donor.mkdir()
    (donor / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(donor / "model.safetensors", _tensors(CONFIG))
    artifact = extract_layer(donor, -1, folder / "artifact")

    def spoil(files: Files, random: Random) -> dict[str, bytes]:
        config, weights = files["config.json"], files["model.safetensors"]
        kind = random.random()
        if kind < 0.5:
            return {"config.json": mutate_json(config, random)}
        if kind < 0.7:
            return {"config.json": mutate_bytes(config, random)}
        return {"model.safetensors": mutate_bytes(weights, random, hot=(0, _header_end(weights)))}

    return Target(name="artifact", files=_read(artifact.path), spoil=spoil)


_MAKERS: dict[str, Callable[[Path], Target]] = {
    "safetensors": _safetensors,
    "index": _index,
    "config": _config,
    "card": _card,
    "zip": _zip,
    "pickle": _pickle,
    "gguf": _gguf,
    "gguf_transposed": _gguf_transposed,
    "gguf_split": _gguf_split,
    "artifact": _artifact,
}
TARGETS = tuple(_MAKERS)
