"""What a run looks like: a panel on a terminal, a few lines elsewhere, and --json with nothing beside the document."""

import io
import json

import pytest
from rich.console import Console

from layer_surgeon_cli import render
from layer_surgeon_cli.command import command, new_app
from layer_surgeon_cli.render import LineProgress, RichProgress

STEP = {"loss": 0.4123, "learning rate": 5e-5, "samples/s": 312.3, "memory": 1.234e9}
SCORES = {"val accuracy": 0.8453, "val loss": 0.4411}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(render.time, "monotonic", lambda: now[0])
    return now


def lines(console):
    return console.file.getvalue().splitlines()


def test_panel():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    shown = RichProgress(console)
    shown.begin("Training", 651, "steps")
    shown.metrics(STEP)
    shown.metrics(SCORES)
    shown.advance(320)
    shown.notice("Epoch 1: good.")
    shown.end()
    frame = console.file.getvalue().rpartition("╭")[2]
    assert "320/651 steps" in frame
    assert "loss 0.4123   learning rate 5e-05   samples/s 312   memory 1.2 GB" in frame
    assert "validation:  accuracy 0.8453   loss 0.4411" in frame
    assert "Epoch 1: good." in console.file.getvalue()


def test_no_panel_where_nothing_is_measured():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    shown = RichProgress(console)
    shown.begin("Reading", 10, "files")
    shown.end()
    assert "╭" not in console.file.getvalue()


def test_lines_are_ten_at_most(clock):
    console = Console(file=io.StringIO(), width=160)
    shown = LineProgress(console)
    shown.begin("Training", 1000, "steps")
    shown.metrics(STEP)
    for _ in range(1000):
        clock[0] += 2
        shown.advance(1)
    shown.end()
    assert len(lines(console)) == 10
    assert lines(console)[0] == (
        "Training: 100 of 1000 steps  loss 0.4123  learning rate 5e-05  samples/s 312  memory 1.2 GB  30 min 00 s left"
    )
    assert lines(console)[-1].endswith("in 33 min 20 s")


def test_lines_of_a_short_run_and_of_one_that_seems_to_hang(clock):
    console = Console(file=io.StringIO(), width=160)
    shown = LineProgress(console)
    shown.begin("Training", 100, "steps")
    for _ in range(100):
        clock[0] += 0.05
        shown.advance(1)
    shown.end()
    assert len(lines(console)) == 1
    shown.begin("Training", 10_000, "steps")
    # A resumed run: what was done before says nothing about the speed.
    shown.advance(5000)
    for _ in range(13):
        clock[0] += 100
        shown.advance(1)
    assert [line.partition("  ")[0] for line in lines(console)[1:]] == [
        "Training: 5006 of 10000 steps",
        "Training: 5012 of 10000 steps",
    ]
    assert lines(console)[-1].endswith("138 h 33 min left")


def test_what_libraries_print_is_not_in_the_json_document(capsys):
    app = new_app()

    @command(app)
    def speak(*, ui):
        """Say something."""
        print("[INFO] something that nobody asked for")
        return {"answer": 42}

    app(["--json"], standalone_mode=False)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"answer": 42}
    assert "nobody asked" in printed.err
