"""Child processes that run Python: what they may import is what this process may, never the current folder.

Python puts the current folder (`-m`, `-c`) or the script's folder in front of `sys.path`. In a folder that somebody
downloaded, a file called `numpy.py` would then run instead of NumPy.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child: no Python under it takes the current folder for a place of modules.

    Args:
        changes: Variables to set on top.
    """
    environment = {**os.environ, **(changes or {})}
    if "PYTHONPATH" in environment:
        # An empty entry means the current folder.
        entries = [entry for entry in environment["PYTHONPATH"].split(os.pathsep) if entry]
        environment["PYTHONPATH"] = os.pathsep.join(entries)
    return environment | {"PYTHONSAFEPATH": "1"}


def python_command(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command that runs a module with this Python, without the current folder on its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def start_python(
    module: str, arguments: Sequence[str] = (), *, environment: Mapping[str, str] | None = None, **settings: Any
) -> "subprocess.Popen[Any]":
    """Start a module in a process of its own.

    Args:
        module: Its name, such as `layer_surgeon.study.cells`.
        arguments: What it finds in `sys.argv`.
        environment: Variables to set on top of this process's.
        settings: Of `subprocess.Popen`: stdin, stdout, pass_fds, ...
    """
    return subprocess.Popen(python_command(module, arguments), env=child_environment(environment), **settings)
