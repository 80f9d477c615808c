"""Checkpoints at URLs: web servers, file URLs, and pages of the Hub."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import layer_surgeon as ls
from layer_surgeon.checkpoint.sources import CHUNK_BYTES, FileSource, FolderSource, Source, open_source
from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources.addresses import HubAddress, hub_address
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.errors import (
    SourceAccessError,
    SourceChangedError,
    SourceError,
    SourceNotFoundError,
)
from tests.support.gguf_models import write_model
from tests.support.http_folder import Answer, Asked, HttpFolder
from tests.support.loopback_hub import LoopbackHub
from tests.support.url_checkpoints import FOLDER, SHARD, content_of, same_layer

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def web() -> Iterator[HttpFolder]:
    with HttpFolder(dict(FOLDER)) as folder:
        yield folder


def test_a_web_folder(web: HttpFolder) -> None:
    source: Source = open_source(f"{web.url}/m/")
    assert (source.name, source.kind, source.commit, source.connections) == (f"{web.url}/m", "url", None, 8)
    # A web server has no listing, so only the usual names are found.
    assert source.list_files() == {"LICENSE": 0, "config.json": 8, "model.safetensors": len(SHARD)}
    assert source.read_file("config.json", 100) == b'{"a": 1}'
    assert source.read_file("LICENSE", 100) == b""
    assert source.read_range("model.safetensors", 5, 100) == SHARD[5:105]
    chunks = [bytes(chunk) for chunk in source.stream_range("model.safetensors", 7, len(SHARD) - 7)]
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES] * 3 + [12_345 - 7]
    assert b"".join(chunks) == SHARD[7:]
    assert {asked.headers["accept-encoding"] for asked in web.asked} == {"identity"}


def test_a_layer_from_a_web_folder_only_downloads_its_bytes(donor: Path, tmp_path: Path) -> None:
    with HttpFolder(content_of(donor)) as web:
        artifact = same_layer(web.url, donor, tmp_path)
        read = web.bytes_sent(".safetensors")
    headers = sum(int.from_bytes(path.read_bytes()[:8], "little") + 9 for path in donor.glob("*.safetensors"))
    weights = (artifact.path / "model.safetensors").stat().st_size
    assert 0.9 * weights < read < weights + headers
    assert artifact.config["source"]["name"] == web.url
    assert artifact.config["source"]["base_model"] is None


def test_a_web_folder_in_offline_mode(web: HttpFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_source(f"{web.url}/m").read_range("model.safetensors", 0, 10) == SHARD[:10]


def test_one_file_on_a_web_server(web: HttpFolder) -> None:
    source = open_source(f"{web.url}/m/other.gguf?signature=secret")
    assert source.name == f"{web.url}/m/other.gguf"
    assert source.list_files() == {"LICENSE": 0, "config.json": 8, "other.gguf": 4}
    assert source.read_file("other.gguf", 4) == b"GGUF"
    assert {asked.headers["query"] for asked in web.asked} == {"signature=secret"}


def test_name_and_password_are_sent_but_never_shown(web: HttpFolder) -> None:
    source = open_source(f"http://me:secret@{web.host}/m")
    assert source.name == f"{web.url}/m"
    assert all(asked.headers["authorization"].startswith("Basic ") for asked in web.asked)
    web.asked.clear()
    for start in range(3):
        assert source.read_range("model.safetensors", start, 2 * CHUNK_BYTES) == SHARD[start : start + 2 * CHUNK_BYTES]
    # The first request is for the size. Nothing is asked for twice.
    assert [asked.range for asked in web.asked[1:]] == [f"bytes={n}-{n + 2 * CHUNK_BYTES - 1}" for n in range(3)]
    assert {asked.headers["host"] for asked in web.asked} == {web.host}
    assert all(asked.headers["authorization"].startswith("Basic ") for asked in web.asked)
    del web.files["m/config.json"]
    with pytest.raises(SourceNotFoundError) as error:
        source.read_file("config.json", 100)
    assert "secret" not in str(error.value)


def test_a_server_without_ranges_is_refused_before_it_sends_a_shard() -> None:
    shard = bytes(64 << 20)
    with HttpFolder({"model.safetensors": shard, "config.json": b"{}"}, ranges=False) as web:
        source = open_source(web.url)
        assert source.read_file("config.json", 100) == b"{}"
        with pytest.raises(SourceError, match=r"status 200 instead of 206 .*supports Range requests"):
            source.read_range("model.safetensors", 8, 1000)
    # Only what fits into the socket buffers is sent before the client disconnects.
    assert web.bytes_sent(".safetensors") < len(shard) // 2


def set_headers(**headers: str) -> Any:
    def fault(asked: Asked, answer: Answer) -> None:
        if asked.range not in (None, "bytes=0-0"):
            answer.headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    return fault


def cut(asked: Asked, answer: Answer) -> None:
    if asked.range not in (None, "bytes=0-0"):
        answer.headers["Content-Length"] = str(len(answer.body))
        answer.body = answer.body[: len(answer.body) // 2]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (set_headers(ETag='"other"'), SourceChangedError, "changed while it was being read"),
        (set_headers(Content_Range="bytes 0-99/3158073"), SourceError, "Content-Range 'bytes 0-99"),
        (set_headers(Content_Range="bytes 5-104/999"), SourceChangedError, "999 bytes"),
        (set_headers(Content_Range=f"bytes 5-104/{'9' * 5000}"), SourceError, "Content-Range"),
        (set_headers(Content_Encoding="gzip"), SourceError, "Content-Encoding gzip"),
        (set_headers(Content_Length="99"), SourceError, "announced 99 bytes|failed to respond"),
        (cut, SourceError, "tried 6 times"),
    ],
    ids=["etag", "shifted", "other size", "endless number", "gzip", "announced", "cut"],
)
def test_a_wrong_response_is_an_error(web: HttpFolder, fault: Any, error: type[SourceError], message: str) -> None:
    source = open_source(f"{web.url}/m")
    source.size("model.safetensors")
    web.fault = fault
    with pytest.raises(error, match=message):
        source.read_range("model.safetensors", 5, 100)


def test_a_file_that_is_replaced_is_noticed(web: HttpFolder) -> None:
    source = open_source(f"{web.url}/m")
    source.read_range("model.safetensors", 0, 10)
    web.files["m/model.safetensors"] = bytes(len(SHARD))
    with pytest.raises(SourceChangedError, match="changed while it was being read"):
        source.read_range("model.safetensors", 10, 10)


def test_recovers_from_temporary_faults(web: HttpFolder) -> None:
    source = open_source(f"{web.url}/m")
    source.size("model.safetensors")
    remaining_faults = [0, 503, 429, -1]

    def fault(asked: Asked, answer: Answer) -> None:
        if remaining_faults:
            status = remaining_faults.pop(0)
            answer.status = status if status >= 0 else answer.status
            if status < 0:
                cut(asked, answer)

    web.fault = fault
    assert source.read_range("model.safetensors", 3, 3 * CHUNK_BYTES) == SHARD[3 : 3 * CHUNK_BYTES + 3]
    # The half that arrived before the cut is not requested again.
    starts = [asked.range.partition("-")[0] for asked in web.asked[-2:] if asked.range]
    assert starts == ["bytes=3", f"bytes={3 + 3 * CHUNK_BYTES // 2}"]


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, SourceNotFoundError, "no model.safetensors"),
        (403, SourceAccessError, "refuses"),
        (418, SourceError, "418"),
    ],
)
def test_refusals_of_a_web_server(web: HttpFolder, status: int, error: type[SourceError], message: str) -> None:
    web.fault = lambda asked, answer: setattr(answer, "status", status)
    with pytest.raises(error, match=message):
        open_source(f"{web.url}/m")


def test_a_web_page_for_every_url_is_not_a_checkpoint(web: HttpFolder) -> None:
    web.ranges = False
    web.files |= {"app/model.safetensors": b"<html>", "app/config.json": b"<html>"}
    web.fault = lambda asked, answer: answer.headers.update({"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(SourceNotFoundError, match="no checkpoint"):
        open_source(f"{web.url}/app")


def test_a_hostile_index_adds_no_files_outside(donor: Path) -> None:
    index = b'{"weight_map": {"a": "../../secret", "b": "/etc/passwd", "c": "x\\\\y", "d": "sub/x.safetensors"}}'
    with HttpFolder({"m/model.safetensors.index.json": index, "m/config.json": b"{}"}) as web:
        files = open_source(f"{web.url}/m").list_files()
        assert set(files) == {"config.json", "model.safetensors.index.json", "sub/x.safetensors"}
        with pytest.raises(SourceNotFoundError):
            open_source(f"{web.url}/m").read_range("../../secret", 0, 1)


def test_an_unreachable_server() -> None:
    with pytest.raises(SourceError, match="Check the network"):
        open_source("http://127.0.0.1:9/m")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://x/y", "can't be opened"),
        ("memory://store/nothing", "has no"),
        ("memory://store/m#v2", r"is followed by \? or #.* Rename"),
        ("memory://store/m?versionId=1", r"is followed by \? or #.* Rename"),
        ("file:///folder#2", "Write them as %3F and %23"),
        ("memory://store/m/missing.safetensors", "no file missing.safetensors"),
        ("simplecache::memory://store/m", "isn't a valid repo id"),
        ("zip://x::memory://store/m", "chain"),
        ("http:///m", "no host"),
        ("http://[::1/m", "not a valid URL"),
        ("http://host:port/m", "not a valid URL"),
        ("http://host/a b", "%20"),
        ("file:///no/such/folder", "no folder or file"),
        ("file://host/folder", "three slashes"),
        ("https://huggingface.co/datasets/owner/name", "does not name a model repo"),
        ("https://huggingface.co/owner/name/discussions", "does not name a model repo"),
        ("hf://spaces/owner/name", "does not name a model repo"),
        ("hf://owner", "does not name a model repo"),
    ],
)
def test_invalid_urls(memory: dict[str, bytes], url: str, message: str) -> None:
    with pytest.raises(SourceNotFoundError, match=message):
        open_source(url)


def test_a_space_in_an_object_store(memory: dict[str, bytes]) -> None:
    with pytest.raises(SourceNotFoundError, match="memory file system has no /my store/m"):
        open_source("memory://my store/m")


def test_only_repos_have_revisions(web: HttpFolder, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    sources = (f"{web.url}/m", tmp_path, str(tmp_path), tmp_path / "model.gguf", "packaged:gemma-3-270m")
    for source in sources:
        with pytest.raises(
            SourceError, match=r"is not a repo on the Hub, so it has no revisions\. Remove the revision"
        ):
            open_source(source, revision="main")


def test_file_urls_are_local_paths(tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(SHARD)
    source = open_source(folder.as_uri())
    assert isinstance(source, FolderSource)
    assert (source.name, source.kind) == (str(folder), "folder")
    assert isinstance(open_source((folder / "model.safetensors").as_uri()), FileSource)


@pytest.mark.parametrize(
    ("url", "repo", "revision", "path"),
    [
        ("https://huggingface.co/owner/name", "owner/name", None, ""),
        ("https://huggingface.co/owner/name/", "owner/name", None, ""),
        ("https://hf.co/gpt2", "gpt2", None, ""),
        ("https://huggingface.co/gpt2/tree/v1", "gpt2", "v1", ""),
        ("https://huggingface.co/owner/name/tree/refs%2Fpr%2F1", "owner/name", "refs/pr/1", ""),
        ("https://huggingface.co/owner/name/tree/main/sub/folder", "owner/name", "main", "sub/folder"),
        ("https://huggingface.co/owner/name/blob/main/x.gguf", "owner/name", "main", "x.gguf"),
        ("https://huggingface.co/owner/name/resolve/v2/sub/x.gguf?download=true", "owner/name", "v2", "sub/x.gguf"),
        ("hf://owner/name", "owner/name", None, ""),
        ("hf://owner/name@v1", "owner/name", "v1", ""),
        ("hf://owner/name@refs/pr/7/sub", "owner/name", "refs/pr/7", "sub"),
        ("hf://owner/name/sub/x.gguf", "owner/name", None, "sub/x.gguf"),
    ],
)
def test_addresses_of_the_hub(url: str, repo: str, revision: str | None, path: str) -> None:
    assert hub_address(url) == HubAddress(repo_id=repo, revision=revision, path=path)
    assert hub_address(url.replace("huggingface.co", "example.org").replace("hf", "hg")) is None or "://hf" not in url


def test_a_hub_url_is_read_as_a_repo(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
    files = {"config.json": "{}", "x.gguf": "X", "y.gguf": "Y", "sub/config.json": "[]", "sub/model.safetensors": SHARD}
    repo = hub.add_repo("owner/name", files)
    first = repo.refs["main"]
    repo.commit({"config.json": "{}"})
    source = open_source(f"https://huggingface.co/owner/name/tree/{first}")
    assert (source.kind, source.commit, source.name) == ("hub", first, "owner/name")
    assert open_source("hf://owner/name").commit == repo.refs["main"]
    part = open_source(f"hf://owner/name@{first}/sub")
    assert (part.name, part.repo_id) == ("owner/name/sub", "owner/name")
    assert part.list_files() == {"config.json": 2, "model.safetensors": len(SHARD)}
    assert part.read_range("model.safetensors", 9, 9) == SHARD[9:18]
    file_source = open_source("hf://owner/name/x.gguf", revision=first)
    assert file_source.list_files() == {"config.json": 2, "x.gguf": 1}
    with pytest.raises(SourceNotFoundError, match="no file 'y/z'"):
        open_source("hf://owner/name/y/z")
    with pytest.raises(SourceError, match="Remove one of the two"):
        open_source(f"hf://owner/name@{first}", revision="main")


def test_a_file_in_a_repo_without_an_owner(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
    hub.add_repo("gpt2", {"x.gguf": write_model(tmp_path / "x.gguf", "llama").read_bytes()})
    checkpoint = ls.open_checkpoint("https://huggingface.co/gpt2/blob/main/x.gguf")
    assert (checkpoint.source.name, checkpoint.repo_id) == ("gpt2/x.gguf", "gpt2")


def test_a_layer_of_a_gguf_file_over_the_network(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_model(tmp_path / "x.gguf", "llama")
    content = local.read_bytes()
    expected = ls.extract_layer(local, -1, tmp_path / "expected")
    monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
    hub.add_repo("owner/name", {"x.gguf": content, "y.gguf": content[:100]})
    assert ls.extract_layer("hf://owner/name/x.gguf", -1, tmp_path / "hub").sha256 == expected.sha256
    with HttpFolder({"x.gguf": content}) as web:
        assert ls.extract_layer(f"{web.url}/x.gguf", -1, tmp_path / "web").sha256 == expected.sha256
        # One of two layers, without embeddings and head.
        assert web.bytes_sent(".gguf") < 0.6 * len(content)
