"""The process that cells are forked from: `python -m layer_surgeon.study.preload_server SOCKET`.

Importing torch, transformers and other libraries takes one core 5 to 8 s, almost as long as a short training. So this
process imports them once, computes nothing, and is forked for every cell. In the child, everything is already imported;
in all other respects it is a fresh process. `preload_client` is the study's side of this. SOCKET is the number of the
descriptor that leads to the study.

For each cell, the study sends {"arguments", "log"} together with one end of a socket. Over that socket it receives
{"code"} when the cell ends, or {"refused"}, and it can ask for the cell to be ended. When the study closes SOCKET or
dies, this process ends; when this process ends, its cells end too.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

# Imports must not leave anything that breaks a child. Arrow's allocator would start a thread. Asking CUDA whether a GPU
# is available makes CUDA unusable in every child; asking NVML, the driver's management library, does not.
_WHILE_IMPORTING = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class _Server:
    """The preloaded process: forks a child for each cell, and reports how it ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # Ctrl-C is for the study and the cells. This process ends when the study closes its end of the socket.
        self._interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._cells: dict[int, socket.socket] = {}
        self._heard: set[int] = set()
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def run(self, refusal: str | None) -> list[str] | None:
        """Serve until the study has ended.

        Args:
            refusal: The reason why no child can run a cell, or None.

        Returns:
            In a child, the arguments of its cell. In the preloaded process, None.
        """
        while True:
            open_ends = {end: pid for pid, end in self._cells.items() if pid not in self._heard}
            ready, _, _ = select.select([self._control, self._wake, *open_ends], [], [])
            if self._wake in ready:
                self._wake.recv(4096)
                self._reap()
            for end in ready:
                # Skip children that were just reaped: another process may have their number by now.
                if open_ends.get(end) in self._cells:
                    end.recv(16)
                    self._heard.add(open_ends[end])
                    os.kill(open_ends[end], signal.SIGTERM)
            if self._control in ready:
                message, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
                if not message:
                    return None
                request = json.loads(message)
                if self._fork(socket.socket(fileno=descriptors[0]), refusal):
                    self._become_child(request["log"])
                    return list(request["arguments"])

    def _reap(self) -> None:
        for pid in list(self._cells):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._heard.discard(pid)
                _answer(self._cells.pop(pid), {"code": os.waitstatus_to_exitcode(status)})

    def _fork(self, cell_socket: socket.socket, refusal: str | None) -> bool:
        """Fork, and return whether this is the child."""
        try:
            # A fork copies the locks that other threads hold, but not the threads that would release them.
            threads = len(list(Path("/proc/self/task").iterdir()))
            if threads > 1:
                refusal = f"it has {threads} threads, and only a process with one thread can be forked safely."
            if refusal is not None:
                _answer(cell_socket, {"refused": refusal})
                return False
            sys.stdout.flush()
            sys.stderr.flush()
            parent = os.getpid()
            pid = os.fork()
        except OSError as error:
            _answer(cell_socket, {"refused": f"no process could be created ({error})."})
            return False
        if pid:
            self._cells[pid] = cell_socket
            return False
        self._prctl(_DIES_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # The parent died before prctl took effect.
            os._exit(1)
        cell_socket.close()
        return True

    def _become_child(self, log: str) -> None:
        """Give the child its own signal handlers and output file, and close the sockets of the parent."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._interrupt)
        for end in (self._control, self._wake, self._waker, *self._cells.values()):
            end.close()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for standard_descriptor in (1, 2):
            os.dup2(descriptor, standard_descriptor)
        os.close(descriptor)


def _answer(cell_socket: socket.socket, content: dict[str, Any]) -> None:
    with cell_socket, contextlib.suppress(OSError):  # The study may no longer listen.
        cell_socket.send(json.dumps(content).encode())


def _find_refusal() -> str | None:
    """Fork once, as a test.

    This has two purposes. Numeric libraries have started threads, which they end at the first fork and restart when
    they need them. And the child checks whether it could use an accelerator, which it can't if this process has
    already initialised one.

    Returns:
        The reason why a child could not run a cell, or None.
    """
    import torch

    pid = os.fork()
    if not pid:
        unusable = [name for name in ("cuda", "xpu") if getattr(torch, name)._is_in_bad_fork()]
        os._exit(int(any(getattr(torch, name).is_available() for name in unusable)))
    _, status = os.waitpid(pid, 0)
    if status:
        return "the accelerator can't be used in a process that was forked from it."
    return None


def main(arguments: list[str]) -> int:
    """Import the libraries, then serve; in a child, run the cell.

    A child returns from `run` and ends like any other Python process, including the exit handlers of libraries.

    Returns:
        The exit code.
    """
    server = _Server(socket.socket(fileno=int(arguments[0])))
    environment = dict(os.environ)
    os.environ.update(_WHILE_IMPORTING)
    # Import after creating the server, which ignores Ctrl-C. `python -X importtime` shows that a cell then has 50 ms of
    # imports left.
    from layer_surgeon.study import cells

    os.environ.clear()
    os.environ.update(environment)
    # All children share the objects that exist now. A garbage collection would touch, and therefore copy, all of them.
    gc.freeze()
    cell_arguments = server.run(_find_refusal())
    if cell_arguments is None:
        return 0
    sys.argv = [cells.__file__, *cell_arguments]
    return cells.main(cell_arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
