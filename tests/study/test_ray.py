"""Cells on Ray."""

import pytest
import ray

from layer_surgeon.errors import ConfigError
from layer_surgeon.study import compare, executors
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.layout import StudyFolder
from tests.support.hostile_folders import plant_modules, was_run
from tests.support.studies import read_cells, run_in_this_process, tiny_parts, tiny_plan


@pytest.mark.slow
def test_ray_gives_the_numbers_of_this_process_and_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    parts = tiny_parts(tmp_path / "parts")
    plant_modules(tmp_path)
    monkeypatch.chdir(tmp_path)
    # Relative paths: a worker of Ray has another current folder.
    parts |= {"host": "parts/tiny-bert", "data": ["parts/films.jsonl"], "seeds": [1]}
    plan = tiny_plan(parts, arms=["host", "wide-head"])
    assert run_study(plan, tmp_path / "ray", executor="ray", workers=2).done == 2
    assert not ray.is_initialized()
    assert not was_run(tmp_path)
    monkeypatch.setattr(compare, "run_local", run_in_this_process)
    assert run_study(plan, tmp_path / "local").done == 2
    found = [
        {cell.id: (cell.tests, cell.history) for cell in read_cells(StudyFolder(root=tmp_path / place))}
        for place in ("ray", "local")
    ]
    assert found[0] == found[1]


def test_a_missing_ray_is_reported_with_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install ray"):
        next(executors.run_ray([], StudyFolder(root=tmp_path), 1))
