"""Every fault of a Hub, a CDN or a proxy gives the right bytes or a clear error, never wrong bytes."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from layer_surgeon.checkpoint.sources import CHUNK_BYTES, retry
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.errors import SourceChangedError, SourceError
from tests.support import hub_faults
from tests.support.hub_faults import (
    Fault,
    call,
    cut,
    drip,
    encode_body,
    header,
    ignore_range,
    rate_limited,
    redirect,
    reset,
    resize_body,
    shift_range,
    stall,
    status,
    wrong_bytes,
)
from tests.support.hub_reading import note_waits
from tests.support.loopback_hub import LoopbackHub

SHARD = os.urandom(3 * CHUNK_BYTES + 12_345)
START, LENGTH = 1000, 3 * CHUNK_BYTES
SHARD_FILE, REPO = "model.safetensors", "owner/name"


@pytest.fixture
def source(hub: LoopbackHub) -> HubSource:
    hub.add_repo(REPO, {"config.json": '{"a": 1}', SHARD_FILE: SHARD})
    return HubSource(REPO, endpoint=hub.endpoint)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits in seconds, recorded instead of slept."""
    return note_waits(monkeypatch)


@dataclass(frozen=True)
class Case:
    """Faults in the CDN's responses to range requests.

    Attributes:
        faults: The changes to the response.
        message: The message of the error if the fault is permanent; None if the right bytes arrive all the same.
    """

    faults: list[Fault]
    message: str | None


