"""Progress is a panel on a terminal and a few lines elsewhere. With --json, stdout has only the document."""

import io
import json

import pytest
from rich.console import Console

from layer_surgeon._format import format_value
from layer_surgeon.workspace import Workspace
from layer_surgeon_cli import render
from layer_surgeon_cli.bars import RichProgress
from layer_surgeon_cli.command import command, new_app
from layer_surgeon_cli.render import LineProgress
from layer_surgeon_cli.ui import Ui

STEP = {"loss": 0.4123, "learning rate": 5e-5, "samples/s": 312.3, "memory": 1.234e9}
SCORES = {"val accuracy": 0.8453, "val loss": 0.4411}


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a test changes it."""
    seconds = [1000.0]
    monkeypatch.setattr(render.time, "monotonic", lambda: seconds[0])
    return seconds


def lines(console):
    return console.file.getvalue().splitlines()


def test_bytes_that_were_read_are_bytes():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    progress = RichProgress(console)
    progress.begin("Running", 2, "layers")
    progress.metrics({"read": 436_207_616})
    progress.end()
    assert "436.2 MB" in console.file.getvalue()
    assert format_value("read", 436_207_616) == "436.2 MB"


def test_json_has_no_nan(tmp_path, capsys):
    ui = Ui(as_json=True, quiet=True, debug=False, workspace=Workspace(tmp_path))
    ui.document({"perplexity": float("nan"), "path": tmp_path, "values": (1.5, float("inf"))})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "perplexity": None,
        "path": str(tmp_path),
        "values": [1.5, None],
    }


def test_panel():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    progress = RichProgress(console)
    progress.begin("Training", 651, "steps")
    progress.metrics(STEP)
    progress.metrics(SCORES)
    progress.advance(320)
    progress.notice("Epoch 1: good.")
    progress.end()
    frame = console.file.getvalue().rpartition("╭")[2]
    assert "320/651 steps" in frame
    assert "loss 0.4123   learning rate 5e-05   samples/s 312   memory 1.2 GB" in frame
    assert "validation:  accuracy 0.8453   loss 0.4411" in frame
    assert "Epoch 1: good." in console.file.getvalue()


def test_no_panel_without_values():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    progress = RichProgress(console)
    progress.begin("Reading", 10, "files")
    progress.end()
    assert "╭" not in console.file.getvalue()


def test_a_step_has_at_most_ten_lines(clock):
    console = Console(file=io.StringIO(), width=160)
    progress = LineProgress(console)
    progress.begin("Training", 1000, "steps")
    progress.metrics(STEP)
    for _ in range(1000):
        clock[0] += 2
        progress.advance(1)
    progress.end()
    assert len(lines(console)) == 10
    assert lines(console)[0] == (
        "Training: 100 of 1000 steps  loss 0.4123  learning rate 5e-05  samples/s 312  memory 1.2 GB  30 min 00 s left"
    )
    assert lines(console)[-1].endswith("in 33 min 20 s")


def test_lines_of_a_short_and_of_a_slow_run(clock):
    console = Console(file=io.StringIO(), width=160)
    progress = LineProgress(console)
    progress.begin("Training", 100, "steps")
    for _ in range(100):
        clock[0] += 0.05
        progress.advance(1)
    progress.end()
    assert len(lines(console)) == 1
    progress.begin("Training", 10_000, "steps")
    # A resumed run. The earlier steps say nothing about the speed.
    progress.advance(5000)
    for _ in range(13):
        clock[0] += 100
        progress.advance(1)
    assert [line.partition("  ")[0] for line in lines(console)[1:]] == [
        "Training: 5006 of 10000 steps",
        "Training: 5012 of 10000 steps",
    ]
    assert lines(console)[-1].endswith("138 h 33 min left")


def test_output_of_libraries_goes_to_stderr(capsys):
    app = new_app()

    @command(app)
    def speak(*, ui):
        """Say something."""
        print("[INFO] a message of a library")
        return {"answer": 42}

    app(["--json"], standalone_mode=False)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"answer": 42}
    assert "a message of a library" in printed.err


def test_names_are_printed_as_they_are(tmp_path, capsys):
    """Rich would turn :warning: into a picture, and a folder or a label may be called so."""
    ui = Ui(as_json=False, quiet=False, debug=False, workspace=Workspace(tmp_path))
    ui.facts({"folder": "a:warning:b"})
    ui.table(("label",), [("c:warning:d",)])
    ui.error("e:warning:f")
    output = capsys.readouterr()
    assert "a:warning:b" in output.out
    assert "c:warning:d" in output.out
    assert "e:warning:f" in output.err
