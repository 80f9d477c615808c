"""Read large bodies straight from the socket, and send further range requests over the same connection.

The HTTP client of huggingface_hub opens every connection, so its proxies, certificates and redirects apply. It also
parses and copies every byte several times: reading 436 MB over 16 connections takes 0.42 s of processor time with it,
and 0.27 s from the socket.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException
from itertools import islice
from typing import Any
from urllib.parse import urlsplit
from weakref import finalize

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES

ReadInto = Callable[[memoryview], int]
"""Writes the next bytes of a body to the start of a buffer. Returns their number; 0 at the end of the body."""

# As in huggingface_hub's client: servers and routers drop connections that are idle for longer.
_IDLE_SECONDS = 5.0
_Origin = tuple[str, str]
_abandoned: "list[_Line]" = []
"""Idle connections of readers that are gone. Closing one takes a lock of the client's pool, which the thread may hold
while the garbage collector runs. So the next request closes them, and not the collector."""


@dataclass(frozen=True, kw_only=True)
class DirectResponse:
    """The head of a response that was read without the client. It has the attributes of the client's responses."""

    url: str
    headers: Message
    status_code: int = 206
    history: tuple[Any, ...] = ()


class DirectReader:
    """Sends GET requests, and reads large bodies straight from the socket. Thread-safe.

    Args:
        client: Returns the HTTP client that opens the connections.
    """

    def __init__(self, client: Callable[[], Any]) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._idle: dict[_Origin, list[_Line]] = defaultdict(list)
        finalize(self, _abandon, self._idle).atexit = False

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str], timeout: tuple[float, ...]) -> Iterator[tuple[Any, ReadInto]]:
        """Send a request. Yield the head of the response, and a function that reads its body.

        A range is requested over an idle connection, if there is one. If the answer is not a range, the request is
        repeated through the client, so that errors and redirects are always the client's.

        Raises:
            OSError: The connection broke.
            Exception: The client's own exceptions.
        """
        while _abandoned:
            with suppress(IndexError):  # another thread took the last one
                _abandoned.pop().close()
        origin = _origin(url)
        line = self._idle_line(origin) if "range" in headers else None
        response: Any = None if line is None else line.ask(url, headers)
        if line is None or response is None:
            line = _Line()
        try:
            if response is None:
                response = line.open(self._client(), url, headers, timeout)
            yield response, line.read_into
        finally:
            # Also after GeneratorExit: a reader that has all its bytes doesn't ask for the end of the body.
            if line.is_idle():
                with self._lock:
                    self._idle[origin].append(line)
            else:
                line.close()

    def _idle_line(self, origin: _Origin) -> "_Line | None":
        with self._lock:
            while self._idle[origin]:
                line = self._idle[origin].pop()
                if time.monotonic() - line.last_read < _IDLE_SECONDS:
                    return line
                line.close()
        return None


class _Line:
    """A connection that the client opens. If the first body is large, the line takes the socket and keeps it."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._connection: HTTPConnection | None = None
        self._source: ReadInto
        self._pieces: Iterator[bytes]
        self._login: dict[str, str] = {}
        """The header that the client made from the name and password in the URL."""
        self._missing = -1
        """How many bytes of the body are still to come; -1 if the client reads it."""
        self.last_read = 0.0

    def open(self, client: Any, url: str, headers: Mapping[str, str], timeout: tuple[float, ...]) -> Any:
        """Send the first request through the client, and return its response.

        Raises:
            Exception: The client's own exceptions.
        """
        stream = client.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True)
        response = self._opened.enter_context(stream)
        sock, length = _socket_of(response), response.headers.get("content-length", "")
        if sock is None or not length.isdecimal() or int(length) < CHUNK_BYTES:
            self._source = reader_of(response.iter_raw())
        else:
            # The client's first piece holds everything that it has received already. Keep its iterator, because it
            # closes the connection when it is deleted.
            self._pieces = response.iter_raw()
            first_piece = reader_of(islice(self._pieces, 1))
            self._source = lambda buffer: first_piece(buffer) or sock.recv_into(buffer)
            self._missing = int(length)
            if not response.history:
                login, _, host = urlsplit(url).netloc.rpartition("@")
                sent = response.request.headers.items()
                self._login = {name: value for name, value in sent if login and name == "authorization"}
                self._connection = HTTPConnection(host)
                self._connection.auto_open = 0
                self._connection.sock = sock
        return response

    def ask(self, url: str, headers: Mapping[str, str]) -> DirectResponse | None:
        """Request another range. Return None, and close the connection, if there is no answer or another one."""
        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        try:
            assert self._connection is not None
            host = parts.netloc.rpartition("@")[2]
            self._connection.request("GET", target or "/", headers={"host": host, **headers, **self._login})
            answer = self._connection.getresponse()
        except (OSError, HTTPException):
            self.close()
            return None
        length = answer.headers.get("content-length", "")
        if answer.status != 206 or answer.chunked or not length.isdecimal():
            self.close()
            return None
        self._missing, self._source = int(length), answer.readinto
        return DirectResponse(url=url, headers=answer.headers)

    def read_into(self, buffer: memoryview) -> int:
        """Read the next bytes of the body.

        Raises:
            OSError: The connection broke.
            Exception: The client's own exceptions.
        """
        if self._missing <= 0:
            return self._source(buffer) if self._missing else 0
        try:
            count = self._source(buffer[: self._missing])
        except HTTPException as error:
            raise ConnectionError(f"the response is malformed ({error!r})") from error
        if not count:
            raise ConnectionError(f"the connection was closed {self._missing:,} bytes before the end of the response")
        self._missing -= count
        self.last_read = time.monotonic()
        return count

    def is_idle(self) -> bool:
        """Return True if another range can be requested over this connection."""
        return self._missing == 0 and self._connection is not None and self._connection.sock is not None

    def close(self) -> None:
        """Close the connection. One that only the client has used is returned to its pool."""
        self._opened.close()


def reader_of(pieces: Iterable[bytes]) -> ReadInto:
    """Return a function that reads a body from its pieces."""
    remaining_pieces = iter(pieces)
    unread = memoryview(b"")

    def read_into(buffer: memoryview) -> int:
        nonlocal unread
        while not unread:
            piece = next(remaining_pieces, None)
            if piece is None:
                return 0
            unread = memoryview(piece)
        count = min(len(buffer), len(unread))
        buffer[:count] = unread[:count]
        unread = unread[count:]
        return count

    return read_into


def _socket_of(response: Any) -> Any:
    """Return the socket that a response arrives on; None if its bytes are not the response's bytes."""
    stream = response.extensions.get("network_stream")
    sock = None if stream is None else stream.get_extra_info("socket")
    if sock is None or response.http_version != "HTTP/1.1" or "transfer-encoding" in response.headers:
        return None
    # Through an https proxy there is TLS within TLS, and this socket only decrypts the outer one.
    if response.url.scheme == "https" and getattr(sock, "server_hostname", None) != response.url.host:
        return None
    return sock


def _origin(url: str) -> _Origin:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _abandon(idle: Mapping[_Origin, Iterable[_Line]]) -> None:
    for lines in idle.values():
        _abandoned.extend(lines)
