"""What goes with a layer: the donor's licence files, and a model card that says where the layer comes from."""

from collections.abc import Sequence
from typing import Any

from layer_surgeon._yaml import dump_yaml
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.licence import MAX_TEXT_BYTES, licence_files
from layer_surgeon.checkpoint.sources import Source
from layer_surgeon.checkpoint.sources.together import read_files
from layer_surgeon.extract.plan import ExtractionPlan


def read_licence_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The licence files right in the donor's folder or repo, by name.

    Raises:
        SourceError: One of them can't be read.
    """
    return read_files(checkpoint.source, dict.fromkeys(licence_files(checkpoint), MAX_TEXT_BYTES))


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
{dump_yaml(front).strip()}
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
