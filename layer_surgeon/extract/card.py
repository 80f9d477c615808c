"""What goes with a layer: the donor's licence files, and a model card that says where the layer comes from."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.sources import Source
from layer_surgeon.extract.plan import ExtractionPlan

# The names under which repos keep what must go along with their weights: Llama has LICENSE and USE_POLICY.md.
_LICENCE_FILE = re.compile(r"(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)([._-].*)?", re.IGNORECASE)
_MAX_TEXT_BYTES = 2_000_000
README_FILE = "README.md"
# No whitespace in it may match an end of a line too: a card of nothing but such ends would be searched for ever.
_FRONT = re.compile(r"---[ \t\r]*\n(.*?)\n---[ \t\r]*(\n|$)", re.DOTALL)
_LICENCE_ENTRY = re.compile(
    r"^(?P<key>license|license_name|license_link):(?P<value>[^\n]{0,1000}(?:\n[ \t][^\n]{0,1000})?)$", re.MULTILINE
)


def read_licence_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The licence files right in the donor's folder or repo, by name.

    Raises:
        SourceError: One of them can't be read.
    """
    names = [name for name in checkpoint.source.list_files() if _LICENCE_FILE.fullmatch(name)]
    return {name: checkpoint.source.read_file(name, _MAX_TEXT_BYTES) for name in names}


def read_licence(checkpoint: Checkpoint) -> dict[str, str]:
    """The donor's licence: `license`, `license_name`, `license_link` of its model card, or what its weights state.

    Raises:
        SourceError: The card can't be read.
    """
    stated = {} if checkpoint.table.license is None else {"license": checkpoint.table.license}
    if README_FILE not in checkpoint.source.list_files():
        return stated
    text = checkpoint.source.read_file(README_FILE, _MAX_TEXT_BYTES).decode("utf-8", "replace")
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


def base_model(source: Source) -> str | None:
    """The repo id of the donor model, for a source on the Hub; a part of a repo is named `owner/name/part`."""
    return "/".join(source.name.split("/")[:2]) if source.kind == "hub" else None


def write_card(
    checkpoint: Checkpoint, plan: ExtractionPlan, licence: dict[str, str], licence_files: Sequence[str]
) -> str:
    """The artifact's README.md."""
    source = checkpoint.source
    front: dict[str, Any] = {"library_name": "layer_surgeon", "tags": ["layer-surgeon", "donor-layer"]}
    if (repo := base_model(source)) is not None:
        front["base_model"] = repo
    front |= licence
    layers = ", ".join(map(str, plan.layer_indices))
    plural = "layers" if len(plan.layer_indices) > 1 else "layer"
    named = f" ({licence['license']})" if "license" in licence else ""
    files = f"The donor's own: {', '.join(licence_files)}." if licence_files else "The donor has no licence file."
    commit = f" at commit `{source.commit}`" if source.commit else ""
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}
---

# {plural.capitalize()} {layers} of {source.name}

The decoder {plural} {layers} (counted from 0, of {checkpoint.num_layers}) of `{source.name}`{commit}, taken out with
layer_surgeon. Nothing else of the model is in here: no embeddings, no other layers, no head.

| | |
|---|---|
| family | {checkpoint.model_type} |
| tensors | {len(plan.tensors)} |
| parameters | {sum(info.num_elements for info in plan.tensors):,} |
| dtype | {plan.dtype} |
| read from | {", ".join(f"`{file}`" for file in plan.files)} ({checkpoint.format}) |

`config.json` records the sha256 of every tensor and of the file of weights.

## Use

```python
import layer_surgeon as ls

donor = ls.DonorLayer.from_pretrained("path/to/this/folder")  # frozen; computes what the layer computed in its model
model = ls.graft_layer("bert-base-uncased", donor, task="text-classification")
```

## Licence

A layer is part of its model and stays under the model's licence{named}.
{files}
"""
