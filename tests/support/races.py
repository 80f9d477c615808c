"""The same thing in two processes at the same moment, many times."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layer_surgeon.errors import LayerSurgeonError
from layer_surgeon.progress import NullProgress
from layer_surgeon.workspace import Workspace


def race(function: Callable[..., Any], tries: int, *arguments: Any) -> list[list[str]]:
    """What each of two processes says of each try: "done", or the message of an error.

    Args:
        function: Of the number of the process, the number of the try, and the arguments. What it returns is released
            when both are through with the try, if it has a `lock`.
        tries: How often.
        arguments: Handed on.
    """
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_run, args=(number, function, tries, arguments, barrier, queue)) for number in range(2)
    ]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=300) for _ in range(2 * tries)]
    for process in processes:
        process.join()
    return [[message for turn, message in answers if turn == number] for number in range(tries)]


def _run(number: int, function: Any, tries: int, arguments: Any, barrier: Any, queue: Any) -> None:
    for turn in range(tries):
        held = None
        barrier.wait()
        try:
            held = function(number, turn, *arguments)
            queue.put((turn, "done"))
        except LayerSurgeonError as error:
            queue.put((turn, str(error)))
        barrier.wait()
        if hasattr(held, "lock"):
            held.lock.release()


def remember(number: int, turn: int, root: Path) -> None:
    """One process notes the latest layer, the other one the latest graft."""
    kind: Any = ("layer", "graft")[number]
    Workspace(root / str(turn)).set_latest(kind, root / kind)


def claim(number: int, turn: int, root: Path, by_default: bool) -> Any:
    """Begin a run."""
    from layer_surgeon.finetune.folder import claim_folder

    return claim_folder(root / f"run{turn}", {}, resume=False, by_default=by_default, progress=NullProgress())


def graft(number: int, turn: int, host: Path, artifact: Path, root: Path) -> None:
    """Make a graft."""
    from layer_surgeon.graft import save_graft

    save_graft(host, artifact, output=root / f"graft{turn}", workspace=Workspace(root / f"surgery{number}"))
