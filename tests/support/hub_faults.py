"""Faults that a loopback Hub can be told to make: small objects, each of which spoils one prepared answer.

A fault is a function that changes the `Reply` that was about to be sent. Several may apply to one request, in the
order in which they were added, so that `[header("ETag", None), cut(after=10)]` composes.
"""

import gzip
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from time import time

from tests.support.hub_repos import READ_BYTES, Content


@dataclass(kw_only=True)
class Request:
    """One request as the servers log it. Byte counts are those of the answer.

    Attributes:
        server: `hub` or `cdn`.
        path: The decoded path, without the query.
        range: The Range header, if there was one.
        authorized: Whether an Authorization header came along.
        body_bytes: Bytes of the answer's body that were handed to the network.
        num_bytes: The same with the answer's headers.
        faults: The names of the faults that were applied.
    """

    server: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    range: str | None
    authorized: bool
    status: int = 0
    body_bytes: int = 0
    num_bytes: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Reply:
    """An answer that is about to be sent, and how to send it.

    Attributes:
        chunks: Makes the body's bytes.
        length: What Content-Length says; None leaves it out, and the connection's end is the body's.
        content: The whole file that is being served, if it is one.
        start: Where in `content` the body begins.
        reset: Break the connection (RST) before anything is sent.
        cut_after: Close the connection after this many bytes of the body.
        stall: Wait this many seconds, after `stall_after` bytes of the body (None: before the headers).
        drip: Send pieces of (bytes, with a pause of seconds before each).
    """

    status: int
    headers: dict[str, str]
    chunks: Callable[[], Iterator[bytes]]
    length: int | None
    content: Content | None = None
    start: int = 0
    reset: bool = False
    cut_after: int | None = None
    stall: float = 0.0
    stall_after: int | None = None
    drip: tuple[int, float] | None = None

    def set_body(self, body: bytes) -> None:
        """Replace the body, and say its true length."""
        self.chunks = lambda: iter([body])
        self.length = len(body)


Fault = Callable[[Request, Reply], None]


class FaultPlan:
    """The faults that wait for their requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []

    def add(
        self, *faults: Fault, path: str = "", method: str = "", server: str = "", times: int = 1, skip: int = 0
    ) -> None:
        """Apply `faults` to the next `times` requests that match, after letting `skip` of them pass.

        Args:
            faults: What to do, in this order.
            path: A regular expression that is searched for in the request's path.
            method: The method; empty matches all.
            server: `hub` or `cdn`; empty matches both.
            times: How many requests are spoiled; -1 spoils all.
            skip: How many matching requests pass first.
        """
        with self._lock:
            self._rules.append(_Rule(list(faults), re.compile(path), method, server, times, skip))

    def clear(self) -> None:
        """Forget all faults that are still waiting."""
        with self._lock:
            self._rules.clear()

    def apply(self, request: Request, reply: Reply) -> None:
        """Spoil `reply` as planned for `request`."""
        with self._lock:
            due = [fault for rule in self._rules for fault in rule.take(request)]
        for fault in due:
            request.faults.append(fault.__qualname__.partition(".")[0])
            fault(request, reply)


@dataclass
class _Rule:
    faults: list[Fault]
    path: re.Pattern[str]
    method: str
    server: str
    times: int
    skip: int

    def take(self, request: Request) -> list[Fault]:
        if self.method not in ("", request.method) or self.server not in ("", request.server):
            return []
        if self.times == 0 or not self.path.search(request.path):
            return []
        if self.skip > 0:
            self.skip -= 1
            return []
        self.times -= 1 if self.times > 0 else 0
        return self.faults


def ignore_range(*, with_length: bool = True, gzipped: bool = False) -> Fault:
    """200 with the whole file, plain or gzip, with or without Content-Length."""

    def apply(_request: Request, reply: Reply) -> None:
        content = reply.content
        assert content is not None, "ignore_range fits only requests for files"
        reply.status = 200
        reply.headers.pop("Content-Range", None)
        if gzipped:
            reply.headers["Content-Encoding"] = "gzip"
            reply.set_body(gzip.compress(content.whole(), mtime=0))
        else:
            reply.chunks = lambda: content.read(0, content.size)
            reply.length = content.size
        if not with_length:
            reply.length = None

    return apply


def encode_body() -> Fault:
    """206 whose body is gzip, with the Content-Encoding that says so."""

    def apply(_request: Request, reply: Reply) -> None:
        reply.headers["Content-Encoding"] = "gzip"
        reply.set_body(gzip.compress(b"".join(reply.chunks()), mtime=0))

    return apply


def header(name: str, value: str | None) -> Fault:
    """Another value of a header; None leaves it out. Works for Content-Range, ETag, X-Repo-Commit, X-Linked-Size."""

    def apply(_request: Request, reply: Reply) -> None:
        reply.headers.pop(name, None)
        if value is not None:
            reply.headers[name] = value

    return apply


def shift_range(by: int) -> Fault:
    """A Content-Range, and bytes, that begin `by` bytes later than asked for."""

    def apply(_request: Request, reply: Reply) -> None:
        content, length = reply.content, reply.length
        assert content is not None
        assert length is not None
        start = reply.start + by
        reply.headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{content.size}"
        reply.chunks = lambda: content.read(start, length)

    return apply


def resize_body(by: int, *, with_length: bool = True) -> Fault:
    """A body that is `by` bytes longer (or shorter, if negative) than Content-Range says; its length is sent true."""

    def apply(_request: Request, reply: Reply) -> None:
        body = b"".join(reply.chunks())
        reply.set_body(body + bytes(by) if by > 0 else body[:by])
        if not with_length:
            reply.length = None

    return apply


def wrong_bytes() -> Fault:
    """Bytes of the right number that are not the file's."""

    def apply(_request: Request, reply: Reply) -> None:
        good = reply.chunks
        reply.chunks = lambda: (bytes(byte ^ 0xFF for byte in chunk) for chunk in good())

    return apply


