"""The files in a graft's folder. They identify such a folder, and only they are ever deleted."""

from pathlib import Path

from layer_surgeon._folders import check_replaceable
from layer_surgeon._io import read_object
from layer_surgeon._model_types import DONOR_FOLDER, DONOR_TOKENIZER_FILE
from layer_surgeon.checkpoint.companions import TOKENIZER_FILES
from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract.artifact import REPLACEABLE_FILES, is_artifact
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.sentence_files import SENTENCE_FILES

# Files that `save_graft` and `GraftedModel.save_pretrained` write.
GRAFT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "README.md",
    *TOKENIZER_FILES,
    DONOR_TOKENIZER_FILE,
    *SENTENCE_FILES,
    *(f"{DONOR_FOLDER}/{name}" for name in REPLACEABLE_FILES),
)


def is_graft(folder: Path) -> bool:
    """Whether a folder's config.json says that it is a graft."""
    return read_object(folder / "config.json").get("model_type") == SurgeonGraftConfig.model_type


def check_graft_place(folder: Path, *, force: bool) -> None:
    """Refuse a non-empty folder, unless it is a graft that may be replaced.

    Raises:
        ArtifactError: The folder may not be replaced; the message says what it holds.
    """
    check_replaceable(folder, GRAFT_FILES, is_ours=is_graft, force=force, kind="graft", error=ArtifactError)


def check_donor_place(folder: Path) -> None:
    """Refuse a graft's donor/ that holds anything but a layer artifact, because saving the graft replaces it.

    Raises:
        ArtifactError: It holds something else; the message says what.
    """
    check_replaceable(
        folder, REPLACEABLE_FILES, is_ours=is_artifact, force=True, kind="layer artifact", error=ArtifactError
    )
