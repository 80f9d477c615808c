"""The donors' layers of a study: extracted once, or layer artifacts that are used where they are."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from layer_surgeon._folders import expand_home
from layer_surgeon._io import read_json, write_json
from layer_surgeon._model_types import LAYER
from layer_surgeon.assemble import AssemblyRecipe, assemble_model
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.checkpoint.sources.addresses import without_revision
from layer_surgeon.errors import ConfigError, SourceError
from layer_surgeon.extract import LayerArtifact, extract_layer
from layer_surgeon.progress import Progress
from layer_surgeon.run.identity import model_identity
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.layout import read_json as read_ours
from layer_surgeon.study.local_models import changed_file
from layer_surgeon.workspace import layer_name


def prepare_layers(donors: Iterable[DonorSpec], folder: StudyFolder, progress: Progress) -> None:
    """Extract the layers that are still missing, and open each checkpoint only once for all of its layers.

    Raises:
        ConfigError: The layers of two donors would have the same name, the folder has a layer of that name from
            another donor, a donor's files have changed since its first layers were extracted, or a donor is a layer
            artifact that does not hold what the plan names.
        SourceError, CheckpointError, LayerNotFoundError, ArtifactError: A layer can't be extracted.
    """
    extracted_donors = check_layers(donors, folder)
    missing = [donor for donor in extracted_donors if not (folder.layer(donor.name) / "config.json").is_file()]
    for source, revision in dict.fromkeys((donor.source, donor.revision) for donor in missing):
        same_checkpoint = [donor for donor in extracted_donors if (donor.source, donor.revision) == (source, revision)]
        origins = [_origin(donor, folder) for donor in same_checkpoint if donor not in missing]
        earlier: dict[str, Any] = next((origin for origin in origins if "model" in origin), {})
        if (commit := earlier.get("commit")) is not None:
            # The branch may have moved since then, and all layers must be of one model.
            checkpoint = open_checkpoint(without_revision(source), revision=commit)
        else:
            checkpoint = open_checkpoint(source, revision=revision)
        model = model_identity(checkpoint)
        if earlier.get("model", model) != model:
            raise changed_file(same_checkpoint[0].shown_source)
        origin = {"commit": checkpoint.commit if checkpoint.source.kind == "hub" else None, "model": model}
        for donor in same_checkpoint:
            if donor in missing:
                # Written before the layer: an interrupted extraction is resumed later, and must be from the same donor.
                write_json(_origin_file(donor, folder), {"origin": donor.text, **origin})
                _make_donor(donor, checkpoint, folder.layer(donor.name), progress)


def _make_donor(donor: DonorSpec, checkpoint: Checkpoint, target: Path, progress: Progress) -> None:
    """Extract layers or a stack, or assemble the model that has only these layers."""
    layers = list(donor.layers)
    if donor.form == "model":
        recipe = AssemblyRecipe.of(checkpoint, keep=layers, dtype=donor.dtype)
        assemble_model(recipe, target, progress=progress)
        return
    extract_layer(
        checkpoint,
        layer=layers,
        output=target,
        dtype=donor.dtype,
        progress=progress,
        embeddings=donor.form == "stack",
        vocabulary=donor.vocabulary,
    )


def check_layers(donors: Iterable[DonorSpec], folder: StudyFolder) -> list[DonorSpec]:
    """Return the donors whose layers belong in the study's folder.

    Raises:
        ConfigError: As in `prepare_layers`.
        ArtifactError: A donor is a layer artifact that is damaged.
    """
    extracted_donors = []
    for donor in dict.fromkeys(donors):
        if is_artifact(donor):
            _check_artifact(donor)
        else:
            extracted_donors.append(donor)
    by_name: dict[str, DonorSpec] = {}
    for donor in extracted_donors:
        other = by_name.setdefault(donor.name, donor)
        if other != donor:
            raise ConfigError(
                f"The layers of {other.text} and {donor.text} would both be in "
                f"{folder.layer(donor.name)}. Extract one of them with surgeon extract --output FOLDER, and give that "
                "folder as the donor."
            )
        _check_origin(donor, folder)
    return extracted_donors


def _check_artifact(donor: DonorSpec) -> None:
    """Check that a layer artifact is what an arm needs: nothing is extracted, so it is used as it is."""
    source = donor.shown_source
    if donor.form == "model":
        raise ConfigError(
            f"{source} is a layer artifact, but an arm trains the donor's model, cut to some layers. "
            "Name the model as that arm's donor: {source: MODEL, layer: '0:9'}."
        )
    artifact = LayerArtifact.open(Path(expand_home(donor.source)))
    indices = artifact.layer_indices
    embeddings = artifact.config.get("embeddings")
    if embeddings is not None and donor.form == "layers":
        raise ConfigError(
            f"{source} is a layer artifact with embeddings, for arms whose donor reads text. Use the arm stack with "
            f"donor: {{source: {source}, layer: '0:{len(indices)}'}}, or name a donor without embeddings."
        )
    if embeddings is None and donor.form == "stack":
        raise ConfigError(
            f"{source} is a layer artifact without embeddings, but an arm's donor reads text. Name the model as that "
            "arm's donor, or an artifact made by surgeon extract MODEL --layer 0:9 --embeddings."
        )
    if embeddings is not None and (reads_own := embeddings.get("vocabulary") is None) != (donor.vocabulary is None):
        whose, tokens = ("its own", "own") if reads_own else ("a host's", "host")
        raise ConfigError(
            f"{source} is a layer artifact that reads {whose} tokens, so donor_tokens of its arm must be {tokens}. Set "
            "that under graft, or name the model as that arm's donor."
        )
    settings = [f"{name} {value}" for name in ("revision", "dtype") if (value := getattr(donor, name)) is not None]
    if donor.layers not in (DonorSpec.layers, indices):
        settings.append(f"layers {', '.join(map(str, donor.layers))}")
    if settings:
        dtypes = ", ".join(sorted({tensor.dtype for tensor in artifact.tensors()}))
        raise ConfigError(
            f"{source} is a layer artifact, which is used as it is: layers {', '.join(map(str, indices))} in {dtypes}. "
            f"The plan names {' and '.join(settings)}. Leave that out, or name the model as the donor."
        )


def _origin_file(donor: DonorSpec, folder: StudyFolder) -> Path:
    return folder.path("layers", f"{donor.name}.json")


def _origin(donor: DonorSpec, folder: StudyFolder) -> dict[str, Any]:
    """What is known of where a layer in the folder is from; earlier versions wrote only the donor's text."""
    path = _origin_file(donor, folder)
    return read_ours(path) if path.is_file() else {}


