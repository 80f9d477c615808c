"""Sweeps and selections, with tiny models trained in this process."""

import json
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import pytest
import yaml

from layer_surgeon.errors import ConfigError, DataError, LayerNotFoundError
from layer_surgeon.study import compare, select
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.probe import probe_arm
from layer_surgeon.study.select import select_arm
from layer_surgeon.study.selection_result import Margin
from layer_surgeon.study.sweep import (
    choose_layers,
    count_layers,
    host_sites,
    with_candidates,
    with_layers,
)
from layer_surgeon.study.verdict import say_margin
from tests.support.classification import Recorder, rows
from tests.support.command_line import surgeon_here
from tests.support.studies import tiny_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    parts = tiny_parts(tmp_path_factory.mktemp("parts"))
    return {**parts, "data": parts["data"][:1]}


@pytest.fixture
def trained(monkeypatch):
    """Runs cells in this process; returns the list of cells that ran."""
    ran = []

    def run(cells, folder, workers, notice=None):
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
def test_layer_selections_are_parsed(text, layers):
    assert choose_layers(text, 4) == layers


def test_missing_layers_are_refused():
    with pytest.raises(LayerNotFoundError, match="donor has 4"):
        choose_layers("4", 4)
    with pytest.raises(ConfigError, match="'last'"):
        choose_layers("last", 4)
    for text in ("4:9", "0:100", "2:9:2"):
        with pytest.raises(LayerNotFoundError, match="donor has 4"):
            choose_layers(text, 4)
    with pytest.raises(ConfigError, match="none of the donor's 4"):
        choose_layers("2:2", 4)
    for text in ("0:4:0", "0:4:x", "0:4:2:1"):
        with pytest.raises(ConfigError, match="must be all, numbers such as"):
            choose_layers(text, 4)


@pytest.mark.slow
def test_a_sweep_and_a_selection_on_its_cells(parts, trained, tmp_path):
    count = count_layers(DonorSpec.parse(parts["donor"]))
    plan = sweep(parts, range(count))
    result = run_study(plan, tmp_path)
    assert result.done == len(trained) == 2 * (1 + count)

    trained.clear()
    chosen = select_arm(plan, tmp_path, probe=False)
    # The quarter of the data is new; the rest was in the sweep already. One seed would leave both of two.
    assert {cell.fraction for cell in trained} == {0.25}
    assert [len(rung.scores) for rung in chosen.rungs] == [count, 2]
    assert json.loads((tmp_path / "selection.json").read_text())["best"] == chosen.best
    validation = chosen.rungs[-1].scores
    assert validation[chosen.best] == max(validation.values())
    # All with one seed on a quarter, two with both seeds on all.
    assert chosen.cost == pytest.approx((count * 0.25 + 2 * 2) / (2 * count), abs=0.01)
    assert chosen.margin.runner_up in validation
    assert chosen.margin.difference >= 0
    assert chosen.site == "encoder_output"


@pytest.fixture
def fake_training(monkeypatch):
    """Cells with made-up scores and examples. Tests set `score`, which returns the score of a cell."""
    fake = SimpleNamespace(score=lambda cell: 0.5)

    def run(cells, folder, workers, notice=None):
        for cell in cells:
            yield cell, None

    def validation(plan, folder):
        return {
            arm.name: {
                cell.id: select._Trained(score=fake.score(cell), examples=cell.fraction, seconds=cell.fraction)
                for cell in plan.cells()
                if cell.arm == arm
            }
            for arm in plan.arms
        }

    monkeypatch.setattr(compare, "run_local", run)
    monkeypatch.setattr(select, "_read_trainings", validation)
    return fake


def test_each_rung_drops_candidates(parts, fake_training, tmp_path, monkeypatch):
    plan = sweep(parts, list(permutations(range(4), 2)), finetune={"max_train_samples": 24})
    names = [arm.name for arm in plan.arms if arm.donor is not None]
    worth = {name: index / 100 for index, name in enumerate(names)}
    fake_training.score = lambda cell: worth[cell.arm.name] + 0.001 * cell.seed * (cell.arm.name == names[-1])
    monkeypatch.setattr(select, "_probe_arms", lambda arms, *_: worth)
    chosen = select_arm(plan, tmp_path)
    assert chosen.best == names[-1]
    assert [len(rung.scores) for rung in chosen.rungs] == [12, 6, 2]
    assert chosen.layers == (3, 2)
    # Of 48 texts, less a fifth for validation, 24 are trained on: a quarter of these.
    assert chosen.rungs[1].examples == pytest.approx(6 * 0.25 * 24 / 38.4)
    assert chosen.margin.difference == pytest.approx(0.01 + 0.0015)
    assert "too close" not in say_margin(chosen.margin, is_share=plan.is_share)


