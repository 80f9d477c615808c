"""`surgeon env`: the versions and devices that a bug report needs."""

import importlib.metadata
import os
import platform
import sys
from typing import Any

from layer_surgeon import __version__
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.workspace import Kind, Workspace

from .command import command, new_app
from .ui import Ui

app = new_app()

_PACKAGES = (
    "torch",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "accelerate",
    "datasets",
    "gguf",
    "tokenizers",
    "numpy",
    "scikit-learn",
)
_VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "SURGEON_WORKSPACE", "CUDA_VISIBLE_DEVICES")
_KINDS: tuple[Kind, ...] = ("layer", "graft", "run")


@command(app)
def env(*, ui: Ui) -> dict[str, Any]:
    """Show versions, devices and the workspace, for bug reports."""
    document: dict[str, Any] = {
        "layer_surgeon": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": _device(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "workspace": str(ui.workspace.root),
        "latest": {kind: _latest(ui.workspace, kind) for kind in _KINDS},
    }
    if not ui.as_json:
        rows = {name: document[name] for name in ("layer_surgeon", "python", "platform", "executable", "device")}
        ui.facts(rows | document["packages"] | document["variables"])
        ui.facts({"workspace": ui.workspace.root} | {f"latest {kind}": document["latest"][kind] for kind in _KINDS})
    return document


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()} ({torch.cuda.device_count()})"
    if torch.backends.mps.is_available():
        return "mps"
    return f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _latest(workspace: Workspace, kind: Kind) -> str | None:
    try:
        return str(workspace.latest(kind))
    except WorkspaceError:
        return None
