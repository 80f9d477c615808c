"""The header of a GGUF file: what it says about itself, and where its tensors lie. Reads no weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `gguf.GGUFReader` maps the whole file and looks
at it through numpy; here the header comes through a `Source`, piece by piece, and nothing in it is believed before it
is checked against the size of the file.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import gguf

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

# The header of Gemma-3-270M (262,144 tokens) takes 6.4 MB, nearly all of it vocabulary.
MAX_HEADER_BYTES = 64 << 20
# Of Gemma, 262,144 tokens and 514,906 merges: a million takes half a second.
_MAX_TEXTS = 2_000_000
# A tensor's entry takes 1 kB and 15 us while it is checked. A mixture of 128 experts, each apart, has some 20,000.
_MAX_TENSORS = 65_536
_FIRST_WINDOW_BYTES = 256 << 10
_MAX_WINDOW_STEP_BYTES = 4 << 20

# What describes the model is short: the longest, a chat template, takes some 10 kB. What is longer is vocabulary, of
# which only the number of entries matters here.
_MAX_KEPT_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class MetadataEntry:
    """One key of the header.

    Attributes:
        value: Its number or text; None for an array.
        count: How many elements an array has; 1 for anything else.
        encoded: Type and value as they stand in the file; None where that is over 64 KiB.
    """

    value: int | float | str | None
    count: int
    encoded: bytes | None


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as the header has it: file, GGUF's name, sizes outermost first, type, absolute position, bytes."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """A checked header: every tensor lies inside its file, and no two share a byte.

    Attributes:
        file: The file it was read from; of a split model the first part.
        metadata: What it says about the model, by key.
        tensors: The tensors, in its order.
    """

    file: str
    metadata: Mapping[str, MetadataEntry]
    tensors: tuple[TensorEntry, ...]

    @property
    def architecture(self) -> str:
        """GGUF's name of the model family: `llama`, `gemma3`, `qwen2moe`, ..."""
        return str(self.metadata["general.architecture"].value)


