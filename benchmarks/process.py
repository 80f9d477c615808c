"""Seconds and memory of a command, its child processes included."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SAMPLE_SECONDS = 0.01
HAS_PROC = Path("/proc/self/status").is_file()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a command took.

    Attributes:
        seconds: From before its start to after its end.
        cpu_seconds: Of all its threads and processes.
        resident_bytes: The most memory that it had at a time, pages of mapped files included. That of a single process
            is what the kernel kept account of; that of several is the largest sum that was seen. Without /proc (macOS),
            that of the largest of its processes.
        anonymous_bytes: The most that was seen of what no file can give back; None without /proc.
        disk_bytes: What was read from the disk rather than from the page cache, as last seen; None without /proc.
    """

    seconds: float
    cpu_seconds: float
    resident_bytes: int
    anonymous_bytes: int | None
    disk_bytes: int | None


@dataclass
class _Peaks:
    resident: int = 0
    anonymous: int = 0
    disk: dict[int, int] = field(default_factory=dict)

    def sample(self, root: int) -> None:
        """Look at all processes of the tree once."""
        resident = anonymous = 0
        for pid in _tree(root):
            facts = _facts(Path(f"/proc/{pid}/status"))
            resident += facts.get("VmRSS", 0) * 1024
            anonymous += facts.get("RssAnon", 0) * 1024
            # A single process's peak is kept by the kernel, and can't be missed between two samples.
            self.resident = max(self.resident, facts.get("VmHWM", 0) * 1024)
            if "read_bytes" in (read := _facts(Path(f"/proc/{pid}/io"))):
                self.disk[pid] = read["read_bytes"]
        self.resident, self.anonymous = max(self.resident, resident), max(self.anonymous, anonymous)


def measure(command: Sequence[str | Path], *, environment: dict[str, str] | None = None) -> Usage:
    """Run a command to its end.

    Raises:
        SystemExit: It failed; what it wrote to stderr is the message.
    """
    peaks, over = _Peaks(), threading.Event()
    with tempfile.TemporaryFile("w+") as stderr:
        begin = time.perf_counter()
        # It returns when the new program runs; before, the process would be seen with this one's memory.
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        # The wait is exact, and sampling goes on beside it.
        sampler = threading.Thread(target=_sample, args=(process.pid, peaks, over))
        sampler.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        over.set()
        sampler.join()
        if process.returncode:
            stderr.seek(0)
            raise SystemExit(f"{command[0]} failed with status {process.returncode}:\n{stderr.read()[-4000:]}")
    return Usage(
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        # ru_maxrss also counts what the process was before it became the new program: a copy of this one.
        resident_bytes=peaks.resident if HAS_PROC else used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        anonymous_bytes=peaks.anonymous if HAS_PROC else None,
        disk_bytes=sum(peaks.disk.values()) if HAS_PROC else None,
    )


def _sample(pid: int, peaks: _Peaks, over: threading.Event) -> None:
    while HAS_PROC and not over.is_set():
        peaks.sample(pid)
        over.wait(_SAMPLE_SECONDS)


def _tree(root: int) -> list[int]:
    """A process and all that it started, as far as they still run."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            # It ended in between.
            continue
    return found


def _facts(path: Path) -> dict[str, int]:
    """The lines `name: number` of a file of /proc; none where the process has ended."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name: int(words[0]) for name, _, text in pairs if (words := text.split()) and words[0].isdecimal()}
