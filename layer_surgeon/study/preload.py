"""The process that cells are forked from: `python -m layer_surgeon.study.preload SOCKET`.

To import torch, transformers and the rest takes a core 5 to 8 s, and a short training not much more. So one process
imports, computes nothing, and is forked for every cell: the child finds everything imported, and is a fresh process in
all else. `preloaded` is the side of the study; SOCKET is the number of the descriptor that leads there.

The study sends {"arguments", "log"} with one end of a socket for this cell. On that it hears {"code"} at the cell's
end, or {"refused"}, and can say that the cell is to end. When the study closes SOCKET, or dies, the process ends; when
the process ends, so do its cells.
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

# Neither may leave behind what a child can't use. Arrow's allocator starts a thread. Asking CUDA whether it is there
# makes it unusable in every child, whereas NVML, the driver's library for that, can be asked.
_WHILE_IMPORTING = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class _Server:
    """The preloaded process: forks a child for each cell, and reports how it ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # The study's own Ctrl-C is for it and the cells; this one ends when the study closes its end.
        self._interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._cells: dict[int, socket.socket] = {}
        self._heard: set[int] = set()
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def run(self, unsound: str | None) -> list[str] | None:
        """Serve until the study is gone.

        Args:
            unsound: Why no child can do a cell's work, or None.

        Returns:
            In a child, its arguments, for it to go on with; in the preloaded process, at the end, None.
        """
        while True:
            open_ends = {end: pid for pid, end in self._cells.items() if pid not in self._heard}
            ready, _, _ = select.select([self._control, self._wake, *open_ends], [], [])
            if self._wake in ready:
                self._wake.recv(4096)
                self._reap()
            for end in ready:
                # Only what was not reaped: its number may be another process' by now.
                if open_ends.get(end) in self._cells:
                    end.recv(16)
                    self._heard.add(open_ends[end])
                    os.kill(open_ends[end], signal.SIGTERM)
            if self._control in ready:
                message, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
                if not message:
                    return None
                request = json.loads(message)
                if self._fork(socket.socket(fileno=descriptors[0]), unsound):
                    self._become_child(request["log"])
                    return list(request["arguments"])

    def _reap(self) -> None:
        for pid in list(self._cells):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._heard.discard(pid)
                _answer(self._cells.pop(pid), {"code": os.waitstatus_to_exitcode(status)})

    def _fork(self, talk: socket.socket, unsound: str | None) -> bool:
        """Whether this is the child."""
        try:
            # A thread does not come along into the child, but the locks that it holds do.
            threads = len(list(Path("/proc/self/task").iterdir()))
            if threads > 1:
                unsound = f"{threads} threads run where there must be one."
            if unsound is not None:
                _answer(talk, {"refused": unsound})
                return False
            sys.stdout.flush()
            sys.stderr.flush()
            parent = os.getpid()
            pid = os.fork()
        except OSError as error:
            _answer(talk, {"refused": f"no process could be made ({error})."})
            return False
        if pid:
            self._cells[pid] = talk
            return False
        self._prctl(_DIES_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # It died before it could take this one along.
            os._exit(1)
        talk.close()
        return True

    def _become_child(self, log: str) -> None:
        """Make this what a process is that was started for a cell: its signals, its files, nobody else's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._interrupt)
        for end in (self._control, self._wake, self._waker, *self._cells.values()):
            end.close()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for place in (1, 2):
            os.dup2(descriptor, place)
        os.close(descriptor)


def _answer(talk: socket.socket, content: dict[str, Any]) -> None:
    with talk, contextlib.suppress(OSError):  # The study may not listen any more.
        talk.send(json.dumps(content).encode())


def _find_unsound() -> str | None:
    """Fork once, for two reasons.

    Numeric libraries have started threads, which they end at the first fork and start when they are needed. And a child
    tells whether it could still use an accelerator: not if one was looked at in this process.

    Returns:
        Why a child could not do a cell's work, or None.
    """
    import torch

    pid = os.fork()
    if not pid:
        spoilt = [name for name in ("cuda", "xpu") if getattr(torch, name)._is_in_bad_fork()]
        os._exit(int(any(getattr(torch, name).is_available() for name in spoilt)))
    _, status = os.waitpid(pid, 0)
    if status:
        return "the accelerator can't be used by a process that is prepared."
    return None


def main(arguments: list[str]) -> int:
    """Import, then serve; in a child, run the cell.

    A child comes back from `run` and ends as any Python does, with what libraries have to do at exit.
    """
    server = _Server(socket.socket(fileno=int(arguments[0])))
    environment = dict(os.environ)
    os.environ.update(_WHILE_IMPORTING)
    # After the server, which does not mind Ctrl-C. By `python -X importtime`, this leaves 50 ms of imports to a cell.
    from layer_surgeon.study import cells

    os.environ.clear()
    os.environ.update(environment)
    # Objects that are there now are shared by all children; a collection would touch, and so copy, every one of them.
    gc.freeze()
    cell = server.run(_find_unsound())
    if cell is None:
        return 0
    sys.argv = [cells.__file__, *cell]
    return cells.main(cell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
