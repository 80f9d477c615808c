"""Two processes on one CPU (gloo): the same losses as one process, every example measured once, one of them writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layer_surgeon.graft import GraftConfig, save_graft
from layer_surgeon.workspace import Workspace
from tests.support.classification import bert_config, rows, word_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]
ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# --multi_gpu is what starts processes; that they are on the CPU is our own setting. (--cpu would want MPI.)
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


@pytest.fixture(scope="module")
def still(artifact, tmp_path_factory):
    """A graft without dropout, whose masks would be drawn otherwise in every process."""
    from transformers import BertModel

    root = tmp_path_factory.mktemp("still")
    torch.manual_seed(0)
    BertModel(bert_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).save_pretrained(root / "host")
    word_tokenizer().save_pretrained(root / "host")
    workspace = Workspace(root / "surgery")
    config = GraftConfig(dropout=0.0)
    return save_graft(root / "host", artifact, config=config, output=root / "graft", seed=7, workspace=workspace).path


def start(launcher, *arguments, cwd=ROOT):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SURGEON_")}
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def seen(folder, name):
    return json.loads((folder / f"seen-{name}.json").read_text())


@pytest.fixture(scope="module")
def alone(still, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    start(("-m", "tests.support.together"), still, folder, 8)
    return seen(folder, "1-8-0")


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_do_what_one_does(still, alone, tmp_path, launcher):
    start((*launcher, "-m", "tests.support.together"), still, tmp_path, 4)
    first, second = seen(tmp_path, "2-4-0"), seen(tmp_path, "2-4-1")
    assert len(alone["losses"]) == len(first["losses"]) == 20
    assert len(set(alone["losses"])) == 20
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    # Every example once, though neither set divides.
    assert first["examples"] == second["examples"] == alone["examples"] == {"validation": 13, "test": 7}
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
    # The frozen donor is not sent around, and nothing waits for its gradients.
    assert set(first["donor"]) <= set(first["ignored"])
    assert first["reduced"] == first["trained"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["run", "surgery"]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["device"].endswith("2 processes)")


def test_the_command_starts_the_processes(still, tmp_path):
    lines = [f"{row['text']},{row['label']}" for row in rows(40, labels=("bad", "good"))]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *lines, ""]))
    arguments = ("finetune", still, "--dataset", "data.csv", "--batch-size", 4, "--num-epochs", 1, "--json")
    done = start(("-m", "layer_surgeon_cli"), *arguments, "--num-processes", 2, cwd=tmp_path)
    document = json.loads(done.stdout)
    assert document["history"][0]["step"] == 4
    assert document["device"].endswith("2 processes)")
    assert (tmp_path / document["path"] / "model.safetensors").is_file()


def test_an_error_is_said_once(still, tmp_path):
    arguments = ("finetune", still, "--dataset", "none.csv", "--num-processes=2")
    done = subprocess.run(
        [sys.executable, "-m", "layer_surgeon_cli", *map(str, arguments)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("There is no file") == 1
    assert list(tmp_path.iterdir()) == []