def test_rungs_use_shares_of_the_plans_share(parts, fake_training, tmp_path, monkeypatch):
    plan = replace(sweep(parts, list(permutations(range(4), 2))), fractions=(0.5,))
    monkeypatch.setattr(select, "_probe_arms", lambda arms, *_: {arm.name: 0.5 for arm in arms})
    chosen = select_arm(plan, tmp_path)
    assert [rung.examples / len(rung.scores) / 0.5 for rung in chosen.rungs[1:]] == [0.25, 2]
    assert [rung.name for rung in chosen.rungs[1:]] == [
        "one seed, a quarter of 50 % of the data",
        "2 seeds, 50 % of the data",
    ]
    assert StudyPlan.read(tmp_path / "study.yaml").fractions == (0.5,)
    with pytest.raises(ConfigError, match="with one share of"):
        select_arm(replace(plan, fractions=(0.5, 1.0)), tmp_path)


@pytest.mark.parametrize(
    ("difference", "deviation", "text"),
    [
        (
            0.01,
            0.02,
            "1.0 points, with a standard deviation of 2.0 points over the seeds: too close to call",
        ),
        (0.03, 0.02, "3.0 points, with a standard deviation of 2.0 points over the seeds"),
        (0.03, None, "3.0 points, with one seed"),
    ],
)
def test_a_margin_in_words(difference, deviation, text):
    margin = Margin(runner_up="other", difference=difference, deviation=deviation)
    assert say_margin(margin, is_share=True) == f"ahead of other by {text}"


def test_pairs_and_sites_are_candidates(parts, tmp_path):
    content = {**parts, "name": "sweep"}
    pairs = StudyPlan.from_dict(with_candidates(content, [0, 2, 3], "pairs"))
    assert [arm.donor.layers for arm in pairs.arms if arm.donor] == [(0, 2), (2, 3)]
    with pytest.raises(ConfigError, match="Layer 3 alone"):
        with_candidates(content, [3], "pairs")
    with pytest.raises(ConfigError, match="The plan has 2 hosts, and each host has its own sites"):
        with_candidates({**content, "hosts": ["a/bert", "b/roberta"]}, [3], "sites")
    assert host_sites(parts["host"]) == ["embeddings", 0, 1, "encoder_output"]
    sites = StudyPlan.from_dict(with_candidates(content, [1], "sites"))
    grafts = [arm for arm in sites.arms if arm.donor]
    assert [arm.graft["site"] for arm in grafts] == ["embeddings", 0, 1, "encoder_output"]


def test_a_sweep_ignores_what_a_plan_says_of_its_arms():
    arms = ["host", {"name": "slow", "like": "host", "finetune": {"learning_rate": 1e-5}}]
    content = {"host": "a/bert", "donor": "b/llm", "arms": arms, "reference": "slow", "focus": "slow", "data": ["x"]}
    made = StudyPlan.from_dict(with_layers(content, [0, 1]))
    assert (made.reference, made.focus) == ("host", None)


def test_donors_that_read_text_are_not_compared_by_layer(parts):
    content = {**parts, "name": "sweep", "graft": {"donor_reads": "text"}}
    for candidates in ("layers", "pairs", "sites"):
        with pytest.raises(ConfigError, match=r"first layers together.*--candidates depth"):
            with_candidates(content, [1, 2], candidates)
    assert len(StudyPlan.from_dict(with_candidates(content, [0], "sites")).arms) == 5
    plan = StudyPlan.from_dict(with_layers(content, [0, [0, 1], [0, 1, 2]]))
    assert [arm.donor.layers for arm in plan.arms if arm.donor] == [(0,), (0, 1), (0, 1, 2)]


