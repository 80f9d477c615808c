"""The files of a layer artifact: its config, its weights, its model card and its licence files."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from layer_surgeon._io import MAX_JSON_BYTES, copy_file
from layer_surgeon._limits import check_no_code
from layer_surgeon.checkpoint import TensorInfo
from layer_surgeon.checkpoint.companions import TOKENIZER_FILES
from layer_surgeon.checkpoint.safetensors import read_local_header
from layer_surgeon.donor.config import SurgeonDonorConfig
from layer_surgeon.errors import ArtifactError, CheckpointError, LayerSurgeonError, SourceError
from layer_surgeon.extract.artifact import CONFIG_FILE, PAPERS, artifact_files
from layer_surgeon.extract.dtypes import NAME_OF_CODE

# Not every version of torch has all of them. F4 has two numbers in a byte, so its shape is another in torch.
_DTYPES = {code: getattr(torch, name) for code, name in NAME_OF_CODE.items() if hasattr(torch, name) and code != "F4"}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def read_config(path: str, hub: Mapping[str, Any]) -> SurgeonDonorConfig:
    """Read the config of an artifact in a folder or on the Hub.

    Raises:
        ArtifactError: The config is not a layer artifact's, or can't be used.
        SourceError: There is no config, or it can't be read.
    """
    local = Path(path) / CONFIG_FILE
    if local.is_file() and local.stat().st_size > MAX_JSON_BYTES:
        raise ArtifactError(f"{local} has {local.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read.")
    try:
        values, _ = SurgeonDonorConfig.get_config_dict(path, **hub)
    except RecursionError as error:
        raise ArtifactError(f"The config.json of {path!r} is nested too deeply to be a layer artifact's.") from error
    except OSError as error:
        raise SourceError(
            f"There is no config.json to be read at {path!r}: {error} Expected was a layer artifact, a folder or a "
            "repo that `surgeon extract` wrote."
        ) from error
    if values.get("model_type") != SurgeonDonorConfig.model_type:
        raise ArtifactError(
            f"{path!r} is a model of type {values.get('model_type')!r}, not a layer artifact "
            f"({SurgeonDonorConfig.model_type!r}). Take a layer out of it first: surgeon extract {path}"
        )
    check_no_code(values, path, ArtifactError)
    try:
        return SurgeonDonorConfig.from_dict(values)  # type: ignore[no-any-return]  # transformers is untyped here
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise ArtifactError(
            f"The config.json of {path!r} can't be used: {type(error).__name__}: {error}. Extract the layer again."
        ) from error


def read_weights(file: Path, widened: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read the tensors of an artifact, by name.

    Each tensor gets its own memory. Memory-mapped tensors have any alignment, which selects other kernels (7.5e-9
    difference in jetmoe), and copying them from the mapping would need the memory twice.

    Args:
        file: The artifact's file of weights.
        widened: Convert tensors of a narrower floating-point type to this type. Wider ones stay as they are.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        infos = read_local_header(file)
    except CheckpointError as error:
        raise ArtifactError(
            f"{file} is damaged: {error} A whole safetensors file was expected; extract the layer again."
        ) from error
    if strange := sorted({info.dtype for info in infos.values()} - _DTYPES.keys()):
        raise ArtifactError(
            f"{file} holds weights of type {', '.join(strange)}, which can't be loaded. Extract the layer again with "
            "--dtype bfloat16."
        )
    with file.open("rb") as opened:
        return {name: _widen(_read_tensor(opened, info), widened) for name, info in infos.items()}


def _read_tensor(file: BinaryIO, info: TensorInfo) -> Tensor:
    tensor = torch.empty(info.shape, dtype=_DTYPES[info.dtype])
    if tensor.numel():
        file.seek(info.offset)
        file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]  # it has it
    return tensor


def _widen(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    wider = dtype is not None and dtype.itemsize > tensor.dtype.itemsize and tensor.is_floating_point()
    return tensor.to(dtype) if wider else tensor


def find_weights(path: str, hub: Mapping[str, Any]) -> Path:
    """Return the local path of an artifact's file of weights.

    Args:
        path: Its folder, or a Hub repo id.
        hub: Arguments for the Hub.

    Raises:
        ArtifactError: There is none in the folder.
        SourceError: There is none in the repo, or it can't be read.
    """
    try:
        return Path(cached_file(path, SAFE_WEIGHTS_NAME, **hub))
    except OSError as error:
        kind = ArtifactError if Path(path).is_dir() else SourceError
        raise kind(
            f"{path!r} has no {SAFE_WEIGHTS_NAME} that can be read: {error} A layer artifact is expected to have one; "
            "extract the layer again."
        ) from error


def choose_dtype(
    asked: torch.dtype | str | None, config: SurgeonDonorConfig, tensors: dict[str, Tensor]
) -> torch.dtype:
    """The asked element type; or else the config's; or else that of the first tensor of floating-point numbers."""
    chosen = config.dtype if asked in (None, "auto") else asked
    if chosen is None:
        floating = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
        chosen = next(floating, torch.float32)
    if isinstance(chosen, str):
        chosen = getattr(torch, chosen.removeprefix("torch."), None)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ArtifactError(
            f"{asked or config.dtype!r} is no element type for weights. Expected was one of torch's floating-point "
            "types, such as float32, bfloat16 or float16."
        )
    return chosen


def copy_papers(weights: Path | None, folder: Path) -> None:
    """Copy model card, licence and tokenizer of the artifact that was loaded to the one that is saved.

    Args:
        weights: The file that was loaded, where there is one.
        folder: The folder that is saved to.

    Raises:
        ArtifactError: One of them is a link out of its folder.
    """
    if weights is None or not weights.parent.is_dir() or weights.parent.resolve() == folder.resolve():
        return
    for paper in artifact_files(weights.parent, (*PAPERS, *TOKENIZER_FILES)):
        copy_file(paper, folder / paper.name)


def describe_saved(source: dict[str, Any] | None, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """The source with the digests of what was saved, by which `LayerArtifact.verify` checks the file.

    They differ from those that were loaded in another element type, or after training. Tensors that the family doesn't
    use (masks that old checkpoints of gpt2 hold, say) are no longer there.
    """
    recorded = (source or {}).get("tensors")
    if source is None or not recorded:
        return source
    described = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()
        kind = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape)}
        described[name] = {**recorded.get(name, {}), **kind, "sha256": digest}
    is_changed = any(entry["sha256"] != recorded.get(name, {}).get("sha256") for name, entry in described.items())
    return {**source, "tensors": described} | ({"changed": True} if is_changed else {})
