"""Ranges are requested over connections that are open already."""

import os
from collections.abc import Generator

import pytest

from layer_surgeon.checkpoint.sources import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.gather import gather
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import TroubleError
from tests.support.hub_faults import cut
from tests.support.loopback_hub import LoopbackHub

SHARD = os.urandom(3 * CHUNK_BYTES + 12_345)


@pytest.fixture
def source(hub: LoopbackHub) -> HubSource:
    hub.add_repo("owner/name", {"model.safetensors": SHARD})
    return HubSource("owner/name", endpoint=hub.endpoint)


def read(source: HubSource, start: int, length: int) -> bytes:
    return b"".join(map(bytes, source.stream_range("model.safetensors", start, length)))


def test_further_ranges_use_the_connection_of_the_first_one(hub: LoopbackHub, source: HubSource) -> None:
    read(source, 5, 10)
    opened = len(hub.connections)
    for start, length in ((0, len(SHARD)), (7, 2 * CHUNK_BYTES), (5, 10)):
        assert read(source, start, length) == SHARD[start : start + length]
    assert len(hub.connections) == opened


def test_a_reader_that_stops_at_its_last_byte_keeps_the_connection(hub: LoopbackHub, source: HubSource) -> None:
    opened = []
    for _ in range(3):
        stream = source.stream_range("model.safetensors", 0, 2 * CHUNK_BYTES)
        assert isinstance(stream, Generator)
        assert bytes(next(stream)) + bytes(next(stream)) == SHARD[: 2 * CHUNK_BYTES]
        stream.close()
        opened.append(len(hub.connections))
    assert opened[0] == opened[2]


def test_a_range_goes_on_where_its_body_was_cut(hub: LoopbackHub, source: HubSource) -> None:
    read(source, 0, 10)
    hub.faults.add(cut(after=CHUNK_BYTES + 1), server="cdn")
    assert read(source, 3, 3 * CHUNK_BYTES) == SHARD[3 : 3 + 3 * CHUNK_BYTES]


def test_pieces_of_any_size_become_equal_chunks() -> None:
    pieces = [SHARD[:1], b"", SHARD[1 : CHUNK_BYTES + 2], SHARD[CHUNK_BYTES + 2 :]]
    chunks = [bytes(chunk) for chunk in gather(len(SHARD), pieces, "host", TroubleError)]
    assert b"".join(chunks) == SHARD
    assert {len(chunk) for chunk in chunks[:-1]} == {CHUNK_BYTES}


def test_a_body_of_another_length_is_refused() -> None:
    with pytest.raises(TroubleError, match="more than the 2 bytes"):
        list(gather(2, [b"abc"], "host", TroubleError))
    with pytest.raises(TroubleError, match="ended its response after 3 of 4 bytes"):
        list(gather(4, [b"abc"], "host", TroubleError))
