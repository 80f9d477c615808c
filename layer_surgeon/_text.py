"""Make untrusted text safe to show on a terminal, in a message, in Markdown or in a spreadsheet.

Model names, labels, texts and error messages of other libraries may hold control sequences, formulas, markup, or a URL
with a password. There is one function for each kind of output, and all text for that output goes through it.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

# Bidirectional overrides and isolates reorder the text around them, so that a line reads as something else.
_REORDERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, surrogates, private use, unassigned characters, and separators that some programs show as a line
# break.
_UNSAFE = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
# The scheme's length is limited, because a search for one of any length takes quadratic time on a long word.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>|]+")
# Spreadsheets treat text with these first characters as a formula, and formulas can read files and start programs.
_APOSTROPHE = "'"
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
# An underscore inside a word, as in `all_mpnet`, is not markup.
_MARKDOWN = re.compile(r"[\\`*{}\[\]|<>~]|(?<![^\W_])_|_(?![^\W_])")


def _python_escape(char: str) -> str:
    return repr(char)[1:-1]


def _json_escape(char: str) -> str:
    return json.dumps(char)[1:-1]


def printable(text: str, *, keep: str = "\n\t", escape: Callable[[str], str] = _python_escape) -> str:
    r"""Escape characters that could control a terminal or reorder a line, by default as Python does: `\x1b`.

    Args:
        text: Any text.
        keep: Control characters to leave as they are.
        escape: Returns the escaped form of a character.
    """
    if text.isprintable():
        return text
    return "".join(char if char in keep or _is_safe(char) else escape(char) for char in text)


def printable_json(text: str) -> str:
    """Escape the same characters in JSON text, without changing its meaning."""
    return printable(text, escape=_json_escape)


def _is_safe(char: str) -> bool:
    return char not in _REORDERS and unicodedata.category(char) not in _UNSAFE


def is_unicode(text: str) -> bool:
    """Whether a text can be written. JSON files may hold half of a character, a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_secrets(source: str) -> str:
    """Remove user, password, query and fragment from a URL, so that it may be shown and stored.

    The query of a signed URL holds its signature. Text that is not a URL is returned unchanged.

    Args:
        source: A path, a repo id or a URL.
    """
    return _clean_url(source) if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://.+", source, re.DOTALL) else source


def without_secrets_in(text: str) -> str:
    """Apply `without_secrets` to each URL in a message."""
    return _URL.sub(lambda match: _clean_url(match[0]), text) if "://" in text else text


def _clean_url(url: str) -> str:
    scheme, _, address = url.partition("://")
    # In hf://owner/name@revision the part after the @ is a revision.
    if scheme.lower() != "hf":
        authority = re.split(r"[/?#]", address, maxsplit=1)[0]
        # If a password has a slash, a part of it follows the authority, whose "port" is then not a number.
        port = authority.rpartition(":")[2] if ":" in authority and not authority.endswith("]") else ""
        if "@" in authority:
            address = authority.rpartition("@")[2] + address[len(authority) :]
        elif port and not port.isdecimal() and "@" in address:
            address = address.rpartition("@")[2]
    try:
        parts = urlsplit(f"{scheme}://{address}")
        cleaned = urlunsplit(parts._replace(query="", fragment=""))
    except ValueError:
        cleaned = f"{scheme}://{re.split('[?#]', address, maxsplit=1)[0]}"
    # urlunsplit drops the slashes of an empty host, as in memory:///folder.
    return cleaned if cleaned.startswith(f"{scheme}://") else f"{scheme}://{re.split('[?#]', address, maxsplit=1)[0]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def markdown(text: Any) -> str:
    """Escape a value for a line of Markdown or a table cell: no markup, no HTML, no line breaks."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(" ".join(str(text).split()), keep=""))


def code(text: Any) -> str:
    """Format a value as inline code that it can't break out of. Not for table cells, which split at |."""
    one_line = " ".join(printable(str(text), keep="").split())
    most_backticks = max(map(len, re.findall("`+", one_line)), default=0)
    fence, space = "`" * (most_backticks + 1), " " if most_backticks else ""
    return f"{fence}{space}{one_line}{space}{fence}"


def csv_cell(value: Any) -> Any:
    """Format a CSV cell: booleans as in JSON; text that a spreadsheet would run as a formula gets an apostrophe.

    Negative numbers stay as they are: they may be labels, which other programs compare.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        is_formula = value.startswith(_FORMULA_STARTS) and not _is_number(value)
        # CSV writers don't quote a carriage return, but CSV readers treat it as a line break.
        return f"{_APOSTROPHE if is_formula else ''}{value}".replace("\r", " ")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
