"""The small files that are read while the Hub resolves the commit, and the number of requests until weights arrive."""

import json
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import constants

from layer_surgeon.checkpoint import open_checkpoint
from layer_surgeon.checkpoint.safetensors import read_header
from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources import open_source
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.errors import SourceError, SourceNotFoundError
from tests.support.hub_faults import header, reset, status, wrong_bytes
from tests.support.loopback_hub import LoopbackHub

REPO = "owner/name"
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def loopback_hub_for_repo_ids(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))


@pytest.mark.parametrize("redirected", [False, True])
def test_a_layer_is_found_with_few_requests(hub: LoopbackHub, donor: Path, redirected: bool) -> None:
    hub.router.small_redirects = redirected
    hub.add_repo(REPO, donor)
    checkpoint = open_checkpoint(REPO)
    early_paths = [request.path for request in hub.requests if "/resolve/" in request.path]
    assert sorted(early_paths) == [f"/{REPO}/resolve/main/config.json", f"/{REPO}/resolve/main/{INDEX}"]
    assert len(hub.requests) == (5 if redirected else 3)
    hub.reset_log()
    shards = {tensor.file for tensor in checkpoint.layer_tensors(-1)}
    assert len(shards) > 1
    assert hub.count("HEAD", server="hub") == hub.count("GET", server="cdn") == len(shards)
    assert len(hub.requests) == 2 * len(shards)


def test_a_branch_that_moves_in_between_does_not_matter(hub: LoopbackHub, donor: Path) -> None:
    hub.add_repo(REPO, donor)
    hub.faults.add(wrong_bytes(), path="/resolve/main/")
    assert open_checkpoint(REPO).config["num_hidden_layers"] == 3
    assert hub.count(path="config.json") + hub.count(path=INDEX) == 3


@pytest.mark.parametrize("fault", [status(503), status(404), reset(), header("Content-Encoding", "gzip")])
def test_a_failure_is_not_an_error_yet(hub: LoopbackHub, donor: Path, fault: object) -> None:
    hub.add_repo(REPO, donor)
    hub.faults.add(fault, path="/resolve/main/", times=-1)
    assert open_checkpoint(REPO).num_layers == 3


def test_a_redirect_to_another_host_is_not_followed_with_the_token(hub: LoopbackHub, donor: Path) -> None:
    hub.add_repo(REPO, donor, private=True, accepted={"hf_good"})
    hub.faults.add(status(302, Location=f"{hub.cdn_endpoint}/elsewhere"), path="/resolve/main/", times=-1)
    assert open_checkpoint(REPO, token="hf_good").num_layers == 3
    assert hub.count(path="elsewhere") == 0


def test_an_endless_redirect_and_an_endless_file(
    hub: LoopbackHub, donor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, donor)
    hub.faults.add(status(307, Location="/owner/name/resolve/main/config.json"), path="/resolve/main/", times=-1)
    assert open_checkpoint(REPO).num_layers == 3
    hub.faults.clear()
    monkeypatch.setattr("layer_surgeon.checkpoint.sources.hub_early.MAX_INDEX_BYTES", 10)
    assert open_checkpoint(REPO).num_layers == 3


def test_errors_of_the_repo_are_the_same(hub: LoopbackHub) -> None:
    with pytest.raises(SourceNotFoundError, match="no model repo"):
        open_source(REPO)
    hub.add_repo(REPO, {"x.gguf": "GGUF"})
    with pytest.raises(SourceError, match="no branch, tag or commit 'v9'"):
        open_source(REPO, revision="v9")


def test_a_subfolder_and_a_file(hub: LoopbackHub, donor: Path) -> None:
    hub.add_repo(REPO, {f"sub/{path.name}": path for path in donor.iterdir()} | {"x.gguf": "GGUF"})
    assert open_checkpoint(f"hf://{REPO}/sub").num_layers == 3
    assert hub.count(path="sub/config.json") == hub.count(path=f"sub/{INDEX}") == 1
    hub.reset_log()
    open_source(f"hf://{REPO}/x.gguf")
    assert len(hub.requests) == 1


def test_a_header_that_is_longer_than_expected_takes_a_second_read(hub: LoopbackHub) -> None:
    metadata = json.dumps({"__metadata__": {"text": "x" * 100_000}}).encode()
    content = len(metadata).to_bytes(8, "little") + metadata
    hub.add_repo(REPO, {"config.json": "{}", "a.safetensors": content})
    assert read_header(open_source(REPO), "a.safetensors") == {}
    sent = [request.body_bytes for request in hub.requests if request.server == "cdn"]
    assert len(sent) == 2
    assert sum(sent) == len(content)
