"""False headers and truncated files are refused with a CheckpointError before anything large is allocated."""

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer_surgeon.checkpoint.gguf_header import GgufHeader
from layer_surgeon.checkpoint.gguf_split import read_model_header
from layer_surgeon.checkpoint.sources import FileSource
from layer_surgeon.errors import CheckpointError, LayerSurgeonError

F32, Q8_0 = 0, 8
HUGE = 2**63 + 8


def text(content: str | bytes) -> bytes:
    encoded = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(encoded)) + encoded


def metadata_entry(key: str, type_code: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_code) + value


def tensor(name: str, sizes: tuple[int, ...], *, kind: int = F32, offset: int = 0) -> bytes:
    packed = b"".join(struct.pack("<Q", size) for size in sizes)
    return text(name) + struct.pack("<I", len(sizes)) + packed + struct.pack("<IQ", kind, offset)


ARCHITECTURE = metadata_entry("general.architecture", 8, text("llama"))
GOOD = tensor("a", (8,)), tensor("b", (8, 2), offset=32)


def header(
    entries: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = GOOD,
    *,
    version: int = 3,
    num_entries: int | None = None,
    num_tensors: int | None = None,
    data: int = 96,
) -> bytes:
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    content = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return content + bytes(-len(content) % 32) + bytes(data)


def read(content: bytes, folder: Path) -> GgufHeader:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return read_model_header(FileSource(path, name=str(path)), [path.name])


def test_good_header(tmp_path: Path) -> None:
    content = header()
    read_header = read(content, tmp_path)
    assert read_header.architecture == "llama"
    start = len(content) - 96
    assert [(t.name, t.shape, t.dtype, t.offset, t.num_bytes) for t in read_header.tensors] == [
        ("a", (8,), "F32", start, 32),
        ("b", (2, 8), "F32", start + 32, 64),
    ]


def test_alignment_is_followed(tmp_path: Path) -> None:
    content = header(
        (ARCHITECTURE, metadata_entry("general.alignment", 4, struct.pack("<I", 64))), (tensor("a", (8,)),), data=256
    )
    (only,) = read(content, tmp_path).tensors
    assert only.offset % 64 == 0


def test_values(tmp_path: Path) -> None:
    numbers = metadata_entry("numbers", 9, struct.pack("<IQ3I", 4, 3, 7, 8, 9))
    texts = metadata_entry("texts", 9, struct.pack("<IQ", 8, 2) + text("x") + text("yy"))
    flag = metadata_entry("flag", 7, b"\1")
    metadata = read(header((ARCHITECTURE, numbers, texts, flag)), tmp_path).metadata
    assert metadata["numbers"].count == 3
    assert metadata["numbers"].value == (7, 8, 9)
    assert metadata["texts"].count == 2
    assert metadata["flag"].value is True
    assert metadata["texts"].value is None


