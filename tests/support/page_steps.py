"""The steps of a page of the documentation, as they stand there, and a process that does them one after the other."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.preloaded import run_code

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """One command, or one Python block."""

    kind: str
    text: str


def steps_of(text: str) -> list[Step]:
    """All fenced blocks: of those without a language each line is a command; there are no others than Python's."""
    steps: list[Step] = []
    for language, body in _BLOCK.findall(text):
        if language == "python":
            steps.append(Step("python", body))
        else:
            assert language == "", f"nothing runs a block of {language}"
            steps += [Step("surgeon", line) for line in body.splitlines() if line]
    return steps


def do(steps: list[Step], folder: Path, environment: dict[str, str]) -> list[str]:
    """Do the steps in a folder, in one process of its own; what each of them printed."""
    # The terminal is wide, so that no table cuts what is looked for.
    done = run_code(
        f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')",
        cwd=folder,
        env={"COLUMNS": "200", "PYTHONPATH": str(ROOT)} | environment,
        stdin=json.dumps(steps),
    )
    assert done.returncode == 0, done.stderr
    printed: list[str] = json.loads(Path(folder / ".printed.json").read_text())
    return printed


def _main() -> None:
    import contextlib
    import io
    import runpy

    from typer.testing import CliRunner

    from layer_surgeon_cli.main import app

    printed: list[str] = []
    for kind, text in json.load(sys.stdin):
        if kind == "surgeon":
            words = shlex.split(text)
            assert words[0] == "surgeon", text
            result: Any = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, f"{text}\n{result.output}"
            printed.append(result.output)
        else:
            Path(".block.py").write_text(text)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                runpy.run_path(".block.py")
            printed.append(out.getvalue())
    Path(".printed.json").write_text(json.dumps(printed))


if __name__ == "__main__":
    _main()
