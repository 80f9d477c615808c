"""After a kill -9 at any moment, the next run gives the same bytes and only rereads what was in flight.

`SURGEON_KILLS=50` kills each of the two commands 50 times instead of 4.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from layer_surgeon import LayerArtifact, extract_layer
from layer_surgeon.checkpoint.sources import CHUNK_BYTES
from layer_surgeon.extract.journal import STRETCH_BYTES
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.command_line import SURGEON
from tests.support.hub_reading import journaled, weight_bytes
from tests.support.loopback_hub import LoopbackHub

KILLS = int(os.environ.get("SURGEON_KILLS", "4"))
# A layer of 34 MB.
CONFIG = LLAMA_8B | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}
BYTES_PER_SECOND = 6e6
# Bytes that the server has sent and the client has not read yet.
BUFFERED = 300_000

# The command with small stretches, so that each run makes progress before it is killed.
SMALL_STRETCHES = """
from layer_surgeon.checkpoint.sources import gather
from layer_surgeon.extract import copy, plan
gather.CHUNK_BYTES = 65536
copy.STRETCH_BYTES = 262144
plan.MIN_PIECE_BYTES = 2000000
from layer_surgeon_cli.main import main
main()
"""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way to run `surgeon extract`.

    Attributes:
        command: The start of the command line.
        in_flight: Bytes that each connection may have to read again after a kill.
    """

    command: tuple[str, ...]
    in_flight: int


MODES = {
    "as installed": Mode(command=(str(SURGEON),), in_flight=STRETCH_BYTES + CHUNK_BYTES + BUFFERED),
    "small stretches": Mode(command=(sys.executable, "-c", SMALL_STRETCHES), in_flight=262_144 + 65_536 + BUFFERED),
}


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse_checkpoint(tmp_path_factory.mktemp("kills") / "donor", CONFIG, [1])


@pytest.fixture
def hub(donor: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(bytes_per_second=BYTES_PER_SECOND) as hub:
        hub.add_repo("owner/model", donor)
        yield hub


def environment(hub: LoopbackHub, home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SURGEON_"))}
    return inherited | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}


def in_flight(hub: LoopbackHub, mode: Mode) -> int:
    """Bytes of the logged responses that may have to be read again, at most `mode.in_flight` of each."""
    return sum(min(request.body_bytes, mode.in_flight) for request in tuple(hub.requests) if request.server == "cdn")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_repeated_kills(hub: LoopbackHub, donor: Path, tmp_path: Path, mode: Mode) -> None:
    expected = extract_layer(donor, -1, tmp_path / "expected")
    folder = tmp_path / "made"
    command = [*mode.command, "extract", "owner/model", "--output", str(folder / "out")]
    generator = random.Random(KILLS)
    read = allowed = rounds = 0
    for kill in range(KILLS):
        hub.reset_log()
        missing = expected.num_bytes - journaled(folder / "out")
        process = subprocess.Popen(
            command, env=environment(hub, tmp_path / "hf"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if kill % 3 == 2:
            # Kill it while the last bytes are written and hashed, or while the artifact is moved to its final path.
            wait_until(process, hub, missing)
            time.sleep(generator.uniform(0, 0.1))
        else:
            wait_until(process, hub, 1)
            time.sleep(generator.uniform(0, 0.35))
        process.kill()
        process.wait()
        read += weight_bytes(hub)
        allowed += in_flight(hub, mode)
        if (folder / "out").exists():
            # The artifact is either complete or doesn't exist.
            artifact = LayerArtifact.open(folder / "out")
            artifact.verify()
            assert artifact.sha256 == expected.sha256
            rounds += 1
            shutil.rmtree(folder)
    already_read = journaled(folder / "out")
    hub.reset_log()
    subprocess.run(command, env=environment(hub, tmp_path / "hf"), capture_output=True, check=True)
    # The hub may still answer requests that the killed process had left in its sockets.
    assert 0 <= weight_bytes(hub) - (expected.num_bytes - already_read) <= in_flight(hub, mode)
    read, rounds = read + weight_bytes(hub), rounds + 1
    artifact = LayerArtifact.open(folder / "out")
    artifact.verify()
    assert (folder / "out" / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert not [path.name for path in (folder / "out").iterdir() if path.name.startswith(".")]
    print(f"{KILLS} kills, {rounds} layers of {expected.num_bytes:,} bytes, {read:,} read, {allowed:,} more allowed")
    assert rounds * expected.num_bytes <= read <= rounds * expected.num_bytes + allowed


def wait_until(process: subprocess.Popen[bytes], hub: LoopbackHub, num_bytes: int) -> None:
    """Wait until `num_bytes` of weights have been sent, or the process has ended."""
    while weight_bytes(hub) < num_bytes and process.poll() is None:
        time.sleep(0.005)


# Ends the process at the n-th change of the file system while the artifact is moved to its final path.
DIE = """
import os, shutil, sys
from pathlib import Path
from layer_surgeon.extract import staging
left = int(sys.argv[1])
def dying(name, action):
    def run(*arguments, **settings):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return action(*arguments, **settings)
    return run
original = staging.Staging.put_in_place
def put_in_place(self):
    for name in ("rename", "unlink", "rmdir"):
        setattr(Path, name, dying(name, getattr(Path, name)))
    shutil.rmtree = dying("rmtree", shutil.rmtree)
    original(self)
staging.Staging.put_in_place = put_in_place
from layer_surgeon import extract_layer
extract_layer("donor", int(sys.argv[2]), "made/out", force=True)
"""


@pytest.mark.parametrize("existing", ["nothing", "an empty folder", "another layer"])
def test_kill_while_the_artifact_is_moved(donor: Path, tmp_path: Path, existing: str) -> None:
    """After each step, the old or the new artifact exists and is complete, or the next run makes it."""
    (tmp_path / "donor").symlink_to(donor)
    expected = {layer: extract_layer(donor, layer, tmp_path / f"expected {layer}").sha256 for layer in (0, 1)}
    step, code = 0, 9
    while code == 9:
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        if existing == "another layer":
            extract_layer(donor, 0, tmp_path / "made" / "out")
        elif existing == "an empty folder":
            (tmp_path / "made" / "out").mkdir(parents=True)
        code = subprocess.run([sys.executable, "-c", DIE, str(step), "1"], cwd=tmp_path, check=False).returncode
        if (tmp_path / "made" / "out").exists() and any((tmp_path / "made" / "out").iterdir()):
            artifact = LayerArtifact.open(tmp_path / "made" / "out")
            artifact.verify()
            assert artifact.sha256 in expected.values()
        artifact = extract_layer(donor, 1, tmp_path / "made" / "out", force=True)
        artifact.verify()
        assert artifact.sha256 == expected[1]
        assert [path.name for path in (tmp_path / "made").iterdir()] == ["out"], f"after step {step}"
        step += 1
    assert code == 0
    assert step >= 3
