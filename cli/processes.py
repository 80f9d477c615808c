"""One command as several processes: started by torch's own launcher, and only the first of them speaks."""

import os
import sys
from typing import NoReturn

import typer

from layer_surgeon._python import start_python

_OPTION = "--num-processes"


def is_started() -> bool:
    """Whether this is one of several processes already: of ours, of torchrun or of `accelerate launch`."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this process is the only one, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def start_processes(count: int) -> NoReturn:
    """Run this command again in `count` processes, and end with their exit code."""
    launcher = ("--standalone", "--nproc-per-node", str(count), "-m", __package__ or "")
    # The launcher would set it itself, and say so.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    process = start_python(
        "torch.distributed.run",
        [*launcher, *_without_option(sys.argv[1:])],
        environment={"OMP_NUM_THREADS": threads},
    )
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            # The processes have got it too, and say themselves what is kept.
            continue
    raise typer.Exit(1 if code else 0)


def _without_option(arguments: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == _OPTION:
            skip = True
        elif not argument.startswith(f"{_OPTION}="):
            kept.append(argument)
    return kept
