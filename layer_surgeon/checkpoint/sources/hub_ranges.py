"""Read byte ranges of one commit's files over HTTP, and check every response. huggingface_hub checks no ranges."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import get_session
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # exported lazily

from layer_surgeon._text import printable, without_secrets_in
from layer_surgeon.checkpoint.sources.gather import gather
from layer_surgeon.checkpoint.sources.hub_errors import Asker
from layer_surgeon.checkpoint.sources.local import SHA256
from layer_surgeon.checkpoint.sources.retry import HubLimits, Tries, TroubleError, is_transient, trouble_of_status
from layer_surgeon.errors import SourceChangedError, SourceError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_SIZE = re.compile(r"\d{1,18}")
# What S3 and Azure say of a signed URL that has expired.
_EXPIRED = re.compile(r"\bexpired\b", re.IGNORECASE)
_MAX_SHOWN_BYTES = 300
_MAX_REDIRECTS = 10
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file as the Hub lists it in a commit.

    Attributes:
        name: Its path in the repo.
        size: Size in bytes; None if the Hub did not report it.
        blob_id: Its git object id. For files stored in git, the Hub sends this sha1 as the ETag.
        sha256: The hash of a file stored outside git, on the CDN; None for a file stored in git.
    """

    name: str
    size: int | None
    blob_id: str | None
    sha256: str | None

    @property
    def in_git(self) -> bool:
        """Whether the file is stored in git. The Hub itself serves it then, and no request is needed to locate it."""
        return self.sha256 is None and self.blob_id is not None and self.size is not None


@dataclass(frozen=True, kw_only=True)
class _Location:
    """The current URL of a file: on the Hub itself, or a signed URL of the CDN that will expire."""

    file: HubFile
    url: str
    size: int
    host: str

    def __str__(self) -> str:
        return self.host


