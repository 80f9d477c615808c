"""The donor layer beside a stored graft: put there as a hard link, and found again by its sha256."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from layer_surgeon._io import put_in_place
from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import DONOR_FOLDER
from layer_surgeon.graft.donors import WEIGHTS, artifact_folder, describe, read_artifact_config, recorded_sha256
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.workspace import Workspace


def store_donor(layer: DonorLayer, source: Path | None, target: Path) -> tuple[Path, str]:
    """Put the layer artifact of a frozen donor beside the graft.

    Args:
        layer: The layer.
        source: The artifact that holds exactly its weights; None, or gone by now: one is written from memory.
        target: The folder for it; what it holds is replaced.

    Returns:
        The folder, and the sha256 of the weights' file in it.
    """
    if source is not None and not (source / WEIGHTS).is_file():
        source = None
    if source is not None and target.exists() and target.resolve() == source.resolve():
        return target, read_artifact_config(target)["sha256"]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if source is None:
            layer.save_pretrained(temporary)
        else:
            _link_artifact(source, temporary)
        put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target, read_artifact_config(target)["sha256"]


def find_stored_donor(reference: dict[str, Any], graft: str | os.PathLike[str], **place: Any) -> Path:
    """The folder of the donor layer that an existing graft was made with.

    Looked for in the graft's own donor/, at the recorded path, by sha256 in the workspaces around, and in the Hub repo
    that the layer was taken from, in this order.

    Args:
        reference: What the graft's config.json says of its donor.
        graft: The graft's folder or repo id.
        place: revision, token, subfolder, ... as given to from_pretrained.

    Raises:
        GraftError: It is nowhere.
    """
    name, subfolder = os.fspath(graft), place.get("subfolder") or ""
    folder = Path(name)
    if not folder.is_dir():
        keywords = {key: value for key, value in place.items() if key not in ("subfolder", "proxies")}
        pattern = f"{subfolder}/{DONOR_FOLDER}/*".lstrip("/")
        with hub_errors(f"The graft {name!r}"):
            folder = Path(snapshot_download(name, allow_patterns=[pattern], **keywords))
    own = folder / subfolder / DONOR_FOLDER
    if own.is_dir():
        return own
    path = reference.get("path")
    roots = [Workspace().root, *(parent for parent in folder.resolve().parents if _is_workspace(parent))]
    candidates = [Path(path)] if path else []
    candidates += [found for root in roots for found in _layers_in(root)]
    for candidate in candidates:
        if reference["sha256"] is not None and recorded_sha256(candidate) == reference["sha256"]:
            return candidate
    if reference.get("repo"):
        return artifact_folder(reference["repo"], reference.get("repo_commit"), place.get("token"))
    raise GraftError(_how_to_get(reference, name, roots[0]))


def _link_artifact(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.name == WEIGHTS:
            try:
                # A snapshot in the Hub's cache has links to blobs: the file itself is wanted.
                os.link(path.resolve(), target / path.name)
                continue
            except OSError:
                pass  # another disk, or a file system without hard links
        shutil.copy(path, target / path.name)


def _layers_in(workspace: Path) -> Iterator[Path]:
    for pattern in ("layers/*", f"grafts/*/{DONOR_FOLDER}", f"runs/*/{DONOR_FOLDER}", f"runs/*/*/{DONOR_FOLDER}"):
        yield from sorted(workspace.glob(pattern))


def _is_workspace(folder: Path) -> bool:
    return (folder / "workspace.json").is_file()


def _how_to_get(reference: dict[str, Any], graft: str, workspace: Path) -> str:
    if reference["sha256"] is None:
        return (
            f"The graft {graft} was saved without its donor layer, which was never stored on disk. Load a folder that "
            "was saved with include_donor=True, or pass the layer with donor=..."
        )
    layers = " ".join(f"--layer {index}" for index in reference["layer_indices"])
    commit = f" --revision {reference['commit']}" if reference.get("commit") else ""
    return (
        f"The graft {graft} was saved without its donor layer: {describe(reference)}, sha256 {reference['sha256']}. "
        f"The workspace {workspace} has no such layer either. Get it again (surgeon extract "
        f"{reference.get('name') or 'MODEL'} {layers}{commit}), or pass its folder with donor=..."
    )
