"""run.yaml: the whole configuration of a run, from which the command line repeats it."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layer_surgeon._io import write_text
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.registry import DATASETS

RUN_FILE = "run.yaml"


def write_run_file(folder: Path, places: Mapping[str, Any], config: FinetuneConfig) -> None:
    """Write it into a run's folder.

    Args:
        folder: The folder.
        places: What was trained on what, by the words of the command line: a path, a name, or several of them. What
            was handed over in memory can't be written; a comment says so.
        config: The settings, with what was left open filled in.
    """
    said = {name: _as_text(value) for name, value in places.items() if value is not None}
    in_memory = [name for name, value in said.items() if value is None]
    lines = [f"# surgeon finetune --config {RUN_FILE} does the same again."]
    lines += [f"# {name}: was handed over in memory; name a place" for name in in_memory]
    known = {name: value for name, value in said.items() if value is not None}
    # Every value on one line: a path that is folded at its spaces is not found by what cuts it for the Hub.
    write_text(folder / RUN_FILE, "\n".join(lines) + "\n" + dump_yaml(known | asdict(config), width=sys.maxsize))


def _as_text(value: Any) -> str | list[str] | None:
    """A place as it is written: paths that exist from the root, so that the file can be used from any folder."""
    if isinstance(value, str | os.PathLike):
        if value in DATASETS:
            return str(value)
        path = Path(value).expanduser()
        return str(path.resolve()) if path.exists() else os.fspath(value)
    if isinstance(value, Sequence) and value and all(isinstance(item, str | os.PathLike) for item in value):
        return [str(_as_text(item)) for item in value]
    return None
