"""The study's side of the preloaded process (`layer_surgeon.study.preload_server`), which starts cells quickly."""

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

# On macOS, system libraries don't survive a fork; Windows has no fork.
SUPPORTED = sys.platform == "linux"
_TAIL = 300
# How long a process may take to end after it has closed its socket, before it is killed.
_SECONDS_TO_DIE = 30


class PreloadedCell:
    """A cell that the preloaded process was asked to run."""

    def __init__(self, cell_socket: socket.socket) -> None:
        """Wrap one end of a socket; only the preloaded process has the other, so it closes when that process dies."""
        self._socket = cell_socket

    def terminate(self) -> None:
        """Send SIGTERM to the cell's process."""
        with contextlib.suppress(OSError):  # The cell has already ended.
            self._socket.send(b"end")

    def wait(self) -> int | str | None:
        """Wait until the cell ends.

        Returns:
            The exit code, negative for a signal; or the reason why the cell was not started; or None if the preloaded
            process is dead.
        """
        with self._socket:
            try:
                answer = self._socket.recv(4096)
            except ConnectionResetError:
                # The cell ended before it read our request to end. Its answer follows this error.
                answer = self._socket.recv(4096)
        if not answer:
            return None
        outcome = json.loads(answer)
        return str(outcome["refused"]) if "refused" in outcome else int(outcome["code"])


class Preloaded:
    """Runs cells through the preloaded process, and reports if that process can't be used."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: socket.socket, output: IO[bytes]) -> None:
        """Wrap a process that `preloaded` started; `output` is the file that the process prints to."""
        self.process = process
        self._control = control
        self._output = output
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._reported = False

    def start(self, arguments: Sequence[str], log: Path) -> PreloadedCell | None:
        """Start a cell.

        Args:
            arguments: The arguments of `cells.main`.
            log: The file that the cell's output is appended to.

        Returns:
            The cell, or None if it must be started in another way.
        """
        if self._failure is not None:
            return None
        own_end, cell_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"arguments": list(arguments), "log": str(log)}).encode()
        try:
            with cell_end:
                socket.send_fds(self._control, [request], [cell_end.fileno()])
        except OSError:
            own_end.close()
            self._give_up(None)
            return None
        return PreloadedCell(own_end)

    def finish(self, cell: PreloadedCell) -> int | None:
        """Wait until a cell ends.

        Returns:
            The exit code, negative for a signal. None if the cell did not start or was ended with the preloaded
            process: it must then be started in another way.
        """
        outcome = cell.wait()
        if isinstance(outcome, int):
            return outcome
        self._give_up(outcome)
        return None

    def _give_up(self, reason: str | None) -> None:
        """Accept no more cells. Without a reason, the process is dead, and its last line of output is the reason."""
        with self._lock:
            self._failure = self._failure or reason or self._read_last_line()

    def _read_last_line(self) -> str:
        try:
            code = self.process.wait(_SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        output = os.pread(self._output.fileno(), os.fstat(self._output.fileno()).st_size, 0).decode(errors="replace")
        last_line = (output.strip().splitlines() or [""])[-1][-_TAIL:]
        return f"it ended with code {code}. {last_line}".strip()

    def news(self) -> str | None:
        """Return a message for the user if there is a new one."""
        if self._failure is None or self._reported:
            return None
        self._reported = True
        return (
            "The process that imports torch for all trainings can't be used, so each training imports it itself, which "
            f"takes a few seconds longer: {self._failure}"
        )


@contextlib.contextmanager
def preloaded(environment: Mapping[str, str]) -> Iterator[Preloaded]:
    """Start the preloaded process. On exit, end it together with the cells that are still running.

    Args:
        environment: Environment variables for all cells, in addition to those of this process.
    """
    control, process_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control, tempfile.TemporaryFile() as output:
        with process_end:
            process = start_python(
                "layer_surgeon.study.preload_server",
                [str(process_end.fileno())],
                environment=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[process_end.fileno()],
            )
        try:
            yield Preloaded(process, control, output)
        finally:
            process.terminate()
            process.wait()
