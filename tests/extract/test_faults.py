"""Every known fault of a Hub, its CDN and its files: a correct artifact, or an error and a way to continue.

Each row of the table is one fault, and each is tested in the same way. A fault that happens once does not affect the
artifact. A permanent fault ends with an error of ours that names it, and leaves nothing that looks like an artifact.
The next call, without the fault, reads exactly what the journal lacks, and makes the correct artifact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from layer_surgeon import LayerArtifact, extract_layer
from layer_surgeon.checkpoint.sources import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import HubLimits
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
# Each of the two layers has its own shard.
SHARD, PIECE, STRETCH = 8_200_000, 3_000_000, 500_000


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse_checkpoint(tmp_path_factory.mktemp("faults") / "donor", CONFIG, [0, 1], max_shard_bytes=SHARD)


@pytest.fixture(scope="module")
def expected(donor: Path, tmp_path_factory: pytest.TempPathFactory) -> LayerArtifact:
    """The artifact extracted from the local folder."""
    return extract_layer(donor, -1, tmp_path_factory.mktemp("expected") / "out")


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records the waits instead of sleeping."""
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
    """A fault, and its expected effect.

    Attributes:
        faults: The changes to a response.
        stays: The error message if the fault is permanent; None if the artifact is correct anyway.
        once: The error message if the fault happens once; None if there is no error.
        server: Which server has the fault: `cdn` (weights) or `hub` (their URLs).
        method: The method of the affected requests.
        path: A pattern for the paths of the affected requests.
        skip: How many such requests succeed first. For the CDN, this is the one for the header of the file.
        waits: Seconds that the server asks the client to wait.
        timeout: Read timeout in seconds.
    """

    faults: Sequence[Fault]
    stays: str | None
    once: str | None = None
    server: str = "cdn"
    method: str = "GET"
    path: str = r"\.safetensors"
    skip: int = 1
    waits: float | None = None
    timeout: float = 60.0


def weights(*faults: Fault, stays: str | None, **settings: Any) -> Row:
    """A fault of responses with weights."""
    return Row(faults=faults, stays=stays, **settings)


def head_request(*faults: Fault, stays: str | None, **settings: Any) -> Row:
    """A fault of the Hub's response with a file's URL."""
    return Row(faults=faults, stays=stays, server="hub", method="HEAD", skip=0, **settings)


def api(*faults: Fault, stays: str | None, **settings: Any) -> Row:
    """A fault of the very first response, which lists the files of the repo."""
    return Row(faults=faults, stays=stays, server="hub", path="/api/", skip=0, **settings)


