"""Parse and check the headers and indexes of safetensors files. Reads no weights.

A file consists of an 8-byte little-endian header length, that many bytes of JSON, and the bytes of the tensors without
gaps (https://huggingface.co/docs/safetensors). A sharded checkpoint also has `model.safetensors.index.json`, which maps
every tensor to its shard.
"""

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from layer_surgeon._format import list_names
from layer_surgeon.checkpoint.sources.base import Source, stoppable_pool
from layer_surgeon.checkpoint.sources.shards import has_many_parts, lies_inside
from layer_surgeon.checkpoint.types import TensorInfo
from layer_surgeon.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
LENGTH_BYTES = 8
# huggingface_hub's own limit. The longest header measured in a real checkpoint (30 shards, 70B) is 3 kB. A mixture of
# 128 experts in one file needs 4 MB.
MAX_HEADER_BYTES = 25_000_000
# Upper estimate of a tensor's entry in a header, without its name. In the shards of Llama-3.1-8B it takes 78 to 82.
_ENTRY_BYTES = 100
_METADATA_BYTES = 256
# The header of a checkpoint in one file, without an index. 148 tensors (the shape of Llama-3.2-1B) take 17 kB.
_UNKNOWN_HEADER_BYTES = 24 << 10
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

# Bits per element of each dtype in the spec (safetensors 0.8, tensor.rs).
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
        source: The source to read from.
        config: The model's config.json, verbatim.
        shard_of: The file of every tensor by name, from the index. None if there is only `single_file`.
        single_file: The only file of a checkpoint without an index.

    Raises:
        CheckpointError: The header of the single file is damaged.
        SourceError: The single file can't be read.
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
        self._expected_bytes = Counter[str]()
        if shard_of is None:
            if single_file is None:
                raise ValueError("Neither shard_of nor single_file was given. Pass one of them.")
            shard_of = dict.fromkeys(self._header(single_file), single_file)
        self._shard_of = shard_of
        for name, shard in shard_of.items():
            self._expected_bytes[shard] += len(name.encode()) + _ENTRY_BYTES

    def files(self) -> Mapping[str, str]:
        """Return the file of every tensor, by tensor name."""
        return self._shard_of

    def describe(self, names: Iterable[str]) -> list[TensorInfo]:
        """Describe the named tensors. The same as `tensors`, because a header already has the positions."""
        return self.tensors(names)

    def tensors(self, names: Iterable[str]) -> list[TensorInfo]:
        """Locate the named tensors. Reads only the headers of the files that contain them.

        Raises:
            CheckpointError: A header is damaged, or lacks a tensor that the index lists.
            SourceError: A file can't be read.
        """
        requested = list(names)
        shards = list(dict.fromkeys(self._shard_of[name] for name in requested))
        unread = [shard for shard in shards if shard not in self._headers]
        if len(unread) > 1 and self._source.connections > 1:
            with stoppable_pool(min(len(unread), self._source.connections), "header") as pool:
                list(pool.map(self._header, unread))
        infos = []
        for name in requested:
            shard = self._shard_of[name]
            info = self._header(shard).get(name)
            if info is None:
                raise CheckpointError(
                    f"According to the index, {shard} contains the tensor {name!r}, but its header does not list it. "
                    "The index and the shards come from different checkpoints: get the checkpoint again."
                )
            infos.append(info)
        return infos

    def _header(self, file: str) -> dict[str, TensorInfo]:
        if file not in self._headers:
            self._headers[file] = read_header(self._source, file, self._expected_bytes.get(file, 0))
        return self._headers[file]


def read_header(source: Source, file: str, expected_bytes: int = 0) -> dict[str, TensorInfo]:
    """Read and check the header of one file.

    From a local disk, this reads 8 bytes and then exactly the header, so no weights. Over a network, the header is
    usually in the first read. That saves a round trip, and costs at most a few bytes per tensor that are dropped.

    Args:
        source: The source to read from.
        file: The file.
        expected_bytes: An upper estimate of the header's size; 0 if the tensors are not known.

    Raises:
        CheckpointError: The header does not fit the format or the size of the file.
        SourceError: The file can't be read.
    """
    size = source.size(file)
    if size < LENGTH_BYTES:
        raise CheckpointError(f"{file} has {size} bytes, too few for a safetensors file. Copy or download it again.")
    first_bytes = LENGTH_BYTES
    if source.connections > 1:
        first_bytes += (expected_bytes or _UNKNOWN_HEADER_BYTES) + _METADATA_BYTES
    content = source.read_range(file, 0, min(first_bytes, MAX_HEADER_BYTES, size))
    end = LENGTH_BYTES + parse_header_length(content[:LENGTH_BYTES], file, size)
    if end > len(content):
        content += source.read_range(file, len(content), end - len(content))
    return parse_header(content[LENGTH_BYTES:end], file, size)


def read_local_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a local file. The `file` of its tensors is the file name without the folder.

    Raises:
        CheckpointError: The header does not fit the format or the size of the file.
        OSError: The file can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = parse_header_length(file.read(LENGTH_BYTES).ljust(LENGTH_BYTES, b"\xff"), path.name, size)
        return parse_header(file.read(length), path.name, size)


