"""A task that is defined in one file of another package can do all that the built-in tasks can."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from layer_surgeon.cost.measure import Workload
from layer_surgeon.cost.profile import profile_graft
from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune import FinetuneConfig, evaluate_model, finetune_model, predict
from layer_surgeon.graft import GraftConfig, GraftedModel, graft_layer, save_graft
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.records import read_cell
from layer_surgeon.tasks import TASKS, register_task
from layer_surgeon.tasks import task as task_module
from layer_surgeon.workspace import Workspace
from tests.support.classification import rows, save_host
from tests.support.command_line import surgeon_together
from tests.support.tiny_models import cut_artifact, save_quietly, tiny_llama
from tests.support.toy_task import STAR_RATING, GraftedModelForStarRating, StarMetrics

ROOT = Path(__file__).parents[2]
TASK = STAR_RATING.name


@pytest.fixture(scope="module", autouse=True)
def _registered():
    register_task(STAR_RATING)
    yield
    del task_module._TASKS.registered[TASK]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A host, a donor layer, and reviews."""
    root = tmp_path_factory.mktemp("parts")
    save_quietly(tiny_llama(seed=5), root / "llm")
    stars = (1, 4, 2, 5)  # bad and good alternate in `rows`
    reviews = [{"review": row["text"], "stars": stars[index % 4]} for index, row in enumerate(rows(48))]
    (root / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    return {
        "host": str(save_host(root / "host")),
        "donor": str(cut_artifact(root / "llm", [3], root / "tiny-llama-L3")),
        "data": str(root / "reviews.jsonl"),
    }


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a package that lists the task, for other processes."""
    folder = tmp_path / "site" / "stars-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: stars\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[layer_surgeon.tasks]\nstars = tests.support.toy_task:STAR_RATING\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder.parent}:{ROOT}")


def test_it_is_grafted_stored_and_loaded(parts, tmp_path):
    model = graft_layer(parts["host"], parts["donor"], TASK, num_labels=5)
    assert type(model) is GraftedModelForStarRating
    assert model.config.settings.pooling == "mean"
    model.save_pretrained(tmp_path / "graft")
    ids = torch.tensor([[1, 5, 6, 2]])
    for loader in (GraftedModel, GraftedModelForStarRating, AutoModel):
        loaded = loader.from_pretrained(tmp_path / "graft")
        assert type(loaded) is GraftedModelForStarRating
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert "GraftedModelForStarRating" in json.loads((tmp_path / "graft/config.json").read_text())["architectures"]
    assert "AutoModelForMultipleChoice" in (tmp_path / "graft/README.md").read_text()
    profile = profile_graft(tmp_path / "graft", workload=Workload(batch=2, length=16))
    assert profile.grafted.training_macs > profile.alone.training_macs


def test_settings_that_it_does_not_use_are_refused(parts):
    with pytest.raises(ConfigError, match="star-rating needs one vector per text"):
        GraftConfig(task=TASK, pooling="none")
    with pytest.raises(ConfigError, match="for star-rating it must be one of stars_off, loss"):
        finetune_model(graft_layer(parts["host"], None, TASK), parts["data"], select_by="f1")


def test_it_is_fine_tuned_and_predicts(parts, tmp_path):
    workspace = Workspace(tmp_path / "surgery")
    graft = save_graft(parts["host"], parts["donor"], config=GraftConfig(task=TASK), workspace=workspace).path
    config = FinetuneConfig(num_epochs=2, batch_size=8, learning_rate=2e-3)
    result = finetune_model(str(graft), parts["data"], config=config, workspace=workspace)
    assert (result.task, result.config.select_by) == (TASK, "stars_off")
    assert result.label_names == ("1", "2", "4", "5")
    assert isinstance(result.validation, StarMetrics)
    best = min(range(2), key=lambda epoch: result.history[epoch].scores["stars_off"])
    assert result.best_epoch == best + 1
    card = (result.path / "README.md").read_text()
    assert "stars off" in card
    assert '["It was good."]' in card
    (prediction,) = predict(result.path, ["the film was good"])
    assert prediction.label in result.label_names
    measured = evaluate_model(result.path, parts["data"]).metrics
    assert 0 <= measured.scores["stars_off"] < 4


@pytest.mark.slow
def test_it_is_compared(parts, tmp_path, plugin):
    """Each training is a process of its own, which knows the task only because a package lists it."""
    plan = StudyPlan.from_dict(
        {
            "task": TASK,
            "host": parts["host"],
            "donor": parts["donor"],
            "arms": ["host", "graft", "wide-head"],
            "data": [{"name": "reviews", "train": parts["data"]}],
            "seeds": [1],
            "finetune": {"max_steps": 2, "batch_size": 8},
        }
    )
    assert (plan.metric, plan.higher_is_better) == ("stars_off", False)
    result = run_study(plan, tmp_path / "study")
    assert result.failed == {}
    assert (result.done, result.summary.metric) == (3, "stars_off")
    (table,) = result.summary.tables
    assert {row.arm for row in table.rows} == {"host", "graft", "wide-head"}
    cells = [read_cell(path) for path in (tmp_path / "study/cells").glob("*.json")]
    assert [len(cell.tests["reviews"].correct) for cell in cells] == [table.examples] * 3


@pytest.mark.slow
def test_the_shell_knows_it(parts, tmp_path, plugin):
    shown, refused, *done, predicted = surgeon_together(
        ("graft", "--help"),
        ("graft", parts["host"], "--task", "translation"),
        ("graft", parts["host"], "--donor", parts["donor"], "--task", TASK),
        ("finetune", "--dataset", parts["data"], "--max-steps", 2, "--batch-size", 8),
        ("predict", "the film was good"),
        cwd=tmp_path,
        env={"COLUMNS": "300"},
        bare=True,  # the package that lists the task is looked for when layer_surgeon is imported
    )
    assert TASK in shown.out
    assert refused.code == 2
    assert all(name in refused.err for name in TASKS)
    assert [result.code for result in done] == [0, 0], done
    assert "stars off" in done[-1].out
    assert [column in predicted.out for column in STAR_RATING.shown] == [True] * 3