# Grouped by kind.
FAULTS = {
    # status 200, Range ignored
    "200 for a range": weights(ignore_range(), stays="status 200 instead of 206"),
    "200 for a range, without a length": weights(ignore_range(with_length=False), stays="status 200 instead of 206"),
    "200 for a range, as gzip": weights(ignore_range(gzipped=True), stays="status 200 instead of 206"),
    # status 206 with a wrong range or body
    "a shifted range": weights(shift_range(1), stays="it sent Content-Range"),
    "no Content-Range": weights(header("Content-Range", None), stays="Content-Range None"),
    "a Content-Range of unknown size": weights(header("Content-Range", "bytes 0-9/*"), stays="Content-Range 'bytes"),
    "a 206 as gzip": weights(encode_body(), stays="Content-Encoding gzip"),
    "a short body": weights(resize_body(-10), stays="it announced"),
    "a short body, without a length": weights(resize_body(-10, with_length=False), stays="ended its response after"),
    "an empty body": weights(resize_body(-(10**9)), stays="it announced 0 bytes"),
    "a long body": weights(resize_body(10), stays="it announced"),
    "a long body, without a length": weights(resize_body(10, with_length=False), stays="it sent more than"),
    # a connection that breaks or stalls
    "a cut after the first bytes": weights(cut(100), stays="failed to respond"),
    "a cut after two chunks": weights(cut(2 * CHUNK_BYTES + 10), stays=None),
    "a reset before the headers": weights(reset(), stays="failed to respond"),
    "a stall before the headers": weights(stall(60), stays="ReadTimeout", timeout=0.4),
    "a stall within the body": weights(stall(60, after=1000), stays="ReadTimeout", timeout=0.4),
    "a slow drip": weights(drip(200_000, 0.002), stays=None),
    # statuses
    **{f"{code} of the CDN": weights(status(code), stays=f"status {code}") for code in (408, 500, 502, 503, 504)},
    **{f"{code} of the Hub": head_request(status(code), stays=f"status {code}") for code in (408, 500, 502, 503, 504)},
    **{f"{code} of the API": api(status(code), stays=f"status {code}") for code in (408, 500, 502, 503, 504)},
    **{
        f"429 of the {who}, wait as {form}": row(rate_limited(40, form=form), stays="too many requests", waits=40)
        for who, row in {"CDN": weights, "Hub": head_request, "API": api}.items()
        for form in ("seconds", "date", "ratelimit")
    },
    "429 without a wait": weights(status(429), stays="too many requests"),
    "403 of the CDN": weights(status(403), stays="status 403"),
    "404 of the CDN": weights(status(404), stays="status 404"),
    "416 of the CDN": weights(status(416), stays="status 416 instead of 206"),
    # changes between two requests
    "another ETag of the CDN": weights(header("ETag", '"other"'), stays="its ETag at", once="its ETag at"),
    "another ETag of the Hub": head_request(
        header("X-Linked-ETag", '"' + "d" * 64 + '"'), stays="its ETag at the Hub", once="its ETag at the Hub"
    ),
    "another commit": head_request(
        header("X-Repo-Commit", "c" * 40), stays="answered with commit ccc", once="answered with commit ccc"
    ),
    "another size": head_request(header("X-Linked-Size", "17"), stays="it has 17 bytes", once="it has 17 bytes"),
    # missing headers
    "no ETag of the CDN": weights(header("ETag", None), stays=None),
    "no ETag of the Hub": head_request(header("X-Linked-ETag", None), stays=None),
    "no size": head_request(header("X-Linked-Size", None), stays=None),
    "no commit": head_request(
        header("X-Repo-Commit", None), stays="does not report the commit", once="does not report the commit"
    ),
    # redirects
    "a redirect loop of the CDN": weights(redirect(), stays="TooManyRedirects"),
    "a redirect loop of the Hub": head_request(redirect(), stays="redirects more than 10 times"),
    "a redirect to a closed port": weights(redirect("http://127.0.0.1:1/"), stays="ConnectError"),
}


def shard_of(donor: Path) -> Path:
    """The file of the last layer."""
    return max(donor.glob("*.safetensors"))


def plan_fault(hub: LoopbackHub, row: Row, times: int) -> None:
    HubSource.limits = replace(HubSource.limits, read_timeout=row.timeout)
    hub.faults.add(*row.faults, server=row.server, method=row.method, path=row.path, skip=row.skip, times=times)


def extract(output: Path) -> LayerArtifact:
    return extract_layer("owner/model", -1, output)


