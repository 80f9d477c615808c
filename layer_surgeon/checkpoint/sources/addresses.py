"""From a URL to the kind of place that it names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from layer_surgeon._text import without_secrets
from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.sources.local import FileSource, FolderSource
from layer_surgeon.errors import SourceError, SourceNotFoundError

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://.+", re.IGNORECASE)
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_OTHER_REPOS = ("datasets", "spaces", "buckets", "collections", "papers")
# owner/name@revision/path; a revision has a slash only in the refs of pull requests and conversions.
_HF = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?(/(?P<path>.*))?")
_WEB = re.compile(r"(?P<repo>[^/]+(/[^/]+)?)(/(tree|blob|resolve)/(?P<revision>[^/]+)(/(?P<path>.*))?)?")


def is_url(name: str) -> bool:
    """Whether `name` is a URL rather than a path or a repo id."""
    return _URL.fullmatch(name) is not None


def open_url(url: str, *, revision: str | None = None, token: str | bool | None = None) -> Source:
    """Open the place that a URL names.

    Args:
        url: `https://`, `file://`, `hf://`, `s3://`, or another protocol of fsspec; a folder, or a checkpoint file.
        revision: For a URL of a Hub repo.
        token: For a URL of a Hub repo. It is sent to the Hub alone.

    Raises:
        SourceNotFoundError: There is nothing at that place.
        SourceAccessError: It may not be read.
        SourceError: It can't be read; or a revision is given for a place that has none.
    """
    if re.match(r"[a-z0-9+.-]+://[^/]*::", url, re.IGNORECASE) and "[" not in url:
        raise SourceNotFoundError(
            f"{url.partition('://')[0]}://...::... is a chain of file systems, which is not read. Name the inner place."
        )
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise SourceNotFoundError(f"{url!r} is no URL: {error}. Check it.") from error
    if not url.isprintable() or " " in url:
        raise SourceNotFoundError(f"{url.split('?')[0]!r} is no URL: a space in it is written as %20. Check it.")
    repo = hub_address(url)
    if repo is not None:
        if revision is not None and repo.revision not in (None, revision):
            raise SourceError(f"{url} names the revision {repo.revision}, and {revision} is asked for. Leave one out.")
        # huggingface_hub takes 0.3 s and 30 MB.
        from layer_surgeon.checkpoint.sources.hub import open_hub

        return open_hub(repo.repo_id, revision=repo.revision or revision, token=token, path=repo.path)
    if revision is not None:
        raise SourceError(f"{url} is no repo on the Hub and has no revisions. Leave it out.")
    if parts.scheme == "file":
        return _open_file_url(url)
    if parts.scheme in ("http", "https") and not host:
        raise SourceNotFoundError(f"{url!r} names no host. Check it.")
    return _open_remote(url)


def _open_file_url(url: str) -> Source:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SourceNotFoundError(f"{url} names the host {parts.netloc}; a file URL has three slashes: file:///path.")
    path = Path(unquote(parts.path))
    if path.is_dir():
        return FolderSource(path, name=str(path))
    if path.is_file():
        return FileSource(path, name=str(path))
    raise SourceNotFoundError(f"There is no folder or file {path}. Check the URL {url}.")


def _open_remote(url: str) -> Source:
    """A folder or file on a web server or in a file system of fsspec."""
    # Local work must not pay for clients: fsspec takes 0.1 s, huggingface_hub 0.3 s and 30 MB.
    from layer_surgeon.checkpoint.sources.url import Remote, UrlSource

    parts = urlsplit(url)
    folder, file = parts._replace(path=parts.path.rstrip("/"), fragment=""), None
    if folder.path.lower().endswith(_WEIGHTS):
        path, _, last = folder.path.rpartition("/")
        folder, file = folder._replace(path=path), last
    remote: Remote
    if parts.scheme in ("http", "https"):
        from layer_surgeon.checkpoint.sources.http_files import HttpFiles

        remote = HttpFiles(urlunsplit(folder))
        file = unquote(file) if file is not None else None
    else:
        from layer_surgeon.checkpoint.sources.fsspec_files import FsspecFiles

        # urlunsplit drops the slashes of an empty host, as in memory:///folder.
        remote = FsspecFiles(f"{parts.scheme}://{folder.netloc}{folder.path}")
    return UrlSource(remote, name=without_secrets(url).rstrip("/"), file=file)


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A model repo on the Hub, as a URL names it.

    Attributes:
        repo_id: The repo.
        revision: Branch, tag or commit; None where the URL names none.
        path: A subfolder or a file of the repo; empty for the repo itself.
    """

    repo_id: str
    revision: str | None
    path: str


def hub_address(url: str) -> HubAddress | None:
    """The model repo that a URL of the Hub's pages or an `hf://` URL names; None for any other URL.

    Raises:
        SourceNotFoundError: It is a URL of the Hub, and names no model repo.
    """
    parts = urlsplit(url)
    if parts.scheme == "hf":
        rest, pattern = f"{parts.netloc}{parts.path}", _HF
    elif parts.scheme in ("http", "https") and parts.netloc in (
        *_HUB_HOSTS,
        urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc or _HUB_HOSTS[0],
    ):
        rest, pattern = parts.path, _WEB
    else:
        return None
    rest = rest.strip("/").removeprefix("models/")
    match = pattern.fullmatch(rest)
    if match is None or rest.split("/")[0] in _OTHER_REPOS:
        raise SourceNotFoundError(
            f"{url} names no model repo on the Hub. Give https://huggingface.co/owner/name, with /tree/revision after "
            "it for another revision, or hf://owner/name@revision."
        )
    revision = match["revision"]
    return HubAddress(
        repo_id=match["repo"],
        revision=unquote(revision) if revision else None,
        path=unquote(match["path"] or "").strip("/"),
    )
