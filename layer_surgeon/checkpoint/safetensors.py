"""Safetensors: headers and indexes, parsed and checked as plain data. Reads no weights.

A file is an 8-byte little-endian header length, that many bytes of JSON, then the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors). A sharded checkpoint adds `model.safetensors.index.json`, which names the
shard of every tensor.
"""

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.sources.shards import has_many_parts
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
LENGTH_BYTES = 8
# huggingface_hub's own limit. The longest real header measured (a 30-shard 70B checkpoint) has 3 kB; a mixture of
# 128 experts in one file has 4 MB.
MAX_HEADER_BYTES = 25_000_000
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")

# The spec's element types and their bits (safetensors 0.8, tensor.rs).
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}


class SafetensorsTable:
    """The tensors of a safetensors checkpoint, single or sharded.

    Args:
        source: Where it lies.
        config: The model's config.json, verbatim.
        shard_of: The file of every tensor, by name: from the index. None: all are in `files`.
        single_file: The only file of a checkpoint without an index.

    Raises:
        CheckpointError: The header of a single file is damaged.
    """

    format = "safetensors"
    notes = ()
    license = None
    packing = None

    def __init__(
        self,
        source: Source,
        config: Mapping[str, Any],
        *,
        shard_of: Mapping[str, str] | None = None,
        single_file: str | None = None,
    ) -> None:
        self._source = source
        self.config = config
        self._headers: dict[str, dict[str, TensorInfo]] = {}
        if shard_of is None:
            if single_file is None:
                raise ValueError("Give either the index or the single file.")
            shard_of = dict.fromkeys(self._header(single_file), single_file)
        self._shard_of = shard_of

    def files(self) -> Mapping[str, str]:
        """The file of every tensor, by tensor name."""
        return self._shard_of

    def describe(self, names: Iterable[str]) -> list[TensorInfo]:
        """The same as `tensors`: a header tells everything at once."""
        return self.tensors(names)

    def tensors(self, names: Iterable[str]) -> list[TensorInfo]:
        """Where the named tensors lie; reads the headers of the files that hold them, and no others."""
        wanted = list(names)
        shards = list(dict.fromkeys(self._shard_of[name] for name in wanted))
        unread = [shard for shard in shards if shard not in self._headers]
        if len(unread) > 1 and self._source.connections > 1:
            with ThreadPoolExecutor(min(len(unread), self._source.connections)) as pool:
                list(pool.map(self._header, unread))
        infos = []
        for name in wanted:
            shard = self._shard_of[name]
            info = self._header(shard).get(name)
            if info is None:
                raise CheckpointError(
                    f"The index says that {shard} holds the tensor {name!r}, but its header does not list it. "
                    "Index and shards are not from the same checkpoint: get it again."
                )
            infos.append(info)
        return infos

    def _header(self, file: str) -> dict[str, TensorInfo]:
        if file not in self._headers:
            self._headers[file] = read_header(self._source, file)
        return self._headers[file]


def read_header(source: Source, file: str) -> dict[str, TensorInfo]:
    """Read and check the header of one file: 8 bytes, then exactly the header, so that no weight is ever read.

    Raises:
        CheckpointError: The header is not what the file's size and the format allow.
        SourceError: The file can't be read.
    """
    size = source.size(file)
    if size < LENGTH_BYTES:
        raise CheckpointError(f"{file} has {size} bytes, too few for a safetensors file. Copy or download it again.")
    length = parse_header_length(source.read_range(file, 0, LENGTH_BYTES), file, size)
    return parse_header(source.read_range(file, LENGTH_BYTES, length), file, size)


def read_local_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a file on a local disk, with its name alone as the tensors' `file`.

    Raises:
        CheckpointError: The header is not what the file's size and the format allow.
        OSError: The file can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = parse_header_length(file.read(LENGTH_BYTES).ljust(LENGTH_BYTES, b"\xff"), path.name, size)
        return parse_header(file.read(length), path.name, size)


def parse_header_length(raw: bytes, file: str, size: int) -> int:
    """The header's length from the first 8 bytes of a file of `size` bytes.

    Raises:
        CheckpointError: The length can't be true.
    """
    (length,) = struct.unpack("<Q", raw)
    if length > size - LENGTH_BYTES:
        raise CheckpointError(
            f"{file} says that its header has {length:,} bytes, but the whole file has {size:,}. "
            "It is truncated, or no safetensors file: copy or download it again."
        )
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file} says that its header has {length:,} bytes; 2 to {MAX_HEADER_BYTES:,} are possible. "
            "It is no safetensors file, or a damaged one."
        )
    return int(length)


