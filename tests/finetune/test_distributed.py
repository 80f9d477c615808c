"""Two processes on one CPU (gloo): the same losses as one process, every example measured once, one of them writes.

FSDP too, although accelerate has it for GPUs alone: there it is told that these are some (tests/support/together.py).
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune import processes
from layer_surgeon.finetune.sharding import plan_sharding
from layer_surgeon.graft import GraftConfig, GraftedModel, save_graft
from layer_surgeon.workspace import Workspace
from tests.support.classification import bert_config, word_tokenizer
from tests.support.command_line import surgeon_forked
from tests.support.preloaded import run_code

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]
ROOT = Path(__file__).resolve().parents[2]
# That they are on the CPU is our own setting. (accelerate's would want MPI.)
ACCELERATE = ("accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0", "--config_file")
DOCUMENTED = re.findall(r"```yaml\n# (\w+\.yaml).*?\n(.*?)```", (ROOT / "docs/distributed.md").read_text(), re.DOTALL)


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


def start(module, *arguments, cwd):
    """Like `python -m module`."""
    code = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    done = run_code(code, *arguments, cwd=cwd, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]


def seen(folder, name):
    return json.loads((folder / f"seen-{name}.json").read_text())


@pytest.fixture(scope="module")
def alone(still, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    start("tests.support.together", still, folder, 8, cwd=folder)
    return seen(folder, "1-8-0")


def launched(name, folder):
    """How to start two processes by accelerate, with a file of the documentation."""
    (folder / name).write_text(dict(DOCUMENTED)[name])
    return (*ACCELERATE, folder / name)


@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp.yaml"])
def test_two_processes_do_what_one_does(still, alone, tmp_path, name):
    start(*launched(name, tmp_path), "-m", "tests.support.together", still, tmp_path, 4, cwd=tmp_path)
    first, second = seen(tmp_path, "2-4-0"), seen(tmp_path, "2-4-1")
    assert len(alone["losses"]) == len(first["losses"]) == 20
    assert len(set(alone["losses"])) == 20
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    # Every example once, though neither set divides.
    assert first["examples"] == second["examples"] == alone["examples"] == {"validation": 13, "test": 7}
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
    # The frozen donor is not sent around, nothing waits for its gradients, and no checkpoint holds it.
    if name == "fsdp.yaml":
        assert first["whole"] == first["donor"]
        assert first["spread"] == first["checkpoint"]
    else:
        assert set(first["donor"]) <= set(first["ignored"])
        assert first["reduced"] == first["trained"]
    assert first["checkpoint"] == alone["checkpoint"]
    assert not [file for file in first["files"] if "fsdp" in file]
    # A run that stops within an epoch and resumes sees the same examples as one that does not stop.
    assert len({*first["weights"].values(), *second["weights"].values()}) == 1
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()} - {".hf"}
    assert folders == {"resumed", "run", "surgery"}
    assert json.loads((tmp_path / "run" / "results.json").read_text())["device"].endswith("2 processes)")
    together, before = GraftedModel.from_pretrained(tmp_path / "run"), GraftedModel.from_pretrained(still)
    for key, weight in before.donor.state_dict().items():
        assert torch.equal(together.donor.state_dict()[key], weight)


def test_error_is_reported_once(still, tmp_path):
    """By torchrun, as the command starts it. `tests/test_security.py` trains with such a command."""
    done = surgeon_forked("finetune", still, "--dataset", "none.csv", "--num-processes=2", cwd=tmp_path)
    assert done.code == 1
    assert done.err.count("There is no file") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != ".hf"] == []


def test_fsdp_on_the_cpu_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    there = SimpleNamespace(distributed_type="MULTI_CPU", process_index=0, num_processes=2)
    monkeypatch.setattr(processes, "PartialState", lambda cpu: there)
    with pytest.raises(ConfigError, match="asks for FSDP, which accelerate supports only on GPUs"):
        processes.join_processes(torch.device("cpu"))


def test_modules_that_fsdp_shards(still):
    model = GraftedModel.from_pretrained(still)
    plugin = SimpleNamespace(fsdp_version=2, transformer_cls_names_to_wrap=None, ignored_modules=None)
    plan_sharding(plugin, model)
    # `_no_split_modules` includes BertEmbeddings, which contains the token embeddings, which are already wrapped.
    assert plugin.transformer_cls_names_to_wrap == ["BertLayer"]
    assert plugin.ignored_modules == [model.donor]
    plugin.transformer_cls_names_to_wrap = ["BertAttention"]
    model.donor.unfreeze()
    plugin.ignored_modules = None
    plan_sharding(plugin, model)
    assert plugin.transformer_cls_names_to_wrap == ["BertAttention"]
    assert plugin.ignored_modules is None


def test_the_old_fsdp_is_refused(still):
    with pytest.raises(ConfigError, match="fsdp_version is 1. Set it to 2"):
        plan_sharding(SimpleNamespace(fsdp_version=1), GraftedModel.from_pretrained(still))
