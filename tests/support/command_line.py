"""Runs `surgeon` in another folder: in a new process, in one that has imported torch already, or in this process."""

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
from tests.support.preloaded import clean_environment, run_code

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
    """Run `surgeon` as a person would, with arguments in a folder. For commands that don't import torch."""
    done = subprocess.run(
        [str(SURGEON), *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(cwd) | (env or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def surgeon_forked(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, stdin: str | None = None
) -> Result:
    """Run `surgeon` in a process of its own that has all imports already, which saves 5 s of processor time."""
    code = "import sys; from layer_surgeon_cli.main import app; sys.argv[0] = 'surgeon'; app()"
    done = run_code(code, *arguments, cwd=cwd, env=env, stdin=stdin)
    return Result(done.returncode, done.stdout, done.stderr)


def surgeon_together(
    *commands: tuple[object, ...], cwd: Path, env: dict[str, str] | None = None, bare: bool = False
) -> list[Result]:
    """Run several commands one after the other in a forked process, a bare one if what it imports matters."""
    code = (
        "import dataclasses, json, pathlib, sys; from tests.support.command_line import surgeon_here;"
        "here = pathlib.Path.cwd(); results = [surgeon_here(*words, cwd=here) for words in json.load(sys.stdin)];"
        "print(json.dumps(list(map(dataclasses.asdict, results))))"
    )
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    words = json.dumps([list(map(str, command)) for command in commands])
    done = run_code(code, cwd=cwd, env={"PYTHONPATH": os.pathsep.join(paths)} | (env or {}), stdin=words, bare=bare)
    assert done.returncode == 0, done.stderr
    return [Result(**result) for result in json.loads(done.stdout.splitlines()[-1])]


def surgeon_here(*arguments: object, cwd: Path, stdin: str | None = None) -> Result:
    """Run `surgeon` with arguments in a folder and in this process, where everything is already imported.

    Not for commands that read from the Hub, or that tests of processes are about.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SURGEON_")}
    with contextlib.chdir(cwd), patch.dict(os.environ, environment, clear=True):
        done = CliRunner().invoke(app, [*map(str, arguments)], input=stdin)
    return Result(done.exit_code, done.stdout, done.stderr)
