"""Every fault of a Hub, its CDN and its files, up to the artifact: right to the byte, or an error and a way on.

Each row of the tables is one fault. What is asserted of every row: a fault that happens once does not reach the
artifact; a fault that stays ends with an error of ours that says what it was; nothing that looks like an artifact is
left; and the next call, without the fault, reads exactly what the journal lacks, and makes the artifact to the byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from layer_surgeon import LayerArtifact, extract_layer
from layer_surgeon.checkpoint.sources import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.hub_errors import HubLimits
from layer_surgeon.errors import LayerSurgeonError, SourceChangedError, SourceError
from layer_surgeon.extract import copy as copy_module
from layer_surgeon.extract import plan as plan_module
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
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
from tests.support.hub_reading import journaled, note_waits, read_from, weight_bytes
from tests.support.loopback_hub import LoopbackHub

CONFIG = LLAMA_8B | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}
# A shard for each of the two layers.
SHARD, PIECE, STRETCH = 8_200_000, 3_000_000, 500_000


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse_checkpoint(tmp_path_factory.mktemp("faults") / "donor", CONFIG, [0, 1], max_shard_bytes=SHARD)


@pytest.fixture(scope="module")
def expected(donor: Path, tmp_path_factory: pytest.TempPathFactory) -> LayerArtifact:
    """The artifact as it comes from the folder itself."""
    return extract_layer(donor, -1, tmp_path_factory.mktemp("expected") / "out")


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were made, without making them."""
    return note_waits(monkeypatch)


