"""The files that belong together, known without a listing: from an index, or from the name of one part."""

import re
from collections.abc import Mapping
from typing import TypeVar

from layer_surgeon._io import parse_json

_T = TypeVar("_T")

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".index.json")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The index of DeepSeek-V3, 163 shards and 91,991 tensors, has 9 MB.
MAX_INDEX_BYTES = 50_000_000
# JSON grows when it is parsed: 24 MB of `{},` took 590 MB, and a header of 430,000 tensors without numbers 370 MB and
# 4 s. A part costs up to 110 bytes and 1 us; a header has some 11 of them for each tensor, an index one.
_MAX_JSON_PARTS = 1_200_000
# How llama-gguf-split and gguf's writer name the parts of a model, counted from 1.
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def has_many_parts(raw: bytes) -> bool:
    """Whether JSON text is of more parts than any index or header is, so that it had better not be parsed."""
    return sum(raw.count(part) for part in (b",", b"[", b"{")) > _MAX_JSON_PARTS


def shards_of_index(raw: bytes) -> list[str]:
    """The shards that an index names, as far as they lie inside the folder; [] for what is no index.

    What is wrong with an index is said where it is used: here it only adds names of files.
    """
    if has_many_parts(raw):
        return []
    try:
        shards = {str(shard) for shard in parse_json(raw)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted(shard for shard in shards if lies_inside(shard))


def parts_of(file: str) -> tuple[str, ...]:
    """All parts of the split GGUF model that a file's name makes it a part of, in order; else the file alone."""
    match = _PART.fullmatch(file)
    if match is None or not 0 < int(match["number"]) <= int(match["count"]):
        return (file,)
    count = int(match["count"])
    return tuple(f"{match['stem']}-{number:05}-of-{count:05}{match['suffix']}" for number in range(1, count + 1))


def without_other_models(files: Mapping[str, _T], file: str) -> dict[str, _T]:
    """What belongs to the checkpoint that one file names: no other weights, but all parts of a split model.

    Args:
        files: What lies in its folder, by name.
        file: The file's name there.
    """
    parts = parts_of(file)
    return {name: value for name, value in files.items() if name in parts or not name.endswith(WEIGHTS)}


def lies_inside(file: str) -> bool:
    """Whether a name that an index gives is one of a file in the index's own folder, or below it."""
    return file.isprintable() and not any(part in ("", ".", "..") or "\\" in part for part in file.split("/"))
