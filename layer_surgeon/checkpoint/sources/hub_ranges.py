"""Reading bytes of one commit's files over HTTP, each answer checked: nothing in huggingface_hub checks a range."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # exported lazily

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.gather import gather
from layer_surgeon.checkpoint.sources.hub_errors import (
    Asker,
    HubLimits,
    Tries,
    TroubleError,
    is_transient,
    trouble_of_status,
)
from layer_surgeon.errors import SourceChangedError, SourceError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_REDIRECTS = 10
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file as the Hub lists it in a commit.

    Attributes:
        name: Its path in the repo.
        size: In bytes; None where the Hub did not say.
        blob_id: Its git object id, the sha1 that the Hub also gives as ETag of files that lie in git itself.
        sha256: The hash of a file that lies outside git, on the CDN; None for one in git.
    """

    name: str
    size: int | None
    blob_id: str | None
    sha256: str | None

    @property
    def in_git(self) -> bool:
        """Whether the Hub itself holds and serves it, and all about it is known without asking."""
        return self.sha256 is None and self.blob_id is not None and self.size is not None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a file's bytes can be had for now: the Hub itself, or a signed URL of the CDN that will expire."""

    file: HubFile
    url: str
    size: int
    host: str

    def __str__(self) -> str:
        return self.host


class HubFiles:
    """The bytes of the files of one commit. May be used from several threads at once.

    Args:
        asker: The Hub and the repo.
        commit: The commit that everything is read at.
        headers: What goes along with each request to the Hub; `authorization` stays off other hosts.
        limits: Timeouts and tries.
    """

    def __init__(self, asker: Asker, commit: str, headers: dict[str, str], limits: HubLimits) -> None:
        self._asker, self._commit, self._limits = asker, commit, limits
        # A CDN that may compress can answer a range with the whole file (huggingface_hub#3778).
        self._headers = headers | {"accept-encoding": "identity"}
        self._places: dict[str, _Place] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._etags: dict[tuple[str, str], str] = {}

    def size(self, file: HubFile) -> int:
        """The size of `file` in bytes, asked for if the Hub's list did not say."""
        return file.size if file.size is not None else self._locate(file).size

    def stream(self, file: HubFile, start: int, length: int) -> Iterator[memoryview]:
        """Bytes `start` to `start + length`; after a fault it goes on from the byte that was reached."""
        tries = Tries(f"{file.name} of {self._asker.repo_id}", self._limits)
        done = 0
        while done < length:
            reached = done
            place = None
            try:
                place = self._locate(file)
                for chunk in self._read(place, start + done, length - done, ranged=True):
                    yield chunk
                    done += len(chunk)
            except TroubleError as trouble:
                if done - reached >= CHUNK_BYTES:
                    tries.start_over()
                if trouble.stale_url:
                    self._forget(place)
                tries.wait(trouble)

    def whole(self, file: HubFile) -> bytes:
        """The whole of a file that lies in git, in one request without a range, if need be repeated from its start."""
        tries = Tries(f"{file.name} of {self._asker.repo_id}", self._limits)
        while True:
            try:
                place = self._locate(file)
                return b"".join(bytes(chunk) for chunk in self._read(place, 0, place.size, ranged=False))
            except TroubleError as trouble:
                tries.wait(trouble)

    def _locate(self, file: HubFile) -> _Place:
        """Where `file` is read; asked once, however many threads want to know."""
        with self._locks.setdefault(file.name, threading.Lock()):
            if file.name not in self._places:
                self._places[file.name] = self._resolve(file)
            return self._places[file.name]

    def _forget(self, place: _Place | None) -> None:
        """Ask anew for the URL next time, unless another thread has already."""
        if place is not None:
            with self._locks.setdefault(place.file.name, threading.Lock()):
                if self._places.get(place.file.name) is place:
                    del self._places[place.file.name]

    def _resolve(self, file: HubFile) -> _Place:
        asker = self._asker
        url = hf_hub_url(asker.repo_id, file.name, revision=self._commit, endpoint=asker.endpoint)
        if file.in_git and file.size is not None:
            return _Place(file=file, url=url, size=file.size, host="the Hub")
        head = self._head(file, url)
        self._check_commit(file, head.headers.get("x-repo-commit"))
        etag = plain_etag(head.headers.get("x-linked-etag") or head.headers.get("etag"))
        # Of a mirror, the ETag may be something else than the sha256, and can only be compared with itself.
        known = file.sha256 if _SHA256.fullmatch(etag or "") else None
        self._check_etag(file, "the Hub", etag, known=known)
        location = head.headers.get("location")
        said = head.headers.get("x-linked-size") or (None if location else head.headers.get("content-length"))
        size = int(said) if said and said.isdecimal() else file.size
        if size is None:
            raise SourceError(
                f"{asker.endpoint} does not say how large {file.name} of {asker.repo_id} is, so that what arrives "
                "could not be checked. Is HF_ENDPOINT a mirror? Try without it."
            )
        if file.size is not None and size != file.size:
            raise self._changed(file, f"it has {size:,} bytes, but was listed with {file.size:,}")
        url = urljoin(str(head.url), location or "")
        host = "the Hub" if self._on_hub(url) else f"the CDN ({urlsplit(url).hostname})"
        return _Place(file=file, url=url, size=size, host=host)

    def _head(self, file: HubFile, url: str) -> Any:
        """The Hub's last answer before the CDN: it tells commit, size and hash, and where the bytes can be had.

        get_hf_file_metadata does the same, but up to 1.31 takes the token along to another port of the Hub's host.
        """
        with self._asker.asking_for(f"{file.name} of {self._asker.repo_id}"):
            for _ in range(_MAX_REDIRECTS):
                head = get_session().request(
                    "HEAD", url, headers=self._headers, timeout=self._limits.timeout, follow_redirects=False
                )
                hf_raise_for_status(head)
                url = urljoin(url, head.headers.get("location", url))
                if "location" not in head.headers or not self._on_hub(url):
                    return head
        raise TroubleError(f"{self._asker.endpoint} redirects without end")

    def _read(self, place: _Place, start: int, length: int, *, ranged: bool) -> Iterator[memoryview]:
        """One request, its answer checked before the first byte is handed on."""
        headers = dict(self._headers)
        if ranged:
            headers["range"] = f"bytes={start}-{start + length - 1}"
        if not self._on_hub(place.url):
            headers.pop("authorization", None)
        with (
            self._asker.asking_for(f"{place.file.name} of {self._asker.repo_id}"),
            get_session().stream(
                "GET", place.url, headers=headers, timeout=self._limits.timeout, follow_redirects=True
            ) as response,
        ):
            self._check_status(place, response, 206 if ranged else 200)
            self._check_headers(place, response, start, length, ranged=ranged)
            yield from gather(length, response.iter_raw(), place, partial(_broken, place))

    def _check_status(self, place: _Place, response: Any, wanted: int) -> None:
        status = response.status_code
        if status == wanted:
            return
        if is_transient(status):
            raise trouble_of_status(status, response.headers, who=str(place))
        if status < 400 or status == 416:
            # Nothing of the body is read: it may be a whole file of 5 GB.
            raise _broken(place, f"to a request with a range, it answered with status {status} instead of {wanted}")
        if self._on_hub(str(response.url)):
            hf_raise_for_status(response)
        # A signed URL that has expired, most of all. What became of the file, the Hub says when asked for a new URL.
        raise TroubleError(
            f"{place} answered with status {status}",
            stale_url=True,
            at_once=True,
            advice="Is a proxy in the way, or this machine's clock wrong? Try again later.",
        )

    def _check_headers(self, place: _Place, response: Any, start: int, length: int, *, ranged: bool) -> None:
        headers = response.headers
        if (encoding := headers.get("content-encoding", "identity")) != "identity":
            raise _broken(place, f"it sent the bytes with Content-Encoding {encoding}")
        if ranged:
            match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
            if match is None or tuple(map(int, match.groups())) != (start, start + length - 1, place.size):
                raise _broken(
                    place,
                    f"asked for bytes {start}-{start + length - 1} of {place.size}, it sent Content-Range "
                    f"{headers.get('content-range')!r}",
                )
        if (said := headers.get("content-length", str(length))) != str(length):
            raise _broken(place, f"it announced {said} bytes where {length} were asked for")
        on_hub = self._on_hub(str(response.url))
        known = place.file.blob_id if on_hub and place.file.in_git else None
        etag = plain_etag(headers.get("etag"))
        self._check_etag(place.file, urlsplit(str(response.url)).netloc, etag, known=known)
        if self._on_hub(place.url):
            commits = [answer.headers.get("x-repo-commit") for answer in (*response.history, response)]
            for commit in filter(None, commits):
                self._check_commit(place.file, commit)
            if not any(commits) and known is not None and etag is None:
                self._check_commit(place.file, None)

    def _check_commit(self, file: HubFile, commit: str | None) -> None:
        if commit is None:
            raise SourceError(
                f"{self._asker.endpoint} does not say which commit its {file.name} of {self._asker.repo_id} belongs "
                "to (no X-Repo-Commit). Is HF_ENDPOINT a mirror, or a proxy in the way? Try without it."
            )
        if commit != self._commit:
            raise self._changed(file, f"the Hub answered with commit {commit}")

    def _check_etag(self, file: HubFile, where: str, etag: str | None, *, known: str | None) -> None:
        """All answers for a file from one place must have one ETag; where there is none, nothing can be compared."""
        if etag is None:
            return
        expected = self._etags.setdefault((file.name, where), known or etag)
        if etag != expected:
            raise self._changed(file, f"its ETag at {where} is {etag}, and was {expected}")

    def _changed(self, file: HubFile, how: str) -> SourceChangedError:
        return SourceChangedError(
            f"{file.name} of {self._asker.repo_id} is no longer what it was at commit {self._commit}: {how}. "
            "Start again, so that everything is read from one commit."
        )

    def _on_hub(self, url: str) -> bool:
        return _origin(url) == _origin(self._asker.endpoint)


def _broken(place: _Place, how: str) -> TroubleError:
    return TroubleError(
        f"{place} does not answer as asked: {how}",
        bad_answer=True,
        stale_url=True,
        advice="Something between here and the Hub (a mirror in HF_ENDPOINT, a proxy) can't serve parts of files; "
        "go around it, or download the repo and give the folder's path.",
    )


def plain_etag(etag: str | None) -> str | None:
    """The tag alone: how strongly it promises does not matter where only equal answers are let through."""
    return etag.removeprefix("W/").strip('"') if etag else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