def test_the_probe_refuses_donors_that_read_text(parts, fake_training, tmp_path):
    content = {**parts, "name": "sweep", "graft": {"donor_reads": "text", "pooling": "mean"}}
    plan = StudyPlan.from_dict(with_layers(content, [0, [0, 1], [0, 1, 2]]))
    with pytest.raises(ConfigError, match=r"what they make of the host's vectors.*--no-probe"):
        select_arm(plan, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_probe_of_sites_uses_the_input_of_the_head(parts, tmp_path):
    """All sites are rated by the input of the head; a site that can't be built is skipped with a notice."""
    plan = StudyPlan.from_dict(with_candidates({**parts, "name": "sweep"}, [0], "sites"))
    folder, told = StudyFolder(root=tmp_path), Recorder()
    prepare_study(plan, folder, told)
    grafts = [arm for arm in plan.arms if arm.donor is not None]
    broken = replace(grafts[0], name="broken", graft={"site": 9})
    scores = select._probe_arms([*grafts, broken], plan, folder, told)
    assert sorted(scores) == sorted(arm.name for arm in grafts)
    assert any("broken" in notice and "layers" in notice for notice in told.notices)
    assert scores == select._probe_arms(grafts, plan, folder, told)


def test_the_probe_finds_classes_that_can_be_separated(parts, tmp_path):
    """The probe separates classes with typical words, and does not separate random classes."""
    folder = StudyFolder(root=tmp_path)
    plan = sweep(parts, [0])
    prepare_study(plan, folder, Recorder())
    arm = next(arm for arm in plan.arms if arm.donor is not None)
    made = rows(200, seed=4)
    texts, labels = [row["text"] for row in made], [str(row["label"]) for row in made]
    known = {}
    told = probe_arm(arm, texts, labels, folder, seeds=[1, 2], known=known)
    assert [vectors.shape[0] for vectors in known.values()] == [200]
    assert told == probe_arm(arm, texts, labels, folder, seeds=[1, 2], known=known)
    assert told == probe_arm(arm, texts, labels, folder, seeds=[1, 2])
    mixed = [str(index // 2 % 2) for index in range(200)]
    assert told > 0.6 > probe_arm(arm, texts, mixed, folder, seeds=[1, 2])


def test_a_stored_probe_is_only_used_for_the_same_texts_and_length(parts, tmp_path):
    folder = StudyFolder(root=tmp_path)
    swapped = {"negative": "positive", "positive": "negative"}
    for changes in (
        {},
        {"finetune": {"max_length": 3}},
        {"data": [{"name": "films", "train": parts["data"], "labels": swapped}]},
    ):
        plan = sweep(parts, [0], **changes)
        prepare_study(plan, folder, Recorder())
        select._probe_arms(plan.arms[1:], plan, folder, Recorder())
    # The format, and a score for each of the three.
    assert len(json.loads((tmp_path / "probes.json").read_text())) == 4


@pytest.mark.parametrize("arm", ["wide-head", "cut"])
def test_a_selection_only_compares_grafts(parts, tmp_path, arm):
    plan = StudyPlan.from_dict({**parts, "arms": ["host", "graft", arm]})
    with pytest.raises(ConfigError, match=f"the arm {arm}, which is not a graft"):
        select_arm(plan, tmp_path)


def test_a_selection_has_one_host(parts, tmp_path):
    """Else the chosen graft is compared with the host of another one."""
    plan = sweep({**parts, "hosts": [parts["host"], "a/roberta"]}, [0, 1])
    with pytest.raises(ConfigError, match="A selection compares grafts into one host with that host alone"):
        select_arm(plan, tmp_path)


def test_a_probe_needs_texts_of_a_class(parts, tmp_path):
    made = [row | {"label": f"class {index % 12}"} for index, row in enumerate(rows(60))]
    path = tmp_path / "few.csv"
    path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in made))
    with pytest.raises(DataError, match=r"no class has more than [34] of them\. It needs 5"):
        select_arm(sweep(parts, [0, 1, 2], data=[str(path)]), tmp_path / "study")


def test_sites_are_compared_with_the_layers_of_the_plan(parts, tmp_path, monkeypatch):
    plan = {**parts, "donor": {"source": parts["donor"]["source"], "layer": [1, 2]}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({key: plan[key] for key in ("host", "donor", "data")}))
    options = ("--candidates", "sites", "--config", "plan.yaml", "--output", "study", "--dry-run", "--json")
    plans = []
    monkeypatch.setattr("layer_surgeon_cli.sweep.run_plan", lambda plan, *_, **__: plans.append(plan) or {})
    assert surgeon_here("sweep", *options, cwd=tmp_path).code == 0
    assert {arm.donor.layers for arm in plans[0].arms if arm.donor} == {(1, 2)}


def test_a_selection_needs_two_candidates(parts, tmp_path):
    with pytest.raises(ConfigError, match="1 candidates"):
        select_arm(sweep(parts, [0]), tmp_path)
