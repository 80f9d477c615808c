"""Where a checkpoint can be read from: a local folder or file, a Hub repo, a URL, or Python packages."""

import os
import re
from pathlib import Path

from layer_surgeon._folders import expand_home
from layer_surgeon.checkpoint.sources.addresses import check_no_revision, is_url, open_url
from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES, Chunk, Source
from layer_surgeon.checkpoint.sources.local import FileSource, FolderSource, explain
from layer_surgeon.checkpoint.sources.parts import CutSource, PartsSource
from layer_surgeon.errors import SourceNotFoundError
from layer_surgeon.workspace import PACKAGED

__all__ = ["CHUNK_BYTES", "Chunk", "CutSource", "FileSource", "FolderSource", "PartsSource", "Source", "open_source"]

# A loose form of huggingface_hub's validate_repo_id: one or two parts of letters, digits, `-`, `_` and `.`.
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")


def open_source(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> Source:
    """Open the source of a checkpoint: a URL, an existing path or, failing those, a repo on the Hub.

    If HF_HUB_OFFLINE is set, a repo is read only from the local Hub cache.

    Args:
        source: A folder, a single checkpoint file, a repo id such as `meta-llama/Llama-3.1-8B`, the URL of a folder
            or file (`https://`, `file://`, `hf://`, `s3://`, or another protocol of fsspec), or `packaged:NAME` for
            weights in Python packages.
        revision: Branch, tag or commit of a Hub repo. None means the main branch.
        token: Access token for a Hub repo. None uses the token of the current login.

    Raises:
        SourceNotFoundError: Neither the path nor the repo exists, or there is nothing at the URL.
        SourceAccessError: The repo is gated or private, and the token is missing or was rejected.
        SourceError: The source can't be reached, or a revision is given although the source has no revisions.
        CheckpointError: A Python package has other weights than expected.
    """
    name = os.fspath(source)
    if not name:
        # Not the current folder: this is often an empty variable of a shell.
        raise SourceNotFoundError("The name of the checkpoint is empty. Name a folder, a file, a repo id or a URL.")
    if isinstance(source, str) and source.startswith(PACKAGED):
        # Imported only when needed, and because it imports this package.
        from layer_surgeon.checkpoint.packaged import open_packaged

        check_no_revision(name, revision)
        return open_packaged(source)
    if isinstance(source, str) and is_url(source):
        return open_url(source, revision=revision, token=token)
    path = Path(expand_home(name))
    try:
        exists = path.exists()
    except OSError as error:
        raise explain(error, name) from error
    if exists:
        check_no_revision(name, revision)
    if path.is_dir():
        return FolderSource(path, name=name)
    if path.is_file():
        return FileSource(path, name=name)
    if isinstance(source, os.PathLike) or not _REPO_ID.fullmatch(name):
        raise SourceNotFoundError(
            f"There is no folder or file {name!r}, and it isn't a valid repo id on the Hub either (owner/name, such "
            "as meta-llama/Llama-3.1-8B, or hf://owner/name/path for part of a repo). Check the path."
        )
    # Imported only when needed: huggingface_hub takes 0.3 s and 30 MB, which local files should not cost.
    from layer_surgeon.checkpoint.sources.hub import open_hub

    try:
        return open_hub(name, revision=revision, token=token)
    except SourceNotFoundError as error:
        raise SourceNotFoundError(f"{error} (There is no local folder or file {name!r} either.)") from error
