"""Text from strangers, made safe to show."""

import pytest

from layer_surgeon._text import csv_cell, markdown, printable, printable_json, without_secrets, without_secrets_in
from layer_surgeon.errors import SourceError

URLS = [
    ("https://user:secret@host.org/a/model.gguf", "https://host.org/a/model.gguf"),
    ("https://host.org/model.gguf?X-Amz-Signature=secret#secret", "https://host.org/model.gguf"),
    ("https://user:sec/ret@host.org/model.gguf", "https://host.org/model.gguf"),
    ("https://user:secret@host.org:80x/model.gguf", "https://host.org:80x/model.gguf"),
    ("https://user:se@cret@host.org/model.gguf", "https://host.org/model.gguf"),
    ("s3://key:secret@bucket/model", "s3://bucket/model"),
    ("hf://owner/name@revision/file", "hf://owner/name@revision/file"),
    ("memory:///folder", "memory:///folder"),
    ("https://[::1]:80/model", "https://[::1]:80/model"),
    ("https://[broken/model?secret", "https://[broken/model"),
    ("owner/name", "owner/name"),
    ("/a/path?with#marks", "/a/path?with#marks"),
]


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_a_source_as_text(url, shown):
    assert without_secrets(url) == shown


@pytest.mark.parametrize(("url", "shown"), [pair for pair in URLS if "://" in pair[0]])
def test_every_message_of_an_error(url, shown):
    assert str(SourceError(f"{url!r} can't be read, nor '{url}'. See {url}.")).replace(".'", "'") == (
        f"{shown!r} can't be read, nor '{shown}'. See {shown}" + ("" if "?" in url or "#" in url else ".")
    )


def test_a_text_without_urls_stays():
    text = "Ask a@b.org, or say 5 > 3? See x://, #4."
    assert without_secrets_in(text) == text


def test_a_long_word_takes_linear_time():
    """A file can hold a name of 25 MB, and a message about it is searched for URLs."""
    assert str(SourceError(f"://{'a' * 5_000_000} https://me:secret@host.org/x?signature=1")).endswith(
        "a https://host.org/x"
    )
    assert without_secrets_in(f"see {'a' * 60}://me:secret@host.org/x") == f"see {'a' * 60}://host.org/x"


def test_control_sequences_are_escaped():
    assert printable("a\x1b[2Jb\x9bc\u202ed\u2028e\x7f\n\t") == "a\\x1b[2Jb\\x9bc\\u202ed\\u2028e\\x7f\n\t"
    assert printable("naïve 电影 👩‍🚀 نجوم") == "naïve 电影 👩‍🚀 نجوم"
    assert printable_json('"a\x9b\u202e"') == '"a\\u009b\\u202e"'


def test_a_formula_is_text():
    assert [csv_cell(value) for value in ("=1+1", "@x", "-1+1", "+x", "\t=1", "a=1", -1, True, None)] == [
        *("'=1+1", "'@x", "'-1+1", "'+x", "'\t=1", "a=1", -1, "true", None)
    ]


@pytest.mark.parametrize("number", ["-1", "+1", "-0.5e3", "-inf"])
def test_a_negative_number_is_not_a_formula(number):
    assert csv_cell(number) == number


def test_markup_is_text():
    assert markdown("a|b\n# c <img src=x> [d](javascript:e) `f`") == (
        r"a\|b # c \<img src=x\> \[d\](javascript:e) \`f\`"
    )
