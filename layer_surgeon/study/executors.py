"""Who runs the cells: processes of this machine, or a Ray cluster. Both start the same process for a cell."""

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
from layer_surgeon.study.preloaded import SUPPORTED, Preloaded, preloaded

Executor = Literal["local", "ray"]
# What a cell's process prints when something breaks that is no error of ours stands at the end of its log.
_TAIL = 600


def threads_each(workers: int) -> int:
    """Threads of one cell: a run repeats bit for bit only with the same number, so that it is fixed for the study."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) > 0 else max(1, (os.cpu_count() or 1) // workers)


def environment_of(threads: int) -> dict[str, str]:
    """What a cell's process finds in its environment, on top of this one's."""
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
    """Run a cell in a process of its own.

    Args:
        cell: What to run.
        folder: The study's folder.
        threads: For the CPU's part of the work.
        running: Knows the process while it runs, so that it can be ended.
        server: Starts it; None, and where it can't: a new Python is started.

    Returns:
        None when it is done; else what went wrong.
    """
    description = folder.run(cell.id, ".cell.json")
    write_json(description, cell.as_dict())
    folder.log(cell.id).parent.mkdir(parents=True, exist_ok=True)
    arguments, running = [str(folder.root), str(description)], running or Running()
    code = None if server is None else _run_preloaded(server, arguments, folder.log(cell.id), running)
    if code is None:
        code = _run_python(arguments, folder.log(cell.id), threads, running)
    description.unlink(missing_ok=True)
    if folder.result(cell.id).exists():
        return None
    return _reason(folder, cell, code)


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


def _reason(folder: StudyFolder, cell: Cell, code: int) -> str:
    try:
        error = json.loads(folder.failure(cell.id).read_text(encoding="utf-8"))["error"]
        return f"{error['type']}: {error['message']}"
    except (OSError, ValueError, KeyError):
        # It died without a word: killed, or out of memory.
        tail = folder.log(cell.id).read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip()
        return f"its process ended with code {code}. {tail}"


class Process(Protocol):
    """What can be ended."""

    def terminate(self) -> None:
        """Send it SIGTERM."""


class Running:
    """The processes under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[Process] = set()
        self._ended = False

    def add(self, process: Process) -> None:
        """A process began; where all are being ended, it is too."""
        with self._lock:
            self._processes.add(process)
            if self._ended:
                process.terminate()

    def remove(self, process: Process) -> None:
        """A process is over."""
        with self._lock:
            self._processes.discard(process)

    def end(self) -> None:
        """End all, now and later."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.terminate()


def run_local(
    cells: Sequence[Cell], folder: StudyFolder, workers: int, notice: Callable[[str], None] | None = None
) -> Generator[tuple[Cell, str | None]]:
    """Run cells in `workers` processes at a time; yields each as it ends, with what went wrong, or None.

    Where the iteration is broken off, the processes are ended; what they had trained stays.

    Args:
        cells: What to run.
        folder: The study's folder.
        workers: How many at a time.
        notice: Told, within the iteration, what a person should know.
    """
    threads, running = threads_each(workers), Running()
    with contextlib.ExitStack() as stack:
        server = None
        # A single cell would wait for the imports just as long.
        if SUPPORTED and len(cells) > 1:
            server = stack.enter_context(preloaded(environment_of(threads)))
            running.add(server.process)
        pool = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="cell"))
        waiting: dict[Future[str | None], Cell] = {
            pool.submit(run_process, cell, folder, threads, running, server): cell for cell in cells
        }
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                news = None if server is None else server.news()
                if news and notice:
                    notice(news)
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            for future in waiting:
                future.cancel()
            running.end()


def run_ray(
    cells: Sequence[Cell], folder: StudyFolder, threads: int, address: str | None = None
) -> Generator[tuple[Cell, str | None]]:
    """Run cells on a Ray cluster; the study's folder must lie where all of its machines can write.

    Args:
        cells: What to run.
        folder: The study's folder.
        threads: CPUs that each cell takes; with a GPU in the cluster, it takes one of those too.
        address: Of the cluster; None: the one that is running here or that RAY_ADDRESS names, else this machine.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError('The executor ray needs Ray: pip install "layer-surgeon[ray]"') from error
    started = not ray.is_initialized()
    if started:
        _start_ray(ray, address)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    root, current = str(folder.root.resolve()), str(Path.cwd())
    # A machine that dies is Ray's to replace: the cell then runs again elsewhere, and goes on from its checkpoint.
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=3)(_on_ray)
    waiting: dict[Any, Cell] = {task.remote(cell.as_dict(), root, current, threads): cell for cell in cells}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            for reference in done:
                cell = waiting.pop(reference)
                try:
                    reason = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                yield cell, reason
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _start_ray(ray: Any, address: str | None) -> None:
    # Without a working_dir of its own, Ray puts the current folder in front of every worker's path of modules.
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
            raise ConfigError(f"No Ray cluster answers at {address}: {error}") from error


def _on_ray(content: dict[str, Any], root: str, current: str, threads: int) -> str | None:
    """Run a cell on a worker, in the folder that its plan's relative paths start from."""
    folder = StudyFolder(root=Path(root))
    if not folder.plan.is_file():
        raise WorkspaceError(f"{root} is not the study's folder on this machine. It must lie on a shared disk.")
    with contextlib.chdir(current):
        return run_process(Cell.from_dict(content), folder, threads)
