"""olah, a mirror of the Hub that answers 206 with an empty body if its own Hub fails."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from layer_surgeon import LayerArtifact, extract_layer
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import HubLimits
from layer_surgeon.errors import SourceError
from layer_surgeon.extract import copy as copy_module
from layer_surgeon.extract import plan as plan_module
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.command_line import surgeon
from tests.support.hub_faults import reset
from tests.support.hub_reading import read_from
from tests.support.loopback_hub import LoopbackHub
from tests.support.olah_mirror import NoEnvironmentError, make_environment, run_mirror
from tests.support.recorder import Recorder

pytestmark = pytest.mark.slow
SMALL = LLAMA_8B | {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}
MB = 1 << 20


@pytest.fixture(scope="session")
def olah(request: pytest.FixtureRequest) -> Path:
    """olah's command, in an environment that is kept between runs."""
    try:
        return make_environment(request.config.cache.mkdir("olah") / "environment")
    except NoEnvironmentError as error:
        pytest.skip(f"olah can't be installed here: {error}")


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def mirror(olah: Path, hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the mirror. It caches repos, so each test uses a different one."""
    with run_mirror(olah, tmp_path_factory.mktemp("olah"), hub=hub.endpoint, cdn=hub.cdn_endpoint) as url:
        yield url


@pytest.fixture(autouse=True)
def reset_hub(hub: LoopbackHub, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.clear()
    hub.reset_log()
    monkeypatch.setattr(HubSource, "limits", HubLimits(tries=2, bad_answer_tries=2, base_wait=0.001, max_wait=0.002))
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", 2 * MB)
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", MB // 2)
    read_from(mirror, monkeypatch)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sparse_checkpoint(tmp_path_factory.mktemp("donor"), SMALL, [0, 1])
    (folder / "LICENSE").write_text("terms")
    return folder


@pytest.fixture(scope="module")
def expected(donor: Path, tmp_path_factory: pytest.TempPathFactory) -> LayerArtifact:
    return extract_layer(donor, -1, tmp_path_factory.mktemp("expected") / "layer")


def test_command_reads_through_the_mirror(
    hub: LoopbackHub, mirror: str, donor: Path, expected: LayerArtifact, tmp_path: Path
) -> None:
    repo = hub.add_repo("owner/read", donor)
    done = surgeon("extract", "owner/read", "--output", "out", cwd=tmp_path, env={"HF_ENDPOINT": mirror})
    assert done.code == 0, done.err
    artifact = LayerArtifact.open(tmp_path / "out")
    artifact.verify()
    assert artifact.sha256 == expected.sha256
    assert artifact.config["source"]["commit"] == repo.refs["main"]
    assert (artifact.path / "LICENSE").read_text() == "terms"
    assert hub.count(server="cdn") > 0
    hub.reset_log()
    again = extract_layer("owner/read", -1, tmp_path / "again")
    assert again.sha256 == expected.sha256
    # The mirror has cached the bytes.
    assert hub.count(server="cdn") == 0


def test_empty_response_is_an_error(hub: LoopbackHub, mirror: str, donor: Path, tmp_path: Path) -> None:
    commit = hub.add_repo("owner/empty", donor).refs["main"]
    shard = next(donor.glob("*.safetensors")).name
    hub.faults.add(reset(), server="cdn", times=-1)
    connection = http.client.HTTPConnection(mirror.removeprefix("http://"))
    connection.request("GET", f"/owner/empty/resolve/{commit}/{shard}", headers={"Range": "bytes=0-7"})
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Range"].split("/")[0]) == (206, "bytes 0-7")
    with pytest.raises(http.client.IncompleteRead, match="0 bytes read"):
        response.read()
    connection.close()
    with pytest.raises(SourceError, match=f"{shard} of owner/empty can't be read"):
        extract_layer("owner/empty", -1, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_continues_after_the_hub_fails(
    hub: LoopbackHub, donor: Path, expected: LayerArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HubSource, "connections", 1)
    hub.add_repo("owner/halfway", donor)
    progress = Recorder()
    # The header and some blocks of weights arrive before the fault.
    hub.faults.add(reset(), server="cdn", times=-1, skip=6)
    with pytest.raises(SourceError, match="of owner/halfway can't be read"):
        extract_layer("owner/halfway", -1, tmp_path / "out", progress=progress)
    assert not (tmp_path / "out").exists()
    assert any("goes on from there" in notice for notice in progress.notices)
    hub.faults.clear()
    artifact = extract_layer("owner/halfway", -1, tmp_path / "out", progress=progress)
    artifact.verify()
    assert artifact.sha256 == expected.sha256
    assert any("are left from an earlier run" in notice for notice in progress.notices)


def test_mirror_without_a_hub(hub: LoopbackHub, donor: Path, tmp_path: Path) -> None:
    hub.add_repo("owner/gone", donor)
    hub.faults.add(reset(), times=-1)
    with pytest.raises(SourceError, match="owner/gone"):
        extract_layer("owner/gone", -1, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_mirror_with_a_stale_branch(hub: LoopbackHub, donor: Path, expected: LayerArtifact, tmp_path: Path) -> None:
    repo = hub.add_repo("owner/moving", donor)
    first = repo.refs["main"]
    assert extract_layer("owner/moving", -1, tmp_path / "out").config["source"]["commit"] == first
    newer = {path.name: path.read_bytes() for path in donor.iterdir()}
    shard = next(name for name in newer if name.endswith(".safetensors"))
    newer[shard] = newer[shard][:-2000] + bytes(2000)
    assert repo.commit(newer) != first
    # The mirror caches main for ten minutes. The layer is from the old commit, and records it.
    stale = extract_layer("owner/moving", -1, tmp_path / "stale")
    assert stale.config["source"]["commit"] == first
    assert stale.sha256 == expected.sha256
