"""Plain http(s) folders: no listing, one request per range, each answer checked before its first byte is used."""

import atexit
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from huggingface_hub import get_session

from layer_surgeon._version import __version__
from layer_surgeon.checkpoint.sources.gather import gather
from layer_surgeon.checkpoint.sources.hub_errors import (
    CLIENT_ERROR,
    HubLimits,
    Tries,
    TroubleError,
    is_transient,
    retried,
    trouble_of_status,
)
from layer_surgeon.checkpoint.sources.hub_ranges import plain_etag
from layer_surgeon.checkpoint.sources.shards import INDEX_FILES, MAX_INDEX_BYTES, parts_of, shards_of_index
from layer_surgeon.checkpoint.sources.url import Stat, changed
from layer_surgeon.errors import LayerSurgeonError, SourceAccessError, SourceError, SourceNotFoundError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_NUMBER = re.compile(r"\d{1,18}")
_EMPTY_RANGE = re.compile(r"bytes \*/0")
# A web server need not list a folder, so that the names that a checkpoint's files have are asked for one by one.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TEXTS = ("config.json", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
_ASKED_AT_ONCE = 8


class HttpFiles:
    """A folder on a web server. May be used from several threads at once.

    Args:
        url: The folder's URL. What follows a `?` in it goes along with each request, as signatures need it.
    """

    limits = HubLimits()
    """Timeouts and tries. An attribute of the class, so that tests need not wait."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._host = self._parts.hostname or ""

    def list_files(self, file: str | None) -> dict[str, int | None]:
        """Those of a checkpoint's usual files that are there; the shards are the ones that the index names."""
        names = (file, *_TEXTS) if file is not None else (*_WEIGHTS, *INDEX_FILES, *_TEXTS)
        with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="list") as pool:
            answers = dict(zip(names, pool.map(self._probe, names), strict=True))
        stats = {name: answer for name, answer in answers.items() if isinstance(answer, Stat)}
        wanted = (file,) if file is not None else (*_WEIGHTS, *INDEX_FILES)
        if not any(name in stats for name in wanted):
            raise self._none_found(file, [answer for answer in answers.values() if not isinstance(answer, Stat)])
        found: dict[str, int | None] = {name: stat.size for name, stat in stats.items()}
        if file is not None:
            # The other parts of a split model are asked for when their turn comes.
            found |= {part: None for part in parts_of(file) if part not in found}
        for index in INDEX_FILES:
            if (stat := stats.get(index)) is not None and stat.size <= MAX_INDEX_BYTES:
                for shard in shards_of_index(b"".join(map(bytes, self.read(index, 0, stat.size, stat)))):
                    found.setdefault(shard, None)
        return found

    def stat(self, file: str) -> Stat:
        """Size and version, from a request for the first byte: some servers don't answer HEAD, and few get it wrong."""
        with self._answer(file, "bytes=0-0") as response:
            if response.status_code == 416 and _EMPTY_RANGE.fullmatch(response.headers.get("content-range", "")):
                return _stat(0, response)
            self._check_status(file, response, 200, 206)
            self._check_encoding(file, response)
            if response.status_code == 206:
                said = response.headers.get("content-range", "").strip()
                match = _CONTENT_RANGE.fullmatch(said)
                if match is None or match.group(1, 2) != ("0", "0"):
                    raise self._broken(file, f"asked for its first byte, it sent Content-Range {said!r}")
                size = match[3]
            else:
                # Nothing of the body is read: it may be the whole file.
                size = response.headers.get("content-length", "")
            if not _NUMBER.fullmatch(size):
                raise self._broken(file, "it does not say how large the file is")
            return _stat(int(size), response)

    def read(self, file: str, start: int, length: int, stat: Stat) -> Iterator[memoryview]:
        """One request; for the whole of a file one without a range, which every server can answer."""
        whole = (start, length) == (0, stat.size)
        with self._answer(file, None if whole else f"bytes={start}-{start + length - 1}") as response:
            self._check_status(file, response, 200 if whole else 206)
            self._check_encoding(file, response)
            size = str(stat.size)
            if not whole:
                said = response.headers.get("content-range", "").strip()
                match = _CONTENT_RANGE.fullmatch(said)
                if match is None or match.group(1, 2) != (str(start), str(start + length - 1)):
                    raise self._broken(
                        file, f"asked for bytes {start}-{start + length - 1}, it sent Content-Range {said!r}"
                    )
                size = match[3]
            elif "content-length" in response.headers:
                size = response.headers["content-length"]
            now = _stat(int(size) if _NUMBER.fullmatch(size) else -1, response)
            if now != stat:
                raise changed(f"{file} at {self._host}", stat, now)
            if (announced := response.headers.get("content-length", str(length))) != str(length):
                raise self._broken(file, f"it announced {announced} bytes where {length} were asked for")
            yield from gather(length, response.iter_raw(), f"{self._host}", partial(self._broken, file))

    def _probe(self, file: str) -> Stat | LayerSurgeonError:
        """What is known of a file that may be there, or the error that says that it is not."""

        def ask() -> Stat | LayerSurgeonError:
            try:
                return self.stat(file)
            except (SourceNotFoundError, SourceAccessError) as error:
                # S3 without the right to list says 403 for what does not exist.
                return error

        return retried(Tries(f"{file} at {self._host}", self.limits, self.limits.contact_tries), ask)

    def _none_found(self, file: str | None, errors: list[LayerSurgeonError]) -> LayerSurgeonError:
        if file is not None:
            return errors[0]  # the first name that was asked for
        refused = [error for error in errors if isinstance(error, SourceAccessError)]
        if refused:
            return refused[0]
        return SourceNotFoundError(
            f"There is no checkpoint at {self._shown('')}: no {', no '.join((*_WEIGHTS, *INDEX_FILES))}. Check "
            "the URL of the folder, or give the URL of the file itself if it has another name (model.Q4_K_M.gguf)."
        )

    @contextmanager
    def _answer(self, file: str, wanted: str | None) -> Iterator[Any]:
        """The answer to one request, its body not read yet, and the client's exceptions as TroubleError."""
        # A server that may compress can answer a range with the whole file.
        headers = {"accept-encoding": "identity", "user-agent": f"layer_surgeon/{__version__}"}
        if wanted is not None:
            headers["range"] = wanted
        try:
            with _client().stream("GET", self._url(file), headers=headers, timeout=self.limits.timeout) as response:
                yield response
        except (LayerSurgeonError, TroubleError):
            raise
        except (CLIENT_ERROR, OSError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TroubleError(
                f"{self._host} did not answer as it should ({reason})",
                advice="Check the network, the URL and the proxy settings, and run the same command again.",
            ) from error

    def _check_status(self, file: str, response: Any, *wanted: int) -> None:
        status = response.status_code
        if status in wanted:
            if status == 200 and 206 in wanted and _is_page(file, response):
                raise SourceNotFoundError(f"{self._shown(file)} is a web page. Give the URL of the files themselves.")
            return
        if status in (404, 410):
            raise SourceNotFoundError(f"There is no {self._shown(file)} (status {status}). Check the URL.")
        if status in (401, 403, 407):
            raise SourceAccessError(
                f"{self._host} refuses access to {self._shown(file)} (status {status}). If it wants a name and a "
                "password, put them into the URL (https://name:password@host/...); a signed URL may have expired."
            )
        if is_transient(status):
            trouble = trouble_of_status(status, response.headers, who=self._host)
            trouble.advice = "Try again later."
            raise trouble
        if status < 400 or status == 416:
            # Nothing of the body is read: it may be a whole file of 5 GB.
            raise self._broken(file, f"to a request with a range, it answered with status {status} instead of 206")
        raise SourceError(f"{self._host} answered {status} when asked for {self._shown(file)}. Check it in a browser.")

    def _check_encoding(self, file: str, response: Any) -> None:
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise self._broken(file, f"it sent the bytes with Content-Encoding {encoding}")

    def _broken(self, file: str, how: str) -> TroubleError:
        return TroubleError(
            f"{self._host} does not answer as asked for {file}: {how}",
            bad_answer=True,
            advice="This server, or a proxy in front of it, can't serve parts of files: download the folder and give "
            "its path, or put it on a server that knows Range requests (nginx, Apache, Caddy, S3).",
        )

    def _url(self, file: str) -> str:
        parts = self._parts
        return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{quote(file)}", parts.query, ""))

    def _shown(self, file: str) -> str:
        """The URL without what may be a secret in it."""
        parts = self._parts
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/{quote(file)}", "", ""))


def _is_page(file: str, response: Any) -> bool:
    """Whether it is a web page: servers of single-page applications send theirs whatever is asked for."""
    return str(response.headers.get("content-type", "")).lower().startswith("text/html")


def _stat(size: int, response: Any) -> Stat:
    etag, time = response.headers.get("etag"), response.headers.get("last-modified")
    # A weak tag promises the same meaning, not the same bytes: good enough to notice a change, not to go on from.
    strong = None if etag is None or etag.startswith("W/") else etag
    return Stat(size=size, version=plain_etag(etag) or time, lasting=strong or time)


@cache
def _client() -> Any:
    """A client like huggingface_hub's, without its hook that refuses all requests where HF_HUB_OFFLINE is set.

    That variable is about the Hub. A machine that can't reach it may well read from a server in its own network.
    """
    client = type(get_session())(follow_redirects=True)
    atexit.register(client.close)
    return client
