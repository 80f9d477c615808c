"""The donor layer of a graft: opened from wherever it lies, checked, and described for the graft's config.json."""

import copy
import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from layer_surgeon._io import read_json
from layer_surgeon._text import without_secrets
from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.donor.int8 import check_available
from layer_surgeon.errors import ArtifactError, GraftError, SourceNotFoundError
from layer_surgeon.extract import LayerArtifact
from layer_surgeon.extract.artifact import ARTIFACT_FILES, MODEL_TYPE, artifact_files, is_artifact, read_config
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.translate import hub_errors

WEIGHTS = "model.safetensors"

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


def dtype_of(settings: GraftConfig) -> torch.dtype | None:
    """The dtype that the donor layer is loaded in; None, for int8, is the artifact's own."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes.get(settings.donor_dtype)


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
        expected: The reference of an existing graft, whose sha256 the layer's file must have.

    Raises:
        ArtifactError: The folder or repo is no layer artifact, or damaged; the message names the file.
        GraftError: The layer is not the expected one.
        SourceError: There is no such folder or repo, or it can't be read.
    """
    dtype, int8 = dtype_of(settings), settings.donor_dtype == "int8"
    if int8:
        check_available()
    folder: Path | None
    if isinstance(donor, DonorLayer) and (donor.int8 or (int8 and donor.device.type != "meta")):
        donor = _stored_of(donor)
    if isinstance(donor, DonorLayer):
        folder, config = _folder_of(donor), donor.config.to_dict()
    else:
        if expected is not None and donor == expected.get("repo"):
            revision = revision or expected.get("repo_commit")
        folder = artifact_folder(donor, revision, token)
        config = read_artifact_config(folder)
    if folder is not None:
        # What can't be stored with a graft is refused now, and not when the graft was trained.
        artifact_files(folder)
        # Of the bytes, each time: a layer that is linked to from several folders can be changed from any of them.
        config["sha256"] = file_sha256(folder)
    if expected is not None and expected.get("sha256") is not None:
        _check_expected(donor, None if folder is None else config["sha256"], expected)
    if settings.donor_init == "random" and expected is None:
        layer, folder, config = _random(config, dtype), None, {**config, "sha256": None}
    elif isinstance(donor, DonorLayer):
        # A copy in another number format, because the caller's own layer is to be left as it is.
        layer = donor if donor.dtype == dtype else copy.deepcopy(donor).to(dtype)
        if folder is None:
            # What the layer was loaded from is not here, or no longer what it is: no file has these weights.
            config["sha256"] = None
    else:
        layer = DonorLayer.from_pretrained(str(folder), dtype=dtype)
        if int8:
            layer.to_int8()
    reference = _reference(config, layer)
    if folder is not None and isinstance(donor, str) and not Path(donor).expanduser().is_dir():
        # A snapshot in the Hub's cache lies in a folder that is named after its commit.
        reference |= {"repo": donor, "repo_commit": folder.name}
    return OpenedDonor(layer=layer, reference=reference, folder=folder)


def _check_expected(donor: Any, sha256: str | None, expected: dict[str, Any]) -> None:
    made_with = f"the graft was made with {describe(expected)}, sha256 {expected['sha256']}"
    if sha256 is None:
        raise GraftError(
            f"The weights of the layer that was passed are in no file that could be checked, and {made_with}. Pass the "
            "layer's folder or its repo id."
        )
    if sha256 != expected["sha256"]:
        shown = "that was passed" if isinstance(donor, DonorLayer) else str(donor)
        raise GraftError(
            f"The donor layer {shown} has sha256 {sha256}, but {made_with}. Take that one, or make a new graft."
        )


def new_donor(reference: dict[str, Any], settings: GraftConfig) -> DonorLayer:
    """A layer of the same shape as a graft's donor, with random weights; without any under `torch.device("meta")`."""
    layer = _random(reference["config"], dtype_of(settings))
    if settings.donor_dtype == "int8" and layer.device.type != "meta":
        layer.to_int8()
    return layer


def artifact_folder(donor: Any, revision: str | None, token: str | bool | None) -> Path:
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
            config = read_json(Path(hf_hub_download(name, "config.json", revision=revision, token=token)))
        except (EntryNotFoundError, ValueError):
            config = {}
        # Before anything large: a language model's own repo would be hundreds of GB.
        if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
            raise ArtifactError(
                f"The repo {name!r} is no layer artifact. If it is a language model, take a layer out first: "
                f"surgeon extract {name} --layer -1"
            )
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(ARTIFACT_FILES)))