CASES = {
    "200": Case([ignore_range()], "status 200 instead of 206"),
    "200 without length": Case([ignore_range(with_length=False)], "status 200 instead of 206"),
    "200 gzip": Case([ignore_range(gzipped=True)], "status 200 instead of 206"),
    "206 gzip": Case([encode_body()], "Content-Encoding gzip"),
    "shifted": Case([shift_range(1)], "Content-Range 'bytes 1001-"),
    "no Content-Range": Case([header("Content-Range", None)], "Content-Range None"),
    "Content-Range with *": Case([header("Content-Range", f"bytes {START}-{START + LENGTH - 1}/*")], "Content-Range"),
    "other total": Case([header("Content-Range", f"bytes {START}-{START + LENGTH - 1}/9999999")], "Content-Range"),
    "nonsense Content-Range": Case([header("Content-Range", "bytes")], "Content-Range 'bytes'"),
    "short": Case([resize_body(-10)], f"announced {LENGTH - 10} bytes"),
    "empty": Case([resize_body(-LENGTH)], "announced 0 bytes"),
    "long": Case([resize_body(10)], f"announced {LENGTH + 10} bytes"),
    "long without length": Case([resize_body(10, with_length=False)], "sent more than"),
    "multipart": Case(
        [header("Content-Type", "multipart/byteranges; boundary=x"), header("Content-Range", None)], "Content-Range"
    ),
    "cut": Case([cut(after=100)], r"failed to respond \(.*tried 6 times"),
    "reset": Case([reset()], r"failed to respond \(.*tried 6 times"),
    "408": Case([status(408)], r"status 408 \(tried 6 times"),
    "429": Case([status(429)], r"too many requests.*status 429.*tried 6 times.*hf auth login"),
    "500": Case([status(500)], r"status 500 \(tried 6 times"),
    "502": Case([status(502, b"<html>")], r"status 502 \(tried 6 times"),
    "503": Case([status(503)], r"status 503 \(tried 6 times"),
    "504": Case([status(504)], r"status 504 \(tried 6 times"),
    "403": Case([status(403)], r"status 403 \(tried 2 times"),
    "404": Case([status(404)], r"status 404 \(tried 2 times"),
    "403, expired": Case([status(403, b"<Message>Request has expired</Message>")], r"has expired.*\(tried 6 times"),
    "204": Case([status(204)], "status 204 instead of 206"),
    "304": Case([status(304)], "status 304 instead of 206"),
    "416": Case([status(416)], "status 416 instead of 206"),
    "redirect loop": Case([redirect()], "TooManyRedirects.*tried 6 times"),
    "redirect to nowhere": Case([redirect("http://127.0.0.1:1/")], "ConnectError.*tried 6 times"),
    "no ETag": Case([header("ETag", None)], None),
    "drip": Case([drip(CHUNK_BYTES // 2, 0.005)], None),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_recovers_from_a_temporary_fault(hub: LoopbackHub, source: HubSource, case: Case) -> None:
    hub.faults.add(*case.faults, server="cdn", times=1)
    assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_permanent_fault_is_an_error(hub: LoopbackHub, source: HubSource, case: Case) -> None:
    hub.faults.add(*case.faults, server="cdn", times=-1)
    if case.message is None:
        assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]
        return
    received = bytearray()
    with pytest.raises(SourceError, match=f"model.safetensors of {REPO} can't be read: .*{case.message}"):
        received.extend(byte for chunk in source.stream_range(SHARD_FILE, START, LENGTH) for byte in chunk)
    assert received == SHARD[START : START + len(received)]


def test_resumes_a_response_without_a_length_that_ends_early(hub: LoopbackHub, source: HubSource) -> None:
    hub.faults.add(resize_body(-10, with_length=False), server="cdn")
    assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]
    assert [request.range for request in hub.requests if request.server == "cdn"] == [
        f"bytes={START}-{START + LENGTH - 1}",
        f"bytes={START + LENGTH - 10}-{START + LENGTH - 1}",
    ]


def test_resumes_a_cut_response_at_the_byte_that_was_reached(hub: LoopbackHub, source: HubSource) -> None:
    hub.faults.add(cut(after=2 * CHUNK_BYTES + 10), server="cdn")
    assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]
    first, second = (request for request in hub.requests if request.server == "cdn")
    # The bytes of an incomplete chunk are kept too.
    assert second.range == f"bytes={START + 2 * CHUNK_BYTES + 10}-{START + LENGTH - 1}"
    assert first.body_bytes + second.body_bytes == LENGTH


def test_recovers_from_many_cuts_as_long_as_something_arrives(hub: LoopbackHub, source: HubSource) -> None:
    # There are more cuts than attempts, but each response delivers one chunk.
    source.limits = replace(source.limits, tries=2)
    source._files._limits = source.limits
    hub.faults.add(cut(after=CHUNK_BYTES + 1), server="cdn", times=3)
    assert source.read_range(SHARD_FILE, 0, len(SHARD)) == SHARD


def test_the_body_of_a_200_is_not_read(hub: LoopbackHub, tmp_path: Path) -> None:
    size = 1 << 30
    with open(tmp_path / SHARD_FILE, "wb") as file:
        file.truncate(size)
    hub.add_repo(REPO, tmp_path)
    source = HubSource(REPO, endpoint=hub.endpoint)
    hub.faults.add(ignore_range(), server="cdn", times=-1)
    with pytest.raises(SourceError, match="status 200"):
        source.read_range(SHARD_FILE, 8, 100)
    # Two attempts, each with the bytes in the socket buffers before the connection was closed.
    assert hub.count("GET", server="cdn") == 2
    assert hub.bytes_sent("cdn") < size / 20


def test_an_unending_body_is_not_read(hub: LoopbackHub, source: HubSource) -> None:
    def unending(_request: object, reply: hub_faults.Reply) -> None:
        reply.chunks, reply.length = lambda: iter(lambda: bytes(100_000), b""), None

    hub.faults.add(unending, server="cdn", times=-1)
    with pytest.raises(SourceError, match="sent more than the 100 bytes"):
        source.read_range(SHARD_FILE, 0, 100)


def test_a_stalled_response_times_out(hub: LoopbackHub, source: HubSource) -> None:
    source._files._limits = replace(source.limits, read_timeout=0.2)
    hub.faults.add(stall(60), server="cdn")
    hub.faults.add(stall(60, after=CHUNK_BYTES + 10), server="cdn", skip=1)
    assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]
    assert hub.count(server="cdn") == 3
    hub.faults.add(stall(60), server="cdn", times=-1)
    with pytest.raises(SourceError, match=r"ReadTimeout.*tried 6 times"):
        source.read_range(SHARD_FILE, 0, 10)


@pytest.mark.parametrize("form", ["seconds", "date", "ratelimit"])
@pytest.mark.parametrize("where", ["hub", "cdn"])
def test_waits_as_long_as_the_server_asks(
    hub: LoopbackHub, source: HubSource, sleeps: list[float], form: str, where: str
) -> None:
    hub.faults.add(rate_limited(40, form=form), server=where)
    assert source.read_range(SHARD_FILE, 0, 100) == SHARD[:100]
    assert len(sleeps) == 1
    assert 38 < sleeps[0] <= 41


