"""The workspace: the default folder for layers, hidden states, grafts and runs, which also records the latest of each.

surgery/                        (or $SURGEON_WORKSPACE, or --workspace)
├── workspace.json              the latest layer, graft and run
├── layers/Llama-3.1-8B-L31/
├── states/Llama-3.1-8B-texts/
├── donor-states/               what donors that read text computed for the texts of all runs; may be deleted
├── grafts/bert-base-uncased+Llama-3.1-8B-L31/
├── models/Llama-3.1-8B-L0-15/
└── runs/sst2-bert-base-uncased+Llama-3.1-8B-L31/
"""

import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

from layer_surgeon._folders import expand_home
from layer_surgeon._format import format_runs
from layer_surgeon._io import locked, read_json, write_json
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.progress import Progress

Kind = Literal["layer", "states", "graft", "run", "model"]

DEFAULT_WORKSPACE = "surgery"
# Of the layers in the name of a folder. A name can have 255 characters, and that of a graft has a host and a site too.
MAX_LAYERS_CHARACTERS = 60
# What frozen donors compute for each text, which runs share; see finetune/donor_states.py.
DONOR_STATES = "donor-states"
# Marks the name of a model whose weights are in Python packages: see checkpoint/packaged.py.
PACKAGED = "packaged:"
_FOLDERS: dict[Kind, str] = {
    "layer": "layers",
    "states": "states",
    "graft": "grafts",
    "run": "runs",
    "model": "models",
}
_HOW_TO_MAKE: dict[Kind, str] = {
    "layer": "Extract one from a model first: surgeon extract meta-llama/Llama-3.1-8B --layer -1",
    "states": "Compute some first: surgeon run meta-llama/Llama-3.1-8B --texts texts.txt",
    "graft": "Make one first: surgeon graft bert-base-uncased",
    "run": "Train one first: surgeon finetune",
    "model": "Assemble one first: surgeon assemble meta-llama/Llama-3.1-8B --keep 0:16",
}


class Workspace:
    """A folder of layers, hidden states, grafts and runs that records the latest of each.

    Args:
        root: The folder; default: `$SURGEON_WORKSPACE` if it is set, else `./surgery`. It is created when something is
            stored.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(expand_home(root or os.environ.get("SURGEON_WORKSPACE") or DEFAULT_WORKSPACE))

    def folder(self, kind: Kind, name: str) -> Path:
        """Return the path for the layer, graft or run called `name`. The folder need not exist."""
        return self.root / _FOLDERS[kind] / name

    def latest(self, kind: Kind) -> Path:
        """Return the folder of the latest layer, graft or run.

        Raises:
            WorkspaceError: The workspace has none yet, or its folder no longer exists.
        """
        relative = self._read().get(kind)
        if relative is None:
            raise WorkspaceError(f"The workspace {self.root} holds no {kind} yet. {_HOW_TO_MAKE[kind]}")
        folder = self.root / relative
        if not folder.is_dir():
            raise WorkspaceError(
                f"The latest {kind}, {folder}, no longer exists. Name another one. {_HOW_TO_MAKE[kind]}"
            )
        return folder

    def set_latest(self, kind: Kind, folder: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Record `folder`, inside the workspace or not, as the latest of its kind.

        Args:
            kind: What it holds.
            folder: The folder, which is complete.
            progress: Receives a notice if the workspace can't be written. None: that is an error.

        Raises:
            WorkspaceError: The workspace can't be written, and there is no `progress`.
        """
        try:
            # Two commands that end at the same time must not overwrite each other's record.
            with locked(self.root.resolve() / ".lock", wait=True):
                latest = self._read()
                latest[kind] = os.path.relpath(Path(folder).resolve(), self.root.resolve())
                write_json(self.root / "workspace.json", latest)
        except OSError as error:
            problem = (
                f"The workspace {self.root} can't be written: {error.strerror}. Choose another one with --workspace."
            )
            reason = str(error) if isinstance(error, WorkspaceError) else problem
            if progress is None:
                raise WorkspaceError(reason) from error
            progress.notice(f"{folder} is complete, but not recorded as the latest {kind}. {reason}")

    def _read(self) -> dict[str, str]:
        path = self.root / "workspace.json"
        try:
            latest = read_json(path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise WorkspaceError(f"{path} can't be read ({error}). Delete it, and name folders explicitly.") from error
        if not isinstance(latest, dict) or not all(isinstance(value, str) for value in latest.values()):
            raise WorkspaceError(f"{path} is not a workspace file. Delete it, and name folders explicitly.")
        return latest


def short_name(source: str) -> str:
    """Turn the last part of a repo id, path or URL into a folder name: `meta-llama/Llama-3.1-8B` -> `Llama-3.1-8B`."""
    path = source.removeprefix(PACKAGED).rstrip("/\\").replace("\\", "/")
    last = re.sub(r"\.(gguf|safetensors|bin)$", "", path.rsplit("/", 1)[-1])
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", last).strip("-.") or "model"


def layer_name(source: str, layer_indices: Sequence[int]) -> str:
    """Return the folder name of a layer artifact: `Llama-3.1-8B-L31`, or `Llama-3.1-8B-L30-31` for two layers.

    Many layers are written as runs (`-L0to79`), or with their number if that is long, too.
    """
    listed = "-".join(str(index) for index in layer_indices)
    layers = listed if len(listed) <= MAX_LAYERS_CHARACTERS else format_runs(layer_indices, to="to", between="-")
    if len(layers) > MAX_LAYERS_CHARACTERS:
        return f"{short_name(source)}-{len(layer_indices)}-layers-{sha256(listed.encode()).hexdigest()[:8]}"
    return f"{short_name(source)}-L{layers}"


def stack_name(source: str, num_layers: int, host: str | None = None) -> str:
    """Return the folder name of a stack artifact: `Llama-3.1-8B-first-9`, with a vocabulary `...-for-<host>`."""
    return f"{short_name(source)}-first-{num_layers}" + ("" if host is None else f"-for-{short_name(host)}")


def graft_name(host: str, donor: str) -> str:
    """Return the folder name of a graft: `bert-base-uncased+Llama-3.1-8B-L31`."""
    return f"{short_name(host)}+{short_name(donor)}"
