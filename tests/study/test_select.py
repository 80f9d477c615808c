"""Sweeps and selections, with tiny models trained in this process."""

import json

import pytest

from layer_surgeon.errors import ConfigError, LayerNotFoundError
from layer_surgeon.study import compare, select
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.probe import probe_arm
from layer_surgeon.study.select import select_arm
from layer_surgeon.study.sweep import choose_layers, count_layers, draw_sweep, layer_rows, with_layers
from tests.support.classification import Recorder, rows
from tests.support.studies import tiny_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    parts = tiny_parts(tmp_path_factory.mktemp("parts"))
    return {**parts, "data": parts["data"][:1]}


@pytest.fixture
def trained(monkeypatch):
    """Cells run here, without a process for each; the list of those that were."""
    ran = []

    def run(cells, folder, workers):
        for cell in cells:
            ran.append(cell)
            run_cell(cell, folder)
            yield cell, None

    monkeypatch.setattr(compare, "run_local", run)
    return ran


def sweep(parts, layers, **changes):
    return StudyPlan.from_dict(with_layers({**parts, "name": "sweep", **changes}, layers))


@pytest.mark.parametrize(
    ("text", "layers"), [("all", [0, 1, 2, 3]), ("0,-1", [0, 3]), ("0:4:2", [0, 2]), ("2,1,2", [1, 2]), (":2", [0, 1])]
)
def test_layers_as_they_are_said(text, layers):
    assert choose_layers(text, 4) == layers


def test_layers_that_are_not_there():
    with pytest.raises(LayerNotFoundError, match="donor has 4"):
        choose_layers("4", 4)
    with pytest.raises(ConfigError, match="'last'"):
        choose_layers("last", 4)
    with pytest.raises(ConfigError, match="none of the donor's 4"):
        choose_layers("4:9", 4)


@pytest.mark.slow
def test_a_sweep_and_a_selection_on_its_cells(parts, trained, tmp_path, monkeypatch):
    count = count_layers(DonorSpec.parse(parts["donor"]), tmp_path, Recorder())
    plan = sweep(parts, range(count))
    result = run_study(plan, tmp_path)
    assert result.done == len(trained) == 2 * (1 + count)
    found = layer_rows(plan, result.summary["tables"][0])
    assert [row["layers"] for row in found] == [[layer] for layer in range(count)]
    draw_sweep(result.summary, plan, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")

    trained.clear()
    scores = {"graft+tiny-llama-L0": 0.9, "graft+tiny-llama-L1": 0.8}
    monkeypatch.setattr(select, "_probes", lambda arms, *_: {arm.name: scores.get(arm.name, 0.1) for arm in arms})
    chosen = select_arm(plan, tmp_path)
    assert chosen.best in scores
    # The quarter of the data is new; the rest was in the sweep already.
    assert {cell.fraction for cell in trained} == {0.25}
    assert [len(rung.scores) for rung in chosen.rungs] == ([count, 2, 2, 2] if count > 2 else [2, 2, 2])
    assert json.loads((tmp_path / "selection.json").read_text())["best"] == chosen.best
    validation = chosen.rungs[-1].scores
    assert validation[chosen.best] == max(validation.values())
    # Two arms with one seed on a quarter, and with both seeds on all; the rung between is a part of the last.
    assert chosen.cost == pytest.approx((2 * 0.25 + 2 * 2) / (2 * count), abs=0.01)


def test_a_probe_without_training(parts, tmp_path):
    """Words that tell the classes are found; classes that nothing tells are not."""
    folder = StudyFolder(root=tmp_path)
    plan = sweep(parts, [0])
    prepare_study(plan, folder, Recorder())
    arm = next(arm for arm in plan.arms if arm.donor is not None)
    made = rows(200, seed=4)
    texts, labels = [row["text"] for row in made], [str(row["label"]) for row in made]
    told = probe_arm(arm, texts, labels, folder, seed=1)
    assert told == probe_arm(arm, texts, labels, folder, seed=1)
    mixed = [str(index // 2 % 2) for index in range(200)]
    assert told > 0.6 > probe_arm(arm, texts, mixed, folder, seed=1)


def test_nothing_to_choose_from(parts, tmp_path):
    with pytest.raises(ConfigError, match="1 candidates"):
        select_arm(sweep(parts, [0]), tmp_path)
