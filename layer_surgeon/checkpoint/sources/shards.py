"""The files of a sharded checkpoint where a place can't list them: the ones that its index names."""

import json

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The index of DeepSeek-V3, 163 shards and 91,991 tensors, has 9 MB.
MAX_INDEX_BYTES = 100_000_000


def shards_of_index(raw: bytes) -> list[str]:
    """The shards that an index names, as far as they lie inside the folder; [] for what is no index.

    What is wrong with an index is said where it is used: here it only adds names of files.
    """
    try:
        shards = {str(shard) for shard in json.loads(raw)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return sorted(shard for shard in shards if _lies_inside(shard))


def _lies_inside(file: str) -> bool:
    return file.isprintable() and not any(part in ("", ".", "..") or "\\" in part for part in file.split("/"))
