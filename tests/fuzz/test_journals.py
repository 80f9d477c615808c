"""After a power cut or a disk failure during an extraction, the next run still gives the right bytes.

The journal is only trusted if the file of weights confirms it, so the tests corrupt the journal, the weights, or both.
`SURGEON_FUZZ=100000` runs more cases, `SURGEON_FUZZ_CASE=17` only case 17.
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
    """A folder that is read like a network source: several ranges in parallel, with known file versions."""

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
def output_folder(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()


class GoneAtTheEnd(NullProgress):
    """Fails once all weights are read, which leaves a complete journal."""

    def end(self) -> None:
        raise SourceError("The network is gone.")


def extract(donor: Path, output: Path, dtype: str | None, progress: Progress | None = None) -> LayerArtifact:
    source = Link(donor, name="donor")
    checkpoint = Checkpoint(source, SafetensorsTable(source, CONFIG, single_file="model.safetensors"))
    return extract_layer(checkpoint, -1, output, dtype=dtype, progress=progress)


def cut_off(donor: Path, output: Path, dtype: str | None) -> tuple[list[bytes], bytes]:
    """Interrupt an extraction and return the lines of its journal, in a fixed order, and its weights."""
    with pytest.raises(SourceError):
        extract(donor, output, dtype, GoneAtTheEnd())
    partial = output.with_name(f".{output.name}.partial")
    identity, *lines = (partial / ".journal").read_bytes().splitlines()
    lines.sort(key=lambda line: (json.loads(line)["piece"], json.loads(line)["start"]))
    return [identity, *lines], (partial / "model.safetensors").read_bytes()


def cases() -> list[int]:
    return list(range(CASES)) if ONLY is None else [int(ONLY)]


def spoil(lines: list[bytes], weights: bytes, random: Random) -> tuple[bytes, bytes]:
    """Return a corrupted journal and corrupted weights."""
    kind = random.random()
    lines = lines[: random.randint(1, len(lines))]
    if kind < 0.35:
        # One line of the journal has other content, but is still valid JSON.
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
    """Zero some pages, as if they had never reached the disk."""
    page = random.choice((64, 512))
    spoiled = bytearray(weights)
    for _ in range(random.choice((1, 3, 100))):
        begin = random.randrange(len(weights)) // page * page
        spoiled[begin : begin + page] = bytes(min(page, len(weights) - begin))
    return bytes(spoiled)


def torn(weights: bytes, random: Random) -> bytes:
    """Truncate a file."""
    return weights[: random.randrange(len(weights))]


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_next_run_is_right_after_any_corruption(donor: Path, tmp_path: Path, dtype: str | None) -> None:
    output, partial = tmp_path / "out" / "layer", tmp_path / "out" / ".layer.partial"
    expected = extract(donor, tmp_path / "expected", dtype).path
    intact_files = {path.name: path.read_bytes() for path in expected.iterdir()}
    lines, weights = cut_off(donor, output, dtype)
    assert len(lines) > 8
    with limited_memory():
        for number in cases():
            random = Random(f"journal {dtype} {number}")
            corrupted_files = spoil(lines, weights, random)
            partial.mkdir(exist_ok=True)
            (partial / ".journal").write_bytes(corrupted_files[0])
            (partial / "model.safetensors").write_bytes(corrupted_files[1])
            with limited_work():
                artifact = extract(donor, output, dtype)
            written_files = {path.name: path.read_bytes() for path in artifact.path.iterdir()}
            assert written_files == intact_files, f"SURGEON_FUZZ_CASE={number} with {dtype}"
            assert not partial.exists()
            for path in artifact.path.iterdir():
                path.unlink()
            artifact.path.rmdir()


def test_a_corrupted_artifact_is_kept_or_replaced(donor: Path, tmp_path: Path) -> None:
    """An artifact with another config.json is never mistaken for the layer, and never deleted without `force`."""
    artifact = extract(donor, tmp_path / "layer", None).path
    intact_files = {path.name: path.read_bytes() for path in artifact.iterdir()}
    config = json.loads(intact_files["config.json"])
    for number in cases():
        random = Random(f"artifact in the way {number}")
        config_bytes = mutate_json(intact_files["config.json"], random) if number else intact_files["config.json"]
        (artifact / "config.json").write_bytes(config_bytes)
        try:
            with limited_work():
                again = extract(donor, artifact, None)
        except ArtifactError as error:
            check_error(error)
            assert (artifact / "config.json").read_bytes() == config_bytes
            continue
        finally:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["donor", "layer", "made"], number
        assert again.config["sha256"] == config["sha256"], f"SURGEON_FUZZ_CASE={number}"
        assert (artifact / "model.safetensors").read_bytes() == intact_files["model.safetensors"]


def test_an_invalid_journal_is_discarded(donor: Path, tmp_path: Path) -> None:
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


def test_a_layer_with_empty_tensors_is_a_valid_artifact(tmp_path: Path) -> None:
    shapes = {f"model.layers.{index}.{name}.weight": ("BF16", (0, 4), b"") for index in (0, 1) for name in ("a", "b")}
    (tmp_path / "donor").mkdir()
    write_safetensors(tmp_path / "donor" / "model.safetensors", shapes)
    for dtype in (None, "float32"):
        artifact = extract(tmp_path / "donor", tmp_path / f"out {dtype}", dtype)
        artifact.verify()
        assert {info.shape for info in artifact.tensors()} == {(0, 4)}
