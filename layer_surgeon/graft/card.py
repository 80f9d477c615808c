"""The model card of a grafted model."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layer_surgeon._io import write_text
from layer_surgeon._text import markdown, printable, without_secrets
from layer_surgeon._version import __version__
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.hub.published import PLACE_IN_CARD
from layer_surgeon.tasks import get_task
from layer_surgeon.workspace import short_name

_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

_PARTS = {
    "host": "the small model",
    "proj_in": "projection, host width to donor width",
    "donor": "the layer",
    "proj_out": "projection, donor width to host width",
    "gate": "factor of the graft, starts at zero",
    "head": "Linear, Dropout, GELU, Linear",
}


def write_card(config: SurgeonGraftConfig, counts: dict[str, tuple[int, int]], folder: Path) -> None:
    """Write README.md.

    Args:
        config: The grafted model's config.
        counts: `GraftedModel.parameter_counts`.
        folder: The folder of the grafted model.
    """
    write_text(folder / "README.md", _front_matter(config) + _body(config, counts))


def _front_matter(config: SurgeonGraftConfig) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": get_task(config.task).pipeline_tag,
        "tags": ["layer-surgeon"],
        **base_model_fields(config),
        **licence_fields([licence for _, licence in licences(config) if licence]),
    }
    return f"---\n{dump_yaml(fields)}---\n\n"


def base_model_fields(config: SurgeonGraftConfig) -> dict[str, Any]:
    """Return the Hub metadata about the models that this one was made from, if they are on the Hub."""
    donor = config.donor or {}
    hosts, donors = repos([(config.host or {}).get("name")]), repos([donor.get("base_model") or donor.get("name")])
    if not hosts and not donors:
        return {}
    # Of the Hub's four relations, "merge" is the only one for a model with weights of two others.
    return {"base_model": [*hosts, *donors], "base_model_relation": "merge" if donors else "finetune"}


def repos(names: Sequence[str | None]) -> list[str]:
    """Return the names that can be repo ids and are not local paths."""
    return [name for name in names if isinstance(name, str) and _REPO_ID.fullmatch(name) and not Path(name).exists()]


def _body(config: SurgeonGraftConfig, counts: dict[str, tuple[int, int]]) -> str:
    host = _host(config)
    rows = "\n".join(
        f"| {part} | {_PARTS[part]} | {all_:,} | {trained:,} |" for part, (all_, trained) in counts.items()
    )
    total, trained = (sum(values) for values in zip(*counts.values(), strict=True))
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in config.graft.items())
    labels = f"Labels: {', '.join(map(markdown, config.settings.labels))}.\n" if config.settings.labels else ""
    frozen = config.donor is not None and not config.graft["train_donor"]
    return f"""# {_title(config, host)}

{describe_origin(config)}

```python
import layer_surgeon  # registers the model classes with transformers
{usage(config.task)}
```

| part | what it is | parameters | trained |
|---|---|---:|---:|
{rows}
| **all** | | {total:,} | {trained:,} |

Settings: {settings}.
{labels}
`model.safetensors` holds the trained weights{"; `donor/` holds the donor layer, unchanged" if frozen else ""}.

| part | model | licence |
|---|---|---|
{licence_rows(config)}

The terms of each model apply to its part{"; those of the donor model also apply to `donor/`" if frozen else ""}.

Made with layer_surgeon {__version__}.
"""


def licences(config: SurgeonGraftConfig) -> list[tuple[str, str | None]]:
    """Return the licences of host and donor model, as their model cards state them."""
    stated = [("host", (config.host or {}).get("license"))]
    if config.donor:
        stated.append(("donor", config.donor.get("license")))
    return [(part, licence if isinstance(licence, str) else None) for part, licence in stated]


def licence_fields(licences: list[str]) -> dict[str, str]:
    """Return the Hub's licence fields. The Hub allows one licence: two become `other`, with both names."""
    distinct = list(dict.fromkeys(printable(licence, keep="") for licence in licences))
    if len(distinct) < 2:
        return {"license": distinct[0]} if distinct else {}
    return {"license": "other", "license_name": "-and-".join(distinct)}


def licence_rows(config: SurgeonGraftConfig) -> str:
    """Return the rows of a Markdown table: part, model, licence."""
    donor = config.donor or {}
    names = {
        "host": _host(config),
        "donor": shown_name(donor.get("base_model") or donor.get("name") or "an unnamed model"),
    }
    return "\n".join(
        f"| {part} | {names[part]} | {markdown(licence or 'not stated')} |" for part, licence in licences(config)
    )


def usage(task: str) -> str:
    """Return Python code that loads and calls the model, without the import that registers the graft classes."""
    folder, record = f'"{PLACE_IN_CARD}"', get_task(task)
    if record.has_pipeline:
        return (
            "from transformers import pipeline\n\n"
            f'run = pipeline("{record.pipeline_tag}", model={folder})\n'
            f"run({record.example_code})"
        )
    call = "model.generate" if record.generates else "model"
    return (
        f"from transformers import AutoTokenizer, {record.auto}\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder})\n"
        f"model = {record.auto}.from_pretrained({folder})\n"
        f'{call}(**tokenizer({record.example_code}, return_tensors="pt"))'
    )


def _title(config: SurgeonGraftConfig, host: str) -> str:
    if config.donor is None:
        return f"{host}, with the head of a graft" if get_task(config.task).head else f"{host}, without a graft"
    return f"{host} with {_layers(config.donor)}"


def describe_origin(config: SurgeonGraftConfig) -> str:
    """Describe what the model was made from, in one or two sentences of Markdown."""
    host = _host(config)
    if config.donor is None:
        head = ", with the head of a graft" if get_task(config.task).head else ""
        return f"{host} alone{head}, for comparison with a graft."
    weights = "random weights, as a control" if config.graft["donor_init"] == "random" else "its pretrained weights"
    state = "trained too" if config.graft["train_donor"] else "frozen"
    commit = f" (commit {markdown(config.donor['commit'])})" if config.donor.get("commit") else ""
    return (
        f"A transformers model: {host} with {_layers(config.donor)}{commit} grafted onto it, with {weights}, {state}. "
        "The method is PiFi (ACL 2025)."
    )


def _layers(donor: dict[str, Any]) -> str:
    indices = donor["layer_indices"]
    kind = "layer" if len(indices) == 1 else "layers"
    return f"{kind} {', '.join(map(str, indices))} of {shown_name(donor.get('name') or 'an unnamed model')}"


def _host(config: SurgeonGraftConfig) -> str:
    return shown_name((config.host or {}).get("name") or f"a {config.host_config.model_type} model")


def shown_name(name: Any) -> str:
    """Format a repo id in Markdown; of a local path only the last part, the only one with a meaning elsewhere."""
    name = without_secrets(str(name))
    return markdown(short_name(name) if Path(name).is_absolute() or os.path.lexists(name) else name)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else markdown(value)
