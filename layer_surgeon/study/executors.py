"""Run the cells: in processes on this machine, or on a Ray cluster. Both start the same process for a cell."""

import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from layer_surgeon._io import write_json
from layer_surgeon._workers import (
    Running,
    describe_end,
    environment_of,
    run_locally,
    run_module,
    run_on_ray,
    threads_each,
)
from layer_surgeon.errors import WorkspaceError
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import Cell
from layer_surgeon.study.preload_client import SUPPORTED, Preloaded, preloaded


def run_process(
    cell: Cell,
    folder: StudyFolder,
    threads: int,
    running: Running | None = None,
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
    # A process that is killed writes no reason; that of an earlier call is not its own.
    folder.failure(cell.id).unlink(missing_ok=True)
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


def _run_preloaded(server: Preloaded, arguments: list[str], log: Path, running: Running) -> int | None:
    process = server.start(arguments, log)
    if process is None:
        return None
    running.add(process)
    try:
        return server.finish(process)
    finally:
        running.remove(process)


def _run_python(arguments: list[str], log: Path, threads: int, running: Running) -> int:
    return run_module("layer_surgeon.study.cells", arguments, log, environment_of(threads), running)


def _find_reason(folder: StudyFolder, cell: Cell, code: int) -> str:
    try:
        error = json.loads(folder.failure(cell.id).read_text(encoding="utf-8"))["error"]
        return f"{error['type']}: {error['message']}"
    except (OSError, ValueError, KeyError):
        return describe_end(code, folder.log(cell.id))


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
        server: Preloaded | None = None
        # With a single cell, preloading would save no time.
        if SUPPORTED and len(cells) > 1:
            server = stack.enter_context(preloaded(environment_of(threads)))
            running.add(server.process)

        def look() -> None:
            message = None if server is None else server.news()
            if message and notice:
                notice(message)

        def run(cell: Cell) -> str | None:
            return run_process(cell, folder, threads, running, server)

        yield from run_locally(cells, run, workers, running, look=look)


def run_ray(
    cells: Sequence[Cell], folder: StudyFolder, threads: int, address: str | None = None
) -> Generator[tuple[Cell, str | None]]:
    """Run cells on a Ray cluster. All machines of the cluster must be able to write to the study's folder.

    Args:
        cells: The cells.
        folder: The study's folder.
        threads: As in `run_on_ray`.
        address: As in `run_on_ray`.

    Yields:
        Each cell when it has ended, with the reason if it failed, else None.

    Raises:
        ConfigError: Ray is not installed, or the cluster can't be reached.
    """
    root, current_folder = str(folder.root.resolve()), str(Path.cwd())
    yield from run_on_ray(
        cells,
        _on_ray,
        lambda cell: (cell.as_dict(), root, current_folder, threads),
        threads=threads,
        address=address,
    )


def _on_ray(content: dict[str, Any], study_root: str, current_folder: str, threads: int) -> str | None:
    """Run a cell on a worker, in the folder that the plan's relative paths start from."""
    folder = StudyFolder(root=Path(study_root))
    if not folder.plan.is_file():
        raise WorkspaceError(
            f"{study_root} is not the study's folder on this machine. Put the study on a disk that all machines share."
        )
    with contextlib.chdir(current_folder):
        return run_process(Cell.from_dict(content), folder, threads)
