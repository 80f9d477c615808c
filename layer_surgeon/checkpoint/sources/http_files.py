"""Read folders on plain web servers: no listing, one request per range, each response checked before it is used."""

import atexit
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from huggingface_hub import get_session

from layer_surgeon._version import __version__
from layer_surgeon.checkpoint.sources.gather import gather
from layer_surgeon.checkpoint.sources.hub_errors import CLIENT_ERROR
from layer_surgeon.checkpoint.sources.hub_ranges import plain_etag
from layer_surgeon.checkpoint.sources.retry import (
    HubLimits,
    Tries,
    TroubleError,
    is_transient,
    retried,
    trouble_of_status,
)
from layer_surgeon.checkpoint.sources.shards import INDEX_FILES, MAX_INDEX_BYTES, parts_of, shards_of_index
from layer_surgeon.checkpoint.sources.url import Stat, changed
from layer_surgeon.errors import LayerSurgeonError, SourceAccessError, SourceError, SourceNotFoundError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_NUMBER = re.compile(r"\d{1,18}")
_EMPTY_RANGE = re.compile(r"bytes \*/0")
# Web servers usually don't list folders, so the usual names of a checkpoint's files are requested one by one.
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_TEXT_FILES = (
    "config.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
)
_PARALLEL_REQUESTS = 8


