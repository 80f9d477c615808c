"""Run one command in several processes, with torch's launcher. Only the first process prints."""

import os
import sys
from typing import NoReturn

import typer

from layer_surgeon._python import start_python

_OPTION = "--num-processes"


def start_processes(count: int) -> NoReturn:
    """Run this command in `count` processes, then exit with code 0, or 1 if they failed."""
    launcher = ("--standalone", "--nproc-per-node", str(count), "-m", __package__ or "")
    # Without this, the launcher sets OMP_NUM_THREADS to 1 and prints a warning.
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
            # The processes receive the interrupt too, and report what they keep.
            continue
    raise typer.Exit(1 if code else 0)


def _without_option(arguments: list[str]) -> list[str]:
    remaining: list[str] = []
    is_value = False
    for argument in arguments:
        if is_value:
            is_value = False
        elif argument == _OPTION:
            is_value = True
        elif not argument.startswith(f"{_OPTION}="):
            remaining.append(argument)
    return remaining
