"""From the metadata of a GGUF file to the config.json-like dict that transformers makes of it.

transformers' rules are not repeated here, they are run: on a skeleton of the file, which has its metadata and the names
of its tensors, but neither vocabulary nor weights. So the config equals what
`AutoConfig.from_pretrained(folder, gguf_file=...)` gives, whichever version is installed, and takes 0.02 s instead of
the 13 s that transformers needs to walk through the 262,144 tokens of Gemma.
"""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers

from layer_surgeon._io import write_bytes
from layer_surgeon.checkpoint.gguf_header import GgufHeader
from layer_surgeon.errors import CheckpointError, SourceError, UnsupportedArchitectureError

_TOKENS = "tokenizer.ggml.tokens"
_SKELETON = "skeleton.gguf"
# In place of a long vocabulary: an array (9) of two strings (8) of length 0. Two, because transformers takes the only
# element of an array for a value that is no array.
_TWO_TOKENS = struct.pack("<IIQQQ", 9, 8, 2, 0, 0)
_F32 = 0
# Building the outline of a layer takes 5 ms and 0.2 MB: a header of 300 kB that names 4,000 of them took 19 s and
# 630 MB. The deepest models in use have some 200 layers.
_MAX_LAYERS = 512


def gguf_config(header: GgufHeader) -> dict[str, Any]:
    """The config of the model in a GGUF file, as transformers reads it from there.

    Raises:
        UnsupportedArchitectureError: transformers knows no config for the file's architecture.
        CheckpointError: The metadata can't be true.
        SourceError: There is no room for the skeleton, some 10 kB in a temporary folder.
    """
    _check_block_count(header)
    try:
        with TemporaryDirectory(prefix="layer_surgeon-") as folder:
            write_bytes(Path(folder, _SKELETON), _skeleton(header))
            config = _run_transformers(header, folder)
    except OSError as error:
        raise SourceError(
            f"A temporary folder is needed to read {header.file}, and can't be used: {error}. "
            "Make room in it, or set TMPDIR to another one."
        ) from error
    tokens = header.metadata.get(_TOKENS)
    if tokens is not None and tokens.encoded is None and config.get("vocab_size") == 2:
        config["vocab_size"] = tokens.count
    # The model's title is no setting of it, and transformers itself puts the path it loaded from in its place.
    config.pop("_model_name_or_path", None)
    return config


def unread_rotary_scaling(header: GgufHeader) -> str | None:
    """What in the file scales rotary positions; None where nothing does.

    transformers (5.17 to 5.24) reads it for no architecture but gpt-oss. llama.cpp writes Llama 3.1's scaling as a
    tensor, `rope_freqs.weight`, Phi-3's as two, and Gemma 3's (4B and above) as metadata.
    """
    tensors = [entry.name for entry in header.tensors if re.fullmatch(r"rope_(freqs|factors_\w+)\.weight", entry.name)]
    if tensors:
        return tensors[0]
    key = f"{header.architecture}.rope.scaling.type"
    entry = header.metadata.get(key)
    return key if entry is not None and entry.value != "none" else None


def _run_transformers(header: GgufHeader, folder: str) -> dict[str, Any]:
    try:
        raw, _ = transformers.PretrainedConfig.get_config_dict(folder, gguf_file=_SKELETON)
        config: dict[str, Any] = json.loads(json.dumps(raw))
    # What transformers raises on metadata that it does not understand is of any type: ValueError for an unknown
    # architecture, KeyError and TypeError for missing or odd values.
    except Exception as error:
        raise UnsupportedArchitectureError(
            f"transformers {transformers.__version__} makes no config of {header.file}, a GGUF file of the "
            f"architecture {header.architecture!r}: {in_one_line(error)}. Use the model's safetensors checkpoint."
        ) from error
    return config


def in_one_line(error: Exception) -> str:
    """The type and the message of another library's error."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


def _check_block_count(header: GgufHeader) -> None:
    """Refuse more layers than there can be: a model that is never ended would be built from such a header."""
    entry = header.metadata.get(f"{header.architecture}.block_count")
    count = entry.value if entry is not None else None
    if type(count) is not int or not 0 < count <= min(len(header.tensors), _MAX_LAYERS):
        raise CheckpointError(
            f"{header.file} says {count!r} layers ('{header.architecture}.block_count') and has "
            f"{len(header.tensors)} tensors, which can't be (1 to {_MAX_LAYERS} layers can be read). Get the file "
            "again, or convert the model again."
        )


def _skeleton(header: GgufHeader) -> bytes:
    kept: Mapping[str, bytes] = {
        key: entry.encoded if entry.encoded is not None else _TWO_TOKENS
        for key, entry in header.metadata.items()
        if entry.encoded is not None or key == _TOKENS
        if key != "general.alignment"
    }
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(header.tensors), len(kept))]
    parts += [_string(key) + encoded for key, encoded in kept.items()]
    # Each tensor becomes one float at the same place.
    parts += [_string(entry.name) + struct.pack("<IQIQ", 1, 1, _F32, 0) for entry in header.tensors]
    content = b"".join(parts)
    return content + bytes(-len(content) % 32 + 32)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
