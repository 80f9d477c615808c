"""After a kill -9 at any moment of a run, the same call gives the same states.

SURGEON_KILLS=50 kills at so many random moments; SURGEON_KILLS_SEED chooses them.
"""

import os
import random
import signal
import threading
import traceback
from pathlib import Path
from unittest.mock import patch

import pytest

from layer_surgeon import HiddenStates, run_layers
from layer_surgeon.run import run_folder, share_process, shares, state_files

# Loading a model patches transformers for a moment, which threads would leave patched.
ONE_AT_A_TIME = threading.Lock()
KILLS = int(os.environ.get("SURGEON_KILLS", "10"))
SETTINGS = {"pool": "none", "batch_tokens": 20, "score": True}


def die_at(step):
    """Kill this process at the n-th change of a file, before it or, for every other one, after it."""
    left = step

    def dying(action):
        def run(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left < 0 and step % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = action(*arguments, **keywords)
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    state_files.DepthWriter.add = dying(state_files.DepthWriter.add)
    state_files.KeptStates.add = dying(state_files.KeptStates.add)
    state_files.KeptStates.flush = dying(state_files.KeptStates.flush)
    run_folder.write_json = dying(run_folder.write_json)
    for name in ("replace", "rename", "unlink", "rmdir"):
        setattr(Path, name, dying(getattr(Path, name)))


def run_in_a_child(step, *arguments, **keywords):
    """Run in a copy of this process that is killed; a new one would take seconds to import torch."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_at(step)
            run_layers(*arguments, **keywords)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_share_here(module, arguments, log, environment, running, *, stdin):
    """In place of a process of its own, which is killed with this one."""
    log.touch()
    with ONE_AT_A_TIME, patch.dict(os.environ, environment):
        return share_process.main(arguments)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize("workers", [1, 2])
def test_kills_at_random_moments(source, texts, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(shares, "run_module", run_share_here)
    expected = run_layers(source, texts, output=tmp_path / "expected", **SETTINGS)
    generator = random.Random(int(os.environ.get("SURGEON_KILLS_SEED", "2023")))
    codes = []
    for number in range(KILLS // workers):
        folder = tmp_path / f"{number % 4}"
        step = generator.randrange(90 * workers)
        codes.append(run_in_a_child(step, source, texts, output=folder / "out", workers=workers, **SETTINGS))
        assert codes[-1] in (0, -signal.SIGKILL), step
        if (folder / "out").exists():
            check_same(HiddenStates.open(folder / "out"), expected)
    assert -signal.SIGKILL in codes
    for folder in sorted(tmp_path.glob("[0-9]")):
        check_same(run_layers(source, texts, output=folder / "out", workers=workers, **SETTINGS), expected)
        assert [path.name for path in folder.iterdir()] == ["out"]
        assert {path.name for path in (folder / "out").iterdir()} - {".lock"} == {
            path.name for path in expected.path.iterdir()
        }


def check_same(states, expected):
    stored = (states.path / "states.safetensors").read_bytes()
    assert stored == (expected.path / "states.safetensors").read_bytes()
    assert (states.path / "texts.jsonl").read_text() == (expected.path / "texts.jsonl").read_text()