def test_waits_after_a_503_with_retry_after(hub: LoopbackHub, source: HubSource, sleeps: list[float]) -> None:
    for skip, value in enumerate(["7", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 01 Jan 99999999999999 00:00:00 GMT"]):
        hub.faults.add(status(503, Retry_After=value), server="cdn", skip=skip)
    assert source.read_range(SHARD_FILE, 0, 100) == SHARD[:100]
    assert sleeps == [7.0, 0.002, 0.002]


def test_waits_double_up_to_a_limit(hub: LoopbackHub, source: HubSource, sleeps: list[float]) -> None:
    source._files._limits = retry.HubLimits(base_wait=1, max_wait=5)
    hub.faults.add(status(500), server="cdn", times=-1)
    with pytest.raises(SourceError):
        source.read_range(SHARD_FILE, 0, 100)
    assert sleeps == [1, 2, 4, 5, 5]


def test_a_wait_over_the_limit_is_an_error(hub: LoopbackHub, source: HubSource, sleeps: list[float]) -> None:
    hub.faults.add(rate_limited(3600), server="hub")
    with pytest.raises(SourceError, match=r"too many requests.*wait 3600 s.*run the same command again"):
        source.read_range(SHARD_FILE, 0, 100)
    assert not sleeps


def test_a_permanent_rate_limit_is_an_error(hub: LoopbackHub, source: HubSource, sleeps: list[float]) -> None:
    hub.faults.add(rate_limited(20, form="ratelimit"), server="hub", times=-1)
    with pytest.raises(SourceError, match=r"the Hub received too many requests.*tried 3 times.*hf auth login"):
        HubSource(REPO, endpoint=hub.endpoint)
    with pytest.raises(SourceError, match=r"config.json.*the Hub received too many requests.*tried 6 times"):
        source.read_file("config.json", 100)
    with pytest.raises(SourceError, match=r"model.safetensors.*the Hub received too many requests.*tried 6 times"):
        source.read_range(SHARD_FILE, 0, 100)
    assert sleeps == [20.0] * (2 + 5 + 5)


HUB_FAULTS: dict[str, list[Fault]] = {
    "reset": [reset()],
    "408": [status(408)],
    "429": [status(429)],
    "500": [status(500, b"{}")],
    "502": [status(502, b"<html>")],
    "503": [status(503)],
    "504": [status(504)],
    "redirect loop": [redirect()],
    "redirect to no address": [redirect("http://[::1")],
}


@pytest.mark.parametrize("faults", HUB_FAULTS.values(), ids=list(HUB_FAULTS))
def test_recovers_from_faults_of_the_hub_itself(hub: LoopbackHub, source: HubSource, faults: list[Fault]) -> None:
    for path in ("/api/", "config.json", SHARD_FILE):
        hub.faults.add(*faults, server="hub", path=path)
    source = HubSource(REPO, endpoint=hub.endpoint)
    assert source.read_file("config.json", 100) == b'{"a": 1}'
    assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]
    assert not hub.faults._rules[0].times


SMALL_FILE_FAULTS: dict[str, tuple[list[Fault], str]] = {
    "gzip": ([encode_body()], "Content-Encoding gzip"),
    "short": ([resize_body(-1)], "announced 7 bytes, but 8"),
    "short without length": ([resize_body(-1, with_length=False)], "ended its response after 7 of 8 bytes"),
    "long": ([resize_body(1, with_length=False)], "sent more than the 8 bytes"),
    "cut": ([cut(after=3)], "failed to respond"),
    "206": ([status(206, b'{"a": 1}')], "status 206 instead of 200"),
    "other ETag": ([header("ETag", '"abc"')], "its ETag at .* is now abc"),
    "wrong bytes": ([wrong_bytes()], "its hash differs"),
    "unsaid": ([header("ETag", None), header("X-Repo-Commit", None)], "does not report the commit"),
}


@pytest.mark.parametrize(("faults", "message"), SMALL_FILE_FAULTS.values(), ids=list(SMALL_FILE_FAULTS))
def test_faults_of_small_files(hub: LoopbackHub, source: HubSource, faults: list[Fault], message: str) -> None:
    hub.faults.add(*faults, path="config.json", times=-1)
    with pytest.raises(SourceError, match=message):
        source.read_file("config.json", 100)
    hub.faults.clear()
    assert source.read_file("config.json", 100) == b'{"a": 1}'


def test_an_expired_url_is_replaced_at_once(hub: LoopbackHub, source: HubSource, sleeps: list[float]) -> None:
    assert source.read_range(SHARD_FILE, 0, 10) == SHARD[:10]
    hub.expire_signatures()
    assert source.read_range(SHARD_FILE, 10, 10) == SHARD[10:20]
    assert hub.count("HEAD") == 2
    hub.faults.add(call(hub.expire_signatures), cut(after=CHUNK_BYTES + 10), server="cdn")
    assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]
    assert len(sleeps) <= 1


def test_a_refused_url_is_replaced_once_and_the_reason_is_shown(hub: LoopbackHub, source: HubSource) -> None:
    body = b"<html>\n<b>Blocked\x1b[31m by the proxy</b> http://name:secret@cdn/file?Signature=secret" + b"x" * 10_000
    hub.faults.add(status(403, body), server="cdn", times=-1)
    with pytest.raises(SourceError, match=r"status 403: <html> <b>Blocked\\x1b\[31m by the proxy</b>") as refused:
        source.read_range(SHARD_FILE, 0, 10)
    assert "secret" not in str(refused.value)
    assert len(str(refused.value)) < 700
    assert (hub.count("HEAD"), hub.count("GET", server="cdn")) == (2, 2)


