"""False, truncated and non-zip files only raise errors of this package, and nothing unchecked is read."""

import struct
import zipfile
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer_surgeon import open_checkpoint
from layer_surgeon.checkpoint.sources import FolderSource
from layer_surgeon.checkpoint.torch_table import TorchZipTable
from layer_surgeon.checkpoint.torch_zip import parse_directory, read_entries
from layer_surgeon.errors import CheckpointError, LayerSurgeonError
from tests.support.torch_files import TENSOR, state_dict_pickle, tiny_state_dict, write_checkpoint, write_zip

FILE = "pytorch_model.bin"


class Memory:
    """A source with one file in memory."""

    name, kind, commit, connections = "memory", "file", None, 1

    def __init__(self, content):
        self.content = content

    def size(self, file):
        return len(self.content)

    def read_range(self, file, start, length):
        assert start >= 0
        assert 0 <= length <= len(self.content) - start
        return self.content[start : start + length]


def table_of(content):
    return TorchZipTable(Memory(content), {}, single_file="x.bin")


def tensors_of(content):
    table = table_of(content)
    return table.tensors(table.files())


@pytest.fixture
def small(tmp_path):
    return write_zip(tmp_path / "x.bin", state_dict_pickle()).read_bytes()


def test_the_directory_equals_that_of_the_standard_library(tmp_path):
    write_checkpoint(tmp_path, tiny_state_dict(torch.float32))
    entries = read_entries(FolderSource(tmp_path, name="x"), FILE)
    with zipfile.ZipFile(tmp_path / FILE) as archive:
        listed = {info.filename: (info.header_offset, info.file_size, info.CRC) for info in archive.infolist()}
    assert {name: (entry.header, entry.num_bytes, entry.crc) for name, entry in entries.items()} == listed


def test_a_zip_of_another_writer(small, tmp_path):
    (info,) = tensors_of(small)
    assert struct.unpack("<4f", small[info.offset : info.end]) == (1, 2, 3, 4)
    with zipfile.ZipFile(tmp_path / "x.bin", "a") as archive:
        archive.comment = b"a comment, PK\5\6 and all"
    assert tensors_of((tmp_path / "x.bin").read_bytes()) == [info]


def test_sizes_of_64_bits(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", state_dict_pickle())
        with archive.open("x/data/0", "w", force_zip64=True) as entry:
            entry.write(struct.pack("<4f", 1, 2, 3, 4))
    content = (tmp_path / "x.bin").read_bytes()
    (info,) = tensors_of(content)
    assert struct.unpack("<4f", content[info.offset : info.end]) == (1, 2, 3, 4)


def test_an_entry_beyond_4_gb(tmp_path):
    # The directory of a 5 GB shard, with sizes and positions in the extra field.
    extra = struct.pack("<HHQQQ", 1, 24, 5 << 30, 5 << 30, 1 << 33)
    fixed = struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, 0, 0, 0, 0, 7, *[0xFFFFFFFF] * 2, 8, 28, 0, 0, 0, 0, 0xFFFFFFFF)
    entries = parse_directory(fixed + b"x/data/0" + extra, "x", 1, (1 << 33) + (5 << 30) + 100)
    assert (entries["x/data/0"].num_bytes, entries["x/data/0"].header) == (5 << 30, 1 << 33)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "too few"),
        (b"PK", "too few"),
        (b"GGUF" + bytes(100), "not a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 3, "not a PyTorch checkpoint"),
        (b"PK\5\6" + bytes(18), "0 entries"),
        (b"PK\5\6" + b"\xff" * 16 + bytes(2), "several parts|should lie"),
        (bytes(300) + b"PK\5\6" + bytes(17), "not a PyTorch checkpoint"),
    ],
)
def test_files_that_are_not_zips(content, word):
    with pytest.raises(CheckpointError, match=word):
        table_of(content)