def _reference(config: dict[str, Any], layer: DonorLayer) -> dict[str, Any]:
    source = config.get("source")
    source = source if isinstance(source, dict) else {}
    name = source.get("name")
    return {
        "name": without_secrets(name) if isinstance(name, str) else None,
        "commit": source.get("commit"),
        "base_model": source.get("base_model"),
        "license": source.get("license"),
        "layer_indices": list(config["layer_indices"]),
        "sha256": config.get("sha256"),
        "hidden_size": layer.hidden_size,
        "config": {"donor_config": config["donor_config"], "layer_indices": list(config["layer_indices"])},
    }


def _random(config: dict[str, Any], dtype: torch.dtype | None) -> DonorLayer:
    shape = SurgeonDonorConfig(donor_config=config["donor_config"], layer_indices=config["layer_indices"])
    if torch.empty(0).device.type == "meta":
        return DonorLayer(shape).to(dtype or torch.float32)  # type: ignore[no-any-return]  # transformers is untyped here
    return DonorLayer.from_config(shape, dtype=dtype)


def _stored_of(layer: DonorLayer) -> Path:
    """The artifact that a layer came from: 8-bit integers are made of it, and stand for it."""
    # Integers can't be compared with what they were made of, but nobody has trained them.
    folder = _recorded_folder(layer) if layer.int8 else _folder_of(layer)
    if folder is None:
        raise GraftError(
            "8-bit integers are made of a stored layer, but this one's weights are in no layer artifact that is still "
            "there. Save it first (donor.save_pretrained), and pass the folder."
        )
    return folder


def _folder_of(layer: DonorLayer) -> Path | None:
    """The artifact a loaded layer came from, if it is there and the layer's weights are still the same."""
    folder = _recorded_folder(layer)
    if folder is None:
        return None
    stored = DonorLayer.from_pretrained(folder, dtype=layer.dtype).state_dict()
    mine = layer.state_dict()
    same = stored.keys() == mine.keys() and all(torch.equal(value, mine[key].cpu()) for key, value in stored.items())
    return folder if same else None


def _recorded_folder(layer: DonorLayer) -> Path | None:
    """The artifact a loaded layer came from, if it is there and records the same sha256."""
    if layer.weights_file is None or layer.config.sha256 is None:
        return None
    folder = layer.weights_file.parent
    return folder if recorded_sha256(folder) == layer.config.sha256 else None


def recorded_sha256(folder: Path) -> str | None:
    """The sha256 that an artifact's config.json records; None where the folder is no artifact."""
    if not is_artifact(folder) or not (folder / WEIGHTS).is_file():
        return None
    return read_artifact_config(folder).get("sha256")


def read_artifact_config(folder: Path) -> dict[str, Any]:
    """The config.json of a layer artifact.

    Raises:
        ArtifactError: The folder is none.
    """
    if not is_artifact(folder):
        raise ArtifactError(
            f"{folder} is no layer artifact. If it is a language model, take a layer out first: "
            f"surgeon extract {folder} --layer -1"
        )
    return read_config(folder)


def file_sha256(folder: Path) -> str:
    """The sha256 of an artifact's weights, which must be the one that its config.json records, if it records one.

    Raises:
        ArtifactError: It is another one; the message says how to get the layer again.
    """
    config = read_artifact_config(folder)
    path, recorded = folder / WEIGHTS, config.get("sha256")
    if not path.is_file():
        raise ArtifactError(f"{folder} lacks {WEIGHTS}, so it is no whole layer artifact. Extract the layer again.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if recorded not in (None, found):
        command = how_to_extract(config.get("source") or {}, config["layer_indices"])
        raise ArtifactError(
            f"{path} has sha256 {found}, but its config.json records {recorded}. The file was changed or damaged: "
            f"extract the layer again ({command}), and put it in the place of this one."
        )
    return found


def how_to_extract(source: dict[str, Any], layer_indices: Sequence[int]) -> str:
    """The command that gets the layers of a model again, as far as its name and commit are known."""
    layers = " ".join(f"--layer {index}" for index in layer_indices)
    # A stranger's words, in a line that is meant to be copied into a shell.
    commit = f" --revision {shlex.quote(str(source['commit']))}" if source.get("commit") else ""
    return f"surgeon extract {shlex.quote(str(source.get('name') or 'MODEL'))} {layers}{commit}"


def describe(reference: dict[str, Any]) -> str:
    """A donor in words, such as `layer 31 of meta-llama/Llama-3.1-8B`."""
    indices = ", ".join(map(str, reference["layer_indices"]))
    return f"layer {indices} of {reference.get('name') or 'an unnamed model'}"
