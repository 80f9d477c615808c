"""Cells on Ray; only where it is installed: pip install "layer-surgeon[ray]"."""

import pytest

from layer_surgeon.errors import ConfigError
from layer_surgeon.study import executors
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.records import read_cells
from tests.support.studies import tiny_parts, tiny_plan


@pytest.mark.slow
def test_ray_gives_the_numbers_of_local_processes(tmp_path):
    ray = pytest.importorskip("ray")
    parts = tiny_parts(tmp_path / "parts")
    plan = tiny_plan(parts, arms=["host", "wide-head"], data=parts["data"][:1], seeds=[1])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        assert run_study(plan, tmp_path / "ray", executor="ray", workers=2).done == 2
    finally:
        ray.shutdown()
    assert run_study(plan, tmp_path / "local", workers=2).done == 2
    found = [
        {cell.id: (cell.tests, cell.history) for cell in read_cells(StudyFolder(root=tmp_path / place))}
        for place in ("ray", "local")
    ]
    assert found[0] == found[1]


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"layer-surgeon\[ray\]"):
        next(executors.run_ray([], StudyFolder(root=tmp_path), 1))
