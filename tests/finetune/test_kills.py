"""A run that is killed at any moment resumes, and ends with the weights of a run that was never stopped.

SURGEON_KILLS=10 kills at so many random moments; SURGEON_KILLS_SEED chooses them.
"""

import json
import os
import random
import signal
from pathlib import Path

import pytest

from layer_surgeon.errors import TrainingError
from tests.support import killed_run
from tests.support.preloaded import run_code

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
ROOT = Path(__file__).resolve().parents[2]


def moments():
    """The places, by turns, at random steps: the first two of them in the middle of training."""
    rng = random.Random(int(os.environ.get("SURGEON_KILLS_SEED", "2023")))
    count = int(os.environ.get("SURGEON_KILLS", "2"))
    return [
        (rng.randrange(1, killed_run.STEPS), killed_run.PLACES[number % len(killed_run.PLACES)])
        for number in range(count)
    ]


def start_and_kill(model, output, step, place, *, resume=False):
    task = {"model": str(model), "output": str(output), "step": step, "place": place, "resume": resume}
    code = "import runpy; runpy.run_module('tests.support.killed_run', run_name='__main__')"
    done = run_code(code, json.dumps(task), cwd=output.parent, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr


def what_counts(folder):
    results = json.loads((folder / "results.json").read_text())
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "epochs": [
            {name: value for name, value in epoch.items() if name != "training_loss"} for epoch in results["history"]
        ],
        "best": results["best_epoch"],
        "validation": results["validation"],
        "files": sorted(path.name for path in folder.iterdir()),
    }


@pytest.fixture(scope="module")
def whole(graft, tmp_path_factory):
    """The run that was never stopped, with as many threads as the processes have."""
    output = tmp_path_factory.mktemp("whole") / "run"
    code = (
        "import sys; from pathlib import Path; from tests.support.killed_run import train; "
        "train(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    done = run_code(code, graft, output, cwd=output.parent, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return what_counts(output)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "place"), moments())
def test_killed_run_ends_as_if_it_had_not_been(graft, whole, tmp_path, step, place):
    output = tmp_path / "run"
    start_and_kill(graft, output, step, place)
    assert output.exists() == (place == "finish")
    if place == "finish":
        with pytest.raises(TrainingError, match="finished: there is nothing to resume"):
            killed_run.train(graft, output, resume=True)
    else:
        killed_run.train(graft, output, resume=True)
    assert what_counts(output) == whole
    assert not output.with_name("run.unfinished").exists()


@pytest.mark.slow
def test_killed_twice_and_before_the_first_checkpoint(graft, whole, tmp_path):
    output = tmp_path / "run"
    start_and_kill(graft, output, 1, "step")
    assert not list((tmp_path / "run.unfinished" / "checkpoints").iterdir())
    start_and_kill(graft, output, 9, "saving", resume=True)
    killed_run.train(graft, output, resume=True)
    assert what_counts(output) == whole
