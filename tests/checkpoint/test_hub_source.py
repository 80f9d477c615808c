"""HubSource against a loopback Hub: its requests, and its messages when the Hub refuses."""

import http.client
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from layer_surgeon.checkpoint.licence import licence_files
from layer_surgeon.checkpoint.sources import CHUNK_BYTES, Source
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.errors import SourceAccessError, SourceChangedError, SourceError, SourceNotFoundError
from tests.support.hub_faults import header, status, wrong_bytes
from tests.support.loopback_hub import LoopbackHub

SHARD = os.urandom(3 * CHUNK_BYTES + 12_345)
FILES = {"config.json": '{"a": 1}', "model.safetensors": SHARD, "sub/NOTICE": "n", "empty.txt": ""}
REPO = "owner/name"


def open_repo(hub: LoopbackHub, **settings: object) -> HubSource:
    return HubSource(REPO, endpoint=hub.endpoint, **settings)  # type: ignore[arg-type]


def test_one_request_gives_commit_files_and_sizes(hub: LoopbackHub) -> None:
    repo = hub.add_repo(REPO, FILES)
    source: Source = open_repo(hub)
    assert source.commit == repo.refs["main"]
    assert (source.name, source.kind, source.connections) == (REPO, "hub", 16)
    assert source.list_files() == {"config.json": 8, "empty.txt": 0, "model.safetensors": len(SHARD), "sub/NOTICE": 1}
    assert source.size("model.safetensors") == len(SHARD)
    assert [(request.method, request.path) for request in hub.requests] == [("GET", f"/api/models/{REPO}")]


@pytest.mark.parametrize("redirected", [False, True])
def test_small_files_take_one_request_each(hub: LoopbackHub, redirected: bool) -> None:
    hub.router.small_redirects = redirected
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    hub.reset_log()
    assert source.read_file("config.json", 100) == b'{"a": 1}'
    assert source.read_file("sub/NOTICE", 100) == b"n"
    assert source.read_file("empty.txt", 100) == b""
    assert source.read_range("config.json", 1, 3) == b'"a"'
    assert [request.status for request in hub.requests if request.status != 307] == [200, 200, 200, 206]


def test_two_ranges_of_a_shard_resolve_it_once(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    hub.reset_log()
    assert source.read_range("model.safetensors", 8, 1000) == SHARD[8:1008]
    assert source.read_range("model.safetensors", len(SHARD) - 5, 5) == SHARD[-5:]
    assert [(request.server, request.method, request.range) for request in hub.requests] == [
        ("hub", "HEAD", None),
        ("cdn", "GET", "bytes=8-1007"),
        ("cdn", "GET", f"bytes={len(SHARD) - 5}-{len(SHARD) - 1}"),
    ]
    # 1,005 bytes of content, and the headers of three responses.
    assert hub.bytes_sent() < 1005 + 3 * 800
    assert all(request.headers["accept-encoding"] == "identity" for request in hub.requests)


def test_eight_threads_resolve_a_shard_once(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    hub.reset_log()
    step = len(SHARD) // 16
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda k: source.read_range("model.safetensors", k * step, step), range(16)))
    assert b"".join(parts) == SHARD[: 16 * step]
    assert hub.count("HEAD") == 1
    assert hub.count("GET", server="cdn") == 16


def test_long_ranges_come_in_chunks_of_one_size(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    chunks = [bytes(chunk) for chunk in open_repo(hub).stream_range("model.safetensors", 7, len(SHARD) - 7)]
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES] * 3 + [12_345 - 7]
    assert b"".join(chunks) == SHARD[7:]


