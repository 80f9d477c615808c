"""Find the data and models of a run after its project's folder was moved or renamed."""

import os
from pathlib import Path

from layer_surgeon.finetune.results import read_results


def find_moved(paths: list[str], run: Path) -> list[str]:
    """Return the current paths of a run's data or models.

    A run records absolute paths, and its own folder. If that folder is now somewhere else, a path that no longer exists
    is looked for at the same place relative to the run.

    Args:
        paths: Paths or names as the run recorded them. Names and existing paths are returned as they are.
        run: The run's folder.
    """
    recorded = (read_results(run) or {}).get("folder")
    if not isinstance(recorded, str):
        return paths
    return [_find(path, recorded, run) for path in paths]


def _find(path: str, recorded: str, run: Path) -> str:
    if not Path(path).is_absolute() or Path(path).exists():
        return path
    moved = Path(os.path.normpath(run.resolve() / os.path.relpath(path, recorded)))
    return str(moved) if moved.exists() else path
