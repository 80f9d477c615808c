"""What a power cut or a failing disk leaves of a half-read layer: the next run gives the right bytes all the same.

A journal is believed as far as the file of weights bears it out, so that its lines and the file are spoiled apart and
together. `SURGEON_FUZZ=100000` runs more cases, `SURGEON_FUZZ_CASE=17` case 17 alone.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from layer_surgeon import LayerArtifact, extract_layer
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.safetensors import SafetensorsTable
from layer_surgeon.checkpoint.sources import FolderSource
from layer_surgeon.errors import ArtifactError, SourceError
from layer_surgeon.extract import copy as copy_module
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.progress import NullProgress, Progress
from tests.support.checkpoints import write_safetensors
from tests.support.fuzz_guard import check_error, limited_memory, limited_work
from tests.support.fuzz_targets import CONFIG, make_target
from tests.support.mutations import mutate_bytes, mutate_json

CASES = max(150, int(os.environ.get("SURGEON_FUZZ", "0")) // 12)
ONLY = os.environ.get("SURGEON_FUZZ_CASE")
STRETCH = 96


class Link(FolderSource):
    """A folder that is read as over a network: several ranges at once, of files whose version is known."""

    kind = "url"
    connections = 4

    def version(self, file: str) -> str | None:
        return "1"

    def stream_range(self, file: str, start: int, length: int) -> Iterator[bytes]:
        content = self.read_range(file, start, length)
        for position in range(0, length, 40):
            yield content[position : position + 40]


@pytest.fixture
def donor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", STRETCH)
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", 300)
    target = make_target("safetensors", tmp_path / "made")
    folder = tmp_path / "donor"
    folder.mkdir()
    for name, content in target.files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def made(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()


class GoneAtTheEnd(NullProgress):
    """The network is gone when all of the weights were read, so that a whole journal is left."""

    def end(self) -> None:
        raise SourceError("The network is gone.")


def extract(donor: Path, output: Path, dtype: str | None, progress: Progress | None = None) -> LayerArtifact:
    source = Link(donor, name="donor")
    checkpoint = Checkpoint(source, SafetensorsTable(source, CONFIG, single_file="model.safetensors"))
    return extract_layer(checkpoint, -1, output, dtype=dtype, progress=progress)


def cut_off(donor: Path, output: Path, dtype: str | None) -> tuple[list[bytes], bytes]:
    """The lines of the journal, in an order that does not depend on threads, and the file of weights."""
    with pytest.raises(SourceError):
        extract(donor, output, dtype, GoneAtTheEnd())
    partial = output.with_name(f".{output.name}.partial")
    identity, *lines = (partial / ".journal").read_bytes().splitlines()
    lines.sort(key=lambda line: (json.loads(line)["piece"], json.loads(line)["start"]))
    return [identity, *lines], (partial / "model.safetensors").read_bytes()


def cases() -> list[int]:
    return list(range(CASES)) if ONLY is None else [int(ONLY)]


def spoil(lines: list[bytes], weights: bytes, random: Random) -> tuple[bytes, bytes]:
    """What is left of both files."""
    kind = random.random()
    lines = lines[: random.randint(1, len(lines))]
    if kind < 0.35:
        # One line of the journal says something else, and is still a line.
        number = random.randrange(len(lines))
        lines[number] = mutate_json(lines[number], random)
    elif kind < 0.5:
        random.shuffle(lines)
    journal = b"\n".join(lines) + random.choice((b"", b"\n"))
    if 0.5 < kind < 0.75:
        journal = mutate_bytes(journal, random)
    if kind > 0.65:
        weights = random.choice((zeroed, torn, mutate_bytes))(weights, random)
    return journal, weights


def zeroed(weights: bytes, random: Random) -> bytes:
    """Pages that were promised to the disk and never came there."""
    page = random.choice((64, 512))
    spoiled = bytearray(weights)
    for _ in range(random.choice((1, 3, 100))):
        begin = random.randrange(len(weights)) // page * page
        spoiled[begin : begin + page] = bytes(min(page, len(weights) - begin))
    return bytes(spoiled)


def torn(weights: bytes, random: Random) -> bytes:
    """A file that ends in its middle."""
    return weights[: random.randrange(len(weights))]


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_whatever_is_left_of_a_layer_the_next_run_is_right(donor: Path, tmp_path: Path, dtype: str | None) -> None:
    output, partial = tmp_path / "out" / "layer", tmp_path / "out" / ".layer.partial"
    expected = extract(donor, tmp_path / "expected", dtype).path
    whole = {path.name: path.read_bytes() for path in expected.iterdir()}
    lines, weights = cut_off(donor, output, dtype)
    assert len(lines) > 8
    with limited_memory():
        for number in cases():
            random = Random(f"journal {dtype} {number}")
            left = spoil(lines, weights, random)
            partial.mkdir(exist_ok=True)
            (partial / ".journal").write_bytes(left[0])
            (partial / "model.safetensors").write_bytes(left[1])
            with limited_work():
                artifact = extract(donor, output, dtype)
            made = {path.name: path.read_bytes() for path in artifact.path.iterdir()}
            assert made == whole, f"SURGEON_FUZZ_CASE={number} with {dtype}"
            assert not partial.exists()
            for path in artifact.path.iterdir():
                path.unlink()
            artifact.path.rmdir()


def test_a_spoiled_artifact_in_the_way_is_kept_or_replaced(donor: Path, tmp_path: Path) -> None:
    """An artifact whose config.json says something else is never taken for the layer, and never lost unasked."""
    artifact = extract(donor, tmp_path / "layer", None).path
    whole = {path.name: path.read_bytes() for path in artifact.iterdir()}
    config = json.loads(whole["config.json"])
    for number in cases():
        random = Random(f"artifact in the way {number}")
        said = mutate_json(whole["config.json"], random) if number else whole["config.json"]
        (artifact / "config.json").write_bytes(said)
        try:
            with limited_work():
                again = extract(donor, artifact, None)
        except ArtifactError as error:
            check_error(error)
            assert (artifact / "config.json").read_bytes() == said
            continue
        finally:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["donor", "layer", "made"], number
        assert again.config["sha256"] == config["sha256"], f"SURGEON_FUZZ_CASE={number}"
        assert (artifact / "model.safetensors").read_bytes() == whole["model.safetensors"]


def test_a_journal_of_another_form_is_started_over(donor: Path, tmp_path: Path) -> None:
    output, partial = tmp_path / "layer", tmp_path / ".layer.partial"
    identity = cut_off(donor, output, None)[0][0]
    for line in (
        b"[" * 100_000,
        b'{"piece":' * 50_000,
        b"1e999",
        b"9" * 5000,
        b"\xff\xfe",
        b'{"piece": 0}',
        b"[]",
        b"0",
    ):
        for content in (line, line + b"\n" + identity, identity + b"\n" + line + b"\n" + line):
            partial.mkdir(exist_ok=True)
            (partial / ".journal").write_bytes(content)
            artifact = extract(donor, output, None)
            artifact.verify()
            for path in artifact.path.iterdir():
                path.unlink()
            artifact.path.rmdir()


def test_a_layer_without_numbers_is_a_whole_artifact(tmp_path: Path) -> None:
    shapes = {f"model.layers.{index}.{name}.weight": ("BF16", (0, 4), b"") for index in (0, 1) for name in ("a", "b")}
    (tmp_path / "donor").mkdir()
    write_safetensors(tmp_path / "donor" / "model.safetensors", shapes)
    for dtype in (None, "float32"):
        artifact = extract(tmp_path / "donor", tmp_path / f"out {dtype}", dtype)
        artifact.verify()
        assert {info.shape for info in artifact.tensors()} == {(0, 4)}