BAD = {
    "empty": (b"", "does not start with"),
    "short": (b"GGUF\3\0\0\0", "does not start with"),
    "magic": (b"GGML" + header()[4:], "does not start with the bytes 'GGUF'"),
    "safetensors": (b"\x10\0\0\0\0\0\0\0{}" + bytes(40), "is not a GGUF file"),
    "big endian": (b"GGUF\0\0\0\3" + header()[8:], "big-endian GGUF file"),
    "version 1": (header(version=1), "is GGUF version 1, but only versions 2 and 3 are supported"),
    "version 4": (header(version=4), "is GGUF version 4"),
    "count of tensors": (header(num_tensors=HUGE), "it states 9,223,372,036,854,775,816 tensors"),
    "count of entries": (header(num_entries=10**12), "1,000,000,000,000 metadata entries"),
    "more entries than any model has": (
        header((ARCHITECTURE, *(metadata_entry(str(number), 0, b"0") for number in range(70_000)))),
        "70,001 metadata entries",
    ),
    "one tensor too many": (header(num_tensors=3), "damaged"),
    "one entry too many": (header(num_entries=2), "damaged"),
    "no architecture": (header(()), "does not state its architecture"),
    "architecture is a number": (
        header((metadata_entry("general.architecture", 4, bytes(4)),)),
        "does not state its architecture",
    ),
    "architecture is empty": (
        header((metadata_entry("general.architecture", 8, text("")),)),
        "does not state its architecture",
    ),
    "key twice": (header((ARCHITECTURE, ARCHITECTURE)), "it has the key 'general.architecture' twice"),
    "type of value": (header((ARCHITECTURE, metadata_entry("x", 77, b""))), "'x' has the unknown type 77"),
    "length of a text": (
        header((ARCHITECTURE, metadata_entry("x", 8, struct.pack("<Q", HUGE)))),
        "extend beyond its end",
    ),
    "not UTF-8": (header((ARCHITECTURE, metadata_entry("x", 8, text(b"\xff\xfe")))), "is not UTF-8"),
    "long array": (
        header((ARCHITECTURE, metadata_entry("x", 9, struct.pack("<IQ", 4, HUGE)))),
        "extend beyond its end",
    ),
    "many texts": (header((ARCHITECTURE, metadata_entry("x", 9, struct.pack("<IQ", 8, HUGE)))), "states 9,223,372"),
    "long text in an array": (
        header((ARCHITECTURE, metadata_entry("x", 9, struct.pack("<IQQ", 8, 1, HUGE)))),
        "extend beyond its end",
    ),
    "array of arrays": (
        header((ARCHITECTURE, metadata_entry("x", 9, struct.pack("<IQ", 9, 1)))),
        "'x' is an array of type 9",
    ),
    "alignment 0": (
        header((ARCHITECTURE, metadata_entry("general.alignment", 4, bytes(4)))),
        "'general.alignment' is 0",
    ),
    "alignment 48": (
        header((ARCHITECTURE, metadata_entry("general.alignment", 4, struct.pack("<I", 48)))),
        "'general.alignment' is 48, not a power of two",
    ),
    "alignment is a text": (
        header((ARCHITECTURE, metadata_entry("general.alignment", 8, text("32")))),
        "'general.alignment' is '32'",
    ),
    "dimensions": (header(tensors=(tensor("a", (1,) * 5),)), "'a' has 5 dimensions, more than 4"),
    "size": (header(tensors=(tensor("a", (2**62, 2**62)),)), "'a' would take bytes"),
    "offset": (header(tensors=(tensor("a", (8,), offset=2**40),)), "'a' would take bytes"),
    "past the end": (header(tensors=(tensor("a", (8,), offset=96),)), "'a' would take bytes"),
    "aligned": (header(tensors=(tensor("a", (8,), offset=4),)), "'a' is not aligned to 32 bytes"),
    "overlap": (header(tensors=(tensor("a", (16,)), tensor("b", (8,), offset=32))), "'a' and 'b' overlap"),
    "same place": (header(tensors=(tensor("a", (8,)), tensor("b", (8,)))), "overlap"),
    "same name": (header(tensors=(tensor("a", (8,)), tensor("a", (8,), offset=32))), "the same name"),
    "type of tensor": (header(tensors=(tensor("a", (8,), kind=999),)), "has the type 999, which is unknown"),
    "part of a block": (header(tensors=(tensor("a", (8, 32), kind=Q8_0),)), "not a multiple of Q8_0's block"),
}


@pytest.mark.parametrize("name", BAD)
def test_false_header_is_refused(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    with pytest.raises(CheckpointError) as caught:
        read(content, tmp_path)
    assert message in str(caught.value)
    assert "model.gguf" in str(caught.value)


def test_part_of_a_split_model_with_another_name_is_refused(tmp_path: Path) -> None:
    content = header((ARCHITECTURE, metadata_entry("split.count", 2, struct.pack("<H", 3))))
    with pytest.raises(CheckpointError, match=r"one of the 3 parts of a split model, but the names of the other parts"):
        read(content, tmp_path)


def test_huge_header_is_refused(tmp_path: Path) -> None:
    """A sparse file of 1 TiB that claims a vocabulary of 512 GiB takes neither memory nor time."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + metadata_entry("x", 9, struct.pack("<IQ", 0, 2**39)))
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"the header would be longer than 67,108,864 bytes"):
        read_model_header(FileSource(path, name=str(path)), [path.name])


@pytest.mark.parametrize("length", range(0, len(header()), 7))
def test_truncated_file_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read(header()[:length], tmp_path)


VARIED = header((ARCHITECTURE, metadata_entry("x", 9, struct.pack("<IQ", 8, 2) + text("x") + text("yy"))))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(VARIED) - 97), st.binary(min_size=1, max_size=8), st.integers(0, 96))
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, position: int, patch: bytes, cut: int) -> None:
    content = bytearray(VARIED[: len(VARIED) - cut])
    content[position : position + len(patch)] = patch
    try:
        read_header = read(bytes(content), tmp_path)
    except LayerSurgeonError:
        return
    assert all(t.offset + t.num_bytes <= len(content) for t in read_header.tensors)
