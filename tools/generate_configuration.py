"""Generate docs/configuration.md from the fields of `FinetuneConfig`: `python tools/generate_configuration.py`.

A test checks that the page is up to date.
"""

import types
import typing
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon_cli.finetune import PLACES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Settings of fine-tuning

This page is generated from `FinetuneConfig` by `tools/generate_configuration.py`.

You can give every setting as an option of `surgeon finetune` (`--batch-size 16`), as a keyword argument of
`finetune_model` (`batch_size=16`), or in a configuration file (`batch_size: 16`). Options override the file, and the
file overrides the defaults, which are the paper's. An unknown name is an error; the message names the closest one, or
all of them.

A finished run contains `run.yaml`: the final values of all settings, and the sources of the model and the data.
`surgeon finetune --config RUN/run.yaml` repeats the run. On a CPU, with the same number of threads and the same package
versions, the result is identical bit for bit.
"""


def kind_of(field: "Field[Any]", hint: Any) -> str:
    """Describe the type of a setting in words."""
    if field.metadata["choices"] is not None:
        return ", ".join(f"`{choice}`" for choice in field.metadata["choices"]())
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kind = next(alternative for alternative in alternatives if alternative is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    return {int: "integer", float: "number", bool: "true or false", str: "string"}[kind]


def page() -> str:
    """Build the whole page."""
    hints = typing.get_type_hints(FinetuneConfig)
    rows = ["| setting | type | default | description |", "|---|---|---|---|"]
    for field in fields(FinetuneConfig):
        default = "" if field.default is None else str(field.default)
        default = default.lower() if isinstance(field.default, bool) else default
        rows.append(f"| `{field.name}` | {kind_of(field, hints[field.name])} | {default} | {field.metadata['help']} |")
    paths = ["| key | description |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in PLACES.items())]
    intro = "A configuration file may also name the model, the data and the output folder:"
    return "\n".join([HEAD, "## Settings", "", *rows, "", "## Model, data and output", "", intro, "", *paths, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
