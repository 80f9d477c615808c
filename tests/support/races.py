"""The same thing in two processes at the same moment, many times."""

import base64
import importlib
import json
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layer_surgeon.errors import LayerSurgeonError
from layer_surgeon.progress import NullProgress
from layer_surgeon.workspace import Workspace
from tests.support.preloaded import run_code

ROOT = Path(__file__).parents[2]


def race(function: Callable[..., Any], tries: int, *arguments: Any) -> list[list[str]]:
    """What each of two processes says of each try: "done", or the message of an error.

    Args:
        function: One of this file, of the number of the process, the number of the try, and the arguments. What it
            returns is released when both are through with the try, if it has a `lock`.
        tries: How often.
        arguments: Handed on.
    """
    task = base64.b64encode(pickle.dumps((function, tries, arguments))).decode()
    done = run_code(
        "from tests.support import races; races.main()", task, cwd=Path.cwd(), env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return [[message for turn, message in answers if turn == number] for number in range(tries)]


def main() -> None:
    """Run both processes, which share the imports of this one, and print their answers."""
    function, tries, arguments = pickle.loads(base64.b64decode(sys.argv[1]))  # noqa: S301 - from `race`
    importlib.import_module(_MODULES.get(function, "layer_surgeon"))
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_run, args=(number, function, tries, arguments, barrier, queue)) for number in range(2)
    ]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=300) for _ in range(2 * tries)]
    for process in processes:
        process.join()
    print(json.dumps(answers))


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
    """Make a graft, with the number of the process as seed."""
    from layer_surgeon.graft import save_graft

    workspace = Workspace(root / f"surgery{number}")
    save_graft(host, artifact, output=root / f"graft{turn}", seed=number, workspace=workspace)


# What takes long to import. `remember` needs neither.
_MODULES = {claim: "layer_surgeon.finetune.folder", graft: "layer_surgeon.graft"}
