"""Notice that a local model of a study has changed: its trainings read hosts and layer artifacts where they are."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from layer_surgeon._folders import expand_home
from layer_surgeon._io import write_json
from layer_surgeon.errors import ConfigError, SourceError
from layer_surgeon.study.layout import StudyFolder, read_json

# Config, weights and tokenizer. Other files, such as model cards and logs, may change.
_FILES = ("config.json", "*.safetensors", "*.bin", "*.model", "*token*.json", "vocab.*", "merges.txt")


def remember_models(sources: Iterable[str], folder: StudyFolder) -> None:
    """Keep the sha256 of models that are local folders; other names are left out.

    Raises:
        ConfigError: A model has changed since a training of the study.
        SourceError: A file can't be read.
    """
    known: dict[str, str] = read_json(folder.models).get("models", {}) if folder.models.is_file() else {}
    # A model may be repaired after trainings that failed.
    cells = (folder.prepared or folder.root).glob("cells/*.json")
    has_results = any(not path.name.endswith(".failed.json") for path in cells)
    models = dict(known)
    for source in dict.fromkeys(sources):
        if (path := Path(expand_home(source))).is_dir():
            models[source] = _folder_sha256(path)
            if has_results and known.get(source, models[source]) != models[source]:
                raise changed_file(source)
    if models != known:
        write_json(folder.models, {"format": 1, "models": models})


def changed_file(path: str) -> ConfigError:
    """Return the error for a file or folder that is not what the study's trainings used."""
    return ConfigError(
        f"{path} has changed since the study's trainings. Use another folder with --output, or restore the file."
    )


def _folder_sha256(folder: Path) -> str:
    """Return the sha256 over the names and contents of a model's files."""
    digest = hashlib.sha256()
    try:
        for path in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
            status = path.stat()
            digest.update(f"{path.name} {_file_sha256(path, status.st_size, status.st_mtime_ns)}\n".encode())
    except OSError as error:
        raise SourceError(f"{error.filename or folder} can't be read: {error.strerror or error}.") from error
    return digest.hexdigest()


@functools.lru_cache
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file; size and time only say whether it is still the one that was hashed before."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