def test_an_empty_range_sends_no_request(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    hub.reset_log()
    assert source.read_range("model.safetensors", 10, 0) == b""
    assert not hub.requests


def test_a_large_file_can_be_read_whole(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    assert open_repo(hub).read_file("model.safetensors", len(SHARD)) == SHARD


def test_reading_stays_at_the_commit_while_main_moves(hub: LoopbackHub) -> None:
    repo = hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    first = source.read_range("model.safetensors", 0, 100)
    repo.commit({"config.json": "{}", "model.safetensors": bytes(len(SHARD))})
    assert source.read_range("model.safetensors", 100, 100) == SHARD[100:200]
    assert first == SHARD[:100]
    assert source.read_file("config.json", 100) == b'{"a": 1}'
    assert open_repo(hub).commit != source.commit


def test_a_branch_with_a_slash_is_found(hub: LoopbackHub) -> None:
    repo = hub.add_repo(REPO, FILES)
    commit = repo.commit({"config.json": "[]"}, branch="refs/pr/1")
    source = open_repo(hub, revision="refs/pr/1")
    assert source.commit == commit
    assert source.read_file("config.json", 100) == b"[]"
    assert open_repo(hub, revision=commit).commit == commit


def test_a_moved_commit_is_an_error(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    hub.faults.add(header("X-Repo-Commit", "b" * 40), path="resolve", times=-1)
    with pytest.raises(SourceChangedError, match=f"commit {source.commit}: the Hub answered with commit bbbb"):
        source.read_range("model.safetensors", 0, 10)
    with pytest.raises(SourceChangedError, match="the Hub answered with commit bbbb"):
        source.read_file("config.json", 100)


def test_the_token_is_only_sent_to_the_hub(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES, private=True, accepted={"hf_good"})
    source = open_repo(hub, token=" hf_good\n")
    assert source.read_range("model.safetensors", 0, 10) == SHARD[:10]
    assert source.read_file("config.json", 100)
    assert all(request.authorized == (request.server == "hub") for request in hub.requests)
    assert {request.server for request in hub.requests} == {"hub", "cdn"}


def test_a_redirect_to_another_host_carries_no_token(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES, private=True, accepted={"hf_good"})
    source = open_repo(hub, token="hf_good")
    hub.faults.add(status(302, Location=f"{hub.cdn_endpoint}/elsewhere"), path="config", times=-1)
    with pytest.raises(SourceError, match="status 403"):
        source.read_file("config.json", 100)
    assert hub.count(path="elsewhere") > 0


def test_a_token_at_the_cdn_fails_the_test() -> None:
    hub = LoopbackHub().__enter__()
    connection = http.client.HTTPConnection(hub.cdn_endpoint.removeprefix("http://"))
    connection.request("GET", "/x", headers={"Authorization": "Bearer hf_x"})
    connection.getresponse().read()
    connection.close()
    hub.reset_log()
    with pytest.raises(AssertionError, match="reached the CDN"):
        hub.__exit__(None, None, None)


def test_a_cdn_on_another_port_of_the_same_host_gets_no_token(hub: LoopbackHub) -> None:
    hub.router.cdn_url = hub.cdn_endpoint.replace("localhost", "127.0.0.1")
    hub.add_repo(REPO, FILES, private=True, accepted={"hf_good"})
    assert open_repo(hub, token="hf_good").read_range("model.safetensors", 0, 10) == SHARD[:10]
    assert [request.authorized for request in hub.requests if request.server == "cdn"] == [False]


def test_an_unknown_repo(hub: LoopbackHub) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no model repo 'owner/name' on .*private and no token was sent"):
        open_repo(hub)
    with pytest.raises(SourceNotFoundError, match="private and the token that was sent has no access"):
        open_repo(hub, token="hf_x")
    assert len(hub.requests) == 2


def test_an_invalid_repo_id(hub: LoopbackHub) -> None:
    with pytest.raises(SourceNotFoundError, match=r"'a--b/\.\.' is not a valid repo id"):
        HubSource("a--b/..", endpoint=hub.endpoint)


def test_the_error_of_a_gated_repo_explains_how_to_get_access(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES, gated="manual", accepted={"hf_good"})
    page = f"pen {hub.endpoint}/{REPO}"
    for read in (
        lambda source: source.read_file("config.json", 100),
        lambda source: source.read_range("model.safetensors", 0, 10),
    ):
        with pytest.raises(SourceAccessError, match="is gated, and no access token was sent") as without:
            read(open_repo(hub))
        with pytest.raises(SourceAccessError, match="of the token that was sent has no access yet") as refused:
            read(open_repo(hub, token="hf_other"))
        assert page in str(without.value)
        assert page in str(refused.value)
        assert read(open_repo(hub, token="hf_good"))


def test_an_unknown_token(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    hub.router.invalid_tokens.add("hf_old")
    with pytest.raises(SourceAccessError, match=r"rejected the access token.*settings/tokens"):
        open_repo(hub, token="hf_old")


def test_an_invalid_token(hub: LoopbackHub) -> None:
    with pytest.raises(SourceAccessError, match="characters that are not allowed in a token"):
        open_repo(hub, token="hf_ü")


def test_no_token_although_one_is_required(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SourceAccessError, match="no access token on this machine"):
        open_repo(hub, token=True)


def test_an_unknown_revision(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    with pytest.raises(SourceNotFoundError, match="no branch, tag or commit 'v9'"):
        open_repo(hub, revision="v9")


def test_a_missing_file(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    hub.reset_log()
    for name in ("model-00002.safetensors", "../x", "/etc/passwd", "sub"):
        with pytest.raises(SourceNotFoundError, match="has no file"):
            source.read_range(name, 0, 1)
    assert not hub.requests


def test_a_listed_file_that_is_gone(hub: LoopbackHub) -> None:
    repo = hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    assert source.commit is not None
    del repo.commits[source.commit]["model.safetensors"]
    with pytest.raises(SourceNotFoundError, match=f"model.safetensors of {REPO} is not on"):
        source.read_range("model.safetensors", 0, 1)


def test_a_range_past_the_end(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    with pytest.raises(
        SourceError, match=f"ends at byte {len(SHARD):,}, but bytes {len(SHARD):,} to {len(SHARD) + 1:,}"
    ):
        source.read_range("model.safetensors", len(SHARD), 1)
    with pytest.raises(SourceError, match="ends at byte"):
        source.read_range("model.safetensors", -1, 1)


def test_a_small_file_over_its_limit_is_not_read(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    hub.reset_log()
    with pytest.raises(SourceError, match=r"has 8 bytes, more than the limit of 7"):
        source.read_file("config.json", 7)
    assert not hub.requests


def test_small_files_are_checked_against_their_hash(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, FILES)
    source = open_repo(hub)
    hub.faults.add(wrong_bytes(), path="config.json", times=-1)
    with pytest.raises(SourceError, match="its hash differs from the one that the Hub lists"):
        source.read_file("config.json", 100)


def test_sizes_that_are_not_listed_are_requested(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.add_repo(REPO, FILES)
    describe = repo.description
    monkeypatch.setattr(repo, "description", lambda commit, with_blobs: describe(commit, with_blobs=False))
    source = open_repo(hub)
    assert source.list_files()["config.json"] is None
    assert source.size("config.json") == 8
    assert source.read_file("config.json", 8) == b'{"a": 1}'
    assert source.read_range("model.safetensors", 5, 10) == SHARD[5:15]
    hub.faults.add(header("X-Linked-Size", None), method="HEAD", times=-1)
    with pytest.raises(SourceError, match=r"does not report the size of model\.safetensors"):
        open_repo(hub).size("model.safetensors")


@pytest.mark.parametrize("name", ["LICENSE-/../../../escaped.txt", "/etc/LICENSE", "a//NOTICE", "LICENSE\n"])
def test_listed_names_that_lead_out_of_the_repo_are_dropped(hub: LoopbackHub, name: str) -> None:
    hub.add_repo(REPO, {**FILES, name: "x"})
    assert list(open_repo(hub).list_files()) == sorted(FILES)


def test_licence_files_are_those_of_the_top_folder(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, {**FILES, "LICENSE-MIT": "x", "LICENSE-files/a.txt": "x"})
    checkpoint = SimpleNamespace(source=open_repo(hub))
    assert licence_files(checkpoint) == ["LICENSE-MIT"]  # type: ignore[arg-type]


def test_no_network() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for url in (endpoint, "http://no-such-host.invalid"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
            patch.setattr(HubSource, "limits", HubSource.limits.__class__(base_wait=0.001, contact_tries=2))
            with pytest.raises(SourceError, match=r"failed to respond.*tried 2 times.*Check the network"):
                HubSource(REPO, endpoint=url, token=False)


def test_a_server_that_is_not_a_hub(hub: LoopbackHub) -> None:
    hub.faults.add(status(200, b"<html>Log in to the hotel's network</html>"), times=-1)
    with pytest.raises(SourceError, match="does not respond like a Hub"):
        open_repo(hub)
    hub.faults.clear()
    hub.faults.add(status(200, b"[1]"), times=-1)
    with pytest.raises(SourceError, match="does not respond like a Hub"):
        open_repo(hub)


def test_the_error_names_offline_mode(tmp_path: Path) -> None:
    code = (
        "from layer_surgeon.checkpoint.sources import open_source\n"
        "from layer_surgeon.errors import SourceError\n"
        "try:\n    open_source('owner/name')\nexcept SourceError as error:\n    print(error)\n"
    )
    output = run_python(code, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert "HF_HUB_OFFLINE is set" in output
    assert "local folder" in output


def test_hf_endpoint_is_used(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo(REPO, FILES)
    code = (
        "import sys\nfrom layer_surgeon.checkpoint.sources import open_source\n"
        "source = open_source('owner/name')\nprint(source.read_file('config.json', 100).decode())\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    output = run_python(code, {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)})
    assert output.split("\n")[:2] == ['{"a": 1}', "set()"]


def run_python(code: str, environment: dict[str, str]) -> str:
    """Run `code` in a subprocess and return its output: huggingface_hub reads its variables on import."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=clean | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
