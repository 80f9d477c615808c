"""Parse the header of a GGUF file: its metadata, and the positions of its tensors. Reads no weights.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `gguf.GGUFReader` maps the whole
file into memory. This module reads only the header through a `Source`, piece by piece, and checks every number against
the size of the file before using it.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from layer_surgeon.checkpoint.gguf_table import gguf_table
from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_BIG_ENDIAN_VERSIONS = tuple(version << 24 for version in _VERSIONS)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20

# The header of Gemma-3-270M (262,144 tokens) is 6.4 MB, almost all of it vocabulary.
MAX_HEADER_BYTES = 64 << 20
# Gemma has 262,144 tokens and 514,906 merges. Reading a million strings takes half a second.
_MAX_STRINGS = 2_000_000
# Checking a tensor takes 1 kB and 15 us. A mixture of 128 experts with separate tensors has about 20,000 tensors.
_MAX_TENSORS = 65_536
# A model has some dozen entries: its table of tokens is one. 400,000 took 7 s and 110 MB.
_MAX_ENTRIES = 65_536
_FIRST_WINDOW_BYTES = 256 << 10
_MAX_WINDOW_STEP_BYTES = 4 << 20

# Arrays that describe the model are short: a number per layer. Anything longer is vocabulary, of which only the number
# of entries matters here.
_MAX_ARRAY_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class MetadataEntry:
    """The value of one key in the header.

    Attributes:
        value: Its number, string or array of numbers; None for an array of strings or one longer than 64 KiB.
        count: The number of elements of an array; otherwise 1.
    """

    value: int | float | str | tuple[int | float, ...] | None
    count: int


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as listed in the header.

    Attributes:
        file: The file with its bytes.
        name: Its GGUF name.
        shape: Its sizes, outermost first.
        dtype: Its GGUF type, such as `Q4_K`.
        offset: Absolute position of its first byte.
        num_bytes: Its size in bytes.
    """

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """A checked header: every tensor is inside its file, and no two tensors overlap.

    Attributes:
        file: The file it was read from; the first part of a split model.
        metadata: The metadata of the model, by key.
        tensors: The tensors, in the order of the header.
        num_bytes: The length of the header in `file`.
    """

    file: str
    metadata: Mapping[str, MetadataEntry]
    tensors: tuple[TensorEntry, ...]
    num_bytes: int

    @property
    def architecture(self) -> str:
        """GGUF's name of the model family: `llama`, `gemma3`, `qwen2moe`, ..."""
        return str(self.metadata["general.architecture"].value)


