"""A Hub behind a link of known latency and rate, in a process of its own, and the log of what went over it.

The Hub is the one of the tests. Its storage (the CDN, which every large file is redirected to) is a server made for
measuring: it hands files to the socket with `sendfile`, so that 16 connections at 50 MB/s cost it a tenth of a core;
the tests' CDN, which passes every byte through Python, needs a whole core for 800 MB/s and would be measured instead of
its client.
"""

import multiprocessing
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.support.hub_faults import Request
from tests.support.loopback_hub import LoopbackHub

REPO = "benchmarks/donor"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
# A step takes 5 ms at 50 MB/s: fine enough to be even, and 16 connections wake up 3,200 times a second, not 12,800.
_STEP_BYTES = 256 << 10
# What a sender may catch up with at once after its client did not read: 80 ms of 50 MB/s, what TCP has under way then.
_BURST_BYTES = 4_000_000
# With the system's own choice, tens of MB wait in each of 8 connections on loopback: 436 MB took 0.6 to 3 s, once 38 s;
# with this, 0.3 s, and more evenly.
_SEND_BUFFER_BYTES = 64 << 10


@dataclass(kw_only=True)
class Exchange:
    """One request and its answer. Times are those of the system's monotonic clock, in seconds.

    Attributes:
        server: `hub` or `cdn`.
        range: The Range header, if there was one.
        client: The port that the request came from: one for each connection; 0 on the Hub, which does not say.
        arrived: When the request had arrived, before any delay; of a connection's first, when that was opened.
        ended: When the last byte of the answer was handed to the network; 0 on the Hub, which does not say.
        body_bytes: Bytes of the answer's body.
        num_bytes: The same with the answer's headers.
    """

    server: str
    method: str
    path: str
    range: str | None
    client: int = 0
    arrived: float = 0.0
    ended: float = 0.0
    body_bytes: int = 0
    num_bytes: int = 0


class Link:
    """A context in which a checkpoint can be had from `endpoint` as the repo `REPO`.

    Args:
        checkpoint: The folder that is served.
        latency: Seconds before each answer, and before each new connection's first.
        bytes_per_second: What one connection carries; None is as fast as it can.

    Attributes:
        endpoint: As HF_ENDPOINT takes it.
        storage: The URL that a file's name can be appended to, to read it without asking the Hub.
    """

    def __init__(self, checkpoint: Path, *, latency: float = 0.0, bytes_per_second: float | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, checkpoint, latency, bytes_per_second), daemon=True, name="link"
        )
        self._other = other
        self.endpoint = self.storage = ""

    def __enter__(self) -> Self:
        self._process.start()
        # With only the child holding it, its end shows here as an end of file instead of a wait for ever.
        self._other.close()
        self.endpoint, self.storage = self._pipe.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.close()

    def take_log(self) -> list[Exchange]:
        """What was asked since the last call, in the order of arrival; it is forgotten with that."""
        self._pipe.send("log")
        log: list[Exchange] = self._pipe.recv()
        return log


class _TimedHub(LoopbackHub):
    """Notes when requests arrive, which the tests' Hub need not know."""

    def __init__(self, *, latency: float) -> None:
        super().__init__(latency=latency)
        self.arrivals: dict[int, float] = {}
        # A connection is a thread, and its first request waited for the delay of the connection.
        self._thread = threading.local()

    def log(self, request: Request) -> int:
        opening = 0.0 if hasattr(self._thread, "open") else self.latency
        self._thread.open = True
        self.arrivals[id(request)] = time.monotonic() - opening
        return super().log(request)

    def exchanges(self) -> list[Exchange]:
        return [
            Exchange(
                server=request.server,
                method=request.method,
                path=request.path,
                range=request.range,
                arrived=self.arrivals[id(request)],
                body_bytes=request.body_bytes,
                num_bytes=request.num_bytes,
            )
            for request in self.requests
        ]


class _Storage(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, latency: float, bytes_per_second: float | None) -> None:
        super().__init__(("127.0.0.1", 0), _StorageHandler)
        self.folder, self.latency, self.bytes_per_second = folder, latency, bytes_per_second
        self.log: list[Exchange] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class _StorageHandler(BaseHTTPRequestHandler):
    server: _Storage
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "link", ""
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self.opened: float | None = time.monotonic()
        time.sleep(self.server.latency)

    def log_message(self, *_args: object) -> None:
        """Requests are in the log, not on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        arrived = time.monotonic() if self.opened is None else self.opened
        self.opened = None
        path = unquote(urlsplit(self.path).path)
        exchange = Exchange(
            server="cdn",
            method=self.command,
            path=path,
            range=self.headers.get("Range"),
            client=self.client_address[1],
            arrived=arrived,
        )
        self.server.log.append(exchange)
        try:
            self._hand_out(exchange)
        finally:
            exchange.ended = time.monotonic()

    def _hand_out(self, exchange: Exchange) -> None:
        time.sleep(self.server.latency)
        # Only names count: whatever the path before it, no file outside of the folder can be meant.
        with open(self.server.folder / Path(exchange.path).name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, stop = 0, size
            match = _RANGE.fullmatch(exchange.range or "")
            if match:
                start, stop = int(match[1]), min(int(match[2]) + 1, size)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{size:032x}"')
            # BaseHTTPRequestHandler keeps the head in this list until end_headers sends it.
            exchange.num_bytes = sum(map(len, getattr(self, "_headers_buffer", []))) + 2
            self.end_headers()
            if self.command == "GET":
                self._send(file.fileno(), start, stop - start, exchange)

    def _send(self, file: int, start: int, length: int, exchange: Exchange) -> None:
        rate = self.server.bytes_per_second
        step = _STEP_BYTES if rate else length
        due = time.monotonic()
        while exchange.body_bytes < length:
            count = min(step, length - exchange.body_bytes)
            if rate:
                # Bytes leave when the link would have carried them, not before.
                due += count / rate
                now = time.monotonic()
                time.sleep(max(due - now, 0.0))
                due = max(due, now - _BURST_BYTES / rate)
            left = count
            while left:
                sent = os.sendfile(self.connection.fileno(), file, start + exchange.body_bytes, left)
                if not sent:
                    raise OSError(f"a file ends before byte {start + length}")
                left -= sent
                # Counted as it goes: what a client that hangs up got is known.
                exchange.body_bytes += sent
                exchange.num_bytes += sent


def _serve(pipe: Connection, checkpoint: Path, latency: float, bytes_per_second: float | None) -> None:
    storage = _Storage(checkpoint, latency, bytes_per_second)
    with _TimedHub(latency=latency) as hub, storage:
        threading.Thread(target=storage.serve_forever, args=(0.02,), daemon=True).start()
        # Another host name than the Hub's, as in the tests: huggingface_hub up to 1.31 takes ports for one host.
        hub.router.cdn_url = f"http://localhost:{storage.server_port}"
        hub.add_repo(REPO, checkpoint)
        pipe.send((hub.endpoint, f"http://127.0.0.1:{storage.server_port}"))
        while True:
            try:
                pipe.recv()
            except EOFError:
                break
            # A client that has all its bytes may ask before the answer's end was noted.
            while any(not exchange.ended for exchange in storage.log):
                time.sleep(0.001)
            pipe.send(sorted([*hub.exchanges(), *storage.log], key=lambda exchange: exchange.arrived))
            hub.reset_log()
            hub.arrivals.clear()
            storage.log.clear()
        storage.shutdown()
