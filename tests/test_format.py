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


def test_numbers_are_rounded_before_their_unit_is_chosen():
    assert [format_bytes(value) for value in (999_949, 999_950)] == ["999.9 kB", "1.0 MB"]
    assert [format_count(value) for value in (999_949, 999_950, 2e12)] == ["999.9 k", "1.0 M", "2000.0 B"]
    assert [format_count(value, ".3g") for value in (999_400, 999_700, 1_234e9)] == ["999 k", "1 M", "1230 B"]
    seconds = (5e-4, 1.234e-4, 4.2e-6, 9.999e-4, 0.012, 0.0994, 0.0996, 9.94, 9.96, 59.4, 59.6, 3599.6)
    assert [format_seconds(value) for value in seconds] == [
        *("500 us", "120 us", "4.2 us", "1 ms", "12 ms", "99 ms", "0.1 s", "9.9 s", "10 s", "59 s"),
        *("1 min 00 s", "1 h 00 min"),
    ]


def test_list_names():
    assert list_names(["a", "b", "c"]) == "a, b, c"
    assert list_names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert list_names(["a", "b"], 1) == "a and 1 more"
