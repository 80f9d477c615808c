"""Upload grafts, runs, layer artifacts and assembled models to the Hub."""

import inspect
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, metadata_save
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, but not re-exported

from layer_surgeon._io import read_object
from layer_surgeon._model_types import ASSEMBLY_FILE, DONOR_FOLDER, GRAFT, LAYER, MAX_ASSEMBLY_CHARACTERS
from layer_surgeon._yaml import front_matter, parse_yaml
from layer_surgeon.errors import ConfigError, GraftError
from layer_surgeon.hub.access import upload_errors
from layer_surgeon.hub.published import published_files

# Every finished fine-tuning run has this file, with or without a graft.
_RESULTS = "results.json"
# Weights that transformers would load instead of, or together with, those of a new commit.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """An upload to the Hub.

    Attributes:
        repo_id: The repo.
        url: URL of its page.
        commit: The commit.
        private: Whether a private repo was requested.
        files: Paths of the uploaded files in the repo.
        deleted: Paths of files of earlier commits that this one deletes: other weights, and another graft's donor/.
        num_bytes: Total size of the files.
        holds_donor: Whether the files include weights of a donor model, or of the models that a model was assembled
            from.
        terms: The licence of these models, if the files include their weights; None if it is not stated.
    """

    repo_id: str
    url: str
    commit: str
    private: bool
    files: tuple[str, ...]
    deleted: tuple[str, ...]
    num_bytes: int
    holds_donor: bool
    terms: str | None


def push_graft(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    include_donor: bool = True,
    message: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> PushResult:
    """Upload the folder of a graft, a run, a layer artifact or an assembled model, in one commit.

    Training state and logs are not uploaded. Local paths in the configs, in results.json, in run.yaml and in model
    cards are shortened to their last part. The folder itself doesn't change.

    Args:
        folder: The folder.
        repo_id: Such as `me/my-graft`; created if it doesn't exist.
        private: Make a new repo private. It holds weights of the donor model, whose terms may forbid passing them on.
        include_donor: Upload donor/ too. Without it, the graft can only be loaded by users who have the layer, and a
            donor/ of earlier commits is deleted, as for grafts without a frozen donor. Those commits still hold it.
        message: Message of the commit.
        revision: Branch; default: main.
        token: Hub token with write access.

    Raises:
        GraftError: The folder is none of these, or lacks some of its files.
        ConfigError: The repo id is invalid, or the donor can't be left out.
        SourceError: The Hub can't be reached, or rejects the upload.
    """
    folder = Path(folder)
    config = _read(folder)
    donor, graft, source = (_table(config, key) for key in ("donor", "graft", "source"))
    frozen = config.get("model_type") == GRAFT and bool(donor) and not graft.get("train_donor")
    if frozen and include_donor and not (folder / DONOR_FOLDER).is_dir():
        raise GraftError(
            f"{folder} was saved without its donor layer. Load it and save it with include_donor=True, or upload it "
            "without the layer (--without-donor)."
        )
    if not include_donor and not frozen:
        raise ConfigError(
            f"{folder} has no frozen donor layer in a folder of its own, so nothing can be left out. Upload it without "
            "--without-donor (in Python: include_donor=True), or not at all."
        )
    is_assembled = (folder / ASSEMBLY_FILE).is_file() and not (folder / _RESULTS).is_file()
    terms = _assembly_terms(folder) if is_assembled else donor.get("license") or source.get("license")
    uploads_no_donor = config.get("model_type") == GRAFT and not (frozen and include_donor)
    ignored = [f"{DONOR_FOLDER}/*"] if uploads_no_donor else []
    commit, files, deleted = upload(
        folder, repo_id, ignored=ignored, private=private, message=message, revision=revision, token=token
    )
    random = bool(donor) and graft.get("donor_init") == "random" and frozen
    holds_donor = (
        is_assembled or config["model_type"] == LAYER or (bool(donor) and not random and (include_donor or not frozen))
    )
    return PushResult(
        repo_id=str(commit.repo_url.repo_id),
        url=str(commit.repo_url),
        commit=str(commit.oid),
        private=private,
        files=tuple(files),
        deleted=deleted,
        num_bytes=sum(files.values()),
        holds_donor=holds_donor,
        terms=terms if holds_donor else None,
    )


def upload(
    folder: Path,
    repo_id: str,
    *,
    ignored: list[str] | None = None,
    private: bool | None = None,
    message: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **settings: Any,
) -> tuple[CommitInfo, dict[str, int], tuple[str, ...]]:
    """Create the repo if needed, and upload a folder in one commit.

    The commit also deletes files that are ignored, and weights that would be loaded instead of those in the folder.

    Returns:
        The commit, the size of each file in bytes, and the deleted files.

    Raises:
        ConfigError: The repo id is invalid.
        GraftError: A card or a configuration can't be read, or a link leads out of the folder.
        SourceError: The Hub can't be reached, or rejects the upload.
    """
    # Find mistakes before the repo is created.
    if unknown := sorted(settings.keys() - inspect.signature(HfApi.create_commit).parameters):
        raise ConfigError(f"push_to_hub has no argument {unknown[0]!r}. Leave it out.")
    published_files(folder, repo_id, ignored)
    with upload_errors(repo_id):
        api = HfApi(token=token, library_name="layer_surgeon")
        # The Hub adds the account's name if the repo id has no owner.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        files = published_files(folder, repo_id, ignored)
        others = [name for name in api.list_repo_files(repo_id, revision=revision) if name not in files]
        unwanted = filter_repo_objects(others, allow_patterns=ignored or [])
        deleted = sorted({*unwanted, *filter(_WEIGHTS.fullmatch, others)})
        commit = api.create_commit(
            repo_id=repo_id,
            operations=[
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()),
                *map(CommitOperationDelete, deleted),
            ],
            commit_message=message or f"Upload {folder.name}",
            revision=revision,
            **settings,
        )
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    return commit, sizes, tuple(deleted)


def push_model(
    model: Any, repo_id: str, *, tags: Sequence[str] | str = (), max_shard_size: int | str = "50GB", **settings: Any
) -> CommitInfo:
    """Upload a model from memory with our model card, which transformers' `push_to_hub` would replace with its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tags:
            card = folder / "README.md"
            front = front_matter(card.read_text(encoding="utf-8"))
            new_tags = [tags] if isinstance(tags, str) else list(tags)
            metadata_save(card, {**front, "tags": [*front.get("tags", []), *new_tags]})
        message = settings.pop("commit_message", None) or f"Upload {type(model).__name__}"
        return upload(folder, repo_id, message=message, **settings)[0]


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _assembly_terms(folder: Path) -> str | None:
    """Return the licences of the models that a model was assembled from; None if one of them states none."""
    path = folder / ASSEMBLY_FILE
    try:
        record = parse_yaml(path.read_text(encoding="utf-8"), MAX_ASSEMBLY_CHARACTERS)
        licences = {source.get("license") for source in record["sources"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GraftError(
            f"{path} doesn't list the sources of the model, as surgeon assemble writes it. Assemble the model again."
        ) from error
    return " and ".join(sorted(map(str, licences))) if None not in licences else None


def _read(folder: Path) -> dict[str, Any]:
    config = read_object(folder / "config.json")
    is_ours = config.get("model_type") in (GRAFT, LAYER) or (
        "model_type" in config and any((folder / name).is_file() for name in (_RESULTS, ASSEMBLY_FILE))
    )
    if not is_ours:
        raise GraftError(
            f"{folder} is not a graft, a run, a layer artifact or an assembled model. Name a folder that surgeon "
            "graft, finetune, extract or assemble has made. Upload other folders with: hf upload REPO FOLDER"
        )
    if not any(folder.glob("model*.safetensors")):
        raise GraftError(f"{folder} holds no weights (model.safetensors), so it is incomplete. Make it again.")
    return config