def _check_origin(donor: DonorSpec, folder: StudyFolder) -> None:
    """Check that the layer in the folder is from this donor: the plan may have changed since the extraction."""
    origin = _origin(donor, folder).get("origin")
    if origin not in (None, donor.text):
        raise ConfigError(
            f"{folder.layer(donor.name)} was extracted from {origin}, but the plan names {donor.text}. "
            "Choose another --output for this plan."
        )


def layer_folder(donor: DonorSpec, folder: StudyFolder) -> Path:
    """Return the folder of an arm's layers, or of the model of only these layers."""
    return Path(expand_home(donor.source)) if is_artifact(donor) else folder.layer(donor.name)


def is_artifact(donor: DonorSpec) -> bool:
    """Whether a donor is the folder of a layer artifact.

    Raises:
        SourceError: Its config can't be read.
    """
    path = Path(expand_home(donor.source))
    if not (path / "config.json").is_file():
        return False
    try:
        config = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        raise SourceError(f"{path / 'config.json'} can't be read: {error}. Download the model again.") from error
    return isinstance(config, dict) and config.get("model_type") == LAYER


def open_layer(donor: DonorSpec, folder: StudyFolder) -> LayerArtifact:
    """Open the layer of an arm.

    Raises:
        ArtifactError: The layer is missing or damaged.
    """
    return LayerArtifact.open(layer_folder(donor, folder))


def donor_name(donor: DonorSpec, folder: StudyFolder) -> str:
    """Return the name of an arm's donor for readers, with the numbers of its layers counted from 0.

    Raises:
        ArtifactError: The layer is missing or damaged.
    """
    if donor.form != "layers":
        return donor.name
    artifact = open_layer(donor, folder)
    source = artifact.config["source"]["name"] if is_artifact(donor) else donor.shown_source
    return layer_name(source, artifact.layer_indices)
