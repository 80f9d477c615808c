"""The commands and the code on the page "Run a model one layer at a time" work as written, with a tiny model."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from tests.support.command_line import surgeon_here

PAGE = Path(__file__).resolve().parents[2] / "docs" / "run.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
MODEL = "packaged:gemma-3-270m"
# The tiny model has 4 layers of width 32, where the real one has 18 of width 640.
TINY = {
    "0:10": "0:3",
    "(0, 9)": "(0, 2)",
    "states[9]": "states[2]",
    "A fine film.": "w5 w7",
    "Dull and too long.": "w8",
}


@pytest.fixture
def folder(source, texts, tmp_path, monkeypatch):
    (tmp_path / "model").symlink_to(source)
    (tmp_path / "reviews.csv").write_text("text\n" + "\n".join(texts) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shrink(text):
    for real, tiny in {MODEL: "model", **TINY}.items():
        text = text.replace(real, tiny)
    return text


def test_commands(folder):
    commands = [line for language, body in BLOCKS if not language for line in body.splitlines()]
    assert commands
    for command in commands:
        name, *arguments = shlex.split(shrink(command))
        assert name == "surgeon"
        done = surgeon_here(*arguments, cwd=folder)
        assert done.code == 0, f"{command}: {done.err}"


def test_python(folder, capsys):
    values = {}
    for body in (body for language, body in BLOCKS if language == "python"):
        (folder / "block.py").write_text(shrink(body))
        values = runpy.run_path("block.py", values)
    assert tuple(values["states"][2].shape) == (2, 32)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]
