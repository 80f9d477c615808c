"""Cells from a preloaded process have the same results as ordinary ones, and end in the same ways."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from layer_surgeon._io import write_json
from layer_surgeon.study import executors
from layer_surgeon.study.executors import Running, environment_of, run_local, run_process
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.preload_client import SUPPORTED, preloaded
from layer_surgeon.study.prepare import prepare_study
from tests.support.recorder import Recorder
from tests.support.studies import tiny_parts, tiny_plan

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="there is such a process on Linux only")

# Put where Python finds it first, this stands for all that is imported: a cell is then what its folder's cell.py says.
STAND_IN = """
import os, sys, threading, time
from types import ModuleType, SimpleNamespace
from pathlib import Path

def main(arguments):
    scope = {"arguments": arguments, "code": 0}
    exec((Path(arguments[0]) / "cell.py").read_text(), scope)
    return scope["code"]

cells, torch = ModuleType("layer_surgeon.study.cells"), ModuleType("torch")
cells.main, cells.__file__ = main, "cells.py"
torch.cuda = torch.xpu = SimpleNamespace(_is_in_bad_fork=lambda: False, is_available=lambda: True)
sys.modules |= {"layer_surgeon.study.cells": cells, "torch": torch}
"""
SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"


def stand_in(folder, more=""):
    """Return an environment with quick stand-ins for slow imports."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(STAND_IN + more)
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture
def begin(tmp_path):
    """Starts a cell that runs the given code; its log is `tmp_path / "log"`."""

    def begin(server, code):
        (tmp_path / "cell.py").write_text(code)
        return server.start([str(tmp_path), "description"], tmp_path / "log")

    return begin


@pytest.fixture
def server(tmp_path):
    with preloaded(stand_in(tmp_path / "site")) as server:
        yield server


def pause():
    threading.Event().wait(0.02)


def first_line(path):
    while not path.exists() or "\n" not in path.read_text():
        pause()
    return path.read_text().splitlines()[0]


def wait_until_gone(pid):
    """Wait for the end of a process, which may not be a child of this one, or may still be a zombie."""
    while True:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        pause()


@pytest.mark.slow
def test_results_equal_those_of_an_ordinary_process(tmp_path):
    parts = tiny_parts(tmp_path / "parts")
    plan, folder = tiny_plan(parts, arms=["graft"], seeds=[1], data=parts["data"][:1]), StudyFolder(root=tmp_path / "s")
    plan.write(folder.plan)
    prepare_study(plan, folder, Recorder())
    (cell,) = plan.cells()
    found = []
    # Two threads: numeric libraries start theirs when they are imported, and must have ended them.
    with preloaded(environment_of(2)) as server:
        for way in (server, None):
            assert run_process(cell, folder, 2, server=way) is None
            content = json.loads(folder.result(cell.id).read_text())
            found.append({key: value for key, value in content.items() if key not in {"seconds", "finished"}})
            log = folder.log(cell.id)
            # Lines of ours begin with a time; torchao says something when it is imported, which is not in every cell.
            found[-1]["log"] = [line.partition(" ")[2] for line in log.read_text().splitlines() if line[:2] == "20"]
            folder.result(cell.id).unlink()
            log.unlink()
        assert server.news() is None
    assert found[0] == found[1]
    assert found[0]["device"] == "cpu (2 threads)"
    assert found[0]["log"]
    assert found[0]["tests"]["films"]["correct"].strip("01") == ""


def test_the_exit_code_of_a_cell_is_reported(begin, server, tmp_path):
    assert server.finish(begin(server, "print('said'); code = 3")) == 3
    assert server.finish(begin(server, "raise ValueError('broken')")) == 1
    assert server.finish(begin(server, "import os; os.kill(os.getpid(), 9)")) == -signal.SIGKILL
    assert server.finish(begin(server, "import atexit; atexit.register(print, 'the last')")) == 0
    log = (tmp_path / "log").read_text()
    assert log.startswith("said\nTraceback")
    assert "ValueError: broken" in log
    assert log.endswith("the last\n")
    assert server.news() is None