class HttpFiles:
    """A folder on a web server. Thread-safe.

    Args:
        url: The folder's URL. Its query string is sent with every request, because it may be a signature.
    """

    limits = HubLimits()
    """Timeouts and retries. A class attribute, so that tests can shorten the waits."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._host = self._parts.hostname or ""

    def list_files(self, file: str | None) -> dict[str, int | None]:
        """Return the sizes of the usual checkpoint files that exist, and the shards that the index names."""
        names = (file, *_TEXT_FILES) if file is not None else (*_WEIGHT_FILES, *INDEX_FILES, *_TEXT_FILES)
        answers = self._probe_all(names)
        stats = {name: answer for name, answer in answers.items() if isinstance(answer, Stat)}
        candidate_weights = (file,) if file is not None else (*_WEIGHT_FILES, *INDEX_FILES)
        if not any(name in stats for name in candidate_weights):
            raise self._none_found(file, [answer for answer in answers.values() if not isinstance(answer, Stat)])
        sizes: dict[str, int | None] = {name: stat.size for name, stat in stats.items()}
        if file is not None:
            # The other parts of a split model are requested when they are read.
            sizes |= {part: None for part in parts_of(file) if part not in sizes}
        for index in INDEX_FILES:
            if (stat := stats.get(index)) is not None and stat.size <= MAX_INDEX_BYTES:
                for shard in shards_of_index(b"".join(map(bytes, self.read(index, 0, stat.size, stat)))):
                    sizes.setdefault(shard, None)
        return sizes

    def find(self, names: Iterable[str]) -> dict[str, int | None]:
        """Return the sizes of those of the named files that exist."""
        return {name: found.size for name, found in self._probe_all(tuple(names)).items() if isinstance(found, Stat)}

    def stat(self, file: str) -> Stat:
        """Request the size and version of a file.

        Asks for the first byte with GET, because some servers don't answer HEAD.
        """
        with self._request(file, "bytes=0-0") as response:
            if response.status_code == 416 and _EMPTY_RANGE.fullmatch(response.headers.get("content-range", "")):
                return _stat(0, response)
            self._check_status(file, response, 200, 206)
            self._check_encoding(file, response)
            if response.status_code == 206:
                content_range = response.headers.get("content-range", "").strip()
                match = _CONTENT_RANGE.fullmatch(content_range)
                if match is None or match.group(1, 2) != ("0", "0"):
                    raise self._bad_answer(
                        file, f"for a request of the first byte, it sent Content-Range {content_range!r}"
                    )
                size = match[3]
            else:
                # The body is not read: it may be the whole file.
                size = response.headers.get("content-length", "")
            if not _NUMBER.fullmatch(size):
                raise self._bad_answer(file, "it does not report the size of the file")
            return _stat(int(size), response)

    def read(self, file: str, start: int, length: int, stat: Stat) -> Iterator[memoryview]:
        """Read a range with one request. A whole file is requested without a range, which every server supports."""
        whole = (start, length) == (0, stat.size)
        byte_range = None if whole else f"bytes={start}-{start + length - 1}"
        with self._request(file, byte_range) as response:
            self._check_status(file, response, 200 if whole else 206)
            self._check_encoding(file, response)
            size = str(stat.size)
            if not whole:
                content_range = response.headers.get("content-range", "").strip()
                match = _CONTENT_RANGE.fullmatch(content_range)
                if match is None or match.group(1, 2) != (str(start), str(start + length - 1)):
                    raise self._bad_answer(
                        file, f"for bytes {start}-{start + length - 1}, it sent Content-Range {content_range!r}"
                    )
                size = match[3]
            elif "content-length" in response.headers:
                size = response.headers["content-length"]
            current_stat = _stat(int(size) if _NUMBER.fullmatch(size) else -1, response)
            if current_stat != stat:
                raise changed(f"{file} at {self._host}", stat, current_stat)
            if (announced := response.headers.get("content-length", str(length))) != str(length):
                raise self._bad_answer(file, f"it announced {announced} bytes, but {length} were requested")
            yield from gather(length, response.iter_raw(), self._host, partial(self._bad_answer, file))

    def _probe_all(self, names: Sequence[str]) -> dict[str, Stat | LayerSurgeonError]:
        with ThreadPoolExecutor(_PARALLEL_REQUESTS, thread_name_prefix="list") as pool:
            return dict(zip(names, pool.map(self._probe, names), strict=True))

    def _probe(self, file: str) -> Stat | LayerSurgeonError:
        """Return the size and version of a file that may exist, or the error if it doesn't."""

        def ask() -> Stat | LayerSurgeonError:
            try:
                return self.stat(file)
            except (SourceNotFoundError, SourceAccessError) as error:
                # Without the right to list, S3 answers 403 for a file that does not exist.
                return error

        return retried(Tries(f"{file} at {self._host}", self.limits, self.limits.contact_tries), ask)

    def _none_found(self, file: str | None, errors: list[LayerSurgeonError]) -> LayerSurgeonError:
        if file is not None:
            return errors[0]  # the error of `file` itself, which was requested first
        refused = [error for error in errors if isinstance(error, SourceAccessError)]
        if refused:
            return refused[0]
        return SourceNotFoundError(
            f"There is no checkpoint at {self._safe_url('')}: no {', no '.join((*_WEIGHT_FILES, *INDEX_FILES))}. "
            "Check the folder's URL. If the file has another name (model.Q4_K_M.gguf), give its own URL."
        )

    @contextmanager
    def _request(self, file: str, byte_range: str | None) -> Iterator[Any]:
        """Send one request, and yield its response. Client exceptions become TroubleError."""
        # A server that may compress can answer a range request with the whole file.
        headers = {"accept-encoding": "identity", "user-agent": f"layer_surgeon/{__version__}"}
        if byte_range is not None:
            headers["range"] = byte_range
        try:
            with _client().stream("GET", self._url(file), headers=headers, timeout=self.limits.timeout) as response:
                yield response
        except (LayerSurgeonError, TroubleError):
            raise
        except (CLIENT_ERROR, OSError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TroubleError(
                f"{self._host} failed to respond ({reason})",
                advice="Check the network, the URL and the proxy settings, then run the same command again.",
            ) from error

    def _check_status(self, file: str, response: Any, *expected_statuses: int) -> None:
        status = response.status_code
        if status in expected_statuses:
            if status == 200 and 206 in expected_statuses and _is_page(response):
                raise SourceNotFoundError(
                    f"{self._safe_url(file)} is a web page, not a checkpoint file. "
                    "Give the URL of the files themselves."
                )
            return
        if status in (404, 410):
            raise SourceNotFoundError(f"There is no {self._safe_url(file)} (status {status}). Check the URL.")
        if status in (401, 403, 407):
            raise SourceAccessError(
                f"{self._host} refuses access to {self._safe_url(file)} (status {status}). "
                "If it requires a login, put the name and password into the URL (https://name:password@host/...). "
                "A signed URL may have expired."
            )
        if is_transient(status):
            trouble = trouble_of_status(status, response.headers, sender=self._host)
            trouble.advice = "Try again later."
            raise trouble
        if status < 400 or status == 416:
            # The body is not read: it may be a whole file of 5 GB.
            raise self._bad_answer(file, f"it answered a range request with status {status} instead of 206")
        raise SourceError(
            f"{self._host} answered with status {status} for {self._safe_url(file)}. "
            "Open the URL in a browser to check it."
        )

    def _check_encoding(self, file: str, response: Any) -> None:
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise self._bad_answer(file, f"it compressed the bytes (Content-Encoding {encoding})")

    def _bad_answer(self, file: str, problem: str) -> TroubleError:
        return TroubleError(
            f"{self._host} gave a wrong response for {file}: {problem}",
            bad_answer=True,
            advice="This server, or a proxy in front of it, can't serve parts of files. Download the folder and use "
            "its local path, or put it on a server that supports Range requests (nginx, Apache, Caddy, S3).",
        )

    def _url(self, file: str) -> str:
        parts = self._parts
        return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{quote(file)}", parts.query, ""))

    def _safe_url(self, file: str) -> str:
        """Return the URL of a file without user name, password and query string, which may be secret."""
        parts = self._parts
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/{quote(file)}", "", ""))


def _is_page(response: Any) -> bool:
    """Return True if the response is a web page. Servers of single-page applications send theirs for any URL."""
    return str(response.headers.get("content-type", "")).lower().startswith("text/html")


def _stat(size: int, response: Any) -> Stat:
    etag, modified = response.headers.get("etag"), response.headers.get("last-modified")
    # A weak ETag promises the same meaning, not the same bytes: enough to notice a change, but not to resume from.
    strong = None if etag is None or etag.startswith("W/") else etag
    return Stat(size=size, version=plain_etag(etag) or modified, lasting=strong or modified)


@cache
def _client() -> Any:
    """Create a client like huggingface_hub's, but without the hook that refuses all requests if HF_HUB_OFFLINE is set.

    That variable is about the Hub. A machine that can't reach the Hub may still read from a server in its own network.
    """
    client = type(get_session())(follow_redirects=True)
    atexit.register(client.close)
    return client