def test_the_old_formats_say_what_to_do(tmp_path):
    torch.save({"a": torch.zeros(20_000)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before version 1\.6.*torch\.save\(torch\.load"):
        table_of((tmp_path / "x.bin").read_bytes())
    with pytest.raises(CheckpointError, match=r"before version 1\.6"):
        table_of(bytes(257) + b"ustar\x0000" + bytes(1000))


def test_every_truncation_is_refused(small):
    for length in range(len(small)):
        with pytest.raises(CheckpointError, match="truncated|too few|damaged"):
            table_of(small[:length])
    for length in (1, 7, 100):
        with pytest.raises(CheckpointError):
            table_of(small[length:])
        with pytest.raises(CheckpointError):
            table_of(small + bytes(length))


def changed(content, before, after, count=-1):
    assert before in content
    return content.replace(before, after, count)


def patched(content, signature, offset, form, value):
    """Return the content with one field changed in the first header of a kind."""
    position = content.index(signature) + offset
    return content[:position] + struct.pack(form, value) + content[position + struct.calcsize(form) :]


DIRECTORY, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"


@pytest.mark.parametrize(
    ("signature", "offset", "form", "value", "word"),
    [
        (DIRECTORY, 8, "<H", 1, "encrypted"),
        (DIRECTORY, 10, "<H", 8, "compressed"),
        (DIRECTORY, 16, "<L", 12345, "checksum"),
        (DIRECTORY, 20, "<L", 5, "compressed"),
        (DIRECTORY, 24, "<L", 0xFFFFFFF0, "compressed"),
        (DIRECTORY, 28, "<H", 0xFFFF, "damaged"),
        (DIRECTORY, 30, "<H", 0xFFFF, "damaged"),
        (DIRECTORY, 32, "<H", 3, "damaged"),
        (DIRECTORY, 34, "<H", 3, "several parts"),
        (DIRECTORY, 42, "<L", 10, "damaged|not"),
        (DIRECTORY, 42, "<L", 0xFFFFFFFF, "beyond"),
        (DIRECTORY, 0, "4s", b"ABCD", "something else"),
        (LOCAL, 0, "4s", b"ABCD", "but it is not there"),
        (LOCAL, 6, "<H", 1, "contradict"),
        (LOCAL, 8, "<H", 8, "contradict"),
        (LOCAL, 26, "<H", 3, "but it is not there"),
        (LOCAL, 28, "<H", 0xFFFF, "contradict"),
        (END, 4, "<H", 1, "several parts"),
        (END, 8, "<H", 1, "several parts"),
        (END, 10, "<H", 3, "several parts"),
        (END, 12, "<L", 5, "should begin"),
        (END, 16, "<L", 0xFFFFFFFF, "should begin"),
        (END, 20, "<H", 1, "truncated"),
    ],
)
def test_a_false_directory_is_refused(small, signature, offset, form, value, word):
    with pytest.raises(CheckpointError, match=word):
        tensors_of(patched(small, signature, offset, form, value))


def test_the_zip64_end_record_must_be_at_its_position(tmp_path):
    write_checkpoint(tmp_path, {"a": torch.zeros(3)})
    content = (tmp_path / FILE).read_bytes()
    assert tensors_of(content)
    for signature, offset in ((b"PK\6\7", 8), (b"PK\6\6", 40), (b"PK\6\6", 48), (b"PK\6\6", 32), (b"PK\6\6", 0)):
        with pytest.raises(CheckpointError):
            tensors_of(patched(content, signature, offset, "<Q", 2**60))
    with pytest.raises(CheckpointError):
        tensors_of(patched(content, b"PK\6\7", 16, "<L", 9))


def test_a_huge_directory_is_refused_before_it_is_read(tmp_path):
    # A directory of 5 GB. Reading it would fail the test.
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 0, 0, 0, 100_000_000, 100_000_000, 5 << 30, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 5 << 30, 1)
    tail = end64 + locator + struct.pack("<4s4H2LH", END, 0, 0, 0xFFFF, 0xFFFF, *[0xFFFFFFFF] * 2, 0)

    class Long(Memory):
        def size(self, file):
            return (5 << 30) + len(tail)

        def read_range(self, file, start, length):
            assert length < 100_000
            return bytes((5 << 30) - start) + tail

    with pytest.raises(CheckpointError, match="which is impossible"):
        TorchZipTable(Long(b""), {}, single_file="x.bin")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries_are_refused(tmp_path, method):
    content = write_zip(tmp_path / "x.bin", state_dict_pickle(), {"data/0": bytes(10_000_000)}, method).read_bytes()
    assert len(content) < 100_000
    with pytest.raises(CheckpointError, match="is compressed"):
        table_of(content)


def test_overlapping_and_repeated_entries_are_refused(small, tmp_path):
    with zipfile.ZipFile(tmp_path / "y.bin", "w") as archive:
        archive.writestr("x/data.pkl", state_dict_pickle())
        archive.writestr("x/data/0", bytes(16))
        archive.writestr("x/data/1", bytes(16))
    content = changed((tmp_path / "y.bin").read_bytes(), b"x/data/1", b"x/data/0")
    with pytest.raises(CheckpointError, match="twice"):
        table_of(content)
    # Two names for the same bytes, as in a quine or an overlapping zip bomb.
    second = small.rindex(DIRECTORY)
    with pytest.raises(CheckpointError, match="extends beyond"):
        table_of(small[: second + 42] + struct.pack("<L", 0) + small[second + 46 :])


def test_an_entry_that_extends_into_the_next_is_refused(small):
    second = small.rindex(DIRECTORY)
    for size, word in ((17, "extends beyond"), (2**32 - 2, "extends beyond"), (15, "has 15 bytes")):
        sizes = struct.pack("<2L", size, size)
        with pytest.raises(CheckpointError, match=word):
            tensors_of(small[: second + 20] + sizes + small[second + 28 :])


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({}, "data/0, but has no such entry"),
        ({"data/1": bytes(16)}, "data/0, but has no such entry"),
        ({"data/0": bytes(15)}, "has 15 bytes"),
        ({"data/0": b""}, "has 0 bytes"),
        ({"data/0": bytes(16), "byteorder": b"big"}, "byte order b'big'"),
        ({"data/0": bytes(16), "byteorder": bytes(100_000)}, "byteorder entry"),
        ({"data/0": bytes(16), "constants.pkl": b""}, "TorchScript"),
        ({"data/0": bytes(16), "../y/data.pkl": b""}, None),
    ],
)
def test_entries_that_do_not_match_the_tensors(tmp_path, entries, word):
    content = write_zip(tmp_path / "x.bin", state_dict_pickle(), entries).read_bytes()
    if word is None:
        assert tensors_of(content)
        return
    with pytest.raises(CheckpointError, match=word):
        tensors_of(content)


