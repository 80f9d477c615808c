"""The donor layer of a graft: where it comes from, how it is stored beside the graft, and how it is found again."""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.errors import ArtifactError, GraftError, SourceNotFoundError
from layer_surgeon.extract import LayerArtifact
from layer_surgeon.extract.artifact import is_artifact
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.workspace import Workspace

DONOR_FOLDER = "donor"
WEIGHTS = "model.safetensors"
_ARTIFACT_FILES = ["config.json", WEIGHTS, "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*"]

DonorInput = str | os.PathLike[str] | LayerArtifact | DonorLayer | None


@dataclass(frozen=True, kw_only=True)
class OpenedDonor:
    """A donor layer ready to be grafted.

    Attributes:
        layer: The layer.
        reference: What the graft's config.json says of it.
        folder: The layer artifact with exactly these weights; None where they lie on no disk yet.
    """

    layer: DonorLayer
    reference: dict[str, Any]
    folder: Path | None


def dtype_of(settings: GraftConfig) -> torch.dtype:
    """The donor layer's dtype in memory."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.donor_dtype]


def open_donor(
    donor: DonorInput,
    settings: GraftConfig,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    expected: dict[str, Any] | None = None,
) -> OpenedDonor:
    """Load a donor layer.

    Args:
        donor: A layer artifact as folder, repo id or `LayerArtifact`, or a loaded `DonorLayer`.
        settings: The graft's; `donor_dtype` and, for a new graft, `donor_init` count.
        revision: Branch, tag or commit, where donor is a repo id.
        token: Hub token, where donor is a repo id.
        expected: The reference of an existing graft, whose sha256 the layer must have.

    Raises:
        ArtifactError: The folder or repo is no layer artifact, or damaged.
        GraftError: The layer is not the expected one.
        SourceError: There is no such folder or repo, or it can't be read.
    """
    dtype = dtype_of(settings)
    folder: Path | None
    if isinstance(donor, DonorLayer):
        folder, config = _folder_of(donor), donor.config.to_dict()
    else:
        folder = _artifact_folder(donor, revision, token)
        config = _read_config(folder)
        if expected is None:
            config["sha256"] = _file_sha256(folder, config.get("sha256"))
    if expected is not None and expected["sha256"] is not None and config.get("sha256") != expected["sha256"]:
        raise GraftError(
            f"The donor layer {donor!s} has sha256 {config.get('sha256')}, but the graft was made with "
            f"{_describe(expected)}, sha256 {expected['sha256']}. Take that one, or make a new graft."
        )
    if settings.donor_init == "random" and expected is None:
        layer, folder, config = _random(config, dtype), None, {**config, "sha256": None}
    elif isinstance(donor, DonorLayer):
        # A copy in another number format, because the caller's own layer is to be left as it is.
        layer = donor if donor.dtype == dtype else copy.deepcopy(donor).to(dtype)
    else:
        layer = DonorLayer.from_pretrained(str(folder), dtype=dtype)
    reference = _reference(config, layer)
    if folder is not None and isinstance(donor, str) and not Path(donor).expanduser().is_dir():
        # A snapshot in the Hub's cache lies in a folder that is named after its commit.
        reference |= {"repo": donor, "repo_commit": folder.name}
    return OpenedDonor(layer=layer, reference=reference, folder=folder)


def new_donor(reference: dict[str, Any], settings: GraftConfig) -> DonorLayer:
    """A layer of the same shape as a graft's donor, with random weights; without any under `torch.device("meta")`."""
    return _random(reference["config"], dtype_of(settings))


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
        return target, _read_config(target)["sha256"]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if source is None:
            layer.save_pretrained(temporary)
        else:
            _link_artifact(source, temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target, _read_config(target)["sha256"]


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
        if reference["sha256"] is not None and _recorded_sha256(candidate) == reference["sha256"]:
            return candidate
    if reference.get("repo"):
        return _artifact_folder(reference["repo"], reference.get("repo_commit"), place.get("token"))
    raise GraftError(_how_to_get(reference, name, roots[0]))


def _artifact_folder(donor: Any, revision: str | None, token: str | bool | None) -> Path:
    """The local folder of an artifact; of a Hub repo, the snapshot in the Hub's cache."""
    name = os.fspath(donor)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(donor, os.PathLike) or name.startswith((".", "/", "~")):
        raise SourceNotFoundError(
            f"There is no folder {name!r} with a layer. Make one with: surgeon extract MODEL --layer -1"
        )
    with hub_errors(f"The donor {name!r}"):
        try:
            config = json.loads(Path(hf_hub_download(name, "config.json", revision=revision, token=token)).read_bytes())
        except (EntryNotFoundError, ValueError):
            config = {}
        # Before anything large: a language model's own repo would be hundreds of GB.
        if config.get("model_type") != "surgeon_donor":
            raise ArtifactError(
                f"The repo {name!r} is no layer artifact. If it is a language model, take a layer out first: "
                f"surgeon extract {name} --layer -1"
            )
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=_ARTIFACT_FILES))