class HubFiles:
    """Reader for the files of one commit. Thread-safe.

    Args:
        asker: The Hub and the repo.
        commit: The commit that is read.
        headers: Headers of every request. `authorization` is only sent to the Hub.
        limits: Timeouts and retries.
    """

    def __init__(self, asker: Asker, commit: str, headers: dict[str, str], limits: HubLimits) -> None:
        self._asker, self._commit, self._limits = asker, commit, limits
        # A CDN that may compress can answer a range with the whole file (huggingface_hub#3778).
        self._headers = headers | {"accept-encoding": "identity"}
        self._locations: dict[str, _Location] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._etags: dict[tuple[str, str], str] = {}

    def size(self, file: HubFile) -> int:
        """Return the size of `file` in bytes, with a request if the Hub did not list it."""
        return file.size if file.size is not None else self._locate(file).size

    def stream(self, file: HubFile, start: int, length: int) -> Iterator[memoryview]:
        """Yield bytes `start` to `start + length`. After an error, resume at the byte that was reached."""
        tries = Tries(f"{file.name} of {self._asker.repo_id}", self._limits)
        done = 0
        while done < length:
            reached = done
            location = None
            try:
                location = self._locate(file)
                for chunk in self._read(location, start + done, length - done, ranged=True):
                    yield chunk
                    done += len(chunk)
            except TroubleError as trouble:
                tries.progressed(done - reached)
                if trouble.stale_url:
                    self._forget(location)
                tries.wait(trouble)

    def whole(self, file: HubFile) -> bytes:
        """Return the whole content of a file stored in git. Retries start from the beginning, without a range."""
        tries = Tries(f"{file.name} of {self._asker.repo_id}", self._limits)
        while True:
            try:
                location = self._locate(file)
                return b"".join(bytes(chunk) for chunk in self._read(location, 0, location.size, ranged=False))
            except TroubleError as trouble:
                tries.wait(trouble)

    def _locate(self, file: HubFile) -> _Location:
        """Return the URL of `file`, requested once even if several threads need it."""
        with self._locks.setdefault(file.name, threading.Lock()):
            if file.name not in self._locations:
                self._locations[file.name] = self._resolve(file)
            return self._locations[file.name]

    def _forget(self, location: _Location | None) -> None:
        """Forget a URL, unless another thread has already replaced it, so that the next read requests a new one."""
        if location is not None:
            with self._locks.setdefault(location.file.name, threading.Lock()):
                if self._locations.get(location.file.name) is location:
                    del self._locations[location.file.name]

    def _resolve(self, file: HubFile) -> _Location:
        asker = self._asker
        url = asker.file_url(file.name, self._commit)
        if file.in_git and file.size is not None:
            return _Location(file=file, url=url, size=file.size, host="the Hub")
        head = self._head(file, url)
        self._check_commit(file, head.headers.get("x-repo-commit"))
        etag = plain_etag(head.headers.get("x-linked-etag") or head.headers.get("etag"))
        # The ETag of a mirror may not be the sha256. Then it can only be compared with later ETags of the mirror.
        known_etag = file.sha256 if SHA256.fullmatch(etag or "") else None
        self._check_etag(file, "the Hub", etag, known_etag=known_etag)
        redirect_url = head.headers.get("location")
        reported_size = head.headers.get("x-linked-size") or (
            None if redirect_url else head.headers.get("content-length")
        )
        size = int(reported_size) if reported_size and _SIZE.fullmatch(reported_size) else file.size
        if size is None:
            raise SourceError(
                f"{asker.endpoint} does not report the size of {file.name} of {asker.repo_id}, so the download "
                "can't be checked. If HF_ENDPOINT is a mirror, try without it."
            )
        if file.size is not None and size != file.size:
            raise self._changed(file, f"it has {size:,} bytes, but the Hub lists {file.size:,}")
        url = urljoin(str(head.url), redirect_url or "")
        host = "the Hub" if self._on_hub(url) else f"the CDN ({urlsplit(url).hostname})"
        return _Location(file=file, url=url, size=size, host=host)

    def _head(self, file: HubFile, url: str) -> Any:
        """Return the Hub's last response before the CDN, with the commit, size, hash and URL of the file.

        huggingface_hub's get_hf_file_metadata is not used: up to 1.31 it also sends the token to other ports
        of the Hub's host.
        """
        with self._asker.asking_for(f"{file.name} of {self._asker.repo_id}"):
            for _ in range(_MAX_REDIRECTS):
                head = get_session().request(
                    "HEAD", url, headers=self._headers, timeout=self._limits.timeout, follow_redirects=False
                )
                hf_raise_for_status(head)
                if (redirect_url := head.headers.get("location")) is None:
                    return head
                try:
                    url = urljoin(url, redirect_url)
                    is_on_hub = self._on_hub(url)
                except ValueError as error:
                    raise TroubleError(f"{self._asker.endpoint} redirects to {redirect_url!r}: {error}") from error
                if not is_on_hub:
                    return head
        raise TroubleError(f"{self._asker.endpoint} redirects more than {_MAX_REDIRECTS} times")

    def _read(self, location: _Location, start: int, length: int, *, ranged: bool) -> Iterator[memoryview]:
        """Send one request, and check the response before the first byte is yielded."""
        headers = dict(self._headers)
        if ranged:
            headers["range"] = f"bytes={start}-{start + length - 1}"
        if not self._on_hub(location.url):
            headers.pop("authorization", None)
        with (
            self._asker.asking_for(f"{location.file.name} of {self._asker.repo_id}"),
            get_session().stream(
                "GET", location.url, headers=headers, timeout=self._limits.timeout, follow_redirects=True
            ) as response,
        ):
            self._check_status(location, response, 206 if ranged else 200)
            self._check_headers(location, response, start, length, ranged=ranged)
            yield from gather(length, response.iter_raw(), location, partial(_bad_answer, location))

    def _check_status(self, location: _Location, response: Any, expected_status: int) -> None:
        status = response.status_code
        if status == expected_status:
            return
        if is_transient(status):
            raise trouble_of_status(status, response.headers, sender=str(location))
        if status < 400 or status == 416:
            # The body is not read: it may be a whole file of 5 GB.
            raise _bad_answer(location, f"it answered with status {status} instead of {expected_status}")
        if self._on_hub(str(response.url)):
            hf_raise_for_status(response)
        # Perhaps an expired signed URL. If the file itself has a problem, the request for a new URL will tell.
        text = _start_of_body(response)
        raise TroubleError(
            f"{location} answered with status {status}{f': {text}' if text else ''}",
            stale_url=True,
            refused=_EXPIRED.search(text) is None,
            at_once=True,
            advice="Check for a proxy in between, and this machine's clock. Then try again later.",
        )

    def _check_headers(self, location: _Location, response: Any, start: int, length: int, *, ranged: bool) -> None:
        headers = response.headers
        if (encoding := headers.get("content-encoding", "identity")) != "identity":
            raise _bad_answer(location, f"it compressed the bytes (Content-Encoding {encoding})")
        if ranged:
            match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
            if match is None or tuple(map(int, match.groups())) != (start, start + length - 1, location.size):
                raise _bad_answer(
                    location,
                    f"for bytes {start}-{start + length - 1} of {location.size}, it sent Content-Range "
                    f"{headers.get('content-range')!r}",
                )
        if (announced := headers.get("content-length", str(length))) != str(length):
            raise _bad_answer(location, f"it announced {announced} bytes, but {length} were requested")
        on_hub = self._on_hub(str(response.url))
        known_etag = location.file.blob_id if on_hub and location.file.in_git else None
        etag = plain_etag(headers.get("etag"))
        self._check_etag(location.file, urlsplit(str(response.url)).netloc, etag, known_etag=known_etag)
        if self._on_hub(location.url):
            commits = [answer.headers.get("x-repo-commit") for answer in (*response.history, response)]
            for commit in filter(None, commits):
                self._check_commit(location.file, commit)
            if not any(commits) and known_etag is not None and etag is None:
                self._check_commit(location.file, None)

    def _check_commit(self, file: HubFile, commit: str | None) -> None:
        if commit is None:
            raise SourceError(
                f"{self._asker.endpoint} does not report the commit of {file.name} of {self._asker.repo_id} (no "
                "X-Repo-Commit header). If HF_ENDPOINT is a mirror or a proxy is in between, try without it."
            )
        if commit != self._commit:
            raise self._changed(file, f"the Hub answered with commit {commit}")

    def _check_etag(self, file: HubFile, host: str, etag: str | None, *, known_etag: str | None) -> None:
        """Check that all responses for a file from one host have the same ETag, if they have one."""
        if etag is None:
            return
        expected = self._etags.setdefault((file.name, host), known_etag or etag)
        if etag != expected:
            raise self._changed(file, f"its ETag at {host} was {expected}, and is now {etag}")

    def _changed(self, file: HubFile, problem: str) -> SourceChangedError:
        return SourceChangedError(
            f"{file.name} of {self._asker.repo_id} does not match commit {self._commit}: {problem}. "
            "Start again to read everything from one commit."
        )

    def _on_hub(self, url: str) -> bool:
        return same_origin(url, self._asker.endpoint)


def _bad_answer(location: _Location, problem: str) -> TroubleError:
    return TroubleError(
        f"{location} gave a wrong response: {problem}",
        bad_answer=True,
        stale_url=True,
        advice="A mirror in HF_ENDPOINT or a proxy can't serve parts of files. Bypass it, or download the repo and "
        "give the folder's path.",
    )


def _start_of_body(response: Any) -> str:
    """Return the start of an error response on one line, without the signatures of URLs."""
    body = b""
    for chunk in response.iter_raw():
        body += chunk
        if len(body) >= _MAX_SHOWN_BYTES:
            break
    text = " ".join(body[:_MAX_SHOWN_BYTES].decode("utf-8", "replace").split())
    return printable(without_secrets_in(text), keep="")


def plain_etag(etag: str | None) -> str | None:
    """Strip the weak marker and the quotes from an ETag: here it is only used to notice changes."""
    return etag.removeprefix("W/").strip('"') if etag else None


def same_origin(url: str, other_url: str) -> bool:
    """Return True if two URLs have the same scheme, host and port."""
    return _origin(url) == _origin(other_url)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
