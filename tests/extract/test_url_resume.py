"""An interrupted extraction from a URL continues if the server shows that its files have not changed."""

import gc
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GeneratorType

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from layer_surgeon import LayerArtifact, extract_layer
from layer_surgeon.checkpoint.sources import CHUNK_BYTES, open_source
from layer_surgeon.checkpoint.sources.fsspec_files import FsspecFiles
from layer_surgeon.checkpoint.sources.http_files import HttpFiles
from layer_surgeon.checkpoint.sources.retry import HubLimits
from layer_surgeon.checkpoint.sources.url import UrlSource
from layer_surgeon.errors import SourceError
from layer_surgeon.extract import copy as copy_module
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.extract.journal import STRETCH_BYTES
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.command_line import SURGEON
from tests.support.http_folder import Answer, Asked, HttpFolder

SMALL = LLAMA_8B | {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}
PIECE, STRETCH, CUT = 2_000_000, 300_000, 1_500_000
# What a server has sent and the reader has not written: an incomplete chunk, and the buffers of the sockets.
IN_FLIGHT = CHUNK_BYTES + 600_000


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = HubLimits(tries=1, bad_answer_tries=1, base_wait=0.001, max_wait=0.002)
    monkeypatch.setattr(HttpFiles, "limits", limits)
    monkeypatch.setattr(FsspecFiles, "limits", limits)
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", PIECE)
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", STRETCH)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse_checkpoint(tmp_path_factory.mktemp("donor"), SMALL, [0, 1])


@pytest.fixture(scope="module")
def expected(donor: Path, tmp_path_factory: pytest.TempPathFactory) -> LayerArtifact:
    return extract_layer(donor, -1, tmp_path_factory.mktemp("expected") / "layer")


@pytest.fixture
def web(donor: Path) -> Iterator[HttpFolder]:
    with HttpFolder(content_of(donor)) as folder:
        yield folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_other_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same checkpoint after an update: same size, with different bytes at the end of each shard."""
    return {
        name: content[:-2_000] + bytes(byte ^ 1 for byte in content[-2_000:])
        if name.endswith(".safetensors")
        else content
        for name, content in files.items()
    }


def is_weights(asked: Asked) -> bool:
    """Whether a request is for weights, not for a file's first byte, the length of its header or the header."""
    if not asked.path.endswith(".safetensors") or asked.range is None:
        return False
    return int(asked.range.removeprefix("bytes=").partition("-")[0]) > 8


def hang_up(asked: Asked, answer: Answer) -> None:
    """Break each connection after some bytes of weights, although the headers announce all of them."""
    if is_weights(asked) and len(answer.body) > CUT:
        answer.headers["Content-Length"] = str(len(answer.body))
        answer.body = answer.body[:CUT]


def weight_bytes(web: HttpFolder) -> int:
    return sum(asked.sent for asked in web.asked if is_weights(asked))


def cut_off(web: HttpFolder, output: Path, also: Callable[[Asked, Answer], None] = lambda asked, answer: None) -> int:
    """Run an extraction whose connections break; return the number of bytes of weights sent."""

    def fault(asked: Asked, answer: Answer) -> None:
        also(asked, answer)
        hang_up(asked, answer)

    web.fault = fault
    with pytest.raises(SourceError):
        extract_layer(web.url, -1, output)
    web.fault = also
    sent = weight_bytes(web)
    web.asked.clear()
    return sent


