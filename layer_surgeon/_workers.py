"""Run jobs in processes of their own: several at the same time on this machine, or on a Ray cluster."""

import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from layer_surgeon._python import start_python
from layer_surgeon._text import first_line
from layer_surgeon.errors import ConfigError

Executor = Literal["local", "ray"]
# Characters from the end of a log: an unexpected error of a process is printed there.
_TAIL = 600
_Job = TypeVar("_Job")


def threads_each(workers: int) -> int:
    """Return the number of threads for one process.

    The number is fixed, because a computation only repeats bit for bit with the same number of threads.
    """
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else max(1, (os.cpu_count() or 1) // workers)


def environment_of(threads: int) -> dict[str, str]:
    """Return the environment variables that a process gets in addition to those of this process."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
    }


class Process(Protocol):
    """A process that can be ended."""

    def terminate(self) -> None:
        """Send SIGTERM to the process."""


class Running:
    """The running processes, which can be ended together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[Process] = set()
        self._ended = False

    def add(self, process: Process) -> None:
        """Add a process that was started. If `end` was called before, end the process too."""
        with self._lock:
            self._processes.add(process)
            if self._ended:
                process.terminate()

    def remove(self, process: Process) -> None:
        """Remove a process that has ended."""
        with self._lock:
            self._processes.discard(process)

    def end(self) -> None:
        """End all processes, including those that are added later."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.terminate()


def run_module(
    module: str,
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    running: Running,
    *,
    stdin: int = subprocess.DEVNULL,
) -> int:
    """Run a module in a new Python process, and wait for its end.

    Args:
        module: The module's name.
        arguments: Its command-line arguments.
        log: The file that its output is appended to.
        environment: Variables to add to this process's environment.
        running: Keeps track of the process, and can end it.
        stdin: As in `subprocess.Popen`. A pipe stays open until the process ends, or this one dies.

    Returns:
        The exit code, negative for a signal.
    """
    with log.open("a", encoding="utf-8") as output:
        process = start_python(
            module, arguments, environment=environment, stdin=stdin, stdout=output, stderr=subprocess.STDOUT
        )
        running.add(process)
        code: int = process.wait()
        running.remove(process)
    if process.stdin is not None:
        process.stdin.close()
    return code


def describe_end(code: int, log: Path) -> str:
    """Describe how a process ended that wrote no error: it was killed, or ran out of memory."""
    tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip()
    return f"its process ended with code {code}. {tail}"


def run_locally(
    jobs: Sequence[_Job],
    run: Callable[[_Job], str | None],
    workers: int,
    running: Running,
    *,
    look: Callable[[], None] | None = None,
    seconds: float | None = None,
) -> Generator[tuple[_Job, str | None]]:
    """Run jobs on this machine.

    If the caller stops the iteration early, the processes are ended.

    Args:
        jobs: The jobs.
        run: Runs a job in a process, and returns the reason if it failed, else None.
        workers: Number of jobs that run at the same time.
        running: The processes that `run` starts.
        look: Called after each wait, in the thread of the caller.
        seconds: Longest wait between two calls of `look`. None: until a job ends.

    Yields:
        Each job when it has ended, with the reason if it failed, else None.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="worker") as pool:
        pending: dict[Future[str | None], _Job] = {pool.submit(run, job): job for job in jobs}
        try:
            while pending:
                done, _ = wait(pending, timeout=seconds, return_when=FIRST_COMPLETED)
                if look is not None:
                    look()
                for future in done:
                    yield pending.pop(future), future.result()
        finally:
            for future in pending:
                future.cancel()
            running.end()


def run_on_ray(
    jobs: Sequence[_Job],
    function: Callable[..., str | None],
    arguments: Callable[[_Job], Sequence[Any]],
    *,
    threads: int,
    address: str | None = None,
    look: Callable[[], None] | None = None,
    seconds: float | None = None,
) -> Generator[tuple[_Job, str | None]]:
    """Run jobs on a Ray cluster.

    Args:
        jobs: The jobs.
        function: Runs a job on a machine of the cluster, and returns the reason if it failed, else None.
        arguments: Makes the arguments of `function` for a job.
        threads: Number of CPUs for each job. If the cluster has GPUs, each job also takes one GPU.
        address: Address of the cluster. None stands for the cluster in RAY_ADDRESS or one that runs here, and
            otherwise for this machine alone.
        look: As in `run_locally`.
        seconds: As in `run_locally`.

    Yields:
        Each job when it has ended, with the reason if it failed, else None.

    Raises:
        ConfigError: Ray is not installed, or the cluster can't be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("The executor ray needs Ray: pip install ray") from error
    started = not ray.is_initialized()
    if started:
        _start_ray(ray, address)
    num_gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    # If a machine dies, Ray runs the job again on another one, where it continues.
    run_remotely = ray.remote(num_cpus=threads, num_gpus=num_gpus, max_retries=3)(function)
    pending: dict[Any, _Job] = {run_remotely.remote(*arguments(job)): job for job in jobs}
    try:
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=seconds)
            if look is not None:
                look()
            for reference in done:
                job = pending.pop(reference)
                try:
                    reason = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = f"{type(error).__name__}: {first_line(error)}"
                yield job, reason
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _start_ray(ray: Any, address: str | None) -> None:
    # Without an explicit working_dir, Ray puts the current folder first in every worker's module path.
    with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as empty:
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                include_dashboard=False,
                logging_level="error",
                runtime_env={"working_dir": empty},
            )
        except ConnectionError as error:
            raise ConfigError(
                f"No Ray cluster answers at {address}: {error} Check the address, or start the cluster with ray start."
            ) from error
