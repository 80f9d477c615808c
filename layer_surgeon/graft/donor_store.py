"""The donor layer of a stored graft: put into its folder as a hard link, and found again by its sha256.

A graft's config.json is a stranger's word. It may say which layer the graft was made with, but not where to get it:
what it names is fetched or read only after the user has named it too.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from layer_surgeon._folders import check_links, new_folder
from layer_surgeon._io import copy_file
from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import GraftError
from layer_surgeon.extract.artifact import ARTIFACT_FILES, artifact_files
from layer_surgeon.graft.config import DONOR_FOLDER
from layer_surgeon.graft.donors import WEIGHTS, describe, file_sha256, how_to_extract, recorded_sha256
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.workspace import Workspace


def store_donor(layer: DonorLayer, source: Path | None, target: Path) -> tuple[Path, str]:
    """Put the layer artifact of a frozen donor into the graft's folder. Of its folder, only the artifact's own files.

    Args:
        layer: The layer.
        source: The artifact that holds exactly its weights; None, or gone by now: one is written from memory.
        target: The folder for it; what it holds is replaced.

    Returns:
        The folder, and the sha256 of the weights' file in it.

    Raises:
        ArtifactError: A file of the artifact is a link out of its folder.
        OSError: It can't be written.
    """
    if source is not None and not (source / WEIGHTS).is_file():
        source = None
    if source is not None and target.exists() and target.resolve() == source.resolve():
        return target, file_sha256(target)
    with new_folder(target, replace=True) as made:
        if source is None:
            layer.save_pretrained(made)
        else:
            _link_artifact(source, made)
    return target, file_sha256(target)


def find_stored_donor(reference: dict[str, Any], graft: str | os.PathLike[str], **place: Any) -> Path:
    """The folder of the donor layer that an existing graft was made with.

    Looked for in the graft's own donor/, and by its sha256 in the user's own workspaces. The repo or the path that the
    graft's config.json names is not followed: with the user's token it may lead to what the graft's author can't read.

    Args:
        reference: What the graft's config.json says of its donor.
        graft: The graft's folder or repo id.
        place: revision, token, subfolder, ... as given to from_pretrained.

    Raises:
        GraftError: It is not there, or can't be told by its sha256; the message says what to confirm, and how.
    """
    name, subfolder = os.fspath(graft), place.get("subfolder") or ""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        keywords = {key: value for key, value in place.items() if key not in ("subfolder", "proxies")}
        patterns = [f"{subfolder}/{DONOR_FOLDER}/{pattern}".lstrip("/") for pattern in ARTIFACT_FILES]
        with hub_errors(f"The graft {name!r}"):
            folder = Path(snapshot_download(name, allow_patterns=patterns, **keywords))
    if reference.get("sha256") is None:
        raise GraftError(_without_sha256(reference, name))
    own = folder / subfolder / DONOR_FOLDER
    if own.is_dir():
        check_links([own], folder, GraftError)
        return own
    roots = [Workspace().root, *(parent for parent in folder.resolve().parents if _is_workspace(parent))]
    for candidate in (layer for root in roots for layer in _layers_in(root)):
        if recorded_sha256(candidate) == reference["sha256"]:
            return candidate
    raise GraftError(_how_to_get(reference, name, roots[0]))


def _link_artifact(source: Path, target: Path) -> None:
    for path in artifact_files(source):
        if path.name == WEIGHTS:
            with contextlib.suppress(OSError):  # another disk, or a file system without hard links
                # A snapshot in the Hub's cache has links to blobs: the file itself is wanted.
                os.link(path.resolve(), target / path.name)
                continue
        copy_file(path, target / path.name)


def _layers_in(workspace: Path) -> Iterator[Path]:
    for pattern in ("layers/*", f"grafts/*/{DONOR_FOLDER}", f"runs/*/{DONOR_FOLDER}", f"runs/*/*/{DONOR_FOLDER}"):
        yield from sorted(workspace.glob(pattern))


def _is_workspace(folder: Path) -> bool:
    return (folder / "workspace.json").is_file()


def _without_sha256(reference: dict[str, Any], graft: str) -> str:
    return (
        f"The config.json of the graft {graft} has no sha256 of its donor layer ({describe(reference)}), which was "
        "never stored on disk. Load a folder that was saved with include_donor=True, or name the layer: donor=... in "
        "Python, --donor SOURCE on the command line." + _recorded_place(reference)
    )


def _how_to_get(reference: dict[str, Any], graft: str, workspace: Path) -> str:
    return (
        f"The graft {graft} was saved without its donor layer: {describe(reference)}, sha256 {reference['sha256']}. "
        f"The workspace {workspace} has no such layer either. Get it again "
        f"({how_to_extract(reference, reference['layer_indices'])}) and name its folder: donor=... in Python, --donor "
        "SOURCE on the command line." + _recorded_place(reference)
    )


def _recorded_place(reference: dict[str, Any]) -> str:
    """What the config says of the layer's place, which only the user can confirm."""
    if reference.get("repo"):
        commit = f" at commit {reference['repo_commit']}" if reference.get("repo_commit") else ""
        place, source = f"the repo {reference['repo']}{commit}", reference["repo"]
    elif reference.get("path"):
        place, source = f"the folder {reference['path']}", reference["path"]
    else:
        return ""
    return (
        f" The graft's config.json says that the layer is in {place}, which is not read on its word alone. If you want "
        f"that, pass donor={source!r} or --donor {shlex.quote(str(source))}."
    )
