"""A Hub and its CDN on two loopback ports, for tests that must not meet the real ones. Standard library only."""

import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.hub_faults import FaultPlan, Reply, Request, pieces
from tests.support.hub_repos import READ_BYTES, FileSource, Repo
from tests.support.hub_routes import Router

_WINDOW_SECONDS = 300
_REQUESTS_PER_WINDOW = 3000


class LoopbackHub:
    """A context in which a Hub answers at `hub.endpoint`; what it and its CDN were asked is in `hub.requests`.

    Leaving the context fails if an access token ever reached the CDN.

    Args:
        latency: Seconds before each answer, and before each new connection's first: half of the network's round trip
            is not modelled apart from the other.
        bytes_per_second: How fast a connection carries bodies; None is as fast as it can.

    Attributes:
        endpoint: The Hub's URL, as HF_ENDPOINT takes it.
        requests: All requests to both servers since the last `reset_log`, in the order of their arrival.
        faults: The faults that are planned.
        router: The switches of the two servers: `metadata_api`, `small_redirects`, `signature_seconds`, ...
    """

    def __init__(self, *, latency: float = 0.0, bytes_per_second: float | None = None) -> None:
        self.latency, self.bytes_per_second = latency, bytes_per_second
        self.requests: list[Request] = []
        self.faults = FaultPlan()
        self.router = Router()
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._leaks: list[str] = []
        self._servers = [_Server(self, role) for role in ("hub", "cdn")]
        self.endpoint = f"http://127.0.0.1:{self._servers[0].server_port}"
        # Another host name: huggingface_hub up to 1.31 takes another port of the Hub's host for the Hub.
        self.cdn_endpoint = f"http://localhost:{self._servers[1].server_port}"
        self.router.cdn_url = self.cdn_endpoint

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        with self._lock:
            for connection in tuple(self.connections):
                _hang_up(connection)
        if self._leaks and error is None:
            raise AssertionError(f"An Authorization header reached the CDN: {self._leaks}")

    def add_repo(
        self,
        repo_id: str,
        files: "dict[str, FileSource] | Path",
        kind: str = "models",
        *,
        gated: bool | str = False,
        private: bool = False,
        accepted: "set[str] | tuple[str, ...]" = (),
    ) -> Repo:
        """Add a repo with one commit on `main`, and return it; `repo.commit(...)` moves `main` on."""
        repo = Repo(repo_id, kind, gated=gated, private=private, accepted=set(accepted))
        repo.commit(files)
        self.router.repos[kind, repo_id] = repo
        return repo

    def expire_signatures(self) -> None:
        """Make the CDN refuse all the URLs that were signed until now."""
        self.router.expire_signatures()

    def reset_log(self) -> None:
        """Forget the requests until now; a token that reached the CDN is not forgotten."""
        with self._lock:
            self.requests.clear()

    def count(self, method: str = "", path: str = "", server: str = "") -> int:
        """How many logged requests have this method, server, and this text in their path (empty: any)."""
        with self._lock:
            return sum(
                method in ("", request.method) and server in ("", request.server) and path in request.path
                for request in self.requests
            )

    def bytes_sent(self, server: str | None = None) -> int:
        """Bytes of all logged answers, headers included, of one server or of both."""
        with self._lock:
            return sum(request.num_bytes for request in self.requests if server in (None, request.server))

    def log(self, request: Request) -> int:
        """Note a request; its position since the start, for the rate limit's headers."""
        with self._lock:
            self.requests.append(request)
            if request.server == "cdn" and request.authorized:
                self._leaks.append(f"{request.method} {request.path}")
            return len(self.requests)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Many tests and 8 connections at once: the default queue of 5 drops some, and each then waits a second.
    request_queue_size = 128

    def __init__(self, hub: LoopbackHub, role: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.role = hub, role

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""
        if not self.hub.closing.is_set():
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "loopback", ""
    # Without it, 100 reads over two hops took 5.2 s instead of 0.07 s.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.hub.connections.add(self.connection)
        self._pause(self.server.hub.latency)

    def finish(self) -> None:
        self.server.hub.connections.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError, ValueError):
            # The client hung up, or the hub closes.
            self.close_connection = True

    def log_message(self, *_args: object) -> None:
        """Requests are in the hub's log, not on stderr."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            server=self.server.role,
            method=self.command,
            path=unquote(url.path),
            query=dict(parse_qsl(url.query)),
            headers=headers,
            range=headers.get("range"),
            authorized="authorization" in headers,
        )
        body = self.rfile.read(int(headers.get("content-length", 0)))
        position = hub.log(request)
        reply = hub.router.answer(request, url.path, body)
        if request.server == "hub":
            left = max(_REQUESTS_PER_WINDOW - position, 1)
            reply.headers["RateLimit"] = f'"resolvers";r={left};t={_WINDOW_SECONDS}'
            policy = f'"fixed window";"resolvers";q={_REQUESTS_PER_WINDOW};w={_WINDOW_SECONDS}'
            reply.headers["RateLimit-Policy"] = policy
        hub.faults.apply(request, reply)
        self._pause(hub.latency)
        self._send(request, reply)

    def _send(self, request: Request, reply: Reply) -> None:
        if reply.reset:
            self._break()
            return
        if reply.stall and reply.stall_after is None:
            self._pause(reply.stall)
        request.status = reply.status
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.length is not None:
            self.send_header("Content-Length", str(reply.length))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        # BaseHTTPRequestHandler keeps the head in this list until end_headers sends it.
        request.num_bytes += sum(map(len, getattr(self, "_headers_buffer", []))) + 2
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(request, reply)

    def _send_body(self, request: Request, reply: Reply) -> None:
        size, pause = reply.drip or (READ_BYTES, 0.0)
        rate = self.server.hub.bytes_per_second
        started = monotonic()
        limits = [limit for limit in (reply.cut_after, reply.stall_after) if limit is not None]
        for piece in pieces(reply.chunks(), min([size, 64 << 10] if rate else [size])):
            self._pause(pause)
            for part in _split_at(piece, [limit - request.body_bytes for limit in limits]):
                # Counted before it goes out: a client that has it all may look at the log at once.
                request.body_bytes += len(part)
                request.num_bytes += len(part)
                self.wfile.write(part)
                if rate:
                    self._pause(started + request.body_bytes / rate - monotonic())
                if request.body_bytes == reply.stall_after:
                    self._pause(reply.stall)
                if request.body_bytes == reply.cut_after:
                    self.close_connection = True
                    return

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and self.server.hub.closing.wait(seconds):
            self.close_connection = True
            raise ConnectionAbortedError("the loopback Hub closes")

    def _break(self) -> None:
        """RST instead of FIN: a lingering time of zero drops what was not sent."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def _split_at(piece: bytes, positions: list[int]) -> list[bytes]:
    cuts = [0, *sorted(position for position in positions if 0 < position < len(piece)), len(piece)]
    return [piece[start:stop] for start, stop in pairwise(cuts)]


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # The client was faster.
        return
