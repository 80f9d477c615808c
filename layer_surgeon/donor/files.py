"""The files of a layer artifact: its config, its weights, and the papers that go with them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import _TYPES as _DTYPES
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from layer_surgeon._io import leaving_link, write_bytes
from layer_surgeon.checkpoint import TensorInfo
from layer_surgeon.checkpoint.licence import LICENCE_FILES
from layer_surgeon.checkpoint.safetensors import read_local_header
from layer_surgeon.donor.config import SurgeonDonorConfig
from layer_surgeon.errors import ArtifactError, CheckpointError, SourceError

# What a donor repo's terms want passed on with its weights, and the model card.
_PAPERS = ("README*", *LICENCE_FILES)


def read_config(path: str, hub: Mapping[str, Any]) -> SurgeonDonorConfig:
    """The config of an artifact in a folder or on the Hub.

    Raises:
        ArtifactError: It is another model's.
        SourceError: There is none that can be read.
    """
    try:
        values, _ = SurgeonDonorConfig.get_config_dict(path, **hub)
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
    return SurgeonDonorConfig.from_dict(values)  # type: ignore[no-any-return]  # transformers is untyped here


def read_weights(path: str, hub: Mapping[str, Any], widened: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of an artifact, by name.

    They are read one by one into memory of their own. Mapped from the file they start anywhere, and other kernels run
    (7.5e-9 off in jetmoe); copied from the mapping, all would be in memory twice for a while.

    Args:
        path: Its folder, or a Hub repo id.
        hub: Arguments for the Hub.
        widened: Where this is a wider type than a tensor's, it is converted at once; to narrower ones nothing is.

    Raises:
        ArtifactError: There is no file of weights in the folder, or it is damaged.
        SourceError: There is none in the repo, or it can't be read.
    """
    file = _find_weights(path, hub)
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


def _find_weights(path: str, hub: Mapping[str, Any]) -> Path:
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


def copy_papers(origin: Path, folder: Path) -> None:
    """Copy model card and licence from the artifact that was loaded, if it is a folder, to the one that is saved.

    Raises:
        ArtifactError: One of them is a link to a file elsewhere, which is not the artifact's to give on.
    """
    if not origin.name or not origin.is_dir() or origin.resolve() == folder.resolve():
        return
    for pattern in _PAPERS:
        for paper in origin.glob(pattern):
            if leaving_link(paper, origin) is not None:
                raise ArtifactError(f"{paper} is a link out of its folder, so it is not copied. Delete it.")
            if paper.is_file():
                write_bytes(folder / paper.name, paper.read_bytes())


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
        described[name] = {**recorded.get(name, {}), "sha256": digest}
    return {**source, "tensors": described}
