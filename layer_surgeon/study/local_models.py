"""Notice that a local model of a study has changed: its trainings read hosts and layer artifacts where they are."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from layer_surgeon._folders import expand_home
from layer_surgeon._io import write_json
from layer_surgeon.errors import ConfigError, SourceError
from layer_surgeon.study.layout import StudyFolder, read_json


def remember_models(sources: Iterable[str], folder: StudyFolder) -> None:
    """Keep the sha256 of models that are local folders; other names are left out.

    Raises:
        ConfigError: A model has changed since an earlier call.
        SourceError: A file can't be read.
    """
    known: dict[str, str] = read_json(folder.models).get("models", {}) if folder.models.is_file() else {}
    models = dict(known)
    for source in dict.fromkeys(sources):
        if (path := Path(expand_home(source))).is_dir():
            models[source] = _folder_sha256(path)
            if known.get(source, models[source]) != models[source]:
                raise changed_file(source)
    if models != known:
        write_json(folder.models, {"format": 1, "models": models})


def changed_file(path: str) -> ConfigError:
    """Return the error for a file or folder that is not what the study's trainings used."""
    return ConfigError(
        f"{path} has changed since the study's trainings. Use another folder with --output, or restore the file."
    )


def _folder_sha256(folder: Path) -> str:
    """Return the sha256 over the names and contents of a model's files. Its model card doesn't count."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md"):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise SourceError(f"{path} can't be read: {error.strerror or error}.") from error
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
