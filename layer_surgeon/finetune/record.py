"""run.yaml: the complete configuration of a run, from which the command line can repeat it."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layer_surgeon._folders import expand_home
from layer_surgeon._io import write_text
from layer_surgeon._text import without_secrets
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.registry import DATASETS

RUN_FILE = "run.yaml"


def write_run_file(folder: Path, sources: Mapping[str, Any], config: FinetuneConfig) -> None:
    """Write run.yaml into a run folder.

    Args:
        folder: The run folder.
        sources: Model, data and tokenizer, under their command-line names: a path, a name, or a list of them. For an
            object in memory, a comment is written instead.
        config: The settings, with all defaults resolved.
    """
    texts = {name: _as_text(value) for name, value in sources.items() if value is not None and name != "donor"}
    in_memory = [name for name, text in texts.items() if text is None]
    lines = [f"# surgeon finetune --config {RUN_FILE} repeats this run."]
    lines += [f"# {name}: was an object in memory; replace this line with a path or a name" for name in in_memory]
    if sources.get("donor") is not None:
        # For safety, no file may say which layer to load into a graft; the user must.
        lines.append("# donor: the graft was saved without its donor layer; pass it with --donor")
    written = {name: text for name, text in texts.items() if text is not None}
    # One line per value: the code that shortens paths before an upload to the Hub does not find folded paths.
    settings = dump_yaml(written | asdict(config), width=sys.maxsize)
    write_text(folder / RUN_FILE, "\n".join(lines) + "\n" + settings)


def _as_text(value: Any) -> str | list[str] | None:
    """Convert a source to text. Existing paths become absolute, so the file works from any folder."""
    if isinstance(value, str | os.PathLike):
        if value in DATASETS:
            return str(value)
        path = Path(expand_home(value))
        return str(path.resolve()) if path.exists() else without_secrets(os.fspath(value))
    if isinstance(value, Sequence) and value and all(isinstance(item, str | os.PathLike) for item in value):
        return [str(_as_text(item)) for item in value]
    return None
