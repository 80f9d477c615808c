"""A study with a host from an archive in Python packages."""

from pathlib import Path

import pytest

from layer_surgeon.checkpoint import packaged
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.estimate import estimate_study
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.probe import probe_arm
from layer_surgeon.study.sweep import host_sites
from tests.support.classification import Recorder
from tests.support.packages import install_archive
from tests.support.studies import tiny_parts, tiny_plan


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Like `tiny_parts`, but the host is packed into an archive, and its folder is gone."""
    found = tiny_parts(tmp_path / "parts")
    host = Path(found["host"])
    files = {path.name: path.read_bytes() for path in host.iterdir() if path.is_file()}
    record = install_archive(tmp_path / "site", "toy", files)
    host.rename(host.with_name("gone"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "ARCHIVES", {"toy": record})
    return {**found, "host": "packaged:toy", "data": found["data"][:1], "seeds": [1]}


def test_a_host_is_unpacked_once_for_all_trainings(parts, tmp_path, monkeypatch):
    unpacked = []
    real = packaged._unpack
    monkeypatch.setattr(packaged, "_unpack", lambda *given: (unpacked.append(given[1]), real(*given)))
    plan, folder, told = (
        tiny_plan(parts, arms=["host", "graft"]),
        StudyFolder(root=tmp_path / "s"),
        Recorder(),
    )
    prepare_study(plan, folder, told)
    assert unpacked == [tmp_path / "cache" / "layer_surgeon" / "toy"]
    results = {cell.arm.name: run_cell(cell, folder) for cell in plan.cells()}
    assert {name: result.host for name, result in results.items()} == dict.fromkeys(results, "toy")
    assert all(0 <= result.tests["films"].scores["accuracy"] <= 1 for result in results.values())
    assert [path.name for path in (folder.root / "runs").iterdir() if path.is_dir()] == []
    graft = next(arm for arm in plan.arms if arm.donor is not None)
    probe_arm(graft, ["good", "bad"] * 10, ["a", "b"] * 10, folder, seeds=[1], place="head")
    assert host_sites("packaged:toy") == ["embeddings", 0, 1, "encoder_output"]
    estimate_study(tiny_plan(parts, arms=["host"], seeds=[2]), folder.root, told)
    assert len(unpacked) == 1
