"""Under which licence a checkpoint's weights are, as its model card, its metadata and the files beside it say."""

import re

import yaml

from layer_surgeon.checkpoint.checkpoint import Checkpoint

README_FILE = "README.md"
MAX_TEXT_BYTES = 2_000_000
# The names under which repos keep what must go along with their weights: Llama has LICENSE and USE_POLICY.md.
_LICENCE_FILE = re.compile(r"(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)([._-].*)?", re.IGNORECASE)
# No whitespace in it may match an end of a line too: a card of nothing but such ends would be searched for ever.
_FRONT = re.compile(r"---[ \t\r]*\n(.*?)\n---[ \t\r]*(\n|$)", re.DOTALL)
_LICENCE_ENTRY = re.compile(
    r"^(?P<key>license|license_name|license_link):(?P<value>[^\n]{0,1000}(?:\n[ \t][^\n]{0,1000})?)$", re.MULTILINE
)


def licence_files(checkpoint: Checkpoint) -> list[str]:
    """The names of the licence files right in the checkpoint's folder or repo."""
    return [name for name in checkpoint.source.list_files() if _LICENCE_FILE.fullmatch(name)]


def read_licence(checkpoint: Checkpoint) -> dict[str, str]:
    """The licence: `license`, `license_name`, `license_link` of the model card, or what the weights themselves state.

    Raises:
        SourceError: The card can't be read.
    """
    stated = {} if checkpoint.table.license is None else {"license": checkpoint.table.license}
    if README_FILE not in checkpoint.source.list_files():
        return stated
    text = checkpoint.source.read_file(README_FILE, MAX_TEXT_BYTES).decode("utf-8", "replace")
    front = _FRONT.match(text)
    if front is None:
        return stated
    return stated | _parse_licence(front[1])


def _parse_licence(front: str) -> dict[str, str]:
    """What the first lines of a card state: only the entries of a line each, or a line and an indented one, are read.

    YAML as a whole is slow (a card with the results of 100 benchmarks takes seconds) and has ways to take for ever.
    """
    found = {}
    for key, text in {entry["key"]: entry["value"] for entry in _LICENCE_ENTRY.finditer(front)}.items():
        try:
            value = yaml.safe_load(text)
        # What the parser raises on text that is none of its kind: also ValueError (a date of month 13).
        except (yaml.YAMLError, ValueError, RecursionError):
            # A card that no parser reads states no licence; the licence files are copied all the same.
            continue
        if isinstance(value, str) and value.isprintable():
            found[key] = value
    return found
