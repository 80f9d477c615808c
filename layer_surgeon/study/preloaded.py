"""Cells started from a preloaded process (`layer_surgeon.study.preload`): the side of the study."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from layer_surgeon._python import start_python

# Elsewhere system libraries do not bear a fork (macOS), or there is none (Windows).
SUPPORTED = sys.platform == "linux"
_TAIL = 300
# Of a process that has closed its end of a socket; then it is killed.
_SECONDS_TO_DIE = 30


class PreloadedCell:
    """A cell that was asked for."""

    def __init__(self, talk: socket.socket) -> None:
        """Its other end is with the preloaded process alone, so that it closes when that dies."""
        self._talk = talk

    def terminate(self) -> None:
        """Send it SIGTERM."""
        with contextlib.suppress(OSError):  # It is over already.
            self._talk.send(b"end")

    def wait(self) -> int | str | None:
        """Wait for its end.

        Returns:
            Its exit code, negative for a signal; or why it was not started; None: the preloaded process is dead.
        """
        with self._talk:
            try:
                answer = self._talk.recv(4096)
            except ConnectionResetError:
                # It ended by itself before it was told to; what was said of that comes after this error.
                answer = self._talk.recv(4096)
        if not answer:
            return None
        found = json.loads(answer)
        return str(found["refused"]) if "refused" in found else int(found["code"])


class Preloaded:
    """Has cells run by a preloaded process, and says when that can't be done."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: socket.socket, output: IO[bytes]) -> None:
        """As `preloaded` makes it; `output` is the file that it prints to."""
        self.process = process
        self._control = control
        self._output = output
        self._lock = threading.Lock()
        self._why: str | None = None
        self._told = False

    def start(self, arguments: Sequence[str], log: Path) -> PreloadedCell | None:
        """Begin a cell.

        Args:
            arguments: Of `cells.main`.
            log: What it prints is appended to this file.

        Returns:
            The cell; None: it must be started otherwise.
        """
        if self._why is not None:
            return None
        talk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"arguments": list(arguments), "log": str(log)}).encode()
        try:
            with theirs:
                socket.send_fds(self._control, [request], [theirs.fileno()])
        except OSError:
            talk.close()
            self._lose(None)
            return None
        return PreloadedCell(talk)

    def finish(self, cell: PreloadedCell) -> int | None:
        """Wait for a cell.

        Returns:
            Its exit code, negative for a signal; None: it did not start, or was ended with the preloaded process, and
            must be started otherwise.
        """
        end = cell.wait()
        if isinstance(end, int):
            return end
        self._lose(end)
        return None

    def _lose(self, why: str | None) -> None:
        """Take no more cells. None: it is dead, and what it said last is the reason."""
        with self._lock:
            self._why = self._why or why or self._last_words()

    def _last_words(self) -> str:
        try:
            code = self.process.wait(_SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        said = os.pread(self._output.fileno(), os.fstat(self._output.fileno()).st_size, 0).decode(errors="replace")
        last = (said.strip().splitlines() or [""])[-1][-_TAIL:]
        return f"it ended with code {code}. {last}".strip()

    def news(self) -> str | None:
        """What a person should know and was not told yet."""
        if self._why is None or self._told:
            return None
        self._told = True
        return (
            "The process that imports torch for all trainings can't be used, so that each imports it itself, which "
            f"takes some seconds more: {self._why}"
        )


@contextlib.contextmanager
def preloaded(environment: Mapping[str, str]) -> Iterator[Preloaded]:
    """Start to import; at the end, end the process and with it the cells that are under way.

    Args:
        environment: Of all cells, on top of this process's.
    """
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control, tempfile.TemporaryFile() as output:
        with theirs:
            process = start_python(
                "layer_surgeon.study.preload",
                [str(theirs.fileno())],
                environment=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        try:
            yield Preloaded(process, control, output)
        finally:
            process.terminate()
            process.wait()
