"""Render layer_surgeon/assemble/assembly_families.json as a page of the documentation."""

import html
import re
from typing import Any

OPERATIONS = ("keep", "drop", "stack", "swap", "expand")
INTRODUCTION = """# Families that can be assembled

A layer's behaviour may depend on its number: which layers use sliding attention, which have experts, which have no
positions. `surgeon assemble` writes a config in which each layer keeps its behaviour at its new number. If no config of
the family can do that, it refuses the model and writes nothing.

This page says what it knows about each family. `tools/generate_assembly_families.py` generates it, together with the
table that the code reads, with transformers {transformers}. For each of the {total} families whose layers
[can be extracted](families.md), the script tries many values of each setting and compares the layers. Then it assembles
tiny models, loads them with plain `AutoModelForCausalLM`, and compares their logits with a reference in which each
hidden state goes through the original model's layer at its own number. The largest difference, relative to the largest
logit, is 1e-6 in float32.

- **{all_four} families do all four**: keep the first layers, drop some, stack some twice, and swap one for a sibling's.
- {expand} families accept copies that add nothing (`--expand`). For {exact} of them, the logits stay the same to the
  last bit.
- {scale} families can scale what a layer adds (`--scale`).

## What each family does

*Settings* are those that decide what a layer of a certain number is. *Lists* have a value for each layer and accept any
order of layers. *Patterns*, such as a period or the number of first dense layers, accept the orders that they can
describe; others are refused.

| family | keep | drop | stack | swap | expand | scale | settings |
|---|---|---|---|---|---|---|---|
"""
WHY = """
## Why not

| family | operation | reason |
|---|---|---|
"""


def page(table: dict[str, Any]) -> str:
    """Render the page as Markdown."""
    families, refused = table["families"], table["refused"]
    text = INTRODUCTION.format(
        transformers=table["transformers"],
        total=len(families) + len(refused),
        all_four=sum(not set(OPERATIONS[:4]) & set(family.get("refuses", {})) for family in families.values()),
        expand=sum("expand" not in family.get("refuses", {}) for family in families.values()),
        exact=sum("exact_expansion" in family for family in families.values()),
        scale=sum("scalable" in family for family in families.values()),
    )
    for name in sorted([*families, *refused]):
        family = families.get(name)
        if family is None:
            text += f"| `{name}` | {' | '.join('no' for _ in OPERATIONS)} | no | |\n"
            continue
        cells = ["no" if operation in family.get("refuses", {}) else "yes" for operation in OPERATIONS]
        cells.append("yes" if "scalable" in family else "no")
        text += f"| `{name}` | {' | '.join(cells)} | {settings(family)} |\n"
    text += WHY
    for name in sorted([*families, *refused]):
        reasons = families[name].get("refuses", {}) if name in families else {"all": refused[name]}
        by_reason: dict[str, list[str]] = {}
        for operation, reason in reasons.items():
            by_reason.setdefault(first_sentence(reason), []).append(operation)
        for reason, operations in by_reason.items():
            text += f"| `{name}` | {', '.join(operations)} | {escape(reason)} |\n"
    return text


def settings(family: dict[str, Any]) -> str:
    """Describe the settings of a family that depend on the layer's number."""
    parts = []
    if lists := sorted(family.get("lists", {})):
        parts.append(f"lists: {names(lists)}")
    for rule in family.get("patterns", ()):
        used = [name for condition in rule["when"] for name in condition[1:] if isinstance(name, str)]
        parts.append(f"pattern: {names(used)}" if used else f"the {position(rule)} layer differs")
    if scaled := family.get("scaled_by_count"):
        parts.append(f"adjusted to the number of layers: {names(scaled)}")
    for section, text in (("bound_unless", "layers keep their numbers unless"), ("refused_unless", "refused unless")):
        for name, allowed in family.get(section, {}).items():
            parts.append(f"{text} `{name}` is {escape(str(allowed[0]).lower())}")
    return "; ".join(parts)


def position(rule: dict[str, Any]) -> str:
    """Say which layer a rule without settings is about."""
    return "last" if rule["when"] == [["last"]] else "first"


def names(values: Any) -> str:
    """List names as code."""
    return ", ".join(f"`{name}`" for name in values)


def first_sentence(reason: str) -> str:
    """Return what is wrong, without what to do instead and without the numbers of the tiny model."""
    return re.split(r"(?<=[a-z)])\. ", reason)[0].removesuffix(".")


def escape(text: str) -> str:
    """Keep a message from ending the cell or starting markup."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))