def read_gguf_header(source: Source, file: str, *, max_bytes: int = MAX_HEADER_BYTES) -> GgufHeader:
    """Read and check the header of a GGUF file, either a whole model or one part of a split model.

    Args:
        source: The source to read from.
        file: The path of the file in the source.
        max_bytes: The maximum length of the header.

    Raises:
        CheckpointError: The file is not a GGUF file, is truncated, or its header contradicts itself or the file's size.
        SourceError: The file can't be read.
    """
    window = _Window(source, file, max_bytes)
    if window.size < 24 or window.take(4) != _MAGIC:
        raise CheckpointError(
            f"{file} is not a GGUF file: it does not start with the bytes {_MAGIC.decode()!r} and a header. "
            "Check that it is the right file and that the download is complete."
        )
    version = window.number("I")
    if version in _BIG_ENDIAN_VERSIONS:
        raise CheckpointError(
            f"{file} is a big-endian GGUF file, but only little-endian files are supported. "
            "Convert it with llama.cpp's gguf_convert_endian.py, or get the little-endian file."
        )
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{file} is GGUF version {version}, but only versions {' and '.join(map(str, _VERSIONS))} are supported. "
            "Convert the model again with a current llama.cpp."
        )
    num_tensors, num_entries = window.number("Q"), window.number("Q")
    # The smallest tensor entry is 24 bytes (empty name, no sizes), the smallest metadata entry 13.
    fits = num_tensors * 24 + num_entries * 13 <= window.size
    if not fits or num_tensors > _MAX_TENSORS or num_entries > _MAX_ENTRIES:
        raise window.damaged(f"it states {num_tensors:,} tensors and {num_entries:,} metadata entries")
    metadata = dict(_read_metadata(window, num_entries))
    alignment = _alignment(window, metadata)
    raw_tensors = [_read_tensor(window) for _ in range(num_tensors)]
    header_end = window.position
    data_start = -(-header_end // alignment) * alignment
    tensors = tuple(_check_tensor(window, raw_tensor, data_start, alignment) for raw_tensor in raw_tensors)
    _check_disjoint(window, tensors)
    return GgufHeader(file=file, metadata=metadata, tensors=tensors, num_bytes=header_end)


@dataclass(frozen=True)
class _RawTensor:
    """A tensor as read from the header, before it is checked."""

    name: str
    sizes: tuple[int, ...]
    type_code: int
    offset: int


class _Window:
    """The beginning of a file, read as far as needed, with a current position."""

    def __init__(self, source: Source, file: str, max_bytes: int) -> None:
        self.file = file
        self._max_bytes = max_bytes
        self.size = source.size(file)
        self.position = 0
        self.num_strings = 0
        self._source = source
        self._front = bytearray()
        self._step = _FIRST_WINDOW_BYTES

    def take(self, length: int) -> bytes:
        """Read the next `length` bytes."""
        self._fetch(length)
        start = self.position
        self.position += length
        return bytes(self._front[start : self.position])

    def number(self, code: str) -> int:
        """Read the next number as an integer, by its `struct` code."""
        return int(self.scalar(code))

    def scalar(self, code: str) -> int | float:
        """Read the next number, by its `struct` code."""
        value: int | float = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def string(self) -> str:
        """Read the next string."""
        content = self.take(self.number("Q"))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a string in it is not UTF-8 ({error.reason})") from error

    def skip(self, length: int) -> None:
        """Skip `length` bytes."""
        self._fetch(length)
        self.position += length

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings. 262,144 strings take 0.1 s."""
        read_length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self.position + 8 > len(self._front):
                self._fetch(8)
            length = 8 + read_length(self._front, self.position)[0]
            if self.position + length > len(self._front):
                self._fetch(length)
            self.position += length

    def damaged(self, problem: str) -> CheckpointError:
        """Build the error for an impossible header."""
        return CheckpointError(
            f"The header of {self.file} ({self.size:,} bytes) is damaged or the file is truncated: {problem}. "
            "Copy or download it again."
        )

    def _fetch(self, length: int) -> None:
        end = self.position + length
        if end <= len(self._front):
            return
        if end > self.size:
            raise self.damaged(f"{length:,} bytes at position {self.position:,} extend beyond its end")
        if end > self._max_bytes:
            raise self.damaged(f"the header would be longer than {self._max_bytes:,} bytes")
        num_read = len(self._front)
        step = min(max(end - num_read, self._step), self.size - num_read)
        self._front += self._source.read_range(self.file, num_read, step)
        self._step = min(2 * self._step, _MAX_WINDOW_STEP_BYTES)


def _read_metadata(window: _Window, count: int) -> Iterator[tuple[str, MetadataEntry]]:
    seen_keys: set[str] = set()
    for _ in range(count):
        key = window.string()
        if key in seen_keys:
            raise window.damaged(f"it has the key {key!r} twice")
        seen_keys.add(key)
        type_code = window.number("I")
        value: int | float | str | tuple[int | float, ...] | None
        num_elements = 1
        if type_code in _SCALARS:
            value = window.scalar(_SCALARS[type_code])
        elif type_code == _STRING:
            value = window.string()
        elif type_code == _ARRAY:
            value, num_elements = _read_array(window, key)
        else:
            raise window.damaged(f"the key {key!r} has the unknown type {type_code}")
        yield key, MetadataEntry(value=value, count=num_elements)


def _read_array(window: _Window, key: str) -> tuple[tuple[int | float, ...] | None, int]:
    """Read an array, or skip it if it is long or has strings. Returns its content, if read, and its length."""
    element_type, count = window.number("I"), window.number("Q")
    if element_type in _SCALARS:
        element_bytes = struct.calcsize(f"<{_SCALARS[element_type]}")
        if count * element_bytes <= _MAX_ARRAY_BYTES:
            return struct.unpack(f"<{count}{_SCALARS[element_type]}", window.take(count * element_bytes)), count
        window.skip(count * element_bytes)
    elif element_type == _STRING:
        window.num_strings += count
        if count * 8 > window.size or window.num_strings > _MAX_STRINGS:
            raise window.damaged(f"the key {key!r} states {count:,} strings")
        window.skip_strings(count)
    else:
        raise window.damaged(
            f"the key {key!r} is an array of type {element_type}, but only numbers and strings are supported"
        )
    return None, count


def _alignment(window: _Window, metadata: Mapping[str, MetadataEntry]) -> int:
    alignment_entry = metadata.get("general.alignment")
    if alignment_entry is None:
        return _DEFAULT_ALIGNMENT
    value = alignment_entry.value
    if not isinstance(value, int) or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise window.damaged(f"'general.alignment' is {value!r}, not a power of two up to {_MAX_ALIGNMENT:,}")
    return value


def _read_tensor(window: _Window) -> _RawTensor:
    name = window.string()
    num_dimensions = window.number("I")
    if num_dimensions > _MAX_DIMENSIONS:
        raise window.damaged(f"the tensor {name!r} has {num_dimensions:,} dimensions, more than {_MAX_DIMENSIONS}")
    # GGUF lists the innermost size first.
    sizes = tuple(window.number("Q") for _ in range(num_dimensions))[::-1]
    return _RawTensor(name=name, sizes=sizes, type_code=window.number("I"), offset=window.number("Q"))


def _check_tensor(window: _Window, raw_tensor: _RawTensor, data_start: int, alignment: int) -> TensorEntry:
    tensor_type = gguf_table()["types"].get(str(raw_tensor.type_code))
    if tensor_type is None:
        raise CheckpointError(
            f"In {window.file} the tensor {raw_tensor.name!r} has the type {raw_tensor.type_code}, which is unknown. "
            "Update layer_surgeon. If that does not help, the file is damaged."
        )
    dtype, block_elements, block_bytes = tensor_type
    row_elements = raw_tensor.sizes[-1] if raw_tensor.sizes else 1
    if row_elements % block_elements:
        raise window.damaged(
            f"a row of {raw_tensor.name!r} has {row_elements:,} elements, not a multiple of {dtype}'s block size"
        )
    num_bytes = prod(raw_tensor.sizes) // block_elements * block_bytes
    start = data_start + raw_tensor.offset
    if raw_tensor.offset % alignment:
        raise window.damaged(f"{raw_tensor.name!r} is not aligned to {alignment} bytes")
    if start + num_bytes > window.size:
        raise window.damaged(f"{raw_tensor.name!r} would take bytes {start:,} to {start + num_bytes:,}")
    return TensorEntry(
        file=window.file,
        name=raw_tensor.name,
        shape=raw_tensor.sizes,
        dtype=dtype,
        offset=start,
        num_bytes=num_bytes,
    )


def _check_disjoint(window: _Window, tensors: tuple[TensorEntry, ...]) -> None:
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise window.damaged("two tensors have the same name")
    for first, second in pairwise(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes))):
        if first.offset + first.num_bytes > second.offset:
            raise window.damaged(f"the tensors {first.name!r} and {second.name!r} overlap")