def test_refusals_with_progress_in_between_are_not_counted_together(hub: LoopbackHub, source: HubSource) -> None:
    for skip in (1, 3, 5):
        hub.faults.add(status(403), server="cdn", skip=skip)
    for skip in (0, 1, 2):
        hub.faults.add(cut(after=100), server="cdn", skip=skip)
    assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]


def test_an_etag_that_changes_between_ranges(hub: LoopbackHub, source: HubSource) -> None:
    assert source.read_range(SHARD_FILE, 0, 10) == SHARD[:10]
    hub.faults.add(header("ETag", '"another"'), server="cdn")
    with pytest.raises(SourceChangedError, match=r"its ETag at localhost:\d+ was .*, and is now another"):
        source.read_range(SHARD_FILE, 10, 10)


def test_a_weak_etag_is_the_same(hub: LoopbackHub, source: HubSource) -> None:
    hub.faults.add(header("ETag", '"one"'), server="cdn")
    hub.faults.add(header("ETag", 'W/"one"'), server="cdn", skip=1)
    assert source.read_range(SHARD_FILE, 0, 10) + source.read_range(SHARD_FILE, 10, 10) == SHARD[:20]


HEADS: dict[str, tuple[Callable[[LoopbackHub], Fault], str]] = {
    "commit": (lambda _hub: header("X-Repo-Commit", "c" * 40), "the Hub answered with commit ccc"),
    "no commit": (lambda _hub: header("X-Repo-Commit", None), "does not report the commit"),
    "sha256": (lambda _hub: header("X-Linked-ETag", '"' + "d" * 64 + '"'), "its ETag at the Hub was .*, and is now d"),
    "size": (lambda _hub: header("X-Linked-Size", "17"), f"it has 17 bytes, but the Hub lists {len(SHARD):,}"),
}


@pytest.mark.parametrize(("fault", "message"), HEADS.values(), ids=list(HEADS))
def test_the_head_response_must_match_the_listing(
    hub: LoopbackHub, source: HubSource, fault: Callable[[LoopbackHub], Fault], message: str
) -> None:
    hub.faults.add(fault(hub), method="HEAD", times=-1)
    with pytest.raises(SourceError, match=message):
        source.read_range(SHARD_FILE, 0, 10)
    assert hub.count(server="cdn") == 0


@pytest.mark.parametrize("name", ["X-Linked-ETag", "X-Linked-Size"])
def test_headers_that_repeat_the_listing_may_be_missing(hub: LoopbackHub, source: HubSource, name: str) -> None:
    hub.faults.add(header(name, None), method="HEAD", times=-1)
    assert source.read_range(SHARD_FILE, 0, 10) == SHARD[:10]


def test_a_redirect_to_another_port_is_followed_without_the_token(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, {SHARD_FILE: SHARD}, private=True, accepted={"hf_good"})
    with LoopbackHub() as mirror_hub:
        mirror_hub.add_repo("x/y", {"f.bin": SHARD})
        mirror = HubSource("x/y", endpoint=mirror_hub.endpoint)
        mirror.read_range("f.bin", 0, 1)
        url = mirror._files._locations["f.bin"].url
        hub.faults.add(redirect(url), server="cdn", times=-1)
        mirror_hub.reset_log()
        source = HubSource(REPO, endpoint=hub.endpoint, token="hf_good")
        assert source.read_range(SHARD_FILE, START, LENGTH) == SHARD[START : START + LENGTH]
        assert [(request.server, request.authorized) for request in mirror_hub.requests] == [("cdn", False)]


def test_the_right_number_of_wrong_bytes_goes_unnoticed(hub: LoopbackHub, source: HubSource) -> None:
    """The Hub has no hash for a part of a file. Only reading the whole file detects wrong bytes."""
    hub.faults.add(wrong_bytes(), server="cdn", times=2)
    assert source.read_range(SHARD_FILE, 0, 10) == bytes(byte ^ 0xFF for byte in SHARD[:10])
    with pytest.raises(SourceError, match="its hash differs"):
        source.read_file(SHARD_FILE, len(SHARD))


def test_a_reader_that_stops_early_closes_its_connection(hub: LoopbackHub, source: HubSource) -> None:
    stream: Any = source.stream_range(SHARD_FILE, 0, LENGTH)
    assert bytes(next(stream)) == SHARD[:CHUNK_BYTES]
    stream.close()
    assert source.read_range(SHARD_FILE, 0, 10) == SHARD[:10]


def test_a_long_wait_is_logged(hub: LoopbackHub, source: HubSource, sleeps: list[float], caplog: Any) -> None:
    hub.faults.add(rate_limited(40), server="cdn")
    source.read_range(SHARD_FILE, 0, 100)
    assert sleeps
    assert re.search(r"model.safetensors of owner/name: .*status 429.* Retrying in 40 s", caplog.text)
