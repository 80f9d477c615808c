"""Store the donor layer in a graft's folder, as a hard link, and find it again by its sha256.

A graft's config.json is untrusted. It says which layer the graft was made with, but a repo or folder that it names is
only read if the user names it too.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from layer_surgeon._folders import check_links, expand_home, new_folder
from layer_surgeon._io import copy_file
from layer_surgeon._model_types import DONOR_FOLDER
from layer_surgeon.errors import ArtifactError, GraftError
from layer_surgeon.extract.artifact import ARTIFACT_FILES, artifact_files
from layer_surgeon.graft.donor_loading import WEIGHTS, Donor, describe, file_sha256, how_to_extract, recorded_sha256
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.workspace import Workspace


def store_donor(layer: Donor, source: Path | None, target: Path, sha256: str | None) -> tuple[Path, str]:
    """Store the layer artifact of a frozen donor in the graft's folder. Other files in its folder are not copied.

    Args:
        layer: The layer.
        source: The artifact that the layer was loaded from. If it is None, no longer exists, was replaced or damaged,
            or if the layer has other weights by now, the layer is written from memory.
        target: The folder to write; existing content is replaced.
        sha256: The sha256 of the artifact's weights file when it was loaded.

    Returns:
        The folder, and the sha256 of the weights file in it.

    Raises:
        ArtifactError: A file of the artifact is a link out of its folder.
        OSError: It can't be written.
    """
    if source is not None and not (_is_unchanged(source, sha256) and layer.is_stored_in(source / WEIGHTS)):
        source = None
    if source is not None and target.exists() and target.resolve() == source.resolve():
        return target, file_sha256(target)
    with new_folder(target, replace=True) as temporary:
        if source is None:
            layer.save_pretrained(temporary)
        else:
            _link_artifact(source, temporary)
    return target, file_sha256(target)


def find_stored_donor(reference: dict[str, Any], graft: str | os.PathLike[str], **hub_settings: Any) -> Path:
    """Find the folder of the donor layer that an existing graft was made with.

    Searches the graft's own donor/, and the user's workspaces for the sha256. It doesn't follow the repo or path that
    the graft's config.json names: with the user's token, that could read files that the graft's author can't.

    Args:
        reference: The description of the donor in the graft's config.json.
        graft: The graft's folder or repo id.
        hub_settings: revision, token, subfolder, ... as passed to from_pretrained.

    Raises:
        GraftError: It was not found, or the graft records no sha256; the message says which layer to pass, and how.
    """
    name, subfolder = os.fspath(graft), hub_settings.get("subfolder") or ""
    if reference.get("sha256") is None:
        raise GraftError(_without_sha256(reference, name))
    folder = Path(expand_home(name))
    if not folder.is_dir():
        keywords = {key: value for key, value in hub_settings.items() if key not in ("subfolder", "proxies")}
        patterns = [f"{subfolder}/{DONOR_FOLDER}/{pattern}".lstrip("/") for pattern in ARTIFACT_FILES]
        with hub_errors(f"The graft {name!r}"):
            folder = Path(snapshot_download(name, allow_patterns=patterns, **keywords))
    donor_folder = folder / subfolder / DONOR_FOLDER
    if donor_folder.is_dir():
        check_links([donor_folder], folder, GraftError)
        return donor_folder
    roots = [Workspace().root, *(parent for parent in folder.resolve().parents if _is_workspace(parent))]
    for candidate in (layer for root in roots for layer in _layers_in(root)):
        if recorded_sha256(candidate) == reference["sha256"]:
            return candidate
    raise GraftError(_how_to_get(reference, name, roots[0]))


def _is_unchanged(source: Path, sha256: str | None) -> bool:
    """Whether a folder is still a complete artifact, with weights of this sha256 if it is known."""
    try:
        return file_sha256(source) == sha256 or sha256 is None
    except (ArtifactError, OSError):
        return False


def _link_artifact(source: Path, target: Path) -> None:
    for path in artifact_files(source):
        if path.name == WEIGHTS:
            with contextlib.suppress(OSError):  # It is on another disk, or the file system has no hard links.
                # Snapshots in the Hub's cache are symbolic links to blobs; link the blob itself.
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
        f"The config.json of the graft {graft} has no sha256 for its donor layer ({describe(reference)}), because the "
        "layer was never stored. Load a folder that was saved with include_donor=True, or name the layer: donor=... in "
        "Python, --donor SOURCE on the command line." + _recorded_source(reference)
    )


def _how_to_get(reference: dict[str, Any], graft: str, workspace: Path) -> str:
    command = how_to_extract(reference, reference["layer_indices"], reference["config"].get("embeddings"))
    return (
        f"The graft {graft} was saved without its donor layer: {describe(reference)}, sha256 {reference['sha256']}. "
        f"The workspace {workspace} doesn't have this layer either. Extract it again ({command}) and name its folder: "
        "donor=... in Python, --donor SOURCE on the command line." + _recorded_source(reference)
    )


def _recorded_source(reference: dict[str, Any]) -> str:
    """Return a sentence about the layer's source in the config, which only the user can confirm."""
    if reference.get("repo"):
        commit = f" at commit {reference['repo_commit']}" if reference.get("repo_commit") else ""
        description, source = f"the repo {reference['repo']}{commit}", reference["repo"]
    elif reference.get("path"):
        description, source = f"the folder {reference['path']}", reference["path"]
    else:
        return ""
    return (
        f" The graft's config.json says that the layer is in {description}, but this is not read without your consent. "
        f"If you trust it, pass donor={source!r} or --donor {shlex.quote(str(source))}."
    )
