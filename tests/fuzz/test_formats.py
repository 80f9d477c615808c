"""Spoiled files of every format: each is refused with an error of ours, or opened and copied right.

`SURGEON_FUZZ=100000` runs that many cases instead of a few thousand. Case 17 of a format is the same in every run, so
`SURGEON_FUZZ_CASE=17 pytest tests/fuzz/test_formats.py -k zip` repeats one of them.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer_surgeon import LayerArtifact, extract_layer, open_checkpoint
from layer_surgeon.errors import ArtifactError, LayerSurgeonError
from layer_surgeon.extract.dtypes import ByteCopy
from layer_surgeon.extract.plan import ExtractionPlan, plan_extraction
from tests.support.fuzz_guard import (
    TooLongError,
    check_error,
    limited_memory,
    limited_work,
    place_of,
)
from tests.support.fuzz_targets import TARGETS, Target, make_target

TOTAL = int(os.environ.get("SURGEON_FUZZ", "2400"))
ONLY = os.environ.get("SURGEON_FUZZ_CASE")
WEIGHTS = {"safetensors": 2.0, "config": 1.5, "pickle": 2.0, "card": 0.5, "gguf_transposed": 0.5, "gguf_split": 0.7}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {name: make_target(name, tmp_path_factory.mktemp(name)) for name in TARGETS}


def cases(name: str) -> Iterable[int]:
    """The numbers of the cases of one format."""
    if ONLY is not None:
        return [int(ONLY)]
    share = WEIGHTS.get(name, 1.0) / sum(WEIGHTS.get(other, 1.0) for other in TARGETS)
    return range(round(TOTAL * share))


@pytest.mark.parametrize("name", TARGETS)
def test_a_spoiled_file_is_refused_or_read_right(targets: dict[str, Target], tmp_path: Path, name: str) -> None:
    place = Place(targets[name], tmp_path)
    place.run(Random("whole"), {})
    assert place.accepted == 1
    failures: dict[str, str] = {}
    with limited_memory():
        for number in cases(name):
            random = Random(f"{name} {number}")
            try:
                place.run(random, place.target.spoil(place.target.files, random))
            # All that goes wrong is told at the end, each kind of it once.
            except (Exception, TooLongError) as error:  # noqa: BLE001
                failures.setdefault(place_of(error), f"case {number} of {name}: {str(error)[:800]}")
                place.clear()
    assert not failures, "\n".join(f"{where}\n  {what}" for where, what in failures.items())
    if ONLY is None and place.number > 100:
        # Damage that is always seen, or never, would test nothing.
        assert place.accepted
        assert place.accepted < place.number or not place.target.refusable


@pytest.mark.parametrize("name", TARGETS)
def test_hypothesis_finds_nothing_either(targets: dict[str, Target], tmp_path: Path, name: str) -> None:
    place = Place(targets[name], tmp_path)
    place.run(Random("whole"), {})

    @settings(max_examples=max(20, TOTAL // 200), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def run(random: Random) -> None:
        try:
            place.run(random, place.target.spoil(place.target.files, random))
        except TooLongError as error:
            raise AssertionError(f"over a second of work: {error}") from error
        finally:
            place.clear()

    with limited_memory():
        run()


class Place:
    """A folder with the whole files of a target, in which one case after the other changes some of them."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.folder, self.output = folder / "donor", folder / "made" / "out"
        self.number = self.accepted = 0
        self._changed: set[str] = set(target.files)
        self.folder.mkdir()
        self.clear()

    def clear(self) -> None:
        """As if nothing had happened."""
        shutil.rmtree(self.output.parent, ignore_errors=True)
        for name in self._changed:
            (self.folder / name).unlink(missing_ok=True)
            if name in self.target.files:
                (self.folder / name).write_bytes(self.target.files[name])
        self._changed = set()

    def run(self, random: Random, changed: dict[str, bytes]) -> None:
        """One case, from the spoiled files to a verified artifact or an error of ours."""
        self.number += 1
        self._changed = set(changed)
        for name, content in changed.items():
            (self.folder / name).write_bytes(content)
        try:
            with limited_work():
                if self.target.name == "artifact":
                    self._open_artifact()
                else:
                    self._extract(random)
            self.accepted += 1
        except LayerSurgeonError as error:
            check_error(error)
            self._check_nothing_is_left(error)
        self.clear()

    def _check_nothing_is_left(self, error: LayerSurgeonError) -> None:
        left = [path.name for path in self.output.parent.glob("**/*")]
        assert not left, f"{left} were left behind by {place_of(error)}: {error}"

    def _open_artifact(self) -> None:
        artifact = LayerArtifact.open(self.folder)
        assert all(type(index) is int for index in artifact.layer_indices)
        assert artifact.num_bytes == sum(info.num_bytes for info in artifact.tensors())
        try:
            artifact.verify()
        except ArtifactError:
            return
        # What was recorded is what is there.
        weights = (self.folder / "model.safetensors").read_bytes()
        assert weights == self.target.files["model.safetensors"]

    def _extract(self, random: Random) -> None:
        checkpoint = open_checkpoint(self.folder / self.target.opened)
        files = {path.name: path.stat().st_size for path in self.folder.iterdir()}
        for index in range(checkpoint.num_layers):
            for info in checkpoint.layer_tensors(index):
                assert info.end <= files[info.file]
        plan = plan_extraction(checkpoint, -1, dtype=self.target.dtype)
        assert plan.num_bytes <= sum(files[file] for file in plan.files)
        if random.random() < self.target.extracted:
            self.output.parent.mkdir()
            artifact = extract_layer(checkpoint, -1, self.output, dtype=self.target.dtype)
            artifact.verify()
            check_bytes(plan, artifact, self.folder)
            check_against_library(plan, artifact, self.folder)
            assert [path.name for path in self.output.parent.iterdir()] == ["out"]


