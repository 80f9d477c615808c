"""Open and check the donor layer of a graft, and describe it for the graft's config.json."""

import copy
import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from layer_surgeon._folders import expand_home
from layer_surgeon._io import read_json
from layer_surgeon._model_types import LAYER
from layer_surgeon._text import without_secrets
from layer_surgeon.donor import DonorLayer, DonorStack, SurgeonDonorConfig
from layer_surgeon.errors import ArtifactError, GraftError, SourceNotFoundError
from layer_surgeon.extract import LayerArtifact
from layer_surgeon.extract.artifact import ARTIFACT_FILES, artifact_files, is_artifact, read_config
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.translate import hub_errors

WEIGHTS = "model.safetensors"
# What an artifact's config.json says about the shape of its weights.
SHAPE = ("donor_config", "layer_indices", "embeddings")

Donor: TypeAlias = DonorLayer | DonorStack
DonorInput: TypeAlias = str | os.PathLike[str] | LayerArtifact | Donor | None


@dataclass(frozen=True, kw_only=True)
class OpenedDonor:
    """A donor layer, or a stack, that is ready to be grafted.

    Attributes:
        layer: The layer or the stack.
        reference: The layer's description for the graft's config.json.
        folder: The layer artifact with exactly these weights; None if they are not stored yet.
        source: The layer artifact that the donor was named by or loaded from, also if it has other weights; None if it
            is not known.
    """

    layer: Donor
    reference: dict[str, Any]
    folder: Path | None
    source: Path | None = None


def dtype_of(settings: GraftConfig) -> torch.dtype:
    """Return the dtype that the donor layer is loaded in."""
    dtype: torch.dtype = getattr(torch, settings.donor_dtype)
    return dtype


def open_donor(
    donor: DonorInput,
    settings: GraftConfig,
    *,
    token: str | bool | None = None,
    expected: dict[str, Any] | None = None,
) -> OpenedDonor:
    """Load a donor layer.

    Args:
        donor: A layer artifact as folder, repo id or `LayerArtifact`, or a loaded `DonorLayer` or `DonorStack`.
        settings: The graft's settings. Only those that say what kind of donor it is, its dtype, and, for a new graft,
            its initial weights are used.
        token: Hub token, if donor is a repo id.
        expected: The reference of an existing graft. The layer's file must have the same sha256.

    Raises:
        ArtifactError: The folder or repo is not a layer artifact, or is damaged; the message names the file.
        GraftError: The layer is not the expected one.
        SourceError: The folder or repo doesn't exist or can't be read.
    """
    dtype = dtype_of(settings)
    folder: Path | None
    source: Path | None
    if isinstance(donor, DonorLayer | DonorStack):
        _check_kind(donor.config.embeddings, settings, f"The {type(donor).__name__} that you passed")
        folder, config = _matching_folder(donor), donor.config.to_dict()
        source = None if donor.weights_file is None else donor.weights_file.parent
    else:
        commit = expected.get("repo_commit") if expected is not None and donor == expected.get("repo") else None
        folder = source = artifact_folder(donor, commit, token)
        config = read_artifact_config(folder)
        _check_kind(config.get("embeddings"), settings, str(donor))
    if folder is not None:
        # Refuse files that can't be stored with a graft now, and not only after the graft was trained.
        artifact_files(folder)
        # Hash the file each time: a layer with hard links in several folders can be changed through any of them.
        config["sha256"] = file_sha256(folder)
    if expected is not None and expected.get("sha256") is not None:
        _check_expected(donor, None if folder is None else config["sha256"], expected)
    if settings.donor_init == "random" and expected is None:
        layer, folder, config = _random(config, settings), None, {**config, "sha256": None}
    elif isinstance(donor, DonorLayer | DonorStack):
        # Share a layer that stays frozen. Convert or train a copy, because the caller's own layer must not change; and
        # freeze a copy, because another graft may be training the layer.
        stays_frozen = not settings.train_donor and not any(tensor.requires_grad for tensor in donor.parameters())
        layer = donor if stays_frozen and donor.dtype == dtype else copy.deepcopy(donor).to(dtype)
        if folder is None:
            # The layer's artifact is missing, or the weights have changed: no file holds these weights.
            config["sha256"] = None
    else:
        donor_class = _donor_class(settings)
        layer = donor_class.from_pretrained(str(folder), dtype=dtype)
    reference = _reference(config, layer)
    if folder is not None and isinstance(donor, str) and not Path(expand_home(donor)).is_dir():
        # In the Hub's cache, a snapshot's folder is named after its commit.
        reference |= {"repo": donor, "repo_commit": folder.name}
    return OpenedDonor(layer=layer, reference=reference, folder=folder, source=source)