@pytest.fixture
def hub(donor: Path, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]) -> Iterator[LoopbackHub]:
    limits = HubLimits(tries=2, contact_tries=2, bad_answer_tries=2, base_wait=0.001, max_wait=0.002)
    monkeypatch.setattr(HubSource, "limits", limits)
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", PIECE)
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", STRETCH)
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        hub.add_repo("owner/model", donor)
        yield hub


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault, and what becomes of it.

    Attributes:
        faults: What is done to an answer.
        stays: What the error says when it never ends; None where the artifact is right all the same.
        once: What the error says even when it happens once; None where it is got over.
        server: Whose answers are spoiled: `cdn` (weights) or `hub` (where they are).
        method: The method of the requests that are spoiled.
        path: What the path of those requests holds.
        skip: How many of such requests pass first: of the CDN, the two that bring a file's header.
        waits: Seconds that were asked for and are waited.
        timeout: Seconds after which an answer that does not come is given up.
    """

    faults: Sequence[Fault]
    stays: str | None
    once: str | None = None
    server: str = "cdn"
    method: str = "GET"
    path: str = r"\.safetensors"
    skip: int = 2
    waits: float | None = None
    timeout: float = 60.0


def weights(*faults: Fault, stays: str | None, **more: Any) -> Row:
    """A fault of the answers with weights in them."""
    return Row(faults=faults, stays=stays, **more)


def head(*faults: Fault, stays: str | None, **more: Any) -> Row:
    """A fault of the Hub's answer that says where a file's bytes are."""
    return Row(faults=faults, stays=stays, server="hub", method="HEAD", skip=0, **more)


def api(*faults: Fault, stays: str | None, **more: Any) -> Row:
    """A fault of the first answer of all, which says what is in the repo."""
    return Row(faults=faults, stays=stays, server="hub", path="/api/", skip=0, **more)


# In the order of the list in which the faults of Hubs and CDNs were collected.
FAULTS = {
    # 200 that ignores Range
    "200 for a range": weights(ignore_range(), stays="status 200 instead of 206"),
    "200 for a range, without a length": weights(ignore_range(with_length=False), stays="status 200 instead of 206"),
    "200 for a range, as gzip": weights(ignore_range(gzipped=True), stays="status 200 instead of 206"),
    # 206 that is another range, or another body
    "a shifted range": weights(shift_range(1), stays="it sent Content-Range"),
    "no Content-Range": weights(header("Content-Range", None), stays="Content-Range None"),
    "a Content-Range of unknown size": weights(header("Content-Range", "bytes 0-9/*"), stays="Content-Range 'bytes"),
    "a 206 as gzip": weights(encode_body(), stays="Content-Encoding gzip"),
    "a short body": weights(resize_body(-10), stays="it announced"),
    "a short body, without a length": weights(resize_body(-10, with_length=False), stays="ended its response after"),
    "a body of nothing": weights(resize_body(-(10**9)), stays="it announced 0 bytes"),
    "a long body": weights(resize_body(10), stays="it announced"),
    "a long body, without a length": weights(resize_body(10, with_length=False), stays="it sent more than"),
    # a connection that ends, or does not move
    "a cut after the first bytes": weights(cut(100), stays="failed to respond"),
    "a cut after two chunks": weights(cut(2 * CHUNK_BYTES + 10), stays=None),
    "a reset before the headers": weights(reset(), stays="failed to respond"),
    "a stall before the headers": weights(stall(60), stays="ReadTimeout", timeout=0.4),
    "a stall within the body": weights(stall(60, after=1000), stays="ReadTimeout", timeout=0.4),
    "a slow drip": weights(drip(200_000, 0.002), stays=None),
    # statuses
    **{f"{code} of the CDN": weights(status(code), stays=f"status {code}") for code in (408, 500, 502, 503, 504)},
    **{f"{code} of the Hub": head(status(code), stays=f"status {code}") for code in (408, 500, 502, 503, 504)},
    **{f"{code} of the API": api(status(code), stays=f"status {code}") for code in (408, 500, 502, 503, 504)},
    **{
        f"429 of the {who}, wait as {form}": row(rate_limited(40, form=form), stays="too many requests", waits=40)
        for who, row in {"CDN": weights, "Hub": head, "API": api}.items()
        for form in ("seconds", "date", "ratelimit")
    },
    "429 without a wait": weights(status(429), stays="too many requests"),
    "403 of the CDN": weights(status(403), stays="status 403"),
    "404 of the CDN": weights(status(404), stays="status 404"),
    "416 of the CDN": weights(status(416), stays="status 416 instead of 206"),
    # what changes between two requests
    "another ETag of the CDN": weights(header("ETag", '"other"'), stays="its ETag at", once="its ETag at"),
    "another ETag of the Hub": head(
        header("X-Linked-ETag", '"' + "d" * 64 + '"'), stays="its ETag at the Hub", once="its ETag at the Hub"
    ),
    "another commit": head(
        header("X-Repo-Commit", "c" * 40), stays="answered with commit ccc", once="answered with commit ccc"
    ),
    "another size": head(header("X-Linked-Size", "17"), stays="it has 17 bytes", once="it has 17 bytes"),
    # what is missing
    "no ETag of the CDN": weights(header("ETag", None), stays=None),
    "no ETag of the Hub": head(header("X-Linked-ETag", None), stays=None),
    "no size": head(header("X-Linked-Size", None), stays=None),
    "no commit": head(
        header("X-Repo-Commit", None), stays="does not report the commit", once="does not report the commit"
    ),
    # redirects
    "a redirect loop of the CDN": weights(redirect(), stays="TooManyRedirects"),
    "a redirect loop of the Hub": head(redirect(), stays="redirects more than 10 times"),
    "a redirect to a port where nobody is": weights(redirect("http://127.0.0.1:1/"), stays="ConnectError"),
}


def shard_of(donor: Path) -> Path:
    """The file of the last layer."""
    return max(donor.glob("*.safetensors"))


def plan_fault(hub: LoopbackHub, row: Row, times: int) -> None:
    HubSource.limits = replace(HubSource.limits, read_timeout=row.timeout)
    hub.faults.add(*row.faults, server=row.server, method=row.method, path=row.path, skip=row.skip, times=times)


def get(output: Path) -> LayerArtifact:
    return extract_layer("owner/model", -1, output)


def check_right(artifact: LayerArtifact, expected: LayerArtifact) -> None:
    artifact.verify()
    assert artifact.sha256 == expected.sha256
    assert (artifact.path / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    assert [path.name for path in artifact.path.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("row", FAULTS.values(), ids=list(FAULTS))
def test_a_fault_that_happens_once(
    hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact, sleeps: list[float], row: Row
) -> None:
    output = tmp_path / "made" / "out"
    plan_fault(hub, row, 1)
    if row.once is None:
        check_right(get(output), expected)
        assert sum(bool(request.faults) for request in hub.requests) == 1
    else:
        with pytest.raises(SourceError, match=row.once):
            get(output)
        assert not output.exists()
        check_right(get(output), expected)
    if row.waits is not None:
        assert any(row.waits - 2 < wait <= row.waits + 1 for wait in sleeps)


@pytest.mark.parametrize("row", FAULTS.values(), ids=list(FAULTS))
def test_a_fault_that_stays(hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact, row: Row) -> None:
    output = tmp_path / "made" / "out"
    plan_fault(hub, row, -1)
    if row.stays is None:
        check_right(get(output), expected)
        return
    with pytest.raises(SourceError, match=row.stays) as caught:
        get(output)
    assert not output.exists()
    known = journaled(output)
    if isinstance(caught.value, SourceChangedError) or row.server == "hub":
        # Nothing of another version of a file may be used, and before the first byte there is nothing to keep.
        assert not output.parent.exists()
    hub.faults.clear()
    hub.reset_log()
    artifact = get(output)
    check_right(artifact, expected)
    assert weight_bytes(hub) == artifact.num_bytes - known


def test_no_more_than_what_was_in_flight_is_read_twice(
    hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact
) -> None:
    """A network that fails for good after every connection brought something: no more than that is read twice."""
    output = tmp_path / "made" / "out"
    arrived = STRETCH + 200_000
    hub.faults.add(cut(arrived), server="cdn", method="GET", path=r"\.safetensors", skip=2, times=2)
    hub.faults.add(reset(), server="cdn", method="GET", path=r"\.safetensors", skip=4, times=-1)
    with pytest.raises(SourceError):
        get(output)
    sent, known = weight_bytes(hub), journaled(output)
    hub.faults.clear()
    hub.reset_log()
    artifact = get(output)
    check_right(artifact, expected)
    read_again = sent + weight_bytes(hub) - artifact.num_bytes
    assert weight_bytes(hub) == artifact.num_bytes - known
    assert 0 <= read_again <= 2 * (STRETCH + CHUNK_BYTES)


def test_a_signed_url_that_expires_in_the_middle(hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact) -> None:
    HubSource.limits = replace(HubSource.limits, tries=6)
    for skip in range(2, 6):
        hub.faults.add(call(hub.expire_signatures), server="cdn", skip=skip)
    hub.faults.add(call(hub.expire_signatures), cut(CHUNK_BYTES + 10), server="cdn", skip=3)
    check_right(get(tmp_path / "made" / "out"), expected)
    assert hub.count("HEAD", path="safetensors") >= 2


def test_main_that_moves_in_the_middle(hub: LoopbackHub, tmp_path: Path, donor: Path, expected: LayerArtifact) -> None:
    """All is read at the commit that was main when reading began; the next call reads the new one, all of it."""
    repo = hub.router.repos["models", "owner/model"]
    first = repo.refs["main"]
    newer = write_sparse_checkpoint(tmp_path / "newer", CONFIG | {"vocab_size": 41}, [0, 1], max_shard_bytes=SHARD)
    hub.faults.add(call(lambda: repo.commit(newer)), server="hub", method="HEAD", path=r"\.safetensors")
    artifact = get(tmp_path / "made" / "out")
    check_right(artifact, expected)
    assert artifact.config["source"]["commit"] == first
    assert repo.refs["main"] != first
    again = get(tmp_path / "again" / "out")
    assert again.config["source"]["commit"] == repo.refs["main"]
    check_right(again, extract_layer(newer, -1, tmp_path / "expected" / "out"))


def test_a_redirect_to_another_port(hub: LoopbackHub, tmp_path: Path, donor: Path, expected: LayerArtifact) -> None:
    with LoopbackHub() as other:
        other.add_repo("owner/model", donor)
        mirror = HubSource("owner/model", endpoint=other.endpoint, token=False)
        shard = shard_of(donor).name
        mirror.read_range(shard, 0, 1)
        hub.faults.add(redirect(mirror._files._locations[shard].url), server="cdn", times=-1)
        check_right(get(tmp_path / "made" / "out"), expected)


def test_wrong_bytes_of_the_right_number(hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact) -> None:
    """No hash of a part of a file exists on the Hub: this can't be seen, and what is recorded is what was written.

    It is seen in whole files (config.json, the index), whose hash the Hub lists.
    """
    hub.faults.add(wrong_bytes(), server="cdn", method="GET", path=r"\.safetensors", skip=2)
    artifact = get(tmp_path / "made" / "out")
    artifact.verify()
    assert artifact.sha256 != expected.sha256
    for file in ("config.json", "model.safetensors.index.json"):
        hub.faults.add(wrong_bytes(), path=file, times=-1)
        with pytest.raises(LayerSurgeonError, match=f"{file}.*its hash differs"):
            get(tmp_path / "made" / "another")
        hub.faults.clear()
    assert not (tmp_path / "made" / "another").exists()
