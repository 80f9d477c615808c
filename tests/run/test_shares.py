"""`run_layers` with several processes: the same states as one, resuming, and errors.

Most tests run the processes' program in threads of this process, because each process takes seconds to import torch.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from layer_surgeon import Workspace, run_layers
from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.errors import (
    ArtifactError,
    CheckpointError,
    ConfigError,
    LayerSurgeonError,
    SourceError,
    WorkspaceError,
)
from layer_surgeon.progress import NullProgress
from layer_surgeon.run import share_process, shares
from layer_surgeon.run.batches import make_batches
from layer_surgeon.run.inputs import prepare_run
from layer_surgeon.run.measures import measure_layers
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.shares import ShareSource, make_shares
from tests.support.hub_reading import read_from, weight_bytes
from tests.support.loopback_hub import LoopbackHub
from tests.support.numbered_texts import as_text, random_tokens
from tests.support.recorder import Recorder

# Loading a model patches transformers for a moment, which threads would leave patched.
ONE_AT_A_TIME = threading.Lock()
SETTINGS = {"batch_tokens": 20, "score": True}


def test_a_process_that_watches_its_parent_ends_like_any_other():
    code = "import threading; from layer_surgeon.run import share_process as p; "
    code += "threading.Thread(target=p._end_with_parent, daemon=True).start(); raise SystemExit(3)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.wait() == 3


@pytest.fixture
def here(monkeypatch):
    """Runs the program of the processes in threads of this process; returns the shares that ran."""
    ran = []

    def run(module, arguments, log, environment, running, *, stdin):
        assert module == share_process.__name__
        ran.append(int(arguments[1]))
        with ONE_AT_A_TIME, patch.dict(os.environ, environment):
            code = share_process.main(arguments)
        log.touch()
        return code

    monkeypatch.setattr(shares, "run_module", run)
    return ran


@pytest.fixture(scope="module")
def many_texts():
    return [as_text(ids) for ids in random_tokens((5, 9, 3, 9, 12, 4, 4, 30, 7, 9, 2))]


def check_same(states, expected):
    assert (states.path / "states.safetensors").read_bytes() == (expected.path / "states.safetensors").read_bytes()
    assert (states.path / "texts.jsonl").read_text() == (expected.path / "texts.jsonl").read_text()
    with_counts = [{**each.info, "num_bytes_read": 0, "texts": ""} for each in (states, expected)]
    assert with_counts[0] == with_counts[1]


@pytest.mark.parametrize(("pool", "workers"), [("none", 2), ("mean", 3), ("last", 4)])
def test_states_are_those_of_one_process(source, many_texts, tmp_path, here, pool, workers):
    expected = run_layers(source, many_texts, pool=pool, **SETTINGS)
    progress = Recorder()
    states = run_layers(
        source, many_texts, pool=pool, workers=workers, output=tmp_path / "out", progress=progress, **SETTINGS
    )
    check_same(states, expected)
    assert sorted(here) == list(range(workers))
    assert progress.done == progress.total == 4 * 94
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in states.path.iterdir()) == ["run.json", "states.safetensors", "texts.jsonl"]
    # The result is that of one process, so a call without workers finds it.
    again = Recorder()
    run_layers(source, many_texts, pool=pool, output=tmp_path / "out", progress=again, **SETTINGS)
    assert again.notices == [f"{tmp_path / 'out'} already holds these states; nothing was computed."]


@pytest.mark.slow
def test_real_processes(source, many_texts, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    states = run_layers(source, many_texts, pool="none", workers=2, output=tmp_path / "out", **SETTINGS)
    check_same(states, run_layers(source, many_texts, pool="none", **SETTINGS))


def test_shares_are_whole_batches_of_about_the_same_size():
    lengths = [length for length in range(3, 60) for _ in range(10)]
    batches = make_batches(lengths, 256)
    made = make_shares(batches, 4)
    assert sorted(text for share in made for text in share.texts) == list(range(len(lengths)))
    assert sum(share.num_tokens for share in made) == sum(lengths)
    assert max(share.num_tokens for share in made) < 1.05 * min(share.num_tokens for share in made)
    of_run = {batch.texts for batch in batches}
    for share in made:
        # The process of a share makes its batches again, and they are those of the run.
        own = make_batches([lengths[text] for text in share.texts], 256)
        assert {tuple(share.texts[text] for text in batch.texts) for batch in own} <= of_run


def test_a_share_may_have_nothing_to_score(source, here):
    lines = [as_text([token]) for token in (5, 6, 7, 8)] + [as_text(random_tokens((8,))[0])]
    settings = {"batch_tokens": 8, "score": True}
    states = run_layers(source, lines, workers=2, **settings)
    assert len(here) == 2
    check_same(states, run_layers(source, lines, **settings))


def test_few_batches_need_few_processes(source, texts, here):
    progress = Recorder()
    states = run_layers(source, texts, workers=4, progress=progress)
    assert here == []
    assert "1 batches, too few for 4 processes. Set a smaller batch_tokens" in progress.notices[0]
    assert len(states) == 5


class Stopped(NullProgress):
    """Stops the run when the first share is finished."""

    def advance(self, amount):
        raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_run_keeps_its_shares(source, many_texts, tmp_path, here, workers):
    """Also with another number of processes: what is done is used."""
    settings = {**SETTINGS, "pool": "none", "output": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        run_layers(source, many_texts, workers=2, progress=Stopped(), **settings)
    assert not (tmp_path / "out").exists()
    done = len(list((tmp_path / ".out.partial").glob("share-*/run.json")))
    assert done
    here.clear()
    states = run_layers(source, many_texts, workers=workers, **settings)
    assert len(here) == 2 - done
    check_same(states, run_layers(source, many_texts, pool="none", **SETTINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_process_gives_its_error(source, many_texts, tmp_path, here, monkeypatch):
    run = share_process.run_prepared

    def fail(inputs, source, output, **keywords):
        if output.name == "share-1":
            raise SourceError("The disk of the model is gone.")
        return run(inputs, source, output, **keywords)

    monkeypatch.setattr(share_process, "run_prepared", fail)
    settings = {**SETTINGS, "output": tmp_path / "out", "workers": 2}
    with pytest.raises(SourceError, match=r"Process 2 of 2 failed: The disk of the model is gone\."):
        run_layers(source, many_texts, **settings)
    monkeypatch.setattr(share_process, "run_prepared", run)
    check_same(run_layers(source, many_texts, **settings), run_layers(source, many_texts, **SETTINGS))


def test_a_killed_process_gives_the_end_of_its_log(source, many_texts, tmp_path, monkeypatch):
    def killed(module, arguments, log, environment, running, *, stdin):
        log.write_text("Killed: out of memory")
        return -9

    monkeypatch.setattr(shares, "run_module", killed)
    with pytest.raises(LayerSurgeonError, match="of 2 failed: its process ended with code -9. Killed: out of memory"):
        run_layers(source, many_texts, workers=2, output=tmp_path / "out", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_other_versions_are_refused(source, many_texts, tmp_path, here, monkeypatch):
    run = share_process.run_prepared

    def with_other_versions(*arguments, **keywords):
        states = run(*arguments, **keywords)
        states.info["versions"]["torch"] = "1.0"
        (states.path / "run.json").write_text(json.dumps(states.info))

    monkeypatch.setattr(share_process, "run_prepared", with_other_versions)
    with pytest.raises(ArtifactError, match=r"used .*'1\.0'.* Install the same versions on all machines, and delete"):
        run_layers(source, many_texts, workers=2, output=tmp_path / "out", **SETTINGS)


def test_kept_layers_are_fetched_once(source, many_texts, tmp_path, here, monkeypatch):
    expected = run_layers(source, many_texts, **SETTINGS)
    with LoopbackHub() as hub:
        hub.add_repo("owner/model", source)
        read_from(hub.endpoint, monkeypatch)
        one = run_layers("owner/model", many_texts, **SETTINGS)
        num_bytes = weight_bytes(hub)
        hub.reset_log()
        settings = {**SETTINGS, "workers": 2, "keep_layers": True, "workspace": Workspace(tmp_path / "surgery")}
        states = run_layers("owner/model", many_texts, **settings)
        kept = weight_bytes(hub)
    assert torch.equal(states[3], expected[3])
    assert torch.equal(one[3], expected[3])
    layers = sum(t.num_bytes for layer in range(4) for t in open_checkpoint(source).layer_tensors(layer))
    # Each process reads the rest of the model itself: the token table and the head.
    assert kept - layers == pytest.approx(2 * (num_bytes - layers), rel=0.1)
    assert sorted(path.name for path in (tmp_path / "surgery" / "layers").iterdir()) == [
        f"model-L{k}" for k in range(4)
    ]


def test_the_token_is_passed_in_the_environment(source, many_texts, tmp_path, here):
    checkpoint = open_checkpoint(source)
    arguments = {"revision": "main", "workspace": None}
    described = ShareSource.make(str(source), checkpoint, token="hf_secret", **arguments)
    assert described.revision == "main"
    assert described.environment()["HF_TOKEN"] == "hf_secret"
    variables = {"SURGEON_RUN_SOURCE": json.dumps(str(source))}
    assert ShareSource.make(source, checkpoint, token=None, **arguments).environment() == variables
    variables |= {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN": ""}
    assert replace(described, token=False).environment() == variables
    config = RunConfig(workers=2, **SETTINGS)
    inputs = prepare_run(source, many_texts, config, progress=NullProgress())
    shares.run_shares(inputs, replace(described, revision=None), tmp_path, 2, NullProgress())
    assert all("secret" not in path.read_text() for path in tmp_path.glob("share-*.json*"))


def test_urls_with_passwords_are_written_nowhere(source, many_texts, tmp_path, monkeypatch):
    def fail(module, arguments, log, environment, running, *, stdin):
        log.write_text("failed")
        return 1

    monkeypatch.setattr(shares, "run_module", fail)
    url = "https://ann:s3cret@example.org/model?sig=s3cret"
    described = ShareSource(source=url, revision=None, token=None, workspace=None)
    inputs = prepare_run(source, many_texts, RunConfig(workers=2, **SETTINGS), progress=NullProgress())
    with pytest.raises(LayerSurgeonError):
        shares.run_shares(inputs, described, tmp_path, 2, NullProgress())
    assert all("s3cret" not in path.read_text() for path in tmp_path.rglob("share-*"))


@pytest.mark.parametrize("name", ["owner/model", "hf://owner/model", "hf://owner/model@main"])
def test_all_processes_read_the_same_commit(source, many_texts, here, monkeypatch, name):
    """The branch moves after the run has begun, and to a model that can't be read."""
    expected = run_layers(source, many_texts, **SETTINGS)
    with LoopbackHub() as hub:
        repo = hub.add_repo("owner/model", source)
        read_from(hub.endpoint, monkeypatch)
        make = ShareSource.make

        def and_push(*arguments, **keywords):
            repo.commit({"config.json": b"{}"})
            return make(*arguments, **keywords)

        monkeypatch.setattr(ShareSource, "make", and_push)
        states = run_layers(name, many_texts, workers=2, **SETTINGS)
    assert torch.equal(states[3], expected[3])


