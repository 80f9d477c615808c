"""Executors for the cells: processes on this machine, or a Ray cluster. Both start the same process for a cell."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from layer_surgeon._io import write_json
from layer_surgeon._python import start_python
from layer_surgeon.errors import ConfigError, WorkspaceError
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import Cell
from layer_surgeon.study.preload_client import SUPPORTED, Preloaded, preloaded

Executor = Literal["local", "ray"]
# Characters from the end of a log: an unexpected error of a cell's process is printed there.
_TAIL = 600


def threads_each(workers: int) -> int:
    """Return the number of threads for one cell.

    The number is fixed for a study, because a run only repeats bit for bit with the same number of threads.
    """
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else max(1, (os.cpu_count() or 1) // workers)


def environment_of(threads: int) -> dict[str, str]:
    """Return the environment variables that a cell's process gets in addition to those of this process."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_process(
    cell: Cell,
    folder: StudyFolder,
    threads: int,
    running: "Running | None" = None,
    server: Preloaded | None = None,
) -> str | None:
    """Run a cell in its own process.

    Args:
        cell: The cell.
        folder: The study's folder.
        threads: Number of CPU threads.
        running: Keeps track of the process, and can end it.
        server: Starts the process. If it is None, or can't start the process, a new Python is started instead.

    Returns:
        None if the cell is finished; otherwise the reason why it failed.
    """
    cell_path = folder.run(cell.id, ".cell.json")
    write_json(cell_path, cell.as_dict())
    folder.log(cell.id).parent.mkdir(parents=True, exist_ok=True)
    arguments, running = [str(folder.root), str(cell_path)], running or Running()
    code = None if server is None else _run_preloaded(server, arguments, folder.log(cell.id), running)
    if code is None:
        code = _run_python(arguments, folder.log(cell.id), threads, running)
    cell_path.unlink(missing_ok=True)
    if folder.result(cell.id).exists():
        return None
    return _find_reason(folder, cell, code)


def _run_preloaded(server: Preloaded, arguments: list[str], log: Path, running: "Running") -> int | None:
    process = server.start(arguments, log)
    if process is None:
        return None
    running.add(process)
    try:
        return server.finish(process)
    finally:
        running.remove(process)


def _run_python(arguments: list[str], log: Path, threads: int, running: "Running") -> int:
    with log.open("a", encoding="utf-8") as output:
        process = start_python(
            "layer_surgeon.study.cells",
            arguments,
            environment=environment_of(threads),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        running.add(process)
        code = process.wait()
        running.remove(process)
    return code


def _find_reason(folder: StudyFolder, cell: Cell, code: int) -> str:
    try:
        error = json.loads(folder.failure(cell.id).read_text(encoding="utf-8"))["error"]
        return f"{error['type']}: {error['message']}"
    except (OSError, ValueError, KeyError):
        # The process wrote no error: it was killed, or ran out of memory.
        tail = folder.log(cell.id).read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip()
        return f"its process ended with code {code}. {tail}"


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


def run_local(
    cells: Sequence[Cell], folder: StudyFolder, workers: int, notice: Callable[[str], None] | None = None
) -> Generator[tuple[Cell, str | None]]:
    """Run cells in local processes.

    If the caller stops the iteration early, the processes are ended. Their checkpoints stay.

    Args:
        cells: The cells.
        folder: The study's folder.
        workers: Number of processes that run at the same time.
        notice: Called during the iteration with messages for the user.

    Yields:
        Each cell when its process has ended, with the reason if it failed, else None.
    """
    threads, running = threads_each(workers), Running()
    with contextlib.ExitStack() as stack:
        server = None
        # With a single cell, preloading would save no time.
        if SUPPORTED and len(cells) > 1:
            server = stack.enter_context(preloaded(environment_of(threads)))
            running.add(server.process)
        pool = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="cell"))
        pending: dict[Future[str | None], Cell] = {
            pool.submit(run_process, cell, folder, threads, running, server): cell for cell in cells
        }
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                message = None if server is None else server.news()
                if message and notice:
                    notice(message)
                for future in done:
                    yield pending.pop(future), future.result()
        finally:
            for future in pending:
                future.cancel()
            running.end()


def run_ray(
    cells: Sequence[Cell], folder: StudyFolder, threads: int, address: str | None = None
) -> Generator[tuple[Cell, str | None]]:
    """Run cells on a Ray cluster. All machines of the cluster must be able to write to the study's folder.

    Args:
        cells: The cells.
        folder: The study's folder.
        threads: Number of CPUs for each cell. If the cluster has GPUs, each cell also takes one GPU.
        address: Address of the cluster. None stands for the cluster in RAY_ADDRESS or one that runs here, and
            otherwise for this machine alone.

    Yields:
        Each cell when it has ended, with the reason if it failed, else None.

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
    study_root, current_folder = str(folder.root.resolve()), str(Path.cwd())
    # If a machine dies, Ray runs the cell again on another one, where it continues from its checkpoint.
    run_remotely = ray.remote(num_cpus=threads, num_gpus=num_gpus, max_retries=3)(_on_ray)
    pending: dict[Any, Cell] = {
        run_remotely.remote(cell.as_dict(), study_root, current_folder, threads): cell for cell in cells
    }
    try:
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            for reference in done:
                cell = pending.pop(reference)
                try:
                    reason = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                yield cell, reason
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


def _on_ray(content: dict[str, Any], study_root: str, current_folder: str, threads: int) -> str | None:
    """Run a cell on a worker, in the folder that the plan's relative paths start from."""
    folder = StudyFolder(root=Path(study_root))
    if not folder.plan.is_file():
        raise WorkspaceError(
            f"{study_root} is not the study's folder on this machine. Put the study on a disk that all machines share."
        )
    with contextlib.chdir(current_folder):
        return run_process(Cell.from_dict(content), folder, threads)
