"""Load the rules for GGUF files, which `tools/generate_gguf_families.py` generates."""

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def gguf_table() -> dict[str, Any]:
    """Load the table of rules.

    Returns:
        The content of `gguf_families.json`. `types` has the name, the elements per block and the bytes per block of
        each type of tensor. `file_types` has the names of the quantisations of whole files. `families` has the rules of
        each supported architecture, and `refused` the reasons for others. `transformers` and `gguf` are the versions
        from which the rules were generated.
    """
    path = resources.files("layer_surgeon.checkpoint") / "gguf_families.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