def test_a_model_that_changes_is_refused(source, many_texts, tmp_path, here, monkeypatch):
    """And not run half in its old and half in its new form."""
    model = shutil.copytree(source, tmp_path / "model")
    run, settings = share_process.run_prepared, {**SETTINGS, "workers": 2, "output": tmp_path / "out"}

    def and_write(*arguments, **keywords):
        run(*arguments, **keywords)
        for file in model.glob("*.safetensors"):
            os.utime(file, (1, 1))

    monkeypatch.setattr(share_process, "run_prepared", and_write)
    with pytest.raises(CheckpointError, match="has changed since this run began. Run the same command again"):
        run_layers(model, many_texts, **settings)
    monkeypatch.setattr(share_process, "run_prepared", run)
    check_same(run_layers(model, many_texts, **settings), run_layers(model, many_texts, **SETTINGS))


def test_an_open_checkpoint_is_refused(source, many_texts, here):
    with pytest.raises(ConfigError, match=r"The source is an open checkpoint.*Give its path or repo id"):
        run_layers(open_checkpoint(source), many_texts, workers=2, **SETTINGS)


def test_measuring_takes_one_process(source, texts):
    with pytest.raises(ConfigError, match=r"workers is 2 .* Run the model with several processes and pool none"):
        measure_layers(source, texts, workers=2)


def test_a_machine_without_the_folder_says_so(tmp_path):
    with pytest.raises(WorkspaceError, match="is not the run's folder on this machine. Choose an --output on a disk"):
        shares._on_ray(str(tmp_path), 0, str(tmp_path), {})


@pytest.mark.slow
def test_ray(source, many_texts):
    states = run_layers(source, many_texts, pool="none", workers=2, executor="ray", **SETTINGS)
    check_same(states, run_layers(source, many_texts, pool="none", **SETTINGS))


def test_each_process_takes_its_own_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for is_available in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_available=is_available: is_available)
        for index in range(3):
            share_process.take_gpu(index)
    assert taken == [0, 1, 0]
