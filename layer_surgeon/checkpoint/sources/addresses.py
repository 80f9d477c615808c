"""Parse a URL and open the source that it names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from layer_surgeon._text import without_secrets
from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.sources.local import FileSource, FolderSource
from layer_surgeon.errors import SourceError, SourceNotFoundError

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://.+", re.IGNORECASE)
_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_OTHER_REPOS = ("datasets", "spaces", "buckets", "collections", "papers")
# owner/name@revision/path. A revision contains a slash only in refs/pr/... and refs/convert/...
_HF_URL_PATH = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?(/(?P<path>.*))?")
_WEB_URL_PATH = re.compile(r"(?P<repo>[^/]+(/[^/]+)?)(/(tree|blob|resolve)/(?P<revision>[^/]+)(/(?P<path>.*))?)?")


def is_url(name: str) -> bool:
    """Return True if `name` is a URL, and not a path or a repo id."""
    return _URL.fullmatch(name) is not None


def open_url(url: str, *, revision: str | None = None, token: str | bool | None = None) -> Source:
    """Open the source that a URL names.

    Args:
        url: URL of a folder or a checkpoint file: `https://`, `file://`, `hf://`, `s3://`, or another protocol of
            fsspec.
        revision: Branch, tag or commit. Only for a URL of a Hub repo.
        token: Access token. Only for a URL of a Hub repo; it is sent to no other host.

    Raises:
        SourceNotFoundError: There is nothing at the URL.
        SourceAccessError: Reading it is not allowed.
        SourceError: It can't be read, or a revision is given although the source has no revisions.
    """
    if re.match(r"[a-z0-9+.-]+://[^/]*::", url, re.IGNORECASE) and "[" not in url:
        raise SourceNotFoundError(
            f"{url.partition('://')[0]}://...::... is a chain of file systems, which is not supported. "
            "Give the URL of the inner file system."
        )
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise SourceNotFoundError(f"{url!r} is not a valid URL: {error}. Check it.") from error
    # Other file systems than web servers take a path as it is.
    if not url.isprintable() or (" " in url and parts.scheme in ("http", "https", "hf")):
        raise SourceNotFoundError(
            f"{url.split('?')[0]!r} is not a valid URL: it contains a space or a control character. "
            "Write a space as %20."
        )
    if parts.scheme not in ("http", "https") and re.search("[?#]", url):
        advice = "Write them as %3F and %23" if parts.scheme in ("file", "hf") else "Rename the file or folder"
        raise SourceNotFoundError(
            f"{without_secrets(url)} is followed by ? or #, and what comes after would be ignored. {advice}, or "
            "leave that out."
        )
    address = hub_address(url)
    if address is not None:
        if revision is not None and address.revision not in (None, revision):
            raise SourceError(
                f"{url} names the revision {address.revision}, but {revision} was requested. Remove one of the two."
            )
        # Imported only when needed: huggingface_hub takes 0.3 s and 30 MB.
        from layer_surgeon.checkpoint.sources.hub import open_hub

        return open_hub(address.repo_id, revision=address.revision or revision, token=token, path=address.path)
    check_no_revision(url, revision)
    if parts.scheme == "file":
        return _open_file_url(url)
    if parts.scheme in ("http", "https") and not host:
        raise SourceNotFoundError(f"{url!r} has no host name. Check it.")
    return _open_remote(url)


def check_no_revision(name: str, revision: str | None) -> None:
    """Refuse a revision of something that is not a repo on the Hub.

    Raises:
        SourceError: There is a revision.
    """
    if revision is not None:
        raise SourceError(
            f"{without_secrets(name)} is not a repo on the Hub, so it has no revisions. Remove the revision."
        )


def _open_file_url(url: str) -> Source:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SourceNotFoundError(
            f"{url} names the host {parts.netloc}, but a file URL has none. Write three slashes: file:///path."
        )
    path = Path(unquote(parts.path))
    if path.is_dir():
        return FolderSource(path, name=str(path))
    if path.is_file():
        return FileSource(path, name=str(path))
    raise SourceNotFoundError(f"There is no folder or file {path}. Check the URL {url}.")


def _open_remote(url: str) -> Source:
    """Open a folder or file on a web server or in a file system of fsspec."""
    # Imported only when needed: fsspec takes 0.1 s, huggingface_hub 0.3 s and 30 MB.
    from layer_surgeon.checkpoint.sources.url import Remote, UrlSource

    parts = urlsplit(url)
    folder, file = parts._replace(path=parts.path.rstrip("/"), fragment=""), None
    if folder.path.lower().endswith(_WEIGHT_SUFFIXES):
        parent, _, file = folder.path.rpartition("/")
        folder = folder._replace(path=parent)
    remote: Remote
    if parts.scheme in ("http", "https"):
        from layer_surgeon.checkpoint.sources.http_files import HttpFiles

        remote = HttpFiles(urlunsplit(folder))
        file = unquote(file) if file is not None else None
    else:
        from layer_surgeon.checkpoint.sources.fsspec_files import FsspecFiles

        # Not urlunsplit: it drops the slashes before an empty host, as in memory:///folder.
        remote = FsspecFiles(f"{parts.scheme}://{folder.netloc}{folder.path}")
    return UrlSource(remote, name=without_secrets(url).rstrip("/"), file=file)


def without_revision(name: str) -> str:
    """Return the name of a source without the revision that the URL of a repo on the Hub may have."""
    address = hub_address(name) if is_url(name) else None
    if address is None or "/" not in address.repo_id:
        return name
    return f"hf://{address.repo_id}/{quote(address.path)}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A model repo on the Hub, parsed from a URL.

    Attributes:
        repo_id: The repo id.
        revision: Branch, tag or commit; None if the URL names none.
        path: A subfolder or file of the repo; empty for the whole repo.
    """

    repo_id: str
    revision: str | None
    path: str


def hub_address(url: str) -> HubAddress | None:
    """Parse the URL of a page on the Hub or an `hf://` URL. Returns None for any other URL.

    Raises:
        SourceNotFoundError: It is a URL of the Hub, but does not name a model repo.
    """
    parts = urlsplit(url)
    if parts.scheme == "hf":
        repo_path, pattern = f"{parts.netloc}{parts.path}", _HF_URL_PATH
    elif parts.scheme in ("http", "https") and parts.netloc in (
        *_HUB_HOSTS,
        urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc or _HUB_HOSTS[0],
    ):
        repo_path, pattern = parts.path, _WEB_URL_PATH
    else:
        return None
    repo_path = repo_path.strip("/").removeprefix("models/")
    match = pattern.fullmatch(repo_path)
    if match is None or repo_path.split("/")[0] in _OTHER_REPOS:
        raise SourceNotFoundError(
            f"{url} does not name a model repo on the Hub. Use https://huggingface.co/owner/name, with /tree/revision "
            "at the end for another revision, or hf://owner/name@revision."
        )
    revision = match["revision"]
    return HubAddress(
        repo_id=match["repo"],
        revision=unquote(revision) if revision else None,
        path=unquote(match["path"] or "").strip("/"),
    )
