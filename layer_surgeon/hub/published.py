"""Choose the files of a folder to upload: no training state, no logs, and no local paths in their text."""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, but not re-exported

from layer_surgeon._folders import check_links
from layer_surgeon._io import parse_json
from layer_surgeon._model_types import ASSEMBLY_FILE, DONOR_FOLDER, MAX_ASSEMBLY_CHARACTERS
from layer_surgeon._text import markdown, without_secrets_in
from layer_surgeon._yaml import parse_yaml
from layer_surgeon.errors import GraftError
from layer_surgeon.hub.rendering import PLACE_IN_CARD
from layer_surgeon.workspace import short_name

# Files next to a model that are never uploaded: training state, partly written files, and logs, which also contain the
# names of the machine, its user and its folders.
PRIVATE = (
    *(".*", "*/.*", "*.tmp"),
    *("checkpoint-*/*", "checkpoints/*"),
    *("runs/*", "logs/*", "*tfevents*", "wandb/*", "mlruns/*", "trackio/*"),
)
# Files, in addition to model cards, that can contain local paths, and the keys that hold them.
_CONFIGS = ("config.json", "tokenizer_config.json")
_FILES_WITH_PATHS = (
    *_CONFIGS,
    *(f"{DONOR_FOLDER}/{name}" for name in _CONFIGS),
    *("results.json", "run.yaml", ASSEMBLY_FILE),
)
_PATH_KEYS = frozenset(
    {
        *("name", "path", "base_model", "_name_or_path", "name_or_path"),
        *("graft", "dataset", "validation", "test", "tokenizer", "spec", "validation_spec", "test_spec", "folder"),
        *("source", "embeddings", "head"),
        *("tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file"),
    }
)


def published_files(folder: Path, repo_id: str, ignored: list[str] | None = None) -> dict[str, Path | bytes]:
    """Return what to upload, by path in the repo: the path of a local file, or changed content as bytes.

    Local paths are shortened to `./<last part>` in the configs, in the records of runs and assemblies, and in cards.
    Passwords and signatures are removed from URLs in all of these except the cards. The examples in the cards get the
    repo id. The folder itself doesn't change. Files in it that we didn't write are uploaded too, but nothing from
    outside it.

    Args:
        folder: The folder.
        repo_id: The repo.
        ignored: Patterns of other files to leave out.

    Raises:
        GraftError: A card or a configuration can't be read, or a link leads out of the folder.
    """
    # Names of folders end in a slash. A link to a folder is included, but not the content of that folder.
    names = sorted(f"{path.relative_to(folder).as_posix()}{'/' * path.is_dir()}" for path in folder.rglob("*"))
    not_ignored = list(filter_repo_objects(names, ignore_patterns=[*PRIVATE, *(ignored or [])]))
    check_links((folder / name for name in not_ignored), folder, GraftError)
    file_names = [name for name in not_ignored if (folder / name).is_file()]
    # Replace the longest first, because the path of a folder is also part of the paths inside it.
    local_paths = sorted(
        {path for name in _FILES_WITH_PATHS for path in _paths_in(folder / name)}, key=len, reverse=True
    )
    files: dict[str, Path | bytes] = {}
    for name in file_names:
        files[name] = path = folder / name
        if name in _FILES_WITH_PATHS or path.suffix == ".md":
            original = _read(path)
            # Not in donor/README.md, because the layer is in a subfolder of the repo.
            text = original.replace(PLACE_IN_CARD, repo_id) if name == "README.md" else original
            for local_path in local_paths:
                text = _shorten_path(text, local_path)
            if name in _FILES_WITH_PATHS:
                text = without_secrets_in(text)
            if text != original:
                files[name] = text.encode()
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GraftError(f"{path} is not valid UTF-8. Convert it to UTF-8, or remove it from the folder.") from error


def _shorten_path(text: str, path: str) -> str:
    """Replace a path by `./<last part>`, also where JSON, YAML or Markdown escape it."""
    short_path = f"./{short_name(path)}"
    # The plain path; escaped in JSON or YAML (not ASCII, or a backslash); with YAML's doubled quotes; as in cards.
    for spelling in dict.fromkeys((path, json.dumps(path)[1:-1], path.replace("'", "''"), markdown(path))):
        # YAML breaks long lines at spaces.
        pattern = r"\s+".join(re.escape(word) for word in re.split(r"\s+", spelling))
        # Not inside a name: owner/model-7b does not hold the path /model.
        text = re.sub(rf"(?<![\w.-]){pattern}", lambda _: short_path, text)
    return text


def _paths_in(file: Path) -> Iterator[str]:
    if not file.is_file():
        return
    try:
        text = _read(file)
        content = parse_yaml(text, MAX_ASSEMBLY_CHARACTERS) if file.suffix == ".yaml" else parse_json(text)
    except ValueError as error:
        if isinstance(error, GraftError):
            raise
        raise GraftError(
            f"{file} can't be read, so its local paths can't be removed: {error}. Correct the file, or remove it from "
            "the folder."
        ) from error
    yield from _paths(content, "")


def _paths(value: Any, key: str) -> Iterator[str]:
    """Yield the local paths among the values of keys that can hold one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, key)
    elif isinstance(value, str) and key in _PATH_KEYS and is_local_path(value):
        yield value


def is_local_path(name: str) -> bool:
    """Whether a name is a path on the local machine, which could reveal something about it."""
    if name.startswith(("~", "../", "file:")):
        return True
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