def cut(after: int) -> Fault:
    """The connection closes after `after` bytes of the body."""
    return lambda _request, reply: setattr(reply, "cut_after", after)


def reset() -> Fault:
    """The connection breaks before the headers."""
    return lambda _request, reply: setattr(reply, "reset", True)


def stall(seconds: float, *, after: int | None = None) -> Fault:
    """Nothing comes for `seconds`: before the headers, or after `after` bytes of the body."""

    def apply(_request: Request, reply: Reply) -> None:
        reply.stall, reply.stall_after = seconds, after

    return apply


def drip(num_bytes: int, pause: float) -> Fault:
    """The body comes in pieces of `num_bytes`, with `pause` seconds before each."""
    return lambda _request, reply: setattr(reply, "drip", (num_bytes, pause))


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    """An error status. Underscores in the names of `headers` stand for hyphens."""

    def apply(_request: Request, reply: Reply) -> None:
        reply.status, reply.content = code, None
        for name in ("Content-Range", "ETag", "Location"):
            reply.headers.pop(name, None)
        reply.headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        reply.set_body(body)

    return apply


def rate_limited(seconds: int, *, form: str = "seconds") -> Fault:
    """429, with the wait as Retry-After in `seconds`, as a `date`, or in the `ratelimit` header."""
    if form == "seconds":
        return status(429, Retry_After=str(seconds))
    if form == "ratelimit":
        return status(
            429, RateLimit=f'"resolvers";r=0;t={seconds}', RateLimit_Policy='"fixed window";"resolvers";q=3000;w=300'
        )

    # A date has whole seconds: round up, so that it never lies in the past when it is sent.
    return lambda request, reply: status(429, Retry_After=formatdate(time() + seconds + 1, usegmt=True))(request, reply)


def redirect(location: str | None = None) -> Fault:
    """302 to `location`; None is the request's own path, without end."""

    def apply(request: Request, reply: Reply) -> None:
        status(302, Location=location or request.path)(request, reply)

    return apply


def call(action: Callable[[], object]) -> Fault:
    """Run `action` before the answer goes out: move `main`, expire signatures, ..."""
    return lambda _request, _reply: (action(), None)[1]


def pieces(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """`chunks` cut into pieces of at most `size` bytes."""
    for chunk in chunks:
        for position in range(0, len(chunk), min(size, READ_BYTES)):
            yield chunk[position : position + min(size, READ_BYTES)]
