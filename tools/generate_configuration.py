"""Writes docs/configuration.md from the settings' own dataclass: `python tools/generate_configuration.py`.

A test compares.
"""

import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon_cli.finetune import PLACES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration of fine-tuning

Generated from the settings themselves by `tools/generate_configuration.py`.

Every setting is an option of `surgeon finetune` (`--batch-size 16`), a keyword of `finetune_model` (`batch_size=16`)
and a line of a configuration file (`batch_size: 16`). What is said on the command line goes before what the file says,
and that before the defaults, which are the paper's. A name that is no setting is refused, with the nearest one that is.

A finished run holds `run.yaml`: all settings as they were after everything that was left open had been decided, and
where model and data came from. `surgeon finetune --config RUN/run.yaml` repeats the run; on the CPU, with the same
number of threads and the same versions, bit for bit.
"""


def kind_of(hint: Any) -> str:
    """What a setting takes, in words."""
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    only = next(kind for kind in alternatives if kind is not type(None))
    if typing.get_origin(only) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(only))
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[only]


def page() -> str:
    """The whole page."""
    hints = typing.get_type_hints(FinetuneConfig)
    rows = ["| setting | takes | default | what |", "|---|---|---|---|"]
    for field in fields(FinetuneConfig):
        default = "" if field.default is None else str(field.default)
        default = default.lower() if isinstance(field.default, bool) else default
        rows.append(f"| `{field.name}` | {kind_of(hints[field.name])} | {default} | {field.metadata['help']} |")
    places = ["| place | what |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in PLACES.items())]
    return "\n".join(
        [HEAD, "## Settings", "", *rows, "", "## Places", "", "A file may also say where things are:", "", *places, ""]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
