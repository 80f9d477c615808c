"""A plain web server over a dict of files, as checkpoints lie on: Range and ETag, no listing. Standard library only."""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit


@dataclass(kw_only=True)
class Answer:
    """What is about to be sent; a fault changes it. `status` 0 hangs up without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(kw_only=True)
class Asked:
    """One request: its path, its Range header, and how many bytes of the body were sent before the client hung up."""

    path: str
    range: str | None
    headers: dict[str, str] = field(repr=False)
    sent: int = 0


class HttpFolder:
    """A context in which `files` are served at `folder.url`.

    Args:
        files: Content by path; may be changed while it runs.
        ranges: Whether Range is understood; otherwise every answer is the whole file, as of `python -m http.server`.

    Attributes:
        asked: All requests in the order of their arrival.
        fault: Called with each request and its answer, which it may change.
    """

    def __init__(self, files: dict[str, bytes], *, ranges: bool = True) -> None:
        self.files, self.ranges = files, ranges
        self.asked: list[Asked] = []
        self.fault: Callable[[Asked, Answer], None] = lambda asked, answer: None
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.folder = self
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bytes_sent(self, ending: str) -> int:
        """How many bytes of the bodies of files with this ending were sent."""
        return sum(asked.sent for asked in self.asked if asked.path.endswith(ending))

    def answer(self, asked: Asked) -> Answer:
        """The answer of a server without faults."""
        content = self.files.get(asked.path)
        if content is None:
            return Answer(status=404, headers={}, body=b"not here")
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.range or "")
        if not self.ranges or match is None:
            return Answer(status=200, headers=headers, body=content)
        start, stop = int(match[1]), min(int(match[2]) + 1, len(content))
        if start >= len(content):
            return Answer(status=416, headers=headers | {"Content-Range": f"bytes */{len(content)}"}, body=b"")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return Answer(status=206, headers=headers, body=content[start:stop])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    folder: HttpFolder


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_args: object) -> None:
        """Requests are in the folder's list, not on stderr."""

    def do_GET(self) -> None:
        folder = self.server.folder
        path = unquote(urlsplit(self.path).path).lstrip("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        headers["query"] = urlsplit(self.path).query
        asked = Asked(path=path, range=headers.get("range"), headers=headers)
        folder.asked.append(asked)
        answer = folder.answer(asked)
        folder.fault(asked, answer)
        if not answer.status:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
            self.send_header(name, value)
        if answer.headers.get("Content-Length", str(len(answer.body))) != str(len(answer.body)):
            self.close_connection = True
        try:
            self.end_headers()
            for start in range(0, len(answer.body), 1 << 16):
                piece = answer.body[start : start + (1 << 16)]
                # Counted before it goes out: a client that has it all may look at once.
                asked.sent += len(piece)
                self.wfile.write(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