def check_artifact(artifact: LayerArtifact, expected: LayerArtifact) -> None:
    artifact.verify()
    assert artifact.sha256 == expected.sha256
    assert (artifact.path / "model.safetensors").read_bytes() == (expected.path / "model.safetensors").read_bytes()
    assert [path.name for path in artifact.path.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("row", FAULTS.values(), ids=list(FAULTS))
def test_fault_that_happens_once(
    hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact, sleeps: list[float], row: Row
) -> None:
    output = tmp_path / "made" / "out"
    plan_fault(hub, row, 1)
    if row.once is None:
        check_artifact(extract(output), expected)
        assert sum(bool(request.faults) for request in hub.requests) == 1
    else:
        with pytest.raises(SourceError, match=row.once):
            extract(output)
        assert not output.exists()
        check_artifact(extract(output), expected)
    if row.waits is not None:
        assert any(row.waits - 2 < wait <= row.waits + 1 for wait in sleeps)


@pytest.mark.parametrize("row", FAULTS.values(), ids=list(FAULTS))
def test_permanent_fault(hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact, row: Row) -> None:
    output = tmp_path / "made" / "out"
    plan_fault(hub, row, -1)
    if row.stays is None:
        check_artifact(extract(output), expected)
        return
    with pytest.raises(SourceError, match=row.stays) as caught:
        extract(output)
    assert not output.exists()
    already_read = journaled(output)
    if isinstance(caught.value, SourceChangedError) or row.server == "hub":
        # Bytes of a different version must not be used, and before the first byte there is nothing to keep.
        assert not output.parent.exists()
    hub.faults.clear()
    hub.reset_log()
    artifact = extract(output)
    check_artifact(artifact, expected)
    assert weight_bytes(hub) == artifact.num_bytes - already_read


def test_only_bytes_in_flight_are_read_twice(hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact) -> None:
    """If the network fails permanently after each connection has read something, only bytes in flight are reread."""
    output = tmp_path / "made" / "out"
    arrived = STRETCH + 200_000
    hub.faults.add(cut(arrived), server="cdn", method="GET", path=r"\.safetensors", skip=1, times=2)
    hub.faults.add(reset(), server="cdn", method="GET", path=r"\.safetensors", skip=3, times=-1)
    with pytest.raises(SourceError):
        extract(output)
    sent, already_read = weight_bytes(hub), journaled(output)
    hub.faults.clear()
    hub.reset_log()
    artifact = extract(output)
    check_artifact(artifact, expected)
    read_again = sent + weight_bytes(hub) - artifact.num_bytes
    assert weight_bytes(hub) == artifact.num_bytes - already_read
    assert 0 <= read_again <= 2 * (STRETCH + CHUNK_BYTES)


def test_signed_url_expires_midway(hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact) -> None:
    HubSource.limits = replace(HubSource.limits, tries=6)
    for skip in range(1, 5):
        hub.faults.add(call(hub.expire_signatures), server="cdn", skip=skip)
    hub.faults.add(call(hub.expire_signatures), cut(CHUNK_BYTES + 10), server="cdn", skip=2)
    check_artifact(extract(tmp_path / "made" / "out"), expected)
    assert hub.count("HEAD", path="safetensors") >= 2


def test_main_moves_midway(hub: LoopbackHub, tmp_path: Path, donor: Path, expected: LayerArtifact) -> None:
    """Everything is read at the commit that main had at the start. The next call reads the whole new commit."""
    repo = hub.router.repos["models", "owner/model"]
    first = repo.refs["main"]
    newer = write_sparse_checkpoint(tmp_path / "newer", CONFIG | {"vocab_size": 41}, [0, 1], max_shard_bytes=SHARD)
    hub.faults.add(call(lambda: repo.commit(newer)), server="hub", method="HEAD", path=r"\.safetensors")
    artifact = extract(tmp_path / "made" / "out")
    check_artifact(artifact, expected)
    assert artifact.config["source"]["commit"] == first
    assert repo.refs["main"] != first
    again = extract(tmp_path / "again" / "out")
    assert again.config["source"]["commit"] == repo.refs["main"]
    check_artifact(again, extract_layer(newer, -1, tmp_path / "expected" / "out"))


def test_redirect_to_another_port(hub: LoopbackHub, tmp_path: Path, donor: Path, expected: LayerArtifact) -> None:
    with LoopbackHub() as other:
        other.add_repo("owner/model", donor)
        mirror = HubSource("owner/model", endpoint=other.endpoint, token=False)
        shard = shard_of(donor).name
        mirror.read_range(shard, 0, 1)
        hub.faults.add(redirect(mirror._files._locations[shard].url), server="cdn", times=-1)
        check_artifact(extract(tmp_path / "made" / "out"), expected)


def test_wrong_bytes_of_the_right_length(hub: LoopbackHub, tmp_path: Path, expected: LayerArtifact) -> None:
    """Wrong weights are not detected, because the Hub has no hash for a part of a file.

    Wrong bytes in whole files (config.json, the index) are detected, because the Hub lists their hashes.
    """
    hub.faults.add(wrong_bytes(), server="cdn", method="GET", path=r"\.safetensors", skip=1)
    artifact = extract(tmp_path / "made" / "out")
    artifact.verify()
    assert artifact.sha256 != expected.sha256
    for file in ("config.json", "model.safetensors.index.json"):
        hub.faults.add(wrong_bytes(), path=file, times=-1)
        with pytest.raises(LayerSurgeonError, match=f"{file}.*its hash differs"):
            extract(tmp_path / "made" / "another")
        hub.faults.clear()
    assert not (tmp_path / "made" / "another").exists()