def parse_header(raw: bytes, file: str, size: int) -> dict[str, TensorInfo]:
    """The tensors that a header lists, in the order of their bytes.

    Args:
        raw: The header's JSON.
        file: The file's name.
        size: The file's size in bytes.

    Raises:
        CheckpointError: The JSON is bad, or tensors overlap, leave gaps, or don't end where the file ends.
    """
    entries = parse_json_object(raw, f"The header of {file}")
    entries.pop("__metadata__", None)
    start = LENGTH_BYTES + len(raw)
    tensors = [_tensor(name, entry, file, start) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.offset, info.end))
    position = start
    for info in tensors:
        if info.offset != position:
            raise CheckpointError(
                f"In {file} the tensor {info.name!r} begins at byte {info.offset:,}, but the one before it ends at "
                f"{position:,}. The header is damaged or hostile: get the file again from a place that you trust."
            )
        position = info.end
    if position != size:
        raise CheckpointError(
            f"{file} has {size:,} bytes, but its header describes {position:,}. "
            f"It is {'truncated' if size < position else 'longer than it should be'}: copy or download it again."
        )
    return {info.name: info for info in tensors}


def parse_index(raw: bytes, file: str, present: Iterable[str], *, suffix: str = ".safetensors") -> dict[str, str]:
    """The shard of every tensor, from an index file.

    Args:
        raw: The index's JSON.
        file: The index's name.
        present: The files that the checkpoint has.
        suffix: What the shards' names end with.

    Raises:
        CheckpointError: The JSON is bad, or names a shard that is missing or lies elsewhere.
    """
    weight_map = parse_json_object(raw, file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file} has no weight_map that says which shard holds which tensor. Get it again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(suffix):
            raise CheckpointError(f"{file} places the tensor {name!r} in {shard!r}, which is no {suffix[1:]} file.")
        if "\\" in shard or "\0" in shard or any(part in ("", ".", "..") for part in shard.split("/")):
            raise CheckpointError(
                f"{file} places the tensor {name!r} in {shard!r}, outside of the checkpoint. "
                "The index is wrong or hostile: get the checkpoint from a place that you trust."
            )
    missing = sorted(set(weight_map.values()) - set(present))
    if missing:
        raise CheckpointError(
            f"{file} names {len(set(weight_map.values()))} shards, but {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''} is missing. Get the missing files."
        )
    return dict(weight_map)


def parse_json_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object with no key twice.

    Raises:
        CheckpointError: It is something else, or of more parts than any checkpoint's.
    """
    if has_many_parts(raw):
        raise CheckpointError(
            f"{what} has more parts than a model of 100,000 tensors has. It is damaged or hostile: get the file again "
            "from a place that you trust."
        )
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(pairs, what))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}). Get the file again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} is JSON, but not an object. Get the file again.")
    if _HALF.search(raw):
        # Half of a character of two parts can be read from JSON, but not be written to a file.
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise CheckpointError(f"{what} has text that is no Unicode ({error}). Get the file again.") from error
    return content


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise CheckpointError(f"{what} has the entry {twice!r} twice, and is damaged or hostile. Get the file again.")
    return content


def _tensor(name: str, entry: Any, file: str, start: int) -> TensorInfo:
    where = f"In {file} the entry of the tensor {name!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is not an object. Get the file again.")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where} has the dtype {dtype!r}, which is none of {', '.join(DTYPE_BITS)}.")
    if not _whole_numbers(shape):
        raise CheckpointError(f"{where} has the shape {shape!r}; a list of whole numbers from 0 on is expected.")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has the data_offsets {offsets!r}; [begin, end] is expected.")
    num_bits = prod(shape) * DTYPE_BITS[dtype]
    if num_bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            f"{where} has {offsets[1] - offsets[0]:,} bytes, but {dtype} of shape {shape} takes {num_bits // 8:,}."
        )
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        file=file,
        offset=start + offsets[0],
        num_bytes=offsets[1] - offsets[0],
    )


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    # Python's numbers have no end: without the bound a shape of 2^60 sizes makes a number of many megabytes.
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in value)
