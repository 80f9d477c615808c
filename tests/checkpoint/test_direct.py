"""Large bodies are read straight from the socket, and further ranges over the same connection."""

import gc
import os
from collections.abc import Generator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from huggingface_hub import get_session

from layer_surgeon.checkpoint.sources import CHUNK_BYTES, direct
from layer_surgeon.checkpoint.sources.direct import DirectReader, DirectResponse
from layer_surgeon.checkpoint.sources.hub import HubSource
from tests.support.hub_faults import Fault, cut, redirect, reset, resize_body, status
from tests.support.loopback_hub import LoopbackHub

SHARD = os.urandom(3 * CHUNK_BYTES + 12_345)
TIMEOUT = (5.0, 5.0, 5.0, 5.0)


@pytest.fixture
def url(hub: LoopbackHub) -> str:
    """A signed URL of a large file."""
    hub.add_repo("owner/name", {"model.safetensors": SHARD})
    entry = f"{hub.endpoint}/owner/name/resolve/main/model.safetensors"
    return str(get_session().request("HEAD", entry, follow_redirects=False).headers["location"])


def read(reader: DirectReader, url: str, start: int = 0, stop: int = len(SHARD)) -> tuple[bytes, bool]:
    """Return the bytes, and whether the response was read without the client."""
    headers = {"range": f"bytes={start}-{stop - 1}", "accept-encoding": "identity"}
    content, buffer = b"", memoryview(bytearray(CHUNK_BYTES))
    with reader.get(url, headers, TIMEOUT) as (response, read_into):
        assert response.status_code == 206
        assert response.headers.get("Content-Range") == f"bytes {start}-{stop - 1}/{len(SHARD)}"
        while count := read_into(buffer):
            content += buffer[:count]
        return content, isinstance(response, DirectResponse)


def test_further_ranges_use_the_connection_of_the_first_large_one(hub: LoopbackHub, url: str) -> None:
    reader = DirectReader(get_session)
    for start, stop, is_direct in ((5, 10, False), (0, len(SHARD), False), (7, len(SHARD), True), (5, 10, True)):
        connections = len(hub.connections)
        assert read(reader, url, start, stop) == (SHARD[start:stop], is_direct)
        assert not is_direct or len(hub.connections) == connections


def test_a_reader_that_stops_at_its_last_byte_keeps_the_connection(hub: LoopbackHub, url: str) -> None:
    source = HubSource("owner/name", endpoint=hub.endpoint)
    opened = []
    for _ in range(3):
        stream = source.stream_range("model.safetensors", 0, 2 * CHUNK_BYTES)
        assert isinstance(stream, Generator)
        assert bytes(next(stream)) + bytes(next(stream)) == SHARD[: 2 * CHUNK_BYTES]
        stream.close()
        opened.append(len(hub.connections))
    assert opened[0] == opened[2]


def test_the_garbage_collector_closes_no_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run while the thread holds a lock of the client's pool, which closing takes too."""
    reader = DirectReader(get_session)
    read(reader, url)
    closed = []
    close = direct._Line.close
    monkeypatch.setattr(direct._Line, "close", lambda line: (closed.append(line), close(line)))
    reader.itself = reader  # type: ignore[attr-defined]  # a cycle, which only the collector frees
    del reader
    gc.collect()
    assert not closed
    read(DirectReader(get_session), url)
    assert len(closed) == 1
    assert closed[0] not in direct._abandoned


@pytest.mark.parametrize("fault", [status(503), status(403), reset(), redirect(), resize_body(0, with_length=False)])
def test_another_answer_is_asked_for_again_through_the_client(hub: LoopbackHub, url: str, fault: Fault) -> None:
    reader = DirectReader(get_session)
    read(reader, url)
    hub.faults.add(fault, server="cdn")
    hub.reset_log()
    assert read(reader, url, 3, 9) == (SHARD[3:9], False)
    assert hub.count(server="cdn") == 2


def test_an_error_status_is_the_clients(hub: LoopbackHub, url: str) -> None:
    reader = DirectReader(get_session)
    read(reader, url)
    hub.faults.add(status(503, b"busy"), server="cdn", times=-1)
    with reader.get(url, {"range": "bytes=0-9"}, TIMEOUT) as (response, _):
        assert (response.status_code, b"".join(response.iter_raw())) == (503, b"busy")


@pytest.mark.parametrize("number", [0, 1])
def test_a_cut_body_is_an_error_and_its_connection_is_closed(hub: LoopbackHub, url: str, number: int) -> None:
    reader = DirectReader(get_session)
    hub.faults.add(cut(after=CHUNK_BYTES + 1), server="cdn", skip=number)
    for _ in range(number):
        read(reader, url)
    with pytest.raises(ConnectionError, match="closed .* bytes before the end of the response"):
        read(reader, url)
    assert read(reader, url) == (SHARD, False)


def test_a_body_that_is_not_read_to_its_end_closes_its_connection(url: str) -> None:
    reader = DirectReader(get_session)
    for _ in range(2):
        with reader.get(url, {"range": f"bytes=0-{len(SHARD) - 1}"}, TIMEOUT) as (response, read_into):
            assert read_into(memoryview(bytearray(10))) == 10
        assert not isinstance(response, DirectResponse)


def test_a_url_with_a_password_needs_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_socket_of", lambda _: object())
    response = SimpleNamespace(
        headers={"content-length": str(len(SHARD))},
        iter_raw=lambda: iter([SHARD]),
        history=[],
        request=SimpleNamespace(headers={}),
    )
    client = SimpleNamespace(stream=lambda *_, **__: nullcontext(response))
    with DirectReader(lambda: client).get("http://me:secret@host/file", {}, TIMEOUT) as (_, read_into):
        assert read_into(memoryview(bytearray(len(SHARD)))) == len(SHARD)


def test_connections_that_were_idle_for_long_are_not_used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_IDLE_SECONDS", 0.0)
    reader = DirectReader(get_session)
    assert read(reader, url) == read(reader, url) == (SHARD, False)


def test_a_redirected_connection_is_not_used_for_other_files(hub: LoopbackHub, url: str) -> None:
    reader = DirectReader(get_session)
    entry = f"{hub.endpoint}/owner/name/resolve/main/model.safetensors"
    assert read(reader, entry) == read(reader, entry) == (SHARD, False)


def test_whole_files_are_always_requested_through_the_client(url: str) -> None:
    reader = DirectReader(get_session)
    read(reader, url)
    with reader.get(url, {}, TIMEOUT) as (response, read_into):
        assert response.status_code == 200
        assert not isinstance(response, DirectResponse)
        content = memoryview(bytearray(len(SHARD)))
        filled = 0
        while count := read_into(content[filled:]):
            filled += count
    assert content == SHARD
