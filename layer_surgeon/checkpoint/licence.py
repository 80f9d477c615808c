"""Under which licence a checkpoint's weights are, and what they were made from: card, metadata and files beside it."""

import re
from fnmatch import fnmatchcase

from layer_surgeon._yaml import parse_yaml
from layer_surgeon.checkpoint.checkpoint import Checkpoint

README_FILE = "README.md"
MAX_TEXT_BYTES = 2_000_000
# The names under which repos keep what must go along with their weights: Llama has LICENSE and USE_POLICY.md.
# Patterns of `fnmatch`, in any case of the letters.
LICENCE_FILES = tuple(
    "".join(f"[{letter}{letter.lower()}]" if letter.isalpha() else letter for letter in name) + ending
    for name in ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
    for ending in ("", "[._-]*")
)
# No whitespace in it may match an end of a line too: a card of nothing but such ends would be searched for ever.
_FRONT = re.compile(r"---[ \t\r]*\n(.*?)\n---[ \t\r]*(\n|$)", re.DOTALL)
_LICENCE_ENTRY = re.compile(
    r"^(?P<key>license|license_name|license_link):(?P<value>[^\n]{0,1000}(?:\n[ \t][^\n]{0,1000})?)$", re.MULTILINE
)
# `base_model: owner/name`, or the first of a list.
_BASE_MODEL = re.compile(
    r"^base_model:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?[\"']?(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})[\"']?[ \t\r]*$", re.MULTILINE
)


def licence_files(checkpoint: Checkpoint) -> list[str]:
    """The names of the licence files right in the checkpoint's folder or repo."""
    files = checkpoint.source.list_files()
    return [name for name in files if any(fnmatchcase(name, pattern) for pattern in LICENCE_FILES)]


def read_base_model(checkpoint: Checkpoint) -> str | None:
    """The repo that the model card calls the base model; None where it names none, or there is no card.

    Raises:
        SourceError: The card can't be read.
    """
    front = _read_front(checkpoint)
    match = None if front is None else _BASE_MODEL.search(front)
    return None if match is None else match["repo"]


def read_licence(checkpoint: Checkpoint) -> dict[str, str]:
    """The licence: `license`, `license_name`, `license_link` of the model card, or what the weights themselves state.

    Raises:
        SourceError: The card can't be read.
    """
    stated = {} if checkpoint.table.license is None else {"license": checkpoint.table.license}
    front = _read_front(checkpoint)
    return stated if front is None else stated | _parse_licence(front)


def licence_in_card(text: str) -> dict[str, str]:
    """`license`, `license_name` and `license_link`, as far as the text of a model card states them."""
    front = _FRONT.match(text)
    return {} if front is None else _parse_licence(front[1])


def _read_front(checkpoint: Checkpoint) -> str | None:
    """The first lines of the model card, between two lines of hyphens; None where there are none."""
    if README_FILE not in checkpoint.source.list_files():
        return None
    text = checkpoint.source.read_file(README_FILE, MAX_TEXT_BYTES).decode("utf-8", "replace")
    front = _FRONT.match(text)
    return None if front is None else front[1]


def _parse_licence(front: str) -> dict[str, str]:
    """What the first lines of a card state: only the entries of a line each, or a line and an indented one, are read.

    YAML as a whole is slow (a card with the results of 100 benchmarks takes seconds) and has ways to take for ever.
    """
    found = {}
    for key, text in {entry["key"]: entry["value"] for entry in _LICENCE_ENTRY.finditer(front)}.items():
        try:
            value = parse_yaml(text)
        except ValueError:
            # A card that no parser reads states no licence; the licence files are copied all the same.
            continue
        if isinstance(value, str) and value.isprintable():
            found[key] = value
    return found
