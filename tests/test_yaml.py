"""What we write as YAML is what we read from it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer_surgeon._yaml import dump_yaml, parse_yaml

# Line breaks of YAML, some only of YAML 1.1, and characters that mean something in it.
_SPECIAL = st.sampled_from("\x85\u2028\u2029\ufeff\xa0\n\r\t :#-\"'\\|>?&*!%@`{}[],=~")
_TEXTS = st.text(st.one_of(_SPECIAL, st.characters(exclude_categories=["Cs"])), max_size=12)
_VALUES = st.recursive(
    st.one_of(_TEXTS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)),
    lambda values: st.one_of(st.lists(values, max_size=4), st.dictionaries(_TEXTS, values, max_size=3)),
    max_leaves=8,
)


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("text", ["{}", "a{}b", "a{}", "{}b", "a {} b", "#{}#"])
def test_unusual_line_breaks(character, text):
    content = {text.format(character): [text.format(character)]}
    assert parse_yaml(dump_yaml(content)) == content


@given(st.dictionaries(_TEXTS, _VALUES, max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_content(content):
    assert parse_yaml(dump_yaml(content)) == content


def test_powers_of_ten_are_numbers():
    read = parse_yaml("[5e-5, 1e3, -2.5E+10, 1.e2, '5e-5', 12e4567, 1e5x, 2024-01]")
    assert read[:4] == [5e-5, 1e3, -2.5e10, 100.0]
    assert read[4:] == ["5e-5", "12e4567", "1e5x", "2024-01"]
    assert parse_yaml(dump_yaml(read)) == read


@pytest.mark.parametrize("value", ["!!bool x", '!!float ""', "!!int ''", "!!int '-'", "!!timestamp x"])
def test_values_that_dont_fit_their_tag_are_refused(value):
    with pytest.raises(ValueError, match="a value doesn't fit its tag, such as !!bool; remove the tag"):
        parse_yaml(f"license: {value}")
