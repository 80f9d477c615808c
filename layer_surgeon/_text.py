"""Text from strangers, made safe to show: on a terminal, in a message, in Markdown, in a spreadsheet.

Names of models, labels, texts and error messages of other libraries may hold control sequences, formulas, markup, or a
URL with a password. Each kind of place has one function here, and everything that is shown there goes through it.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

# Bidirectional overrides and isolates reorder the text around them, so that a line reads as something else.
_REORDERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, surrogates, private use, unassigned, and separators that start a new line in some programs.
_UNSAFE = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>|]+")
# Text that begins so is a formula to a spreadsheet, and formulas can read files and call programs.
_APOSTROPHE = "'"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# An underscore inside a word, as in `all_mpnet`, is only an underscore.
_MARKDOWN = re.compile(r"[\\`*{}\[\]|<>~]|(?<![^\W_])_|_(?![^\W_])")


def _as_python_writes(char: str) -> str:
    return repr(char)[1:-1]


def _as_json_writes(char: str) -> str:
    return json.dumps(char)[1:-1]


def printable(text: str, *, keep: str = "\n\t", escape: Callable[[str], str] = _as_python_writes) -> str:
    r"""The text with everything escaped that could steer a terminal or reorder a line, as Python writes it: `\x1b`.

    Args:
        text: From anywhere.
        keep: Control characters that stay as they are.
        escape: What to write for a character.
    """
    if text.isprintable():
        return text
    return "".join(char if char in keep or _is_safe(char) else escape(char) for char in text)


def printable_json(text: str) -> str:
    """JSON text with the same characters escaped, so that it says the same."""
    return printable(text, escape=_as_json_writes)


def _is_safe(char: str) -> bool:
    return char not in _REORDERS and unicodedata.category(char) not in _UNSAFE


def without_secrets(source: str) -> str:
    """A source as it may be shown and stored: of a URL, without user, password, query and fragment.

    A signed URL has its signature in the query. Anything that is not a URL comes back as it is.

    Args:
        source: A path, a repo id or a URL.
    """
    return _clean_url(source) if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://.+", source, re.DOTALL) else source


def without_secrets_in(text: str) -> str:
    """A message in which each URL is replaced by what `without_secrets` makes of it."""
    return _URL.sub(lambda match: _clean_url(match[0]), text) if "://" in text else text


def _clean_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    # In hf://owner/name@revision the part after the @ is a revision.
    if scheme.lower() != "hf":
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        # A password with a slash in it ends up behind the authority, whose port is then no number.
        port = authority.rpartition(":")[2] if ":" in authority and not authority.endswith("]") else ""
        if "@" in authority:
            rest = authority.rpartition("@")[2] + rest[len(authority) :]
        elif port and not port.isdecimal() and "@" in rest:
            rest = rest.rpartition("@")[2]
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        cleaned = urlunsplit(parts._replace(query="", fragment=""))
    except ValueError:
        cleaned = f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}"
    # urlunsplit drops the slashes of an empty host, as in memory:///folder.
    return cleaned if cleaned.startswith(f"{scheme}://") else f"{scheme}://{re.split('[?#]', rest, maxsplit=1)[0]}"


def markdown(text: Any) -> str:
    """A value as plain text in a line of Markdown or a cell of its tables: no markup, no HTML, no line breaks."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(" ".join(str(text).split()), keep=""))


def code(text: Any) -> str:
    """A value as code in a line of Markdown, which it can't break out of; not for cells of tables, which split at |."""
    shown = " ".join(printable(str(text), keep="").split())
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{shown}{space}{fence}"


def csv_cell(value: Any) -> Any:
    """A cell of a CSV file: booleans as JSON writes them; a text that a spreadsheet would run gets an apostrophe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Writers don't quote a carriage return, and readers begin a line at it.
        return f"{_APOSTROPHE if value.startswith(_FORMULA) else ''}{value}".replace("\r", " ")
    return value
