"""Headers with false sizes and input that is slow to parse are refused before anything large is allocated."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layer_surgeon import extract_layer, open_checkpoint
from layer_surgeon.checkpoint.gguf_header import read_gguf_header
from layer_surgeon.checkpoint.safetensors import parse_header, parse_index, parse_json_object, read_header
from layer_surgeon.checkpoint.sources import FolderSource
from layer_surgeon.checkpoint.sources.shards import shards_of_index
from layer_surgeon.checkpoint.stack import check_family, find_stack
from layer_surgeon.checkpoint.torch_pickle import read_state_dict
from layer_surgeon.checkpoint.torch_table import TorchZipTable
from layer_surgeon.errors import CheckpointError, SourceError
from tests.support.checkpoints import write_safetensors
from tests.support.fuzz_guard import check_error, limited_memory, limited_work
from tests.support.fuzz_targets import CONFIG
from tests.support.torch_files import state_dict_pickle, write_zip

HUGE = 2**60
# The largest read that a header may cause. A safetensors header has up to 25 MB.
MAX_READ = 32_000_000


class HugeSource:
    """A server whose files have 2^62 bytes, with the given content at their beginning and end."""

    kind, name, repo_id, commit, connections = "url", "huge", None, None, 4

    def __init__(self, begin: bytes = b"", end: bytes = b"") -> None:
        self.begin, self.end = begin, end
        self.longest_read = 0

    def list_files(self) -> dict[str, int | None]:
        return {"file": self.size("file")}

    def size(self, file: str) -> int:
        return 4 * HUGE

    def read_file(self, file: str, max_bytes: int) -> bytes:
        raise SourceError("too long")

    def read_range(self, file: str, start: int, length: int) -> bytes:
        self.longest_read = max(self.longest_read, length)
        assert length <= MAX_READ, f"{length:,} bytes were requested"
        first_of_end = self.size(file) - len(self.end)
        if start >= first_of_end:
            return self.end[start - first_of_end :][:length]
        content = self.begin[start : start + length].ljust(length, b"\0")
        return content[: length - len(self.end)] + self.end if start + length == self.size(file) else content

    def stream_range(self, file: str, start: int, length: int) -> Iterator[bytes]:
        yield self.read_range(file, start, length)


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    """Fail any test that takes more than 20 s of processor time or 256 MB."""
    with limited_memory(), limited_work(20):
        yield


@pytest.mark.parametrize("length", [HUGE, 25_000_001, 2**63, 2**64 - 1])
def test_a_safetensors_header_with_a_huge_length(length: int) -> None:
    source = HugeSource(struct.pack("<Q", length))
    with pytest.raises(CheckpointError, match="states a header length of"):
        read_header(source, "file")
    # Over a network, the first read is as long as a usual header.
    assert source.longest_read < 32_000


def test_a_pointer_of_git_lfs() -> None:
    source = HugeSource(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="file is a pointer of Git LFS, and not the weights"):
        read_header(source, "file")


def test_a_safetensors_shape_with_a_huge_product() -> None:
    for shape in ([HUGE, HUGE], [2**62] * 64, [2**32, 2**32], [10**400], [1] * 10_000):
        header = json.dumps({"a": {"dtype": "BF16", "shape": shape, "data_offsets": [0, HUGE]}}).encode()
        with pytest.raises(CheckpointError) as caught:
            read_header(HugeSource(struct.pack("<Q", len(header)) + header), "file")
        check_error(caught.value)


def gguf(entries: bytes = b"", num_entries: int = 0, tensors: bytes = b"", num_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_entries) + entries + tensors


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


GGUF = {
    "tensors": gguf(num_tensors=HUGE),
    "entries": gguf(num_entries=HUGE),
    "a key's length": gguf(struct.pack("<Q", HUGE), 1),
    "a text's length": gguf(text("x") + struct.pack("<IQ", 8, HUGE), 1),
    "an array's length": gguf(text("x") + struct.pack("<IIQ", 9, 4, HUGE), 1),
    "an array of texts": gguf(text("x") + struct.pack("<IIQ", 9, 8, HUGE), 1),
    "a length in an array of texts": gguf(text("x") + struct.pack("<IIQQ", 9, 8, 1, HUGE), 1),
    "a product of sizes": gguf(
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        1,
        text("a") + struct.pack("<I4QIQ", 4, HUGE, HUGE, HUGE, HUGE, 0, 0),
        1,
    ),
    "an offset": gguf(
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        1,
        text("a") + struct.pack("<IQIQ", 1, 8, 0, 2**64 - 32),
        1,
    ),
}


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_header_with_huge_numbers(name: str, tmp_path: Path) -> None:
    source = HugeSource(GGUF[name])
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(source, "file")
    check_error(caught.value)
    # The same in a sparse local file of 4 TB.
    (tmp_path / "x.gguf").write_bytes(GGUF[name])
    os.truncate(tmp_path / "x.gguf", 4 * 10**12)
    with pytest.raises(CheckpointError):
        read_gguf_header(FolderSource(tmp_path, name="x"), "x.gguf")


def end_of_zip(num_entries: int, num_bytes: int, start: int) -> bytes:
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, num_entries, num_entries, num_bytes, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, (start + num_bytes) % 2**64, 1)
    return wide + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)


@pytest.mark.parametrize(
    ("num_entries", "num_bytes"), [(HUGE, HUGE), (1, HUGE), (HUGE, 1), (2**64 - 1, 2**64 - 1), (10**6, 46 * 10**6)]
)
def test_a_zip_directory_with_a_huge_length(num_entries: int, num_bytes: int) -> None:
    size = 4 * HUGE
    end = end_of_zip(num_entries, num_bytes, (size - 98 - num_bytes) % 2**64)
    source = HugeSource(end=end)
    with pytest.raises(CheckpointError, match="malicious zip file"):
        TorchZipTable(source, {}, single_file="file")
    assert source.longest_read < 70_000


def test_a_zip_entry_with_a_huge_length() -> None:
    """The pickle is refused because of its length in the directory."""
    size = 4 * HUGE
    extra = struct.pack("<HH2Q", 1, 16, HUGE, HUGE)
    name = b"x/data.pkl"
    zip_entry = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(name), len(extra), 0, 0, 0, 0, 0
    )
    directory = zip_entry + name + extra
    end = directory + end_of_zip(1, len(directory), size - 98 - len(directory))
    source = HugeSource(end=end)
    with pytest.raises(CheckpointError, match=r"1,152,921,504,606,846,976 bytes, but at most 5,000,000 are supported"):
        TorchZipTable(source, {}, single_file="file")


@pytest.mark.parametrize(
    "instruction",
    [
        b"\x8b" + struct.pack("<I", 2**31 - 1),  # LONG4
        b"\x8a\xff",  # LONG1
        b"X" + struct.pack("<I", 2**32 - 1),  # BINUNICODE
        b"\x8d" + struct.pack("<Q", HUGE),  # BINUNICODE8
        b"\x8e" + struct.pack("<Q", HUGE),  # BINBYTES8
        b"\x96" + struct.pack("<Q", HUGE),  # BYTEARRAY8
        b"B" + struct.pack("<I", 2**32 - 1),  # BINBYTES
        b"T" + struct.pack("<I", 2**31 - 1),  # BINSTRING
        b"\x95" + struct.pack("<Q", HUGE),  # FRAME
        b"Nr" + struct.pack("<I", 2**32 - 1),  # LONG_BINPUT
        b"j" + struct.pack("<I", 2**32 - 1),  # LONG_BINGET
        b"L" + b"9" * 100_000 + b"L\n",  # LONG
        b"I" + b"9" * 100_000 + b"\n",  # INT
    ],
)
def test_a_pickle_with_huge_lengths(instruction: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(b"\x80\x04" + instruction + b".", "x.bin")
    check_error(caught.value)


def storage(num_elements: int) -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03"
        b"\x00\x00\x00cpu\x8a\x08" + struct.pack("<q", num_elements) + b"tQK\x00\x8a\x08"
        b"" + struct.pack("<q", num_elements) + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )


@pytest.mark.parametrize("num_elements", [2**55, HUGE, 2**62, 2**63 - 1])
def test_a_torch_tensor_with_a_huge_size(tmp_path: Path, num_elements: int) -> None:
    names = b"X\x16\x00\x00\x00model.layers.0.a.weight"[:5] + b"model.layers.0.aweight"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1}))
    pickled = state_dict_pickle(storage(num_elements)).replace(b"X\x01\x00\x00\x00a", names)
    write_zip(tmp_path / "pytorch_model.bin", pickled)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path).layer_tensors(0)
    check_error(caught.value)


# Long input that must be parsed in linear time.

LONG_NAMES = {
    "numbers before an end of a line": "1." * 200_000 + "\nx",
    "dots": "." * 1_000_000,
    "numbers": "1." * 500_000,
    "digits": "1" * 1_000_000,
    "almost numbers": "0x." * 300_000 + "1",
    "ends of lines": "\n" * 500_000 + "1.x",
}


@pytest.mark.parametrize("name", LONG_NAMES.values(), ids=LONG_NAMES)
def test_a_long_tensor_name(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_stack([name], CONFIG)
    check_error(caught.value)


def test_many_stacks_and_many_layers() -> None:
    names = [f"stack{number}.{number}.x" for number in range(100_000)]
    with pytest.raises(CheckpointError) as caught:
        find_stack(names, CONFIG | {"num_hidden_layers": 99_999})
    check_error(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 100_000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"\\ud800": 1, "\\ud800": 2}',
    ],
    ids=range(7),
)
def test_invalid_json(raw: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_json_object(raw, "x")
    check_error(caught.value)


def test_a_surrogate_pair_is_valid_text() -> None:
    assert parse_json_object(b'{"a": "\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}


@pytest.mark.parametrize("depth", [61, 200, 900])
def test_a_config_that_is_nested_too_deep(tmp_path: Path, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nested = json.dumps(CONFIG)[:-1] + ', "x": ' + opening * depth + "1" + closing * depth + "}"
        try:
            config = json.loads(nested)
        except RecursionError:
            continue
        with pytest.raises(CheckpointError, match="nested more than 60 levels deep"):
            check_family(config)


CARDS = {
    "ends of lines": "---" + "\n" * 1_900_000,
    "spaces": "---" + " " * 1_900_000,
    "many ends": "---\n" + "\n--- x" * 300_000,
    "deep": "---\nlicense: " + "[" * 900 + "\n---\n",
    "deep and wide": "---\n" + "license: [[[[\n" * 100_000 + "\n---\n",
    "long": "---\n" + "a: b\n" * 300_000 + "license: mit\n---\n",
    "no date": "---\nlicense: 2001-99-99\n---\n",
    "a python object": "---\nlicense: !!python/object/apply:os.system [id]\n---\n",
    "a name that is none": '---\nlicense: "\\ud800"\n---\n',
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_malicious_card_does_no_harm(tmp_path: Path, card: str) -> None:
    donor = tmp_path / "donor"
    donor.mkdir()
    (donor / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1}))
    write_safetensors(donor / "model.safetensors", {"model.layers.0.a.weight": ("U8", (4,), b"abcd")})
    (donor / "README.md").write_text(card)
    artifact = extract_layer(donor, -1, tmp_path / "out")
    artifact.verify()
    assert artifact.config["source"]["license"] == ("mit" if "license: mit" in card else None)


def test_a_gguf_header_of_many_layers(tmp_path: Path) -> None:
    """Each layer would be built as an outline, and 4,000 layers took 19 s."""

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    entries = text("general.architecture") + struct.pack("<I", 8) + text("llama") + number("llama.block_count", 60_000)
    tensors = [text(f"blk.{layer}.attn_norm.weight") + struct.pack("<IQIQ", 1, 0, 0, 0) for layer in range(60_000)]
    content = gguf(entries, 2, b"".join(tensors), 60_000)
    (tmp_path / "x.gguf").write_bytes(content + bytes(64))
    with pytest.raises(CheckpointError, match="states 60000 layers"):
        open_checkpoint(tmp_path / "x.gguf")


def repeated(entry: str, count: int) -> str:
    return ",".join(entry % number for number in range(count))


OVERLONG_HEADERS: dict[str, Callable[[], str]] = {
    "tensors": lambda: "{" + repeated('"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', 420_000) + "}",
    "objects": lambda: '{"a":[' + "{}," * 8_000_000 + "{}]}",
    "lists": lambda: '{"a":[' + "[]," * 8_000_000 + "[]]}",
    "numbers": lambda: '{"a":[' + "1," * 12_000_000 + "1]}",
    "texts": lambda: '{"a":[' + '"ab",' * 4_800_000 + '"ab"]}',
}


@pytest.mark.parametrize("header", OVERLONG_HEADERS.values(), ids=OVERLONG_HEADERS)
def test_an_overlong_safetensors_header(header: Callable[[], str]) -> None:
    raw = header().encode()
    with pytest.raises(CheckpointError, match="has more entries than"):
        read_header(HugeSource(struct.pack("<Q", len(raw)) + raw), "file")


def test_an_overlong_index() -> None:
    raw = ('{"weight_map":{' + repeated('"%x":"a.safetensors"', 1_500_000) + "}}").encode()
    with pytest.raises(CheckpointError, match="has more entries than"):
        parse_index(raw, "index", ["a.safetensors"])
    assert shards_of_index(raw) == []


def test_a_large_model_is_within_the_limits() -> None:
    """The limits allow a header of 100,000 tensors and an index of 300,000, more than any model has."""
    entry = '"model.layers.%d.w":{"dtype":"U8","shape":[0,4,1,1],"data_offsets":[0,0]}'
    raw = ("{" + repeated(entry, 100_000) + "}").encode()
    assert len(parse_header(raw, "file", 8 + len(raw))) == 100_000
    raw = ('{"weight_map":{' + repeated('"%x":"a.safetensors"', 300_000) + "}}").encode()
    assert len(parse_index(raw, "index", ["a.safetensors"])) == 300_000


def test_a_gguf_header_with_too_many_strings() -> None:
    texts = gguf(text("x") + struct.pack("<IIQ", 9, 8, 6_000_000) + bytes(48_000_000), 1)
    with pytest.raises(CheckpointError, match="states 6,000,000 strings"):
        read_gguf_header(HugeSource(texts), "file")


def test_a_gguf_header_with_too_many_tensors() -> None:
    entries = gguf(tensors=bytes(24 * 1_000_000), num_tensors=1_000_000)
    with pytest.raises(CheckpointError, match="states 1,000,000 tensors"):
        read_gguf_header(HugeSource(entries), "file")
