"""The paper's tables at their small scale, with the real weights, for two steps."""

import pytest

from layer_surgeon.study import compare
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.preset import preset

TABLES = ["table-5", "table-10", "table-11", "table-15", "table-18", "table-19"]


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.parametrize("name", TABLES)
def test_small_scale_runs(name, tmp_path, monkeypatch):
    def run(cells, folder, workers):
        for cell in cells:
            run_cell(cell, folder)
            yield cell, None

    monkeypatch.setattr(compare, "run_local", run)
    content = preset(name, "small")
    if name == "table-18":
        pytest.importorskip("peft")
    content |= {"seeds": [2023], "finetune": {"max_steps": 2, "batch_size": 4, "max_eval_samples": 8, "max_length": 16}}
    plan = StudyPlan.from_dict(content)
    result = run_study(plan, tmp_path)
    assert result.done == len(plan.cells())
    for table in result.summary["tables"]:
        assert [row["arm"] for row in table["rows"]] == [arm.name for arm in plan.arms]
        assert table["examples"] == 200
        assert table["comparisons"]
