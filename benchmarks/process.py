"""Measure the time and memory of a command, including its child processes."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import say

_SAMPLE_SECONDS = 0.01
HAS_PROC = Path("/proc/self/status").is_file()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Time and memory of a command.

    Attributes:
        seconds: Time from before its start to after its end.
        cpu_seconds: Processor time of all its threads and processes.
        resident_bytes: Peak memory, including pages of mapped files. For a single process, it is the kernel's own peak;
            for several, the largest sum in all samples. Without /proc (macOS), it is the peak of the largest process.
        anonymous_bytes: Peak memory that is not backed by files, from samples; None without /proc.
        disk_bytes: Bytes read from the disk, not from the page cache, in the last sample; None without /proc.
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
        """Take one sample of all processes of the tree."""
        resident = anonymous = 0
        for pid in _tree(root):
            status = _read_counters(Path(f"/proc/{pid}/status"))
            resident += status.get("VmRSS", 0) * 1024
            anonymous += status.get("RssAnon", 0) * 1024
            # The kernel records the peak of a single process, even between two samples.
            self.resident = max(self.resident, status.get("VmHWM", 0) * 1024)
            if "read_bytes" in (io_counters := _read_counters(Path(f"/proc/{pid}/io"))):
                self.disk[pid] = io_counters["read_bytes"]
        self.resident, self.anonymous = max(self.resident, resident), max(self.anonymous, anonymous)


def take_turns(rows: Mapping[str, Callable[[], Usage]], runs: int) -> dict[str, list[Usage]]:
    """Run all rows in turn, several times. The first round only loads libraries and doesn't count."""
    results: dict[str, list[Usage]] = {title: [] for title in rows}
    for number in range(runs + 1):
        for title, run in rows.items():
            usage = run()
            if number:
                results[title].append(usage)
            say(f"  {number}/{runs}  {title}: {usage.seconds:.2f} s")
    return results


def drop_from_cache(*folders: Path) -> None:
    """Drop the pages of all files from the page cache, so that they are read from the disk again."""
    for path in (path for folder in folders for path in folder.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(command: Sequence[str | Path], *, environment: dict[str, str] | None = None) -> Usage:
    """Run a command to its end, and measure it.

    Raises:
        SystemExit: The command failed. The message has its stderr.
    """
    peaks, ended = _Peaks(), threading.Event()
    with tempfile.TemporaryFile("w+") as stderr:
        begin = time.perf_counter()
        # Popen returns once the new program runs. Before that, the process would have the memory of this one.
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        # Sample in a thread, so that the time of the end is exact.
        sampler = threading.Thread(target=_sample, args=(process.pid, peaks, ended))
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        sampler.join()
        if process.returncode:
            stderr.seek(0)
            raise SystemExit(f"{command[0]} failed with status {process.returncode}:\n{stderr.read()[-4000:]}")
    return Usage(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        # ru_maxrss also includes the time before exec, when the process was a copy of this one.
        resident_bytes=peaks.resident if HAS_PROC else usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        anonymous_bytes=peaks.anonymous if HAS_PROC else None,
        disk_bytes=sum(peaks.disk.values()) if HAS_PROC else None,
    )


def _sample(pid: int, peaks: _Peaks, ended: threading.Event) -> None:
    while HAS_PROC and not ended.is_set():
        peaks.sample(pid)
        ended.wait(_SAMPLE_SECONDS)


def _tree(root: int) -> list[int]:
    """The ids of a process and of its running descendants."""
    pids = [root]
    for pid in pids:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except OSError:
            # The process has ended in the meantime.
            continue
    return pids


def _read_counters(path: Path) -> dict[str, int]:
    """Read the lines `name: number` of a file in /proc; empty if the process has ended."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name: int(words[0]) for name, _, text in pairs if (words := text.split()) and words[0].isdecimal()}
