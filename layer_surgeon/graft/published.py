"""What of a folder goes onto the Hub: no training state, no logs, and no paths of this machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, but not re-exported

from layer_surgeon._folders import check_links
from layer_surgeon._io import parse_json
from layer_surgeon._text import markdown, without_secrets_in
from layer_surgeon._yaml import parse_yaml
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import DONOR_FOLDER
from layer_surgeon.workspace import short_name

# How a model card writes the place of the model as long as it is nowhere but in a folder.
PLACE_IN_CARD = "path/to/this/folder"
# What lies beside a model and is for nobody else: training state, half-written files, and logs, which also name the
# machine, its user and its folders.
PRIVATE = (
    *(".*", "*/.*", "*.tmp"),
    *("checkpoint-*/*", "checkpoints/*"),
    *("runs/*", "logs/*", "*tfevents*", "wandb/*", "mlruns/*", "trackio/*"),
)
# Where paths can stand, beside the text of a card, and under which keys.
_WITH_PATHS = ("config.json", f"{DONOR_FOLDER}/config.json", "results.json", "run.yaml")
_PATH_KEYS = frozenset(
    {
        *("name", "path", "base_model", "_name_or_path", "name_or_path"),
        *("graft", "dataset", "validation", "test", "tokenizer", "spec", "validation_spec", "test_spec"),
    }
)


def published_files(folder: Path, repo_id: str, ignored: list[str] | None = None) -> dict[str, Path | bytes]:
    """What to upload, by its path in the repo: a file as it lies there, or what stands in its place.

    Paths of this machine are cut down to `./<last part>` in the configs, in results.json, in run.yaml and in model
    cards. URLs in all of these but the cards lose their passwords and signatures. The examples of the cards name the
    repo. The folder itself stays as it is. It is the user's, so files that we didn't write go along, but nothing from
    outside of it.

    Args:
        folder: The folder.
        repo_id: The repo.
        ignored: Patterns of what else to leave out.

    Raises:
        GraftError: A card or a configuration can't be read, or there is a link out of the folder.
    """
    # Folders have a slash at the end. A link to a folder is among them, but not what is in that folder.
    names = sorted(f"{path.relative_to(folder).as_posix()}{'/' * path.is_dir()}" for path in folder.rglob("*"))
    kept = list(filter_repo_objects(names, ignore_patterns=[*PRIVATE, *(ignored or [])]))
    check_links((folder / name for name in kept), folder, GraftError)
    wanted = [name for name in kept if (folder / name).is_file()]
    # Longest first, so that a folder's name is not cut out of the names of what lies in it.
    private = sorted({path for name in _WITH_PATHS for path in _paths_in(folder / name)}, key=len, reverse=True)
    files: dict[str, Path | bytes] = {}
    for name in wanted:
        files[name] = path = folder / name
        if name in _WITH_PATHS or path.suffix == ".md":
            before = _read(path)
            # Not in donor/README.md: the layer lies in a folder of the repo.
            after = before.replace(PLACE_IN_CARD, repo_id) if name == "README.md" else before
            for text in private:
                after = _without(after, text)
            if name in _WITH_PATHS:
                after = without_secrets_in(after)
            if after != before:
                files[name] = after.encode()
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GraftError(f"{path} is not written in UTF-8. Write it so, or take it out of the folder.") from error


def _without(text: str, path: str) -> str:
    shown = f"./{short_name(path)}"
    # As it is, as JSON and YAML write what is not ASCII or has a backslash, as YAML quotes a quotation mark, and as
    # cards have it.
    for written in dict.fromkeys((path, json.dumps(path)[1:-1], path.replace("'", "''"), markdown(path))):
        # YAML breaks long lines at spaces.
        pattern = r"\s+".join(re.escape(word) for word in re.split(r"\s+", written))
        text = re.sub(pattern, lambda _: shown, text)
    return text


def _paths_in(file: Path) -> Iterator[str]:
    if not file.is_file():
        return
    try:
        text = _read(file)
        content = parse_yaml(text) if file.suffix == ".yaml" else parse_json(text)
    except ValueError as error:
        if isinstance(error, GraftError):
            raise
        raise GraftError(
            f"{file} can't be read, so paths of this machine can't be taken out of it: {error}. Correct the file, or "
            "take it out of the folder."
        ) from error
    yield from _paths(content, "")


def _paths(value: Any, key: str) -> Iterator[str]:
    """The paths of this machine among the values of the keys that can hold one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, key)
    elif isinstance(value, str) and key in _PATH_KEYS and is_local_path(value):
        yield value


def is_local_path(name: str) -> bool:
    """Whether a name is a path that says something of the machine it was written on."""
    if name.startswith(("~", "../", "file:")):
        return True
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
