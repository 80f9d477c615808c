"""Valid safetensors headers and indexes are read exactly, and false ones are refused."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from layer_surgeon.checkpoint.safetensors import (
    DTYPE_BITS,
    parse_header,
    parse_header_length,
    parse_index,
    parse_json_object,
    read_header,
)
from layer_surgeon.checkpoint.sources import FolderSource
from layer_surgeon.errors import CheckpointError


def header(entries, data_bytes):
    raw = json.dumps(entries).encode()
    return raw, 8 + len(raw) + data_bytes


def header_entry(begin=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_offsets_point_to_the_bytes(tmp_path):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(5, dtype=np.int8),
        "empty": np.zeros((0, 4)),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    infos = read_header(FolderSource(tmp_path, name="x"), "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert set(infos) == set(arrays)
    for name, array in arrays.items():
        info = infos[name]
        assert info.shape == array.shape
        assert raw[info.offset : info.end] == array.tobytes()


def test_the_dtypes_equal_those_of_the_library():
    import safetensors.numpy as library
    from safetensors import _safetensors_rust  # noqa: F401  # check that the library is installed

    assert set(library._TYPES) <= set(DTYPE_BITS)


@pytest.mark.parametrize(
    ("length", "size", "word"),
    [
        (0, 100, "2 to"),
        (1, 100, "2 to"),
        (93, 100, "truncated"),
        (2**60, 100, "truncated"),
        (26_000_000, 10**9, "2 to"),
    ],
)
def test_a_false_length_is_refused(length, size, word):
    with pytest.raises(CheckpointError, match=word):
        parse_header_length(struct.pack("<Q", length), "x", size)


@pytest.mark.parametrize(
    ("entries", "data_bytes", "word"),
    [
        ({"a": header_entry(0, 4), "b": header_entry(0, 4)}, 4, "begins at byte"),
        ({"a": header_entry(0, 4), "b": header_entry(8, 12)}, 12, "begins at byte"),
        ({"a": header_entry(4, 8)}, 8, "begins at byte"),
        ({"a": header_entry(0, 4)}, 8, "too long"),
        ({"a": header_entry(0, 8, shape=(2,))}, 4, "truncated"),
        ({"a": header_entry(0, 8)}, 8, "takes 4"),
        ({"a": header_entry(4, 0)}, 4, "data_offsets"),
        ({"a": header_entry(-4, 0)}, 4, "data_offsets"),
        ({"a": header_entry(0, 4, dtype="F33")}, 4, "F33"),
        ({"a": header_entry(0, 4, dtype=["F32"])}, 4, "dtype"),
        ({"a": header_entry(0, 4, shape=(-1, -1))}, 4, "shape"),
        ({"a": header_entry(0, 4, shape=(True,))}, 4, "shape"),
        ({"a": header_entry(0, 4, shape=(2**62,) * 60)}, 4, "takes"),
        ({"a": header_entry(0, 4) | {"shape": None}}, 4, "shape"),
        ({"a": {"dtype": "F32"}}, 4, "shape"),
        ({"a": 3}, 4, "not an object"),
        ([1], 0, "not an object"),
    ],
)
def test_a_false_header_is_refused(entries, data_bytes, word):
    raw, size = header(entries, data_bytes)
    with pytest.raises(CheckpointError, match=word):
        parse_header(raw, "x.safetensors", size)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe{}", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"null"]
)
def test_bad_json_is_refused(raw):
    with pytest.raises(CheckpointError):
        parse_json_object(raw, "x")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_file_only_raises_checkpoint_errors(data):
    raw, _ = header(
        {"a": header_entry(0, 4), "b": header_entry(4, 12, "BF16", (2, 2)), "__metadata__": {"format": "pt"}}, 12
    )
    content = bytearray(struct.pack("<Q", len(raw)) + raw + bytes(12))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(8, len(content)))]
    try:
        length = parse_header_length(bytes(content[:8]), "x", len(content))
        infos = parse_header(bytes(content[8 : 8 + length]), "x", len(content))
    except CheckpointError:
        return
    assert sum(info.num_bytes for info in infos.values()) == len(content) - 8 - length


def index(weight_map):
    return json.dumps({"weight_map": weight_map}).encode()


def test_an_index_is_read():
    assert parse_index(index({"a": "x.safetensors"}), "i", ["x.safetensors"]) == {"a": "x.safetensors"}


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"a": "y.safetensors"}, "y.safetensors is missing"),
        ({"a": "../x.safetensors"}, "outside"),
        ({"a": "/etc/x.safetensors"}, "outside"),
        ({"a": "a\\x.safetensors"}, "outside"),
        ({"a": "passwd"}, "not a safetensors file"),
        ({"a": 3}, "not a safetensors file"),
        ({}, "weight_map"),
        ([], "weight_map"),
        (None, "weight_map"),
    ],
)
def test_a_wrong_index_is_refused(weight_map, word):
    with pytest.raises(CheckpointError, match=word):
        parse_index(index(weight_map), "model.safetensors.index.json", ["x.safetensors"])
