"""Render the table of families, layer_surgeon/checkpoint/families.json, as a page of the documentation."""

import html
import re
from typing import Any

INTRODUCTION = """# Families

This page lists the transformers families whose layers can be extracted. `tools/generate_families.py` generates it,
together with the table that the code reads. The script covers every causal language model of transformers
{transformers}, and the text part of every multimodal model: {total} families. For each family it builds a small random
model, saves it, extracts layers from the checkpoint, and compares them with the same layers inside the whole model:
without padding, with left padding and with right padding. Where transformers writes other names than its model has,
such as one tensor for each expert, a checkpoint with the model's own names (`save_original_format=False`) is tested
too. The embeddings with all layers (`DonorStack`) are compared with the hidden states of the whole model after each
layer.

- **{exact} families are exact**: every difference is 0. For {stacks} of them, the first layers with the embeddings are
  exact too.
- {refused} families are refused, for the reasons below.
- {untested} families are untested, because no small model could be built.

A family that is not on this page is checked when you load one of its layers: if the layer does not run alone, or reads
anything that other layers make, it is refused. It is not compared with the whole model.

## Exact

*Layer 0* is the prefix of the first layer in a checkpoint. *Bidirectional* says whether a layer can also attend to
later tokens (`causal=False`, the default in hosts such as BERT). *Embeddings* says whether `surgeon extract` takes
them too with `--embeddings`. "Own tokens" means without `--vocabulary`, because token ids are used for more than the
rows of a table.

| family | layer 0 | bidirectional | embeddings | |
|---|---|---|---|---|
"""
REFUSED = """
## Refused

On its own, a layer of these families can't compute the same result as inside its model.

| family | reason |
|---|---|
"""
UNTESTED = """
## Untested

For these families, no small model could be built from general settings, or the model did not run. Their layers are
checked when they are loaded, as above.

| family | problem |
|---|---|
"""
ENCODER = "encoder family: needs `is_decoder` in its config"
OWN_NAMES_REFUSED = "refused with the model's own names"
# Families whose usual models have something that the small model was built without.
CONDITIONS = {"gemma4_text": "refused unless `hidden_size_per_layer_input` is 0"}
# Not useful on the page: which layer to take instead, and transformers' list of all its families.
ADVICE = re.compile(r" (Take|Extract the layer again|Model type should be)\b.*")


def page(table: dict[str, Any]) -> str:
    """Render the page as Markdown."""
    families, refused, untested = table["families"], table["refused"], table["untested"]
    counts = {"exact": len(families), "refused": len(refused), "untested": len(untested)}
    stacks = sum("embeddings" in family for family in families.values())
    total = sum(counts.values())
    text = INTRODUCTION.format(transformers=table["transformers"], total=total, stacks=stacks, **counts)
    for name, family in sorted(families.items()):
        path = ".".join(filter(None, (family["base_prefix"], family["stack"], "0")))
        bidirectional = "yes" if family["bidirectional"] else "no"
        notes = [ENCODER] if family.get("needs_is_decoder") else []
        notes += [CONDITIONS[name]] if name in CONDITIONS else []
        notes += [OWN_NAMES_REFUSED] if family.get("own_names_refused") else []
        embeddings = "no" if "embeddings" not in family else "yes" if family["token_table"] else "own tokens"
        text += f"| `{name}` | `{path}` | {bidirectional} | {embeddings} | {'; '.join(notes)} |\n"
    by_reason: dict[str, list[str]] = {}
    for name, reason in sorted(refused.items()):
        by_reason.setdefault(reason, []).append(name)
    text += REFUSED + "".join(row(names, reason) for reason, names in by_reason.items())
    return text + UNTESTED + "".join(row([name], reason) for name, reason in sorted(untested.items()))


def row(names: list[str], reason: str) -> str:
    """Render a table row of families and the reason why they are not supported."""
    # A message must not end the cell or start markup.
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(ADVICE.sub("", reason), quote=False))
    return f"| {', '.join(f'`{name}`' for name in names)} | {escaped} |\n"
