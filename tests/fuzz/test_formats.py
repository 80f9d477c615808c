"""Corrupted files of every format are refused with an error of this package, or opened and copied correctly.

`SURGEON_FUZZ=100000` runs that many cases instead of a few thousand. Case 17 of a format is the same in every run:
`SURGEON_FUZZ_CASE=17 pytest tests/fuzz/test_formats.py -k zip` repeats it.
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
from layer_surgeon.extract.extraction_plan import ExtractionPlan, plan_extraction
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
    """Return the case numbers of one format."""
    if ONLY is not None:
        return [int(ONLY)]
    share = WEIGHTS.get(name, 1.0) / sum(WEIGHTS.get(other, 1.0) for other in TARGETS)
    return range(round(TOTAL * share))


@pytest.mark.parametrize("name", TARGETS)
def test_a_corrupted_file_is_refused_or_read_correctly(targets: dict[str, Target], tmp_path: Path, name: str) -> None:
    case_folder = CaseFolder(targets[name], tmp_path)
    case_folder.run(Random("whole"), {})
    assert case_folder.accepted == 1
    failures: dict[str, str] = {}
    with limited_memory():
        for number in cases(name):
            random = Random(f"{name} {number}")
            try:
                case_folder.run(random, case_folder.target.spoil(case_folder.target.files, random))
            # All failures are reported at the end, one per code location.
            except (Exception, TooLongError) as error:  # noqa: BLE001
                failures.setdefault(place_of(error), f"case {number} of {name}: {str(error)[:800]}")
                case_folder.clear()
    assert not failures, "\n".join(f"{location}\n  {message}" for location, message in failures.items())
    if ONLY is None and case_folder.number > 100:
        # A test whose files are all accepted or all refused would test nothing.
        assert case_folder.accepted
        assert case_folder.accepted < case_folder.number or not case_folder.target.refusable


@pytest.mark.parametrize("name", TARGETS)
def test_hypothesis_finds_no_counterexample(targets: dict[str, Target], tmp_path: Path, name: str) -> None:
    case_folder = CaseFolder(targets[name], tmp_path)
    case_folder.run(Random("whole"), {})

    @settings(max_examples=max(20, TOTAL // 200), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def run(random: Random) -> None:
        try:
            case_folder.run(random, case_folder.target.spoil(case_folder.target.files, random))
        except TooLongError as error:
            raise AssertionError(f"over a second of work: {error}") from error
        finally:
            case_folder.clear()

    with limited_memory():
        run()


class CaseFolder:
    """A folder with the intact files of a target. Each case changes some of them and restores them afterwards."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.folder, self.output = folder / "donor", folder / "made" / "out"
        self.number = self.accepted = 0
        self._changed: set[str] = set(target.files)
        self.folder.mkdir()
        self.clear()

    def clear(self) -> None:
        """Restore the intact files and remove the output."""
        shutil.rmtree(self.output.parent, ignore_errors=True)
        for name in self._changed:
            (self.folder / name).unlink(missing_ok=True)
            if name in self.target.files:
                (self.folder / name).write_bytes(self.target.files[name])
        self._changed = set()

    def run(self, random: Random, changed: dict[str, bytes]) -> None:
        """Run one case, from the corrupted files to a verified artifact or an error of this package."""
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
        leftovers = [path.name for path in self.output.parent.glob("**/*")]
        assert not leftovers, f"{leftovers} were left behind by {place_of(error)}: {error}"

    def _open_artifact(self) -> None:
        artifact = LayerArtifact.open(self.folder)
        assert all(type(index) is int for index in artifact.layer_indices)
        assert artifact.num_bytes == sum(info.num_bytes for info in artifact.tensors())
        try:
            artifact.verify()
        except ArtifactError:
            return
        # A verified artifact has its original weights.
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
    """Check that every unconverted tensor has the bytes at its position in the source file."""
    written_tensors = {info.name: info for info in artifact.tensors()}
    weights = (artifact.path / "model.safetensors").read_bytes()
    for tensor in plan.planned:
        written_tensor = written_tensors[tensor.name]
        if isinstance(tensor.codec, ByteCopy) and written_tensor.dtype == tensor.source.dtype:
            with (folder / tensor.source.file).open("rb") as file:
                file.seek(tensor.source.offset)
                assert file.read(tensor.source.num_bytes) == weights[written_tensor.offset : written_tensor.end]


def check_against_library(plan: ExtractionPlan, artifact: LayerArtifact, folder: Path) -> None:
    """Check that the format's own library, if it can read the file, reads the same numbers."""
    written_tensors = {info.name: info for info in artifact.tensors()}
    weights = (artifact.path / "model.safetensors").read_bytes()
    for file in plan.files:
        read = read_by_library(folder / file)
        for tensor in plan.planned:
            written_tensor = written_tensors[tensor.name]
            if (
                tensor.source.file == file
                and tensor.source.name in read
                and written_tensor.dtype == tensor.source.dtype
            ):
                assert weights[written_tensor.offset : written_tensor.end] == read[tensor.source.name]


def read_by_library(path: Path) -> dict[str, bytes]:
    """Read the tensors of a file with safetensors or torch. Returns {} if the library can't read it."""
    if path.suffix == ".safetensors":
        try:
            return {name: bytes(tensor["data"]) for name, tensor in safetensors.deserialize(path.read_bytes())}
        except safetensors.SafetensorError:
            return {}
    if path.suffix == ".bin":
        try:
            state = torch.load(path, weights_only=True)
        # torch raises a dozen types of errors on corrupted files. Such files can't be compared.
        except Exception:  # noqa: BLE001
            return {}
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        return {
            name: value.detach().contiguous().view(torch.uint8).numpy().tobytes()
            for name, value in tensors.items()
            if value.dim()
        }
    return {}
