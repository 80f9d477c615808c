"""Find the files that belong together without a listing: from an index, or from the name of one part."""

import re
from collections.abc import Mapping
from typing import TypeVar

from layer_surgeon._io import parse_json

_T = TypeVar("_T")

_INDEX = ".index.json"
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", _INDEX)
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The index of DeepSeek-V3 (163 shards, 91,991 tensors) is 9 MB.
MAX_INDEX_BYTES = 50_000_000
# JSON grows when it is parsed: 24 MB of `{},` took 590 MB of memory; a header of 430,000 tensors without numbers took
# 370 MB and 4 s. Each part (`,`, `[` or `{`) costs up to 110 bytes and 1 us. A header has about 11 per tensor, an index
# has one.
_MAX_JSON_PARTS = 1_200_000
# The names that llama-gguf-split and gguf's writer give to the parts of a model, counted from 1.
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def has_many_parts(raw: bytes) -> bool:
    """Return True if JSON text has more parts than any real index or header. Parsing it would take too much memory."""
    return sum(raw.count(part) for part in (b",", b"[", b"{")) > _MAX_JSON_PARTS


def shards_of_index(raw: bytes) -> list[str]:
    """Return the shards that an index names, without those outside the folder. Returns [] if it is not an index.

    Errors in the index are not reported here but by the code that uses it. This function only collects file names.
    """
    if has_many_parts(raw):
        return []
    try:
        shards = {str(shard) for shard in parse_json(raw)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted(shard for shard in shards if lies_inside(shard))


def parts_of(file: str) -> tuple[str, ...]:
    """Return all parts of the split GGUF model that `file` belongs to, in order; otherwise only `file`."""
    match = _PART.fullmatch(file)
    if match is None or not 0 < int(match["number"]) <= int(match["count"]):
        return (file,)
    count = int(match["count"])
    return tuple(f"{match['stem']}-{number:05}-of-{count:05}{match['suffix']}" for number in range(1, count + 1))


def without_other_models(files: Mapping[str, _T], file: str) -> dict[str, _T]:
    """Drop the weights of other checkpoints from a listing. All parts of a split model are kept.

    Args:
        files: The entries of the folder, by file name.
        file: Name of the checkpoint file. With an index, everything is kept, because it names the weights.
    """
    if file.endswith(_INDEX):
        return dict(files)
    parts = parts_of(file)
    return {name: value for name, value in files.items() if name in parts or not name.endswith(WEIGHTS)}


def lies_inside(file: str) -> bool:
    """Return True if a file name from an index stays in the index's folder or below it."""
    return file.isprintable() and not any(part in ("", ".", "..") or "\\" in part for part in file.split("/"))