def read_gguf_header(source: Source, file: str, *, max_bytes: int = MAX_HEADER_BYTES) -> GgufHeader:
    """Read and check the header of `file`: a whole model's, or one part's of a split one.

    Args:
        source: Where the file lies.
        file: Its path there.
        max_bytes: How long its header may be.

    Raises:
        CheckpointError: The file is no GGUF file, is truncated, or its header contradicts itself or the file's size.
        SourceError: The file can't be read.
    """
    window = _Window(source, file, max_bytes)
    if window.size < 24 or window.take(4) != _MAGIC:
        raise CheckpointError(
            f"{file} does not start with the bytes {_MAGIC.decode()!r} and a header, so it is no GGUF file. "
            "Check that the download is complete and that it is the file you mean."
        )
    version = window.number("I")
    if version in _BIG_ENDIAN_VERSIONS:
        raise CheckpointError(
            f"{file} is a big-endian GGUF file; only little-endian ones can be read. "
            "Convert it with llama.cpp's gguf_convert_endian.py, or get the ordinary file."
        )
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{file} is GGUF version {version}; versions {' and '.join(map(str, _VERSIONS))} can be read. "
            "Convert the model again with a current llama.cpp."
        )
    num_tensors, num_entries = window.number("Q"), window.number("Q")
    # The smallest tensor entry is 24 bytes (empty name, no sizes), the smallest metadata entry 13.
    if num_tensors * 24 + num_entries * 13 > window.size or num_tensors > _MAX_TENSORS:
        raise window.damaged(f"it promises {num_tensors:,} tensors and {num_entries:,} metadata entries")
    metadata = dict(_read_metadata(window, num_entries))
    alignment = _alignment(window, metadata)
    raw = [_read_tensor(window) for _ in range(num_tensors)]
    data_start = -(-window.position // alignment) * alignment
    tensors = tuple(_place(window, entry, data_start, alignment) for entry in raw)
    _check_disjoint(window, tensors)
    return GgufHeader(file=file, metadata=metadata, tensors=tensors)


@dataclass(frozen=True)
class _RawTensor:
    """A tensor's entry before anything in it is believed."""

    name: str
    sizes: tuple[int, ...]
    type_code: int
    offset: int


class _Window:
    """The front of a file, fetched as far as it is needed, and a position in it."""

    def __init__(self, source: Source, file: str, max_bytes: int) -> None:
        self.file = file
        self._max_bytes = max_bytes
        self.size = source.size(file)
        self.position = 0
        self.texts = 0
        self._source = source
        self._front = bytearray()
        self._step = _FIRST_WINDOW_BYTES

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        self._fetch(length)
        start = self.position
        self.position += length
        return bytes(self._front[start : self.position])

    def number(self, code: str) -> int:
        """The next number, by its `struct` code."""
        return int(self.scalar(code))

    def scalar(self, code: str) -> int | float:
        """The next number, by its `struct` code, as it is."""
        value: int | float = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def string(self) -> str:
        """The next text."""
        content = self.take(self.number("Q"))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text in it is not UTF-8 ({error.reason})") from error

    def skip(self, length: int) -> None:
        """Pass over `length` bytes."""
        self._fetch(length)
        self.position += length

    def skip_strings(self, count: int) -> None:
        """Pass over `count` texts: 262,144 of them take 0.1 s."""
        read_length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self.position + 8 > len(self._front):
                self._fetch(8)
            length = 8 + read_length(self._front, self.position)[0]
            if self.position + length > len(self._front):
                self._fetch(length)
            self.position += length

    def slice(self, start: int) -> bytes:
        """What was read from `start` to here."""
        return bytes(self._front[start : self.position])

    def damaged(self, what: str) -> CheckpointError:
        """The error of a header that can't be true."""
        return CheckpointError(
            f"The header of {self.file} ({self.size:,} bytes) is damaged or the file is truncated: {what}. "
            "Copy or download it again."
        )

    def _fetch(self, length: int) -> None:
        end = self.position + length
        if end <= len(self._front):
            return
        if end > self.size:
            raise self.damaged(f"something of {length:,} bytes at position {self.position:,} reaches past its end")
        if end > self._max_bytes:
            raise self.damaged(f"the header would be over {self._max_bytes:,} bytes")
        have = len(self._front)
        step = min(max(end - have, self._step), self.size - have)
        self._front += self._source.read_range(self.file, have, step)
        self._step = min(2 * self._step, _MAX_WINDOW_STEP_BYTES)


def _read_metadata(window: _Window, count: int) -> Iterator[tuple[str, MetadataEntry]]:
    seen: set[str] = set()
    for _ in range(count):
        key = window.string()
        if key in seen:
            raise window.damaged(f"it has the key {key!r} twice")
        seen.add(key)
        start = window.position
        type_code = window.number("I")
        value: int | float | str | None = None
        elements = 1
        if type_code in _SCALARS:
            value = window.scalar(_SCALARS[type_code])
        elif type_code == _STRING:
            value = window.string()
        elif type_code == _ARRAY:
            elements = _skip_array(window, key)
        else:
            raise window.damaged(f"the key {key!r} is of the unknown type {type_code}")
        short = window.position - start <= _MAX_KEPT_BYTES
        yield key, MetadataEntry(value=value, count=elements, encoded=window.slice(start) if short else None)


def _skip_array(window: _Window, key: str) -> int:
    element_type, count = window.number("I"), window.number("Q")
    if element_type in _SCALARS:
        window.skip(count * struct.calcsize(f"<{_SCALARS[element_type]}"))
    elif element_type == _STRING:
        window.texts += count
        if count * 8 > window.size or window.texts > _MAX_TEXTS:
            raise window.damaged(f"the key {key!r} promises {count:,} texts")
        window.skip_strings(count)
    else:
        raise window.damaged(f"the key {key!r} is an array of type {element_type}; only numbers and texts are known")
    return count


def _alignment(window: _Window, metadata: Mapping[str, MetadataEntry]) -> int:
    entry = metadata.get("general.alignment")
    if entry is None:
        return _DEFAULT_ALIGNMENT
    value = entry.value
    if not isinstance(value, int) or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise window.damaged(f"'general.alignment' is {value!r}, not a power of two up to {_MAX_ALIGNMENT:,}")
    return value


def _read_tensor(window: _Window) -> _RawTensor:
    name = window.string()
    num_dimensions = window.number("I")
    if num_dimensions > _MAX_DIMENSIONS:
        raise window.damaged(f"the tensor {name!r} has {num_dimensions:,} dimensions, over {_MAX_DIMENSIONS}")
    # GGUF lists the fastest-moving size first.
    sizes = tuple(window.number("Q") for _ in range(num_dimensions))[::-1]
    return _RawTensor(name=name, sizes=sizes, type_code=window.number("I"), offset=window.number("Q"))


def _place(window: _Window, raw: _RawTensor, data_start: int, alignment: int) -> TensorEntry:
    try:
        dtype = gguf.GGMLQuantizationType(raw.type_code)
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[dtype]
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{window.file}: the tensor {raw.name!r} is of type {raw.type_code}, which the installed gguf package does "
            "not know. Update it (`pip install -U gguf`); if that does not help, the file is damaged."
        ) from error
    row = raw.sizes[-1] if raw.sizes else 1
    if row % block_elements:
        raise window.damaged(f"a row of {raw.name!r} has {row:,} elements, no multiple of {dtype.name}'s block")
    num_bytes = prod(raw.sizes) // block_elements * block_bytes
    start = data_start + raw.offset
    if raw.offset % alignment:
        raise window.damaged(f"{raw.name!r} is not aligned to {alignment} bytes")
    if start + num_bytes > window.size:
        raise window.damaged(f"{raw.name!r} would take bytes {start:,} to {start + num_bytes:,}")
    return TensorEntry(
        file=window.file, name=raw.name, shape=raw.sizes, dtype=dtype.name, offset=start, num_bytes=num_bytes
    )


def _check_disjoint(window: _Window, tensors: tuple[TensorEntry, ...]) -> None:
    if len({entry.name for entry in tensors}) != len(tensors):
        raise window.damaged("two tensors have the same name")
    for first, second in pairwise(sorted(tensors, key=lambda entry: (entry.offset, entry.num_bytes))):
        if first.offset + first.num_bytes > second.offset:
            raise window.damaged(f"the tensors {first.name!r} and {second.name!r} overlap")
