"""Shows the table of families, layer_surgeon/checkpoint/families.json, as a page of the documentation."""

import html
import re
from typing import Any

INTRODUCTION = """# Families

Which families of transformers can give a layer. `tools/generate_families.py` makes this page, and the table that the
code reads. It walks every causal language model of transformers {transformers}, and of multimodal models the text part:
{total} families. Of each it makes the smallest random model, saves it, cuts layers out of the checkpoint, and compares
them with the same layers inside the whole model: without padding, padded left, padded right.

**{exact} families are exact**: every difference is 0. {refused} are refused, with the reason. Of {untested} no small
model could be made. A family that is not on this page is tried in the same way when its layer is loaded, and refused if
it is not exact.

## Exact

*Layer 0* is where a checkpoint keeps the first one. *Both ways* says whether a layer can also attend to what comes
after a token (`causal=False`, the default in hosts such as BERT).

| family | layer 0 | both ways | |
|---|---|---|---|
"""
REFUSED = """
## Refused

A layer of these families can't compute alone what it computes inside its model.

| family | why |
|---|---|
"""
UNTESTED = """
## Untested

No small model could be made of these from general settings, or it did not run: there was nothing to compare with. Their
layers are tried when they are loaded.

| family | what stood in the way |
|---|---|
"""
ENCODER = "needs `is_decoder` in its config: made from an encoder"
# What no reader of a page can use: which layer to take instead, and transformers' list of all its families.
ADVICE = re.compile(r" (Take|Extract the layer again|Model type should be)\b.*")


def page(table: dict[str, Any]) -> str:
    """The page in Markdown."""
    families, refused, untested = table["families"], table["refused"], table["untested"]
    counts = {"exact": len(families), "refused": len(refused), "untested": len(untested)}
    text = INTRODUCTION.format(transformers=table["transformers"], total=sum(counts.values()), **counts)
    for name, entry in sorted(families.items()):
        path = ".".join(filter(None, (entry["base_prefix"], entry["stack"], "0")))
        both = "yes" if entry["bidirectional"] else "no"
        text += f"| `{name}` | `{path}` | {both} | {ENCODER if entry.get('needs_is_decoder') else ''} |\n"
    by_reason: dict[str, list[str]] = {}
    for name, reason in sorted(refused.items()):
        by_reason.setdefault(reason, []).append(name)
    text += REFUSED + "".join(row(names, reason) for reason, names in by_reason.items())
    return text + UNTESTED + "".join(row([name], reason) for name, reason in sorted(untested.items()))


def row(names: list[str], reason: str) -> str:
    """Families, and why they are not served."""
    # No text of a message may end a cell or start markup.
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(ADVICE.sub("", reason), quote=False))
    return f"| {', '.join(f'`{name}`' for name in names)} | {escaped} |\n"