def reading_settings(
    donor: DonorInput, settings: Mapping[str, Any], *, token: str | bool | None = None
) -> dict[str, Any]:
    """Return how a stack reads: text, as the tokens that it was extracted for. Nothing for a layer or no donor.

    Args:
        donor: As in `open_donor`; None for no donor.
        settings: The settings that were given. With another `donor_reads`, nothing is returned.
        token: Hub token, if donor is a repo id.

    Raises:
        ArtifactError: The folder or repo is not a layer artifact.
        SourceError: The folder or repo doesn't exist or can't be read.
    """
    if donor is None or settings.get("donor_reads", "text") != "text":
        return {}
    if isinstance(donor, DonorLayer | DonorStack):
        embeddings = donor.config.embeddings
    else:
        embeddings = read_artifact_config(artifact_folder(donor, None, token)).get("embeddings")
    if embeddings is None:
        return {}
    return {"donor_reads": "text", "donor_tokens": "own" if embeddings.get("vocabulary") is None else "host"}


def _donor_class(settings: GraftConfig) -> type[Donor]:
    return DonorStack if settings.reads_text else DonorLayer


def _check_kind(embeddings: dict[str, Any] | None, settings: GraftConfig, name: str) -> None:
    """Refuse layers without embeddings where the donor reads text, a stack where it doesn't, and the wrong tokens."""
    if not settings.reads_text:
        if embeddings is not None:
            raise GraftError(
                f"{name} is a stack, which reads text, but donor_reads is 'host'. Set donor_reads to text, or "
                "extract a layer without --embeddings."
            )
        return
    extract = "surgeon extract MODEL --layer 0:9 --embeddings"
    if settings.donor_tokens == "host":
        extract += " --vocabulary HOST"
    if embeddings is None:
        raise GraftError(f"{name} holds layers without embeddings, which can't read text. Extract a stack: {extract}")
    has_own_tokens = embeddings.get("vocabulary") is None
    if has_own_tokens != (settings.donor_tokens == "own"):
        reads = "its model's own tokens" if has_own_tokens else "the tokens of a host"
        other = "own" if has_own_tokens else "host"
        raise GraftError(
            f"{name} reads {reads}, but donor_tokens is {settings.donor_tokens!r}. Set donor_tokens to {other}, or "
            f"extract another stack: {extract}"
        )


def _check_expected(donor: Any, sha256: str | None, expected: dict[str, Any]) -> None:
    made_with = f"the graft was made with {describe(expected)}, sha256 {expected['sha256']}"
    if sha256 is None:
        raise GraftError(
            f"The layer that you passed can't be verified, because no file holds its weights, and {made_with}. Pass "
            "the layer's folder or its repo id."
        )
    if sha256 != expected["sha256"]:
        name = "that you passed" if isinstance(donor, DonorLayer | DonorStack) else str(donor)
        raise GraftError(
            f"The donor layer {name} has sha256 {sha256}, but {made_with}. Use that layer, or make a new graft."
        )


def new_donor(reference: dict[str, Any], settings: GraftConfig) -> Donor:
    """Create a donor of the same shape as a graft's, with random weights (none on the meta device)."""
    return _random(reference["config"], settings)


def artifact_folder(donor: Any, revision: str | None, token: str | bool | None) -> Path:
    """Return the local folder of an artifact; a Hub repo is downloaded into the Hub's cache."""
    name = os.fspath(donor)
    folder = Path(expand_home(name))
    if folder.is_dir():
        return folder
    if isinstance(donor, os.PathLike) or name.startswith((".", "/", "~")):
        raise SourceNotFoundError(
            f"The folder {name!r} doesn't exist. Extract a layer with: surgeon extract MODEL --layer -1"
        )
    if "/" not in name:
        # Asking the Hub about a mistyped folder takes long if there is no network.
        similar = get_close_matches(name, sorted(path.name for path in Path().iterdir() if path.is_dir()), n=1)
        hint = f"Did you mean {similar[0]}?" if similar else "Name an existing one."
        raise ArtifactError(
            f"There is no folder {name!r}, and a layer artifact on the Hub has a name such as owner/name. {hint} To "
            f"extract a layer from a language model: surgeon extract {shlex.quote(name)} --layer -1"
        )
    with hub_errors(f"The donor {name!r}"):
        try:
            config = read_json(Path(hf_hub_download(name, "config.json", revision=revision, token=token)))
        except (EntryNotFoundError, ValueError):
            config = {}
        # Check this before downloading: the repo of a whole language model may have hundreds of GB.
        if not isinstance(config, dict) or config.get("model_type") != LAYER:
            raise ArtifactError(
                f"The repo {name!r} is not a layer artifact. If it is a language model, extract a layer first: "
                f"surgeon extract {name} --layer -1"
            )
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(ARTIFACT_FILES)))


