"""Numbers, sizes and lists of names, as people read them."""

import pytest

from layer_surgeon._format import format_bytes, format_count, format_seconds, list_names


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (436_224_000, "436.2 MB"), (141e9, "141.0 GB")]
)
def test_format_bytes(value, text):
    assert format_bytes(value) == text


def test_format_count_and_seconds():
    assert [format_count(value) for value in (0, 999, 1000, 218_112_000, 8e9)] == [
        "0",
        "999",
        "1.0 k",
        "218.1 M",
        "8.0 B",
    ]
    assert format_count(284_530_000_000, ".2f", units=("k", "M", "G")) == "284.53 G"
    assert [format_seconds(value) for value in (0.84, 42, 185, 7265)] == ["0.8 s", "42 s", "3 min 05 s", "2 h 01 min"]


def test_list_names():
    assert list_names(["a", "b", "c"]) == "a, b, c"
    assert list_names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert list_names(["a", "b"], 1) == "a and 1 more"