def check_bytes(plan: ExtractionPlan, artifact: LayerArtifact, folder: Path) -> None:
    """Every tensor that was not converted has the bytes that lie at its place in its file."""
    written = {info.name: info for info in artifact.tensors()}
    weights = (artifact.path / "model.safetensors").read_bytes()
    for tensor in plan.planned:
        made = written[tensor.name]
        if isinstance(tensor.codec, ByteCopy) and made.dtype == tensor.source.dtype:
            with (folder / tensor.source.file).open("rb") as file:
                file.seek(tensor.source.offset)
                assert file.read(tensor.source.num_bytes) == weights[made.offset : made.end]


def check_against_library(plan: ExtractionPlan, artifact: LayerArtifact, folder: Path) -> None:
    """Where the format's own library reads the file too, it reads the same numbers."""
    written = {info.name: info for info in artifact.tensors()}
    weights = (artifact.path / "model.safetensors").read_bytes()
    for file in plan.files:
        read = read_by_library(folder / file)
        for tensor in plan.planned:
            made = written[tensor.name]
            if tensor.source.file == file and tensor.source.name in read and made.dtype == tensor.source.dtype:
                assert weights[made.offset : made.end] == read[tensor.source.name]


def read_by_library(path: Path) -> dict[str, bytes]:
    """The tensors of a file as safetensors or torch reads them; none where it does not."""
    if path.suffix == ".safetensors":
        try:
            return {name: bytes(entry["data"]) for name, entry in safetensors.deserialize(path.read_bytes())}
        except safetensors.SafetensorError:
            return {}
    if path.suffix == ".bin":
        try:
            state = torch.load(path, weights_only=True)
        # Spoiled files make torch raise errors of a dozen types, and warn; what it can't read is no measure.
        except Exception:  # noqa: BLE001
            return {}
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        return {
            name: value.detach().contiguous().view(torch.uint8).numpy().tobytes()
            for name, value in tensors.items()
            if value.dim()
        }
    return {}