def test_a_cell_is_a_process_like_any_other(begin, server, tmp_path):
    process = begin(server, SLEEP)
    pid = int(first_line(tmp_path / "log"))
    assert os.getpgid(pid) == os.getpgrp()  # Ctrl-C reaches it.
    places = {path.name: str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert {name: places[name] for name in "012"} == {
        "0": os.devnull,
        "1": str(tmp_path / "log"),
        "2": str(tmp_path / "log"),
    }
    assert not [place for place in places.values() if place.startswith("socket:")]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert status["SigIgn"] == own["SigIgn"]
    # Where these tests run in the background, Ctrl-C is not for them, and not for what they start.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert int(status["SigCgt"], 16) == (0 if ignored else 1 << (signal.SIGINT - 1))
    end = signal.SIGTERM if ignored else signal.SIGINT
    os.kill(pid, end)
    assert server.finish(process) == -end
    assert ignored or "KeyboardInterrupt" in (tmp_path / "log").read_text()


def test_two_running_cells_are_ended_together(begin, server, tmp_path):
    running = Running()
    processes = [begin(server, SLEEP) for _ in range(2)]
    for process in processes:
        running.add(process)
    while not (tmp_path / "log").exists() or (tmp_path / "log").read_text().count("\n") < 2:
        pause()
    running.end()
    assert [server.finish(process) for process in processes] == [-signal.SIGTERM] * 2
    # A process that starts later is ended too; one that is not ended stays.
    late = begin(server, SLEEP)
    running.add(late)
    assert server.finish(late) == -signal.SIGTERM
    assert server.finish(begin(server, "code = 5")) == 5


def test_a_killed_study_leaves_no_processes(tmp_path):
    (tmp_path / "cell.py").write_text(SLEEP)
    study = f"""
from pathlib import Path
from layer_surgeon.study.preload_client import preloaded
with preloaded({stand_in(tmp_path / "site")!r}) as server:
    cell = server.start([{str(tmp_path)!r}], Path({str(tmp_path / "log")!r}))
    print(server.process.pid, flush=True)
    server.finish(cell)
"""
    process = subprocess.Popen([sys.executable, "-c", study], stdout=subprocess.PIPE, text=True)
    with process:
        server, cell = int(process.stdout.readline()), int(first_line(tmp_path / "log"))
        os.kill(cell, 0)
        process.kill()
    for pid in (server, cell):
        wait_until_gone(pid)


def test_cells_end_with_a_killed_server(begin, server, tmp_path):
    process = begin(server, SLEEP)
    cell = int(first_line(tmp_path / "log"))
    server.process.kill()
    assert server.finish(process) is None
    wait_until_gone(cell)
    assert begin(server, SLEEP) is None
    assert "it ended with code -9" in server.news()
    assert server.news() is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("threading.Thread(target=time.sleep, args=[3600], daemon=True).start()", "it has 2 threads"),
        ("torch.cuda._is_in_bad_fork = lambda: True", "accelerator can't be used"),
        ("sys.modules['layer_surgeon.study.cells'] = None", "ended with code 1. ModuleNotFoundError: import of"),
    ],
)
def test_a_reason_is_reported_if_forking_is_not_safe(more, said, begin, tmp_path):
    with preloaded(stand_in(tmp_path / "site", more)) as server:
        process = begin(server, SLEEP)
        assert process is None or server.finish(process) is None
        assert not (tmp_path / "log").exists()
        assert said in server.news()


def test_a_check_for_missing_cuda_does_not_prevent_forks(begin, tmp_path):
    more = "torch.cuda._is_in_bad_fork, torch.cuda.is_available = lambda: True, lambda: False"
    with preloaded(stand_in(tmp_path / "site", more)) as server:
        assert server.finish(begin(server, "code = 4")) == 4


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """The cells of a study whose processes import the stand-in."""
    environment = stand_in(tmp_path / "site")
    monkeypatch.setattr(executors, "environment_of", lambda threads: environment)
    parts = {"host": "host", "donor": "donor", "data": ["films"], "finetune": {}}
    return tiny_plan(parts, arms=["host"], seeds=[1, 2, 3]).cells()


def test_when_the_server_dies_ordinary_processes_take_over(cells, tmp_path, monkeypatch):
    (tmp_path / "cell.py").write_text("import os, time; os.kill(os.getppid(), 9); time.sleep(3600)")
    started = []

    def ordinary(arguments, log, threads, running):
        started.append(arguments)
        name = Path(arguments[1]).name.removesuffix(".cell.json")
        write_json(StudyFolder(root=Path(arguments[0])).result(name), {})
        return 0

    monkeypatch.setattr(executors, "_run_python", ordinary)
    told = []
    ended = list(run_local(cells, StudyFolder(root=tmp_path), 2, told.append))
    assert sorted(cell.seed for cell, _ in ended) == [1, 2, 3]
    assert [reason for _, reason in ended] == [None] * 3
    assert len(started) == 3
    assert len(told) == 1
    assert "code -9" in told[0]


def test_an_interrupted_study_ends_its_cells(cells, tmp_path, monkeypatch):
    """The first cell is finished, the second is running, and the third never starts."""
    (tmp_path / "cell.py").write_text(f"if '.s2.' in arguments[1]: {SLEEP}")
    monkeypatch.setattr(executors, "_run_python", lambda *arguments: pytest.fail("an ordinary process was started"))
    folder = StudyFolder(root=tmp_path)
    running = run_local(cells, folder, 1)
    cell, reason = next(running)
    assert (cell.seed, reason) == (1, "its process ended with code 0. ")
    pid = int(first_line(folder.log(cells[1].id)))
    running.close()
    wait_until_gone(pid)
    assert not folder.log(cells[2].id).exists()
    assert not folder.result(cells[1].id).exists()
