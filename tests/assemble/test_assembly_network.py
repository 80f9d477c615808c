"""Assembling over a network: only the bytes that are kept, the right ones after every fault, and after kill -9.

`SURGEON_KILLS=50` kills the command 50 times instead of 3.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layer_surgeon import AssembledModel, assemble_model, plan_assembly
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import HubLimits
from layer_surgeon.errors import SourceChangedError, SourceError
from layer_surgeon.extract import copy as copy_module
from layer_surgeon.extract import plan as plan_module
from tests.extract.test_faults import CONFIG, FAULTS, PIECE, STRETCH, Row, plan_fault
from tests.extract.test_kills import BYTES_PER_SECOND, SMALL_STRETCHES, environment, wait_until
from tests.support.checkpoints import LLAMA_70B, write_sparse_checkpoint
from tests.support.hub_faults import reset
from tests.support.hub_reading import note_waits, read_from, weight_bytes
from tests.support.loopback_hub import LoopbackHub

KILLS = int(os.environ.get("SURGEON_KILLS", "3"))
# Layer 1 again after layer 0: bytes that are copied on the disk, and not read twice.
LAYERS = "1,0,1"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIG | {"intermediate_size": 1024}
    return write_sparse_checkpoint(tmp_path_factory.mktemp("network") / "model", config, [0, 1])


@pytest.fixture(scope="module")
def expected(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> AssembledModel:
    """The model assembled from the local folder."""
    return assemble_model(repo, tmp_path_factory.mktemp("expected") / "out", layers=LAYERS, max_shard_size="6MB")


@pytest.fixture
def hub(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    note_waits(monkeypatch)
    limits = HubLimits(tries=2, contact_tries=2, bad_answer_tries=2, base_wait=0.001, max_wait=0.002)
    monkeypatch.setattr(HubSource, "limits", limits)
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", PIECE)
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", STRETCH)
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        hub.add_repo("owner/model", repo)
        yield hub


def assemble(output: Path) -> AssembledModel:
    return assemble_model("owner/model", output, layers=LAYERS, max_shard_size="6MB")


def check(model: AssembledModel, expected: AssembledModel) -> None:
    """The same files of weights, whose digests are those of the record, and nothing else next to the folder."""
    model.verify()
    assert model.record["sha256"] == expected.record["sha256"]
    for file in expected.path.glob("*.safetensors"):
        assert (model.path / file.name).read_bytes() == file.read_bytes()
    assert [path.name for path in model.path.parent.iterdir()] == ["out"]


def journaled(output: Path) -> int:
    """Source bytes that the journals of a cut off assembly record."""
    journals = output.with_name(f".{output.name}.partial").glob(".journal-*")
    lines = [json.loads(line) for file in journals for line in file.read_bytes().splitlines()[1:] if line[-1:] == b"}"]
    return sum(line["end"] - line["start"] for line in lines)


@pytest.mark.parametrize("row", FAULTS.values(), ids=list(FAULTS))
def test_fault(hub: LoopbackHub, tmp_path: Path, expected: AssembledModel, row: Row) -> None:
    """A permanent fault is an error of ours or harmless. Without it, the next call reads exactly what is missing."""
    output = tmp_path / "made" / "out"
    plan_fault(hub, row, -1)
    if row.stays is not None:
        with pytest.raises(SourceError, match=row.stays) as caught:
            assemble(output)
        assert not output.exists()
        if isinstance(caught.value, SourceChangedError) or row.server == "hub":
            assert not output.parent.exists()
    already_read = journaled(output)
    hub.faults.clear()
    hub.reset_log()
    model = assemble(output)
    check(model, expected)
    assert weight_bytes(hub) == model.record["num_bytes_read"] - already_read


def test_connection_that_breaks_midway_goes_on(hub: LoopbackHub, tmp_path: Path, expected: AssembledModel) -> None:
    """The second file of weights is cut off: the first one is not read again."""
    output = tmp_path / "made" / "out"
    plan = plan_assembly("owner/model", layers=LAYERS, max_shard_size="6MB")
    hub.faults.add(
        reset(), server="cdn", method="GET", path=r"\.safetensors", skip=1 + len(plan.shards[0].pieces), times=-1
    )
    with pytest.raises(SourceError):
        assemble(output)
    already_read = journaled(output)
    assert already_read >= plan.shards[0].num_bytes
    hub.faults.clear()
    hub.reset_log()
    check(assemble(output), expected)
    assert weight_bytes(hub) == plan.num_bytes - already_read


@pytest.mark.filterwarnings("ignore:invalid value")  # Random bytes are also odd numbers.
def test_another_scale_starts_over(hub: LoopbackHub, repo: Path, tmp_path: Path) -> None:
    """What an interrupted assembly wrote is already scaled, so only the same factor can go on with it."""
    settings = {"layers": LAYERS, "max_shard_size": "6MB"}
    hub.faults.add(reset(), server="cdn", method="GET", path=r"\.safetensors", skip=4, times=-1)
    with pytest.raises(SourceError):
        assemble_model("owner/model", tmp_path / "made" / "out", scale="0=0.5", **settings)
    assert journaled(tmp_path / "made" / "out")
    hub.faults.clear()
    model = assemble_model("owner/model", tmp_path / "made" / "out", scale="0=0.25", **settings)
    check(model, assemble_model(repo, tmp_path / "expected", scale="0=0.25", **settings))


def test_layer_of_a_local_model_is_read_again(
    hub: LoopbackHub, repo: Path, tmp_path: Path, expected: AssembledModel
) -> None:
    """Only the Hub says whether a file has changed, so an interrupted assembly keeps its bytes, and no local ones."""
    output = tmp_path / "made" / "out"
    recipe = {"layers": "1,0,0", "replace": {2: (repo, 1)}, "max_shard_size": "6MB"}
    hub.faults.add(reset(), server="cdn", method="GET", path=r"\.safetensors", skip=4, times=-1)
    with pytest.raises(SourceError):
        assemble_model("owner/model", output, **recipe)
    already_read = journaled(output)
    hub.faults.clear()
    hub.reset_log()
    model = assemble_model("owner/model", output, **recipe)
    check(model, expected)
    assert 0 < already_read < expected.record["num_bytes_read"]
    assert weight_bytes(hub) == expected.record["num_bytes_read"] - already_read


@pytest.mark.slow
def test_repeated_kills(repo: Path, expected: AssembledModel, tmp_path: Path) -> None:
    """After each kill -9 the folder is whole or not there, and at the end it has the same bytes."""
    with LoopbackHub(bytes_per_second=BYTES_PER_SECOND) as hub:
        hub.add_repo("owner/model", repo)
        output = tmp_path / "made" / "out"
        arguments = ("assemble", "owner/model", "--layers", LAYERS, "--max-shard-size", "6MB", "--output", str(output))
        command = [sys.executable, "-c", SMALL_STRETCHES, *arguments]
        generator = random.Random(KILLS)
        for kill in range(KILLS):
            hub.reset_log()
            missing = expected.record["num_bytes_read"] - journaled(output)
            process = subprocess.Popen(
                command, env=environment(hub, tmp_path / "hf"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            # Every third kill comes while the last bytes are written, or while the folder is moved to its final path.
            wait_until(process, hub, missing if kill % 3 == 2 else 1)
            time.sleep(generator.uniform(0, 0.1 if kill % 3 == 2 else 0.35))
            process.kill()
            process.wait()
            if output.exists():
                check(AssembledModel.open(output), expected)
                shutil.rmtree(output.parent)
        already_read = journaled(output)
        hub.reset_log()
        subprocess.run(command, env=environment(hub, tmp_path / "hf"), capture_output=True, check=True)
        assert weight_bytes(hub) == expected.record["num_bytes_read"] - already_read
        check(AssembledModel.open(output), expected)


def test_only_kept_bytes_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of a 70B model, narrower: at most 1.0005 times the kept tensors, and the headers of their files."""
    shape = LLAMA_70B | {"hidden_size": 512, "intermediate_size": 1792, "vocab_size": 2004, "num_attention_heads": 8}
    folder = write_sparse_checkpoint(tmp_path / "model", shape, [0], max_shard_bytes=19_000_000)
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        hub.add_repo("owner/model", folder)
        plan = plan_assembly("owner/model", keep="0:4")
        planned = sum(request.body_bytes for request in tuple(hub.requests))
        assert planned < 200_000
        hub.reset_log()
        model = assemble_model("owner/model", tmp_path / "out", keep="0:4")
        sent = sum(request.body_bytes for request in tuple(hub.requests))
        read = weight_bytes(hub)
    assert read == plan.num_bytes_read <= 1.0005 * model.num_bytes
    assert sent <= 1.0005 * model.num_bytes + 200_000
    assert len({file for shard in plan.shards for file in shard.files}) == 3 < len(list(folder.glob("*.safetensors")))
    assert plan.num_out_bytes == sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
