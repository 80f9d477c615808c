"""Where checkpoints lie: a local folder, a single local file, a Hub repo."""

import os
import re
from pathlib import Path

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES, Chunk, Source
from layer_surgeon.checkpoint.sources.local import FileSource, FolderSource
from layer_surgeon.errors import SourceNotFoundError

__all__ = ["CHUNK_BYTES", "Chunk", "FileSource", "FolderSource", "Source", "open_source"]

# The rule of huggingface_hub's validate_repo_id, loosely: one or two parts of letters, digits, `-`, `_` and `.`.
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")


def open_source(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> Source:
    """Open the place where a checkpoint lies: a path that exists, and else a repo on the Hub.

    Args:
        source: A folder, a single checkpoint file, or a repo id such as `meta-llama/Llama-3.1-8B`.
        revision: Branch, tag or commit of a Hub repo; None is its main branch.
        token: Access token for a Hub repo; None takes the one that is logged in.

    Raises:
        SourceNotFoundError: There is neither such a path nor such a repo.
        SourceAccessError: The repo is gated or private, and the token is missing or not accepted.
        SourceError: The Hub can't be reached.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        return FolderSource(path, name=name)
    if path.is_file():
        return FileSource(path, name=name)
    if isinstance(source, os.PathLike) or not _REPO_ID.fullmatch(name):
        raise SourceNotFoundError(
            f"There is no folder or file {name!r}, and that can't be a repo id on the Hub "
            "(owner/name, such as meta-llama/Llama-3.1-8B). Check the path."
        )
    # Local work must not pay for the Hub's client: huggingface_hub takes 0.3 s and 30 MB.
    from layer_surgeon.checkpoint.sources.hub import HubSource

    try:
        return HubSource(name, revision=revision, token=token)
    except SourceNotFoundError as error:
        raise SourceNotFoundError(f"{error} (There is no local folder or file {name!r} either.)") from error
