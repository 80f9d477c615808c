"""`extract_layer`: from a checkpoint to a layer artifact, or to an error that leaves nothing behind."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layer_surgeon._version import __version__
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.checkpoint.safetensors import SINGLE_FILE
from layer_surgeon.errors import ArtifactError, LayerSurgeonError
from layer_surgeon.extract.artifact import CONFIG_FILE, MODEL_TYPE, LayerArtifact, is_artifact, read_config
from layer_surgeon.extract.card import README_FILE, read_licence, read_licence_files, write_card
from layer_surgeon.extract.copy import Digests, copy_tensors
from layer_surgeon.extract.plan import ExtractionPlan, plan_extraction
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import Workspace, layer_name


def extract_layer(
    source: str | os.PathLike[str] | Checkpoint,
    layer: int | Sequence[int] = -1,
    output: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
    workspace: Workspace | None = None,
    force: bool = False,
) -> LayerArtifact:
    """Take one or more decoder layers out of a checkpoint, reading only their bytes.

    The artifact is written beside its place and moved there when it is whole. An artifact of the same layers of the
    same commit in the same dtype that is already there is used again.

    Args:
        source: A folder, a safetensors or GGUF file, a Hub repo id, or an open checkpoint.
        layer: A layer's index, or several in the order in which they are to be computed; negative counts from the end.
        output: The artifact's folder; None is a folder in the workspace, which then is the latest layer.
        revision: Branch, tag or commit of a Hub repo; None is its main branch.
        token: Access token for a Hub repo; None takes the one that is logged in.
        dtype: `float32`, `bfloat16` or `float16`; None keeps the donor's bytes (a GGUF's are dequantised to float32).
        progress: Told about the bytes as they arrive.
        workspace: Used where `output` is None.
        force: Replace another artifact in the output folder.

    Raises:
        SourceError: The source can't be read.
        CheckpointError: The checkpoint is damaged or in no known format.
        LayerNotFoundError: There is no such layer.
        UnsupportedArchitectureError: The model has no decoder layers that can be taken out.
        ConfigError: An argument can't be used.
        ArtifactError: The output folder holds something else, or the disk is full.
    """
    progress = progress or NullProgress()
    workspace = workspace or Workspace()
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, revision=revision, token=token)
    plan = plan_extraction(checkpoint, layer, dtype=dtype)
    for note in checkpoint.table.notes:
        progress.notice(note)
    if output is None:
        folder = workspace.folder("layer", layer_name(checkpoint.source.name, plan.layer_indices))
    else:
        folder = Path(output)
    artifact = _check_place(folder, checkpoint, plan, force)
    if artifact is None:
        artifact = _extract(checkpoint, plan, folder, force, progress)
    else:
        progress.notice(f"{folder} already holds this layer; nothing was read.")
    if output is None:
        workspace.set_latest("layer", folder)
    return artifact


def _check_place(folder: Path, checkpoint: Checkpoint, plan: ExtractionPlan, force: bool) -> LayerArtifact | None:
    """Before any weight is read: refuse a place that is in use, or return the artifact that is already there.

    Without a commit only the bytes can tell whether an artifact is the same: then it is judged when they are read.
    """
    if folder.is_symlink():
        raise ArtifactError(f"{folder} is a symbolic link. Name the folder itself.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not is_artifact(folder):
        raise ArtifactError(f"{folder} exists and holds something else. Name another folder with --output.")
    if force:
        return None
    if _identity(read_config(folder)) != _identity(_describe(checkpoint, plan, None, {})):
        raise _another_layer(folder)
    return None if checkpoint.commit is None else LayerArtifact.open(folder)


def _identity(config: dict[str, Any]) -> object:
    source = config.get("source") or {}
    tensors = {name: (entry.get("dtype"), entry.get("shape")) for name, entry in (source.get("tensors") or {}).items()}
    return [config.get("layer_indices"), source.get("name"), source.get("commit"), source.get("files"), tensors]


def _another_layer(folder: Path) -> ArtifactError:
    return ArtifactError(
        f"{folder} already holds another layer, or another version or dtype of this one. "
        "Replace it with --force, or name another folder with --output."
    )


def _extract(
    checkpoint: Checkpoint, plan: ExtractionPlan, folder: Path, force: bool, progress: Progress
) -> LayerArtifact:
    licence, licence_files = read_licence(checkpoint), read_licence_files(checkpoint)
    made = _make_parents(folder)
    temporary = None
    try:
        _check_space(folder.parent, plan.num_out_bytes)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        temporary.chmod(0o755)  # mkdtemp makes a private folder; the artifact is an ordinary one
        progress.begin(f"layer {', '.join(map(str, plan.layer_indices))}", plan.num_bytes, "bytes")
        digests = copy_tensors(checkpoint.source, plan, temporary / SINGLE_FILE, progress)
        progress.end()
        config = _describe(checkpoint, plan, digests, licence)
        texts: dict[str, bytes] = {
            **licence_files,
            README_FILE: write_card(checkpoint, plan, licence, list(licence_files)).encode(),
            CONFIG_FILE: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        }
        for name, content in texts.items():
            (temporary / name).write_bytes(content)
        return LayerArtifact(_put_in_place(temporary, folder, config, force, progress), config)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            parent.rmdir()
        if isinstance(error, OSError) and not isinstance(error, LayerSurgeonError):
            raise ArtifactError(f"{folder} can't be written: {error.strerror or error}. Name another one.") from error
        raise


def _put_in_place(temporary: Path, folder: Path, config: dict[str, Any], force: bool, progress: Progress) -> Path:
    """Move a whole artifact to its place; what is there already is replaced only at the very end."""
    if not folder.exists():
        temporary.rename(folder)
        return folder
    if not any(folder.iterdir()):
        folder.rmdir()
        temporary.rename(folder)
        return folder
    if read_config(folder).get("sha256") == config["sha256"]:
        # The same bytes: what is there stays, and whoever links to it is not disturbed.
        shutil.rmtree(temporary)
        progress.notice(f"{folder} already holds exactly these bytes.")
        return folder
    if not force:
        raise _another_layer(folder)
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    folder.rename(old / folder.name)
    temporary.rename(folder)
    shutil.rmtree(old)
    return folder


def _describe(
    checkpoint: Checkpoint, plan: ExtractionPlan, digests: Digests | None, licence: dict[str, str]
) -> dict[str, Any]:
    """The artifact's config.json."""
    source = checkpoint.source
    tensors = {}
    for tensor in plan.planned:
        entry = {"name": tensor.source.name, "dtype": tensor.codec.dtype, "shape": list(tensor.source.shape)}
        if tensor.source.dtype != tensor.codec.dtype:
            entry["source_dtype"] = tensor.source.dtype
        tensors[tensor.name] = entry | ({} if digests is None else {"sha256": digests.tensors[tensor.name]})
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["DonorLayer"],
        "donor_config": dict(checkpoint.config),
        "layer_indices": list(plan.layer_indices),
        "dtype": plan.dtype,
        "sha256": None if digests is None else digests.file,
        "source": {
            "name": source.name,
            "kind": source.kind,
            "commit": source.commit,
            "format": checkpoint.format,
            "files": list(plan.files),
            "layer_prefix": checkpoint.layer_prefix(plan.layer_indices[0]),
            "base_model": source.name if source.kind == "hub" else None,
            "license": licence.get("license"),
            "tool_version": __version__,
            "tensors": tensors,
        },
    }


def _make_parents(folder: Path) -> list[Path]:
    """Create the folders above, and return those that were not there, innermost first."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder.parent} can't be created: {error.strerror}. Name another folder.") from error
    return missing


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ArtifactError(
            f"The layer takes {num_bytes:,} bytes, but the disk of {folder} has {free:,} left. "
            "Free some space, or choose another place with --output or --workspace."
        )