def _reference(config: dict[str, Any], layer: Donor) -> dict[str, Any]:
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
        "config": {name: config[name] for name in SHAPE if config.get(name) is not None},
    }


def _random(config: dict[str, Any], settings: GraftConfig) -> Donor:
    shape = SurgeonDonorConfig(**{name: config[name] for name in SHAPE if config.get(name) is not None})
    donor_class, dtype = _donor_class(settings), dtype_of(settings)
    if torch.empty(0).device.type == "meta":
        return donor_class(shape).to(dtype)  # type: ignore[no-any-return]  # transformers is untyped here
    return donor_class.from_config(shape, dtype=dtype)


def _matching_folder(layer: Donor) -> Path | None:
    """Return the artifact that a layer was loaded from, if it exists and has the same weights."""
    folder = _recorded_folder(layer)
    return folder if folder is not None and layer.is_stored_in(folder / WEIGHTS) else None


def _recorded_folder(layer: Donor) -> Path | None:
    """Return the artifact that a layer was loaded from, if it exists and records the same sha256."""
    if layer.weights_file is None or layer.config.sha256 is None:
        return None
    folder = layer.weights_file.parent
    return folder if recorded_sha256(folder) == layer.config.sha256 else None


def recorded_sha256(folder: Path) -> str | None:
    """Return the sha256 that an artifact's config.json records; None if the folder is not a complete artifact."""
    if not (folder / WEIGHTS).is_file():
        return None
    try:
        return read_artifact_config(folder).get("sha256")
    except ArtifactError:
        return None


def read_artifact_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a layer artifact.

    Raises:
        ArtifactError: The folder is not a layer artifact.
    """
    if not is_artifact(folder):
        raise ArtifactError(
            f"{folder} is not a layer artifact. If it is a language model, extract a layer first: "
            f"surgeon extract {shlex.quote(str(folder))} --layer -1"
        )
    return read_config(folder)


def file_sha256(folder: Path) -> str:
    """Compute the sha256 of an artifact's weights, and check it against config.json, if that records one.

    Raises:
        ArtifactError: There are no weights or the sha256 differs; the message says how to get the layer again.
    """
    config = read_artifact_config(folder)
    path, recorded = folder / WEIGHTS, config.get("sha256")
    if not path.is_file():
        raise ArtifactError(f"{folder} is not a complete layer artifact: it lacks {WEIGHTS}. Extract the layer again.")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if recorded not in (None, actual):
        command = how_to_extract(config.get("source") or {}, config["layer_indices"], config.get("embeddings"))
        raise ArtifactError(
            f"{path} has sha256 {actual}, but its config.json records {recorded}. The file was changed or damaged. "
            f"Extract the layer again ({command}), and replace this one with it."
        )
    return actual


def how_to_extract(
    source: dict[str, Any], layer_indices: Sequence[int], embeddings: dict[str, Any] | None = None
) -> str:
    """Return the command that extracts the layers again, as far as the model's name and commit are known.

    Args:
        source: `name` and `commit` of the model.
        layer_indices: The layers.
        embeddings: The artifact's `embeddings`, if it is a stack.
    """
    layers = " ".join(f"--layer {index}" for index in layer_indices)
    # Quote the untrusted values, because users copy this line into a shell.
    if embeddings is not None:
        layers = f"--layer 0:{len(layer_indices)} --embeddings"
        if vocabulary := embeddings.get("vocabulary"):
            layers += f" --vocabulary {shlex.quote(str(vocabulary.get('name') or 'HOST'))}"
    commit = f" --revision {shlex.quote(str(source['commit']))}" if source.get("commit") else ""
    return f"surgeon extract {shlex.quote(str(source.get('name') or 'MODEL'))} {layers}{commit}"


def describe(reference: dict[str, Any]) -> str:
    """Describe a donor, such as `layer 31 of meta-llama/Llama-3.1-8B`."""
    layers = f"layer {', '.join(map(str, reference['layer_indices']))}"
    if reference["config"].get("embeddings") is not None:
        layers = f"embeddings and layers 0 to {len(reference['layer_indices']) - 1}"
    return f"{layers} of {reference.get('name') or 'an unnamed model'}"
