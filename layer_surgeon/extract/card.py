"""Files that accompany a layer: the donor's licence files, and a model card that names the layer's origin."""

from collections.abc import Sequence
from typing import Any

from layer_surgeon._text import code, markdown
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.licence import MAX_TEXT_BYTES, licence_files
from layer_surgeon.checkpoint.sources import Source
from layer_surgeon.checkpoint.sources.together import read_files
from layer_surgeon.extract.plan import ExtractionPlan


def read_licence_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Read the licence files in the top folder of the donor's repo, by name.

    Raises:
        SourceError: One of them can't be read.
    """
    return read_files(checkpoint.source, dict.fromkeys(licence_files(checkpoint), MAX_TEXT_BYTES))


def base_model(source: Source) -> str | None:
    """Return the repo id of a donor on the Hub; None for other sources. A subfolder is named `owner/name/folder`."""
    return "/".join(source.name.split("/")[:2]) if source.kind == "hub" else None


def write_card(
    checkpoint: Checkpoint, plan: ExtractionPlan, licence: dict[str, str], licence_files: Sequence[str]
) -> str:
    """Return the text of the artifact's README.md."""
    source = checkpoint.source
    front: dict[str, Any] = {"library_name": "layer_surgeon", "tags": ["layer-surgeon", "donor-layer"]}
    if (repo := base_model(source)) is not None:
        front["base_model"] = repo
    front |= licence
    layers = ", ".join(map(str, plan.layer_indices))
    plural = "layers" if len(plan.layer_indices) > 1 else "layer"
    named = f" ({markdown(licence['license'])})" if "license" in licence else ""
    own = ", ".join(map(markdown, licence_files))
    files = f"The donor's own: {own}." if licence_files else "The donor has no licence file."
    commit = f" at commit {code(source.commit)}" if source.commit else ""
    return f"""---
{dump_yaml(front).strip()}
---

# {plural.capitalize()} {layers} of {markdown(source.name)}

The decoder {plural} {layers} (counted from 0, of {checkpoint.num_layers}) of {code(source.name)}{commit}, taken out
with layer_surgeon. Nothing else of the model is in here: no embeddings, no other layers, no head.

| | |
|---|---|
| family | {markdown(checkpoint.model_type)} |
| tensors | {len(plan.tensors)} |
| parameters | {sum(info.num_elements for info in plan.tensors):,} |
| dtype | {plan.dtype} |
| read from | {", ".join(map(markdown, plan.files))} ({checkpoint.format}) |

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