def test_the_byteorder_entry_may_be_anywhere(tmp_path):
    entries = {"data/0": bytes(200_000), "byteorder": b"little"}
    assert tensors_of(write_zip(tmp_path / "x.bin", state_dict_pickle(), entries).read_bytes())


def test_two_checkpoints_in_one_file_are_refused(tmp_path):
    write_zip(tmp_path / "x.bin", state_dict_pickle())
    with zipfile.ZipFile(tmp_path / "x.bin", "a") as archive:
        archive.writestr("y/data.pkl", state_dict_pickle())
    with pytest.raises(CheckpointError, match="2 entries called"):
        table_of((tmp_path / "x.bin").read_bytes())


def test_a_huge_pickle_is_refused(tmp_path):
    content = write_zip(tmp_path / "x.bin", bytes(5_000_001)).read_bytes()
    with pytest.raises(CheckpointError, match="5,000,001 bytes"):
        table_of(content)


def test_files_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write_checkpoint(tmp_path, tiny_state_dict(torch.float32))
    finally:
        torch.serialization.set_crc32_options(before)
    assert open_checkpoint(tmp_path).num_layers == 4


def repaired(content):
    """Return the content with the right checksum for its pickle, so that mutations reach the pickle parser."""
    try:
        (entry,) = [e for name, e in read_entries(Memory(content), "x").items() if name.endswith("data.pkl")]
        length = struct.unpack_from("<HH", content, entry.header + 26)
        begin = entry.header + 30 + sum(length)
        crc = zlib.crc32(content[begin : begin + entry.num_bytes])
        return patched(content, DIRECTORY, 16, "<L", crc)
    except (LayerSurgeonError, struct.error, ValueError):
        return content


def mutate(content, draw):
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, len(content) - 1))
        kind = draw(st.sampled_from(["set", "set", "bit", "cut", "double", "wide"]))
        if kind == "set":
            content[position] = draw(st.integers(0, 255))
        elif kind == "bit":
            content[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == "wide":
            content[position : position + 4] = draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"]))
        elif kind == "cut":
            del content[position : position + draw(st.integers(1, 8))]
        else:
            content[position:position] = content[position : position + draw(st.integers(1, 40))]
        if not content:
            return b""
    return bytes(content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_only_raises_checkpoint_errors(small, data):
    content = mutate(small, data.draw)
    if data.draw(st.booleans()):
        content = repaired(content)
    try:
        infos = tensors_of(content)
    except CheckpointError:
        return
    for info in infos:
        assert 0 <= info.offset <= info.end <= len(content)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_pickle_only_raises_checkpoint_errors(data):
    from layer_surgeon.checkpoint.torch_pickle import read_state_dict

    content = mutate(state_dict_pickle(TENSOR), data.draw)
    try:
        tensors = read_state_dict(content, "x")
    except CheckpointError:
        return
    assert all(tensor.num_bytes <= tensor.storage.num_bytes or not tensor.is_contiguous for tensor in tensors.values())
