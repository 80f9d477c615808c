"""Runs that are only planned, and runs with several seeds."""

import json
import statistics

import pytest
from transformers import Gemma3Config, Gemma3ForSequenceClassification
from typer.testing import CliRunner

from layer_surgeon.errors import ConfigError, DataError, WorkspaceError
from layer_surgeon.finetune import finetune_model, finetune_seeds, plan_finetuning, repeat
from layer_surgeon_cli.main import app
from tests.support.classification import classifier, rows, word_tokenizer

DATA = {"train": rows(42), "validation": rows(8, seed=1)}


def test_a_plan_says_what_the_run_then_does(graft, workspace):
    settings = {"num_epochs": 2, "batch_size": 8, "gradient_accumulation_steps": 2}
    plan = plan_finetuning(graft, DATA, workspace=workspace, **settings)
    assert not workspace.root.exists()
    result = finetune_model(graft, DATA, workspace=workspace, **settings)
    assert plan.examples == {"train": 42, "validation": 8}
    assert (plan.steps_per_epoch, plan.steps) == (3, 6)
    assert plan_finetuning(graft, DATA, workspace=workspace, num_processes=2, **settings).steps == 4
    assert result.history[-1].step == plan.steps
    assert plan.output == result.path
    assert plan.config == result.config
    assert sum(part["total"] for part in plan.parameters.values()) == result.num_parameters
    assert sum(part["trained"] for part in plan.parameters.values()) == result.num_trained_parameters
    assert plan.parameters["donor"]["trained"] == 0
    assert set(plan.parameters) == {"host", "projections", "donor", "head"}


def test_memory_of_a_plan(graft, workspace):
    plan = plan_finetuning(graft, DATA, workspace=workspace, batch_size=8)
    total, trained = (sum(part[key] for part in plan.parameters.values()) for key in ("total", "trained"))
    assert plan.memory["weights"] == 4 * total
    assert (plan.memory["gradients"], plan.memory["optimizer"]) == (4 * trained, 8 * trained)
    assert plan.memory["total"] == sum(size for name, size in plan.memory.items() if name != "total")
    more = plan_finetuning(graft, DATA, workspace=workspace, batch_size=16).memory["activations"]
    assert more == 2 * plan.memory["activations"]
    again = plan_finetuning(graft, DATA, workspace=workspace, batch_size=8, gradient_checkpointing=True)
    assert again.memory["activations"] < plan.memory["activations"]


def test_memory_of_a_host_whose_sizes_are_in_its_text_config(workspace):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 60, "max_position_embeddings": 64}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    model = Gemma3ForSequenceClassification(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, pad_token_id=0)
    )
    plan = plan_finetuning(model, DATA, workspace=workspace, tokenizer=word_tokenizer(), batch_size=8)
    assert plan.memory["activations"] > 0


def test_a_plan_finds_what_is_wrong(graft, workspace, tmp_path):
    with pytest.raises(DataError):
        plan_finetuning(graft, [{"text": "a", "label": 0}], workspace=workspace)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(WorkspaceError, match="is not an empty folder"):
        plan_finetuning(graft, DATA, workspace=workspace, output=tmp_path / "full")


def test_seeds(graft, workspace, tmp_path):
    settings = {"workspace": workspace, "tokenizer": None, "seed": 7}
    outcome = finetune_seeds(graft, DATA, num_seeds=2, output=tmp_path / "runs", **settings)
    assert outcome.seeds == (7, 8)
    assert [result.path.name for result in outcome.results] == ["seed-7", "seed-8"]
    losses = [result.validation.scores["accuracy"] for result in outcome.results]
    assert outcome.mean["validation_accuracy"] == pytest.approx(statistics.fmean(losses))
    assert outcome.deviation["validation_accuracy"] == pytest.approx(statistics.stdev(losses))
    weights = [(result.path / "model.safetensors").read_bytes() for result in outcome.results]
    assert weights[0] != weights[1]
    assert json.loads((tmp_path / "runs" / "seeds.json").read_text()) == json.loads(json.dumps(outcome.as_dict()))


def test_interrupted_seeds_say_how_to_go_on(graft, workspace, tmp_path, monkeypatch):
    def stop(*arguments, **keywords):
        raise KeyboardInterrupt("Interrupted. Training up to step 5 is saved in x; continue with --resume.")

    monkeypatch.setattr(repeat, "finetune_model", stop)
    with pytest.raises(KeyboardInterrupt, match=r"\(without --seeds, but with --seed 7 --output .*seed-7\)\.$"):
        finetune_seeds(graft, DATA, num_seeds=2, output=tmp_path / "runs", workspace=workspace, seed=7)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/seeds.json").write_text("{}")
    with pytest.raises(WorkspaceError, match="has the seeds.json of other runs"):
        finetune_seeds(graft, DATA, num_seeds=2, output=tmp_path / "runs", workspace=workspace, seed=7)


def test_seeds_need_a_model_that_can_be_loaded_again(workspace):
    with pytest.raises(ConfigError, match="loaded again for each seed"):
        finetune_seeds(classifier(), DATA, num_seeds=2, workspace=workspace, tokenizer=word_tokenizer())


def test_what_fails_for_a_later_seed_fails_at_once(graft, workspace, tmp_path):
    (tmp_path / "runs/seed-2024").mkdir(parents=True)
    (tmp_path / "runs/seed-2024/file").touch()
    with pytest.raises(WorkspaceError, match="seed-2024 already exists"):
        finetune_seeds(graft, DATA, num_seeds=2, output=tmp_path / "runs", workspace=workspace)
    for data in ("-", ["-"]):
        with pytest.raises(ConfigError, match="stdin can be read only once"):
            finetune_seeds(graft, data, num_seeds=2, workspace=workspace)
    assert not (tmp_path / "runs/seed-2023").exists()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{row['text']},{row['label']}" for row in rows(40, labels=("bad", "good"))]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *lines, ""]))
    return lambda *arguments: CliRunner().invoke(app, ["finetune", *map(str, arguments), "--dataset", "data.csv"])


def test_dry_run_shows_the_plan_and_writes_nothing(run, graft, tmp_path):
    done = run(graft, "--dry-run", "--batch-size", 8)
    assert done.exit_code == 0, done.output
    for expected in ("projections", "activations", "batch_size", "12, 4 per epoch", "Nothing was trained or written"):
        assert expected in done.stdout
    assert json.loads(run(graft, "--dry-run", "--json", "--batch-size", 8).stdout)["steps"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_seeds_on_the_command_line(run, graft):
    done = run(graft, "--seeds", 2, "--max-steps", 2, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["seeds"] == [2023, 2024]
    assert "validation_accuracy" in document["deviation"]
    assert len({entry["path"] for entry in document["runs"]}) == 2
    done = run(graft, "--seeds", 2, "--max-steps", 2)
    assert "deviation" in done.stdout
    assert "seed 2024" in done.stdout
    done = run(graft, "--seeds", 2, "--resume")
    assert done.exit_code == 2
    assert "can't be combined" in done.stderr