def parse_header_length(raw: bytes, file: str, size: int) -> int:
    """Parse the header length from the first 8 bytes of a file of `size` bytes.

    Raises:
        CheckpointError: The length is impossible.
    """
    if raw == b"version ":
        raise CheckpointError(f"{file} is a pointer of Git LFS, and not the weights. Get them with `git lfs pull`.")
    (length,) = struct.unpack("<Q", raw)
    if length > size - LENGTH_BYTES:
        raise CheckpointError(
            f"{file} states a header length of {length:,} bytes, but the whole file has {size:,}. "
            "It is truncated or not a safetensors file: copy or download it again."
        )
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file} states a header length of {length:,} bytes, but only 2 to {MAX_HEADER_BYTES:,} are allowed. "
            "It is damaged or not a safetensors file: copy or download it again."
        )
    return int(length)


def parse_header(raw: bytes, file: str, size: int) -> dict[str, TensorInfo]:
    """Parse the tensors that a header lists, in the order of their bytes.

    Args:
        raw: The header's JSON.
        file: The file's name.
        size: The file's size in bytes.

    Raises:
        CheckpointError: The JSON is invalid, or the tensors overlap, leave gaps, or don't end at the end of the file.
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
                f"In {file} the tensor {info.name!r} begins at byte {info.offset:,}, but the previous one ends at "
                f"{position:,}. The header is damaged or malicious: get the file again from a source that you trust."
            )
        position = info.end
    if position != size:
        raise CheckpointError(
            f"{file} has {size:,} bytes, but its header describes {position:,}. "
            f"It is {'truncated' if size < position else 'too long'}: copy or download it again."
        )
    return {info.name: info for info in tensors}


def parse_index(raw: bytes, file: str, present: Iterable[str], *, suffix: str = ".safetensors") -> dict[str, str]:
    """Parse the shard of every tensor from an index file.

    Args:
        raw: The index's JSON.
        file: The index's name.
        present: The files that exist in the checkpoint.
        suffix: The file extension of the shards.

    Raises:
        CheckpointError: The JSON is invalid, or names a shard that is missing or outside the checkpoint.
    """
    weight_map = parse_json_object(raw, file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file} has no weight_map from tensors to shards. Get it again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(suffix):
            raise CheckpointError(
                f"{file} maps the tensor {name!r} to {shard!r}, which is not a {suffix[1:]} file. Get the index again."
            )
        if not lies_inside(shard):
            raise CheckpointError(
                f"{file} maps the tensor {name!r} to {shard!r}, which is outside the checkpoint. "
                "The index is wrong or malicious: get the checkpoint from a source that you trust."
            )
    missing = sorted(set(weight_map.values()) - set(present))
    if missing:
        raise CheckpointError(
            f"{file} names {len(set(weight_map.values()))} shards, but {list_names(missing)} is missing. "
            "Get the missing files."
        )
    return dict(weight_map)


def parse_json_object(raw: bytes, title: str) -> dict[str, Any]:
    """Parse a JSON object, and check that no key occurs twice.

    Args:
        raw: The JSON text.
        title: The name of the file or header, used as the subject of error messages.

    Raises:
        CheckpointError: It is not a valid JSON object, has a duplicate key, or has too many entries.
    """
    if has_many_parts(raw):
        raise CheckpointError(
            f"{title} has more entries than a model of 100,000 tensors needs. It is damaged or malicious: get the file "
            "again from a source that you trust."
        )
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(pairs, title))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{title} is not valid JSON ({error}). Get the file again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{title} is JSON, but not an object. Get the file again.")
    if _SURROGATE.search(raw):
        # A lone surrogate can be read from JSON, but not written to a file again.
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise CheckpointError(
                f"{title} has text that is not valid Unicode ({error}). Get the file again."
            ) from error
    return content


def _unique(pairs: list[tuple[str, Any]], title: str) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        duplicate = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise CheckpointError(
            f"{title} has the entry {duplicate!r} twice. It is damaged or malicious: get the file again."
        )
    return content


def _tensor(name: str, fields: Any, file: str, start: int) -> TensorInfo:
    title = f"In {file} the entry of the tensor {name!r}"
    if not isinstance(fields, dict):
        raise CheckpointError(f"{title} is not an object. Get the file again.")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(
            f"{title} has the unknown dtype {dtype!r}. The known ones are {', '.join(DTYPE_BITS)}. Get the file again."
        )
    if not _are_sizes(shape):
        raise CheckpointError(
            f"{title} has the shape {shape!r}, but a list of non-negative integers is expected. Get the file again."
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{title} has the data_offsets {offsets!r}, but [begin, end] is expected. Get the file again."
        )
    num_bits = prod(shape) * DTYPE_BITS[dtype]
    if num_bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            f"{title} has {offsets[1] - offsets[0]:,} bytes, but {dtype} of shape {shape} takes {num_bits // 8:,}. "
            "Get the file again."
        )
    return TensorInfo(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        file=file,
        offset=start + offsets[0],
        num_bytes=offsets[1] - offsets[0],
    )


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    # Python integers are unbounded: without a limit, the product of a long shape could fill many megabytes.
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in value)
