"""Runs `surgeon` as a person would in another process and folder, or in this process, which saves its imports."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from typer.testing import CliRunner

from layer_surgeon_cli.main import app

SURGEON = Path(sys.executable).with_name("surgeon")


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """The one JSON document of `--json`."""
        return json.loads(self.out)


def surgeon(*arguments: object, cwd: Path, env: dict[str, str] | None = None, stdin: str | None = None) -> Result:
    """Run `surgeon` with arguments in a folder. Its own workspace variable is never inherited."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SURGEON_", "HF_"))}
    # A home of its own: neither a token nor a cache of this machine's user may help or disturb.
    environment |= {"HF_HOME": str(cwd / ".hf"), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [str(SURGEON), *map(str, arguments)],
        cwd=cwd,
        env=environment | (env or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def surgeon_here(*arguments: object, cwd: Path) -> Result:
    """Run `surgeon` with arguments in a folder and in this process, where torch is already imported.

    Not for commands that read from stdin or the Hub, or that tests of processes are about.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SURGEON_")}
    with contextlib.chdir(cwd), patch.dict(os.environ, environment, clear=True):
        done = CliRunner().invoke(app, [*map(str, arguments)])
    return Result(done.exit_code, done.stdout, done.stderr)
