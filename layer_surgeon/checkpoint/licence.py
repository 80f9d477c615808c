"""Read the licence and the base model of a checkpoint from its model card, metadata and licence files."""

import re

from layer_surgeon._yaml import front_matter_text, parse_yaml
from layer_surgeon.checkpoint.checkpoint import Checkpoint
from layer_surgeon.checkpoint.sources.papers import README_FILE, is_licence_file
from layer_surgeon.checkpoint.sources.together import read_files

# Of a longer card, only the beginning is read, where its front matter is.
MAX_TEXT_BYTES = 2_000_000
_MAX_LICENCE_BYTES = 20_000_000
_LICENCE_ENTRY = re.compile(
    r"^(?P<key>license|license_name|license_link):"
    r"(?P<value>[^\n]{0,1000}(?:(?:\n[ \t]*-[ \t][^\n]{0,1000}){1,20}|\n[ \t][^\n]{0,1000})?)$",
    re.MULTILINE,
)
# `base_model: owner/name`, or the first item of a list.
_BASE_MODEL = re.compile(
    r"^base_model:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?[\"']?(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})[\"']?[ \t\r]*$", re.MULTILINE
)


def licence_files(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the licence files in the top folder of the checkpoint."""
    return list(filter(is_licence_file, checkpoint.source.list_files()))


def read_licence_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Read the licence files in the top folder of the checkpoint, by name.

    Raises:
        SourceError: One of them can't be read.
    """
    return read_files(checkpoint.source, dict.fromkeys(licence_files(checkpoint), _MAX_LICENCE_BYTES))


def read_base_model(checkpoint: Checkpoint) -> str | None:
    """Return the repo that the model card names as the base model; None if there is no card or no base model.

    Raises:
        SourceError: The card can't be read.
    """
    front_matter = _read_front_matter(checkpoint)
    match = None if front_matter is None else _BASE_MODEL.search(front_matter)
    return None if match is None else match["repo"]


def read_licence(checkpoint: Checkpoint) -> dict[str, str]:
    """Return `license`, `license_name` and `license_link` of the model card, or else the licence in the weights.

    Raises:
        SourceError: The card can't be read.
    """
    weights_licence = {} if checkpoint.table.license is None else {"license": checkpoint.table.license}
    front_matter = _read_front_matter(checkpoint)
    return weights_licence if front_matter is None else weights_licence | _parse_licence(front_matter)


def licence_in_card(text: str) -> dict[str, str]:
    """Return `license`, `license_name` and `license_link`, as far as the text of a model card states them."""
    front_matter = front_matter_text(text)
    return {} if front_matter is None else _parse_licence(front_matter)


def _read_front_matter(checkpoint: Checkpoint) -> str | None:
    """Return the YAML front matter of the model card; None if there is none."""
    source = checkpoint.source
    if README_FILE not in (sizes := source.list_files()):
        return None
    if (sizes[README_FILE] or 0) > MAX_TEXT_BYTES:
        raw = source.read_range(README_FILE, 0, MAX_TEXT_BYTES)
    else:
        raw = source.read_file(README_FILE, MAX_TEXT_BYTES)
    return front_matter_text(raw.decode("utf-8", "replace"))


def _parse_licence(front_matter: str) -> dict[str, str]:
    """Parse the licence entries of the front matter: on one line, on one line and an indented one, or as a list.

    The front matter is not parsed as a whole: YAML is slow (a card with the results of 100 benchmarks takes seconds),
    and a malicious document can take forever.
    """
    licence = {}
    for key, text in {match["key"]: match["value"] for match in _LICENCE_ENTRY.finditer(front_matter)}.items():
        try:
            value = parse_yaml(text)
        except ValueError:
            # An invalid card states no licence. The licence files are copied all the same.
            continue
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(item, str) and item.isprintable() for item in values):
            licence[key] = ", ".join(values)
    return licence
