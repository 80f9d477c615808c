"""Start Python child processes that never import from the current folder.

Python puts the current folder (`-m`, `-c`) or the script's folder first on `sys.path`. In a downloaded folder, a file
called `numpy.py` would then run instead of NumPy.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment for a child, changed so that no Python in it imports from the current folder.

    Args:
        changes: Variables to set on top.
    """
    environment = {**os.environ, **(changes or {})}
    if "PYTHONPATH" in environment:
        # An empty path means the current folder.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, environment["PYTHONPATH"].split(os.pathsep)))
    return environment | {"PYTHONSAFEPATH": "1"}


def python_command(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command that runs a module with this Python, without the current folder on its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def start_python(
    module: str, arguments: Sequence[str] = (), *, environment: Mapping[str, str] | None = None, **settings: Any
) -> "subprocess.Popen[Any]":
    """Run a module in a new process.

    Args:
        module: The module's name, such as `layer_surgeon.study.cells`.
        arguments: Its command-line arguments.
        environment: Variables to add to this process's environment.
        settings: Keyword arguments for `subprocess.Popen`: stdin, stdout, pass_fds, ...
    """
    return subprocess.Popen(python_command(module, arguments), env=child_environment(environment), **settings)