@pytest.mark.parametrize("connections", [1, 8])
def test_web_folder_continues(
    web: HttpFolder, expected: LayerArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    monkeypatch.setattr(UrlSource, "connections", connections)
    sent = cut_off(web, tmp_path / "out")
    assert (tmp_path / ".out.partial").is_dir()
    assert not (tmp_path / "out").exists()
    artifact = extract_layer(web.url, -1, tmp_path / "out")
    artifact.verify()
    assert artifact.sha256 == expected.sha256
    read_again = sent + weight_bytes(web) - artifact.num_bytes
    # With one connection, only an incomplete stretch is read twice; with several, also the bytes in flight.
    assert 0 <= read_again <= (STRETCH if connections == 1 else connections * (STRETCH + IN_FLIGHT))
    assert weight_bytes(web) < artifact.num_bytes
    assert not (tmp_path / ".out.partial").exists()


def only_a_time(asked: Asked, answer: Answer) -> None:
    answer.headers.pop("ETag", None)
    answer.headers["Last-Modified"] = "Wed, 21 Oct 2026 07:28:00 GMT"


def another_time(asked: Asked, answer: Answer) -> None:
    answer.headers.pop("ETag", None)
    answer.headers["Last-Modified"] = "Wed, 21 Oct 2026 07:28:01 GMT"


def a_weak_tag(asked: Asked, answer: Answer) -> None:
    if "ETag" in answer.headers:
        answer.headers["ETag"] = f"W/{answer.headers['ETag']}"


def no_version(asked: Asked, answer: Answer) -> None:
    answer.headers.pop("ETag", None)


def test_modification_time_is_a_version(web: HttpFolder, expected: LayerArtifact, tmp_path: Path) -> None:
    cut_off(web, tmp_path / "out", only_a_time)
    artifact = extract_layer(web.url, -1, tmp_path / "out")
    assert artifact.sha256 == expected.sha256
    assert weight_bytes(web) < artifact.num_bytes


@pytest.mark.parametrize(("before", "after"), [(None, None), (only_a_time, another_time)])
def test_replaced_file_is_read_from_the_start(
    web: HttpFolder,
    tmp_path: Path,
    before: Callable[[Asked, Answer], None] | None,
    after: Callable[[Asked, Answer], None] | None,
) -> None:
    cut_off(web, tmp_path / "out", *([before] if before else []))
    web.files = with_other_weights(web.files)
    if after:
        web.fault = after
    artifact = extract_layer(web.url, -1, tmp_path / "out")
    artifact.verify()
    assert weight_bytes(web) == artifact.num_bytes
    (tmp_path / "newer").mkdir()
    for name, content in web.files.items():
        (tmp_path / "newer" / name).write_bytes(content)
    assert artifact.sha256 == extract_layer(tmp_path / "newer", -1, tmp_path / "expected").sha256


@pytest.mark.parametrize("fault", [a_weak_tag, no_version])
def test_file_without_reliable_version_is_read_in_one_go(
    web: HttpFolder, expected: LayerArtifact, tmp_path: Path, fault: Callable[[Asked, Answer], None]
) -> None:
    cut_off(web, tmp_path / "out", fault)
    assert not (tmp_path / ".out.partial").exists()
    artifact = extract_layer(web.url, -1, tmp_path / "out")
    assert artifact.sha256 == expected.sha256
    assert weight_bytes(web) == artifact.num_bytes


def test_versions_of_sources(web: HttpFolder, donor: Path) -> None:
    shard = next(donor.glob("*.safetensors"))
    assert open_source(donor).version(shard.name) is None
    first = open_source(web.url).version(shard.name)
    assert first is not None
    assert str(shard.stat().st_size) in first
    assert open_source(web.url).version(shard.name) == first
    web.files = with_other_weights(web.files)
    assert open_source(web.url).version(shard.name) != first
    web.fault = a_weak_tag
    assert open_source(web.url).version(shard.name) is None


def test_fsspec_file_system_continues(
    donor: Path, expected: LayerArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fsspec.filesystem("memory")
    for name, content in content_of(donor).items():
        system.pipe_file(f"/resume/{name}", content)
    read_file = MemoryFileSystem.cat_file
    lock, sent, budget = threading.Lock(), [0], [len(content_of(donor)["config.json"]) + 4_000_000]

    def has_progress() -> bool:
        return any(b'"crc"' in path.read_bytes() for path in (tmp_path / ".out.partial").glob(".journal*"))

    def cat_file(self: MemoryFileSystem, path: str, start: int = 0, end: int = 0, **_: object) -> bytes:
        with lock:
            sent[0] += end - start
            # The pieces are read in parallel: on a busy machine, all can be short of their first journal record.
            if sent[0] > budget[0] and has_progress():
                raise ConnectionResetError("the line is dead")
        content: bytes = read_file(self, path, start=start, end=end)
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    try:
        with pytest.raises(SourceError, match="the line is dead"):
            extract_layer("memory://resume", -1, tmp_path / "out")
        assert (tmp_path / ".out.partial").is_dir()
        sent[0], budget[0] = 0, 1 << 60
        artifact = extract_layer("memory://resume", -1, tmp_path / "out")
        assert artifact.sha256 == expected.sha256
        assert sent[0] < artifact.num_bytes
    finally:
        system.rm("/resume", recursive=True)


def test_continues_after_a_kill(tmp_path: Path) -> None:
    large = SMALL | {"intermediate_size": 16384}
    donor = write_sparse_checkpoint(tmp_path / "donor", large, [1])
    expected = extract_layer(donor, -1, tmp_path / "expected")
    journal = tmp_path / ".out.partial" / ".journal"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SURGEON_"))}
    released, sent = threading.Event(), [0]

    def stall(asked: Asked, answer: Answer) -> None:
        """Answer the first two requests for weights at once, and the others only after the process is dead."""
        if is_weights(asked):
            sent[0] += 1
            if sent[0] > 2:
                released.wait(60)

    with HttpFolder(content_of(donor)) as web:
        command = [str(SURGEON), "extract", web.url, "--output", str(tmp_path / "out")]
        web.fault = stall
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (journal.exists() and b'"crc"' in journal.read_bytes()) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        released.set()
        first = weight_bytes(web)
        web.asked.clear()
        web.fault = lambda asked, answer: None
        subprocess.run(command, env=environment, capture_output=True, check=True)
        second = weight_bytes(web)
    artifact = LayerArtifact.open(tmp_path / "out")
    artifact.verify()
    assert artifact.sha256 == expected.sha256
    assert artifact.num_bytes - second >= STRETCH_BYTES
    assert first > 0


def test_no_connection_stays_open_after_an_error(web: HttpFolder, tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        web.fault = hang_up
        with pytest.raises(SourceError) as error:
            extract_layer(web.url, -1, tmp_path / "out")
        suspended = [
            value
            for value in gc.get_objects()
            if type(value) is GeneratorType and value.gi_frame is not None and value.__name__ == "stream_range"
        ]
        assert suspended == [], error
    finally:
        gc.enable()