def _reference(config: dict[str, Any], layer: DonorLayer) -> dict[str, Any]:
    source = config.get("source") or {}
    return {
        "name": source.get("name"),
        "commit": source.get("commit"),
        "base_model": source.get("base_model"),
        "license": source.get("license"),
        "layer_indices": list(config["layer_indices"]),
        "sha256": config.get("sha256"),
        "hidden_size": layer.hidden_size,
        "config": {"donor_config": config["donor_config"], "layer_indices": list(config["layer_indices"])},
    }


def _random(config: dict[str, Any], dtype: torch.dtype) -> DonorLayer:
    shape = SurgeonDonorConfig(donor_config=config["donor_config"], layer_indices=config["layer_indices"])
    if torch.empty(0).device.type == "meta":
        return DonorLayer(shape).to(dtype)  # type: ignore[no-any-return]  # transformers is untyped here
    return DonorLayer.from_config(shape, dtype=dtype)


def _folder_of(layer: DonorLayer) -> Path | None:
    """The artifact a loaded layer came from, if it is there and the layer's weights are still the same."""
    folder = Path(layer.name_or_path or "")
    if not layer.name_or_path or layer.config.sha256 is None or _recorded_sha256(folder) != layer.config.sha256:
        return None
    stored = DonorLayer.from_pretrained(folder, dtype=layer.dtype).state_dict()
    mine = layer.state_dict()
    same = stored.keys() == mine.keys() and all(torch.equal(value, mine[key].cpu()) for key, value in stored.items())
    return folder if same else None


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


def _recorded_sha256(folder: Path) -> str | None:
    """The sha256 that an artifact's config.json records; None where the folder is no artifact."""
    if not is_artifact(folder) or not (folder / WEIGHTS).is_file():
        return None
    return _read_config(folder).get("sha256")


def _read_config(folder: Path) -> dict[str, Any]:
    if not is_artifact(folder):
        raise ArtifactError(
            f"{folder} is no layer artifact. If it is a language model, take a layer out first: "
            f"surgeon extract {folder} --layer -1"
        )
    content: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return content


def _file_sha256(folder: Path, recorded: str | None) -> str:
    """The sha256 of an artifact's weights, which must be the recorded one."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{folder} lacks {WEIGHTS}, so it is no whole layer artifact. Extract the layer again.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if recorded not in (None, found):
        raise ArtifactError(
            f"{path} has sha256 {found}, but its config.json records {recorded}. The file was changed or damaged: "
            "extract the layer again."
        )
    return found


def _describe(reference: dict[str, Any]) -> str:
    indices = ", ".join(map(str, reference["layer_indices"]))
    return f"layer {indices} of {reference.get('name') or 'an unnamed model'}"


def _how_to_get(reference: dict[str, Any], graft: str, workspace: Path) -> str:
    if reference["sha256"] is None:
        return (
            f"The graft {graft} was saved without its donor layer, which was never stored on disk. Load a folder that "
            "was saved with include_donor=True, or pass the layer with donor=..."
        )
    layers = " ".join(f"--layer {index}" for index in reference["layer_indices"])
    commit = f" --revision {reference['commit']}" if reference.get("commit") else ""
    return (
        f"The graft {graft} was saved without its donor layer: {_describe(reference)}, sha256 {reference['sha256']}. "
        f"The workspace {workspace} has no such layer either. Get it again (surgeon extract "
        f"{reference.get('name') or 'MODEL'} {layers}{commit}), or pass its folder with donor=..."
    )
