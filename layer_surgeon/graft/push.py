"""Grafts and layer artifacts onto the Hub, with a card that names both models and their licences."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, metadata_load, metadata_save
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, but not re-exported

from layer_surgeon.checkpoint.sources.hub_errors import CLIENT_ERROR
from layer_surgeon.errors import ConfigError, GraftError, SourceAccessError, SourceError
from layer_surgeon.extract.artifact import MODEL_TYPE as LAYER
from layer_surgeon.graft.config import DONOR_FOLDER
from layer_surgeon.graft.config import MODEL_TYPE as GRAFT
from layer_surgeon.graft.translate import first_line

# What lies beside a model and is for nobody else: training state, logs, half-written files.
_PRIVATE = [".*", "*.tmp", "checkpoint-*/*", "runs/*", "*/.*"]


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What was put onto the Hub.

    Attributes:
        repo_id: The repo.
        url: Its page.
        commit: The commit.
        private: Whether the repo was asked to be private.
        files: Paths in the repo.
        num_bytes: Of all files.
        terms: The licence of the donor model, whose weights are in the repo; None: not stated, or no donor in it.
    """

    repo_id: str
    url: str
    commit: str
    private: bool
    files: tuple[str, ...]
    num_bytes: int
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
    """Upload the folder of a graft, a run or a layer artifact as it is, in one commit.

    Args:
        folder: The folder.
        repo_id: Such as `me/my-graft`; made where there is none.
        private: Make a new repo private. It holds weights of the donor model, whose terms may not let anybody have
            them.
        include_donor: Upload donor/ too. Without it, whoever loads the graft has to have the layer already.
        message: Of the commit.
        revision: Branch; default: main.
        token: Hub token with the right to write.

    Raises:
        GraftError: The folder is neither a graft nor a layer artifact, or lacks what belongs to it.
        ConfigError: The repo id is none.
        SourceError: The Hub can't be reached, or doesn't accept the upload.
    """
    folder = Path(folder)
    config = _read(folder)
    donor = config.get("donor") or {}
    frozen = config.get("model_type") == GRAFT and bool(donor) and not config["graft"].get("train_donor")
    if frozen and include_donor and not (folder / DONOR_FOLDER).is_dir():
        raise GraftError(
            f"{folder} was saved without its donor layer. Load it and save it with include_donor=True, or upload it "
            "without (--without-donor)."
        )
    ignored = [*_PRIVATE, *([] if include_donor else [f"{DONOR_FOLDER}/*"])]
    commit, files = upload(
        folder, repo_id, ignored=ignored, private=private, message=message, revision=revision, token=token
    )
    source = config.get("source") or {}
    return PushResult(
        repo_id=repo_id,
        url=str(commit.repo_url),
        commit=str(commit.oid),
        private=private,
        files=tuple(files),
        num_bytes=sum((folder / file).stat().st_size for file in files),
        terms=(donor.get("license") or source.get("license")) if include_donor else None,
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
) -> tuple[CommitInfo, list[str]]:
    """Make the repo where there is none, and upload a folder in one commit; the commit, and the files' paths.

    Raises:
        ConfigError: The repo id is none.
        SourceError: The Hub can't be reached, or doesn't accept the upload.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = list(filter_repo_objects(names, ignore_patterns=ignored))
    with _upload_errors(repo_id):
        api = HfApi(token=token, library_name="layer_surgeon")
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            ignore_patterns=ignored,
            commit_message=message or f"Upload {folder.name}",
            revision=revision,
            **settings,
        )
    return commit, files


def push_model(
    model: Any, repo_id: str, *, tags: Sequence[str] | str = (), max_shard_size: int | str = "50GB", **settings: Any
) -> CommitInfo:
    """`push_to_hub` of a model in memory, with our model card; transformers would put one of its own in its place."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tags:
            card = folder / "README.md"
            front = metadata_load(card) or {}
            more = [tags] if isinstance(tags, str) else list(tags)
            metadata_save(card, {**front, "tags": [*front.get("tags", []), *more]})
        message = settings.pop("commit_message", None) or f"Upload {type(model).__name__}"
        return upload(folder, repo_id, message=message, **settings)[0]


def _read(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or config.get("model_type") not in (GRAFT, LAYER):
        raise GraftError(
            f"{folder} is neither a graft nor a layer artifact. Name a folder that surgeon graft, finetune or extract "
            "has made; for any other there is: hf upload REPO FOLDER"
        )
    if not any(folder.glob("model*.safetensors")):
        raise GraftError(f"{folder} holds no weights (model.safetensors), so it is not whole. Make it again.")
    return config


@contextmanager
def _upload_errors(repo_id: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is no repo id. Choose one such as me/my-graft.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise SourceAccessError(
                f"The Hub doesn't let this account write to {repo_id} (status {status}). Log in with `hf auth login`, "
                "or pass --token with a token that may write; the part before the / must be yours or your "
                "organisation's."
            ) from error
        raise SourceError(f"The Hub doesn't accept the upload to {repo_id}: {first_line(error)}") from error
    except (CLIENT_ERROR, ConnectionError, TimeoutError) as error:
        raise SourceError(
            f"The Hub can't be reached to upload {repo_id}: {error}. Nothing was committed; try again."
        ) from error
