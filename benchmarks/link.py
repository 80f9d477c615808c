"""A Hub over a link of known latency and rate, in a separate process, and a log of all requests.

The Hub is the one of the tests. Its storage (the CDN, to which the Hub redirects requests for large files) is a server
made for measurements. It sends files with `sendfile`, and needs a tenth of a core for 16 connections at 50 MB/s. The
tests' CDN passes every byte through Python and needs a whole core for 800 MB/s: it would limit the client.
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
# A step takes 5 ms at 50 MB/s. That is small enough for an even rate, and 16 connections wake up 3,200 times per second
# instead of 12,800.
_STEP_BYTES = 256 << 10
# How far a sender may catch up at once after its client stopped reading: 80 ms at 50 MB/s, the bytes that TCP has in
# flight then.
_BURST_BYTES = 4_000_000
# By default, tens of MB wait in the buffer of each of 8 connections on loopback: 436 MB took 0.6 to 3 s, once 38 s.
# With this size, they take 0.3 s with less variation.
_SEND_BUFFER_BYTES = 64 << 10


@dataclass(kw_only=True)
class Exchange:
    """One request and its response. Times are seconds of the system's monotonic clock.

    Attributes:
        server: `hub` or `cdn`.
        method: The HTTP method.
        path: The path of the URL.
        range: The Range header, if there was one.
        client: The client's port, which identifies the connection; always 0 for the Hub.
        arrived: When the request arrived, before any delay. For the first request of a connection, when the connection
            was opened.
        ended: When the last byte of the response was passed to the network; always 0 for the Hub.
        body_bytes: Size of the response's body.
        num_bytes: Size of the response with its headers.
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
    """A context in which `endpoint` serves a checkpoint as the repo `REPO`.

    Args:
        checkpoint: The folder to serve.
        latency: Delay in seconds before each response, and for each new connection.
        bytes_per_second: Rate of one connection; None means unlimited.

    Attributes:
        endpoint: The value for HF_ENDPOINT.
        storage: The base URL of the files, to read them without the Hub.
    """

    def __init__(self, checkpoint: Path, *, latency: float = 0.0, bytes_per_second: float | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(child_pipe, checkpoint, latency, bytes_per_second), daemon=True, name="link"
        )
        self._child_pipe = child_pipe
        self.endpoint = self.storage = ""

    def __enter__(self) -> Self:
        self._process.start()
        # Close our copy of the child's end: if the child dies, `recv` then raises EOFError instead of waiting forever.
        self._child_pipe.close()
        self.endpoint, self.storage = self._pipe.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.close()

    def take_log(self) -> list[Exchange]:
        """Return the requests since the last call, in the order of arrival, and clear the log."""
        self._pipe.send("log")
        log: list[Exchange] = self._pipe.recv()
        return log


class _TimedHub(LoopbackHub):
    """The Hub of the tests, which also records when requests arrive."""

    def __init__(self, *, latency: float) -> None:
        super().__init__(latency=latency)
        self.arrivals: dict[int, float] = {}
        # Each connection has its own thread, and its first request waited for the delay of the connection.
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
        """Ignore clients that hang up."""


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
        """Print nothing on stderr; requests are in `log`."""

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
            self._respond(exchange)
        finally:
            exchange.ended = time.monotonic()

    def _respond(self, exchange: Exchange) -> None:
        time.sleep(self.server.latency)
        # Only use the name, so that no path can refer to a file outside of the folder.
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
            # BaseHTTPRequestHandler keeps the headers in this list until end_headers sends them.
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
                # Send the bytes when the link would have transferred them.
                due += count / rate
                now = time.monotonic()
                time.sleep(max(due - now, 0.0))
                due = max(due, now - _BURST_BYTES / rate)
            remaining = count
            while remaining:
                sent = os.sendfile(self.connection.fileno(), file, start + exchange.body_bytes, remaining)
                if not sent:
                    raise OSError(f"a file ends before byte {start + length}")
                remaining -= sent
                # Count each part, in case the client hangs up.
                exchange.body_bytes += sent
                exchange.num_bytes += sent


def _serve(pipe: Connection, checkpoint: Path, latency: float, bytes_per_second: float | None) -> None:
    storage = _Storage(checkpoint, latency, bytes_per_second)
    with _TimedHub(latency=latency) as hub, storage:
        threading.Thread(target=storage.serve_forever, args=(0.02,), daemon=True).start()
        # Use a different host name for the CDN, as in the tests: huggingface_hub up to 1.31 ignores the port when it
        # compares hosts.
        hub.router.cdn_url = f"http://localhost:{storage.server_port}"
        hub.add_repo(REPO, checkpoint)
        pipe.send((hub.endpoint, f"http://127.0.0.1:{storage.server_port}"))
        while True:
            try:
                pipe.recv()
            except EOFError:
                break
            # A client may have all its bytes, and ask for the log, before the end of the response is recorded.
            while any(not exchange.ended for exchange in storage.log):
                time.sleep(0.001)
            pipe.send(sorted([*hub.exchanges(), *storage.log], key=lambda exchange: exchange.arrived))
            hub.reset_log()
            hub.arrivals.clear()
            storage.log.clear()
        storage.shutdown()
