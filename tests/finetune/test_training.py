"""What training touches, what it repeats, what it keeps."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from layer_surgeon.errors import ConfigError, DataError, GraftError, SourceNotFoundError, TrainingError, WorkspaceError
from layer_surgeon.finetune import finetune_model, predict, run
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.graft import GraftedModel, graft_layer
from tests.support.classification import Recorder, classifier, rows, word_tokenizer

TRAIN = {"train": rows(48), "validation": rows(16, seed=1), "test": rows(12, seed=2)}
FAST = {"num_epochs": 2, "batch_size": 8, "learning_rate": 2e-3}


def train(model, workspace, data=TRAIN, **arguments):
    tokenizer = {} if isinstance(model, str) or hasattr(model, "is_dir") else {"tokenizer": word_tokenizer()}
    return finetune_model(model, data, workspace=workspace, **tokenizer, **(FAST | arguments))


def weights(result):
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def watched(monkeypatch):
    """The trainers that were made, and what lay in each checkpoint when it was whole."""
    seen = {"trainers": [], "checkpoints": []}
    original = SurgeonTrainer.__init__

    def init(self, **arguments):
        original(self, **arguments)
        seen["trainers"].append(self)

    def save_checkpoint(self, model, trial):
        save(self, model, trial)
        folder = self.args.output_dir + f"/checkpoint-{self.state.global_step}"
        with safe_open(f"{folder}/model.safetensors", "pt") as file:
            files = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
            seen["checkpoints"].append((files, set(file.keys())))

    save = SurgeonTrainer._save_checkpoint
    monkeypatch.setattr(SurgeonTrainer, "__init__", init)
    monkeypatch.setattr(SurgeonTrainer, "_save_checkpoint", save_checkpoint)
    return seen


# ---- the donor


def test_donor_is_untouched_and_everything_else_learns(graft, workspace):
    before = GraftedModel.from_pretrained(graft).state_dict()
    after = weights(train(graft, workspace))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("donor.") for name in after)
    assert not any(name.startswith("donor.") for name in changed)
    assert {name.split(".")[0] for name in changed} == {"host", "proj_in", "proj_out", "head"}
    learned = {name for name in after if not name.startswith("donor.") and "position_ids" not in name}
    # Only the embeddings of words and positions that never occur may stay.
    assert learned - changed == set()


def test_no_donor_in_optimizer_or_checkpoint(graft, workspace, watched):
    train(graft, workspace)
    (trainer,) = watched["trainers"]
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimized = {names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert optimized
    assert not any(name.startswith("donor.") for name in optimized)
    assert len(watched["checkpoints"]) == 2
    for files, keys in watched["checkpoints"]:
        assert not any(file.startswith("donor") for file in files)
        assert keys == set(trainer.model.state_dict()) - {
            k for k in trainer.model.state_dict() if k.startswith("donor.")
        }


def test_trained_along_donor_is_in_both(host, artifact, workspace, watched):
    model = graft_layer(host, artifact, train_donor=True)
    before = {name: value.clone() for name, value in model.donor.state_dict().items()}
    result = train(model, workspace)
    assert not same(before, result.model.donor.state_dict())
    assert any(name.startswith("donor.") for name in watched["checkpoints"][0][1])


def test_finished_run_holds_the_donor_once_and_loads(graft, workspace):
    result = train(graft, workspace)
    # The very file of the graft's own donor: it takes no room twice.
    assert (result.path / "donor/model.safetensors").samefile(graft / "donor/model.safetensors")
    assert not any(name.startswith("donor.") for name in load_file(result.path / "model.safetensors"))
    loaded = GraftedModel.from_pretrained(result.path)
    assert same(weights(result), loaded.state_dict())
    assert loaded.config.id2label == {0: "0", 1: "1"}


# ---- the same again


def test_same_seed_same_weights_other_seed_others(graft, workspace):
    first, second = train(graft, workspace), train(graft, workspace)
    other = train(graft, workspace, seed=1)
    assert same(weights(first), weights(second))
    assert first.history == second.history
    assert first.metrics == second.metrics
    assert not same(weights(first), weights(other))


def test_seed_decides_the_order_not_only_dropout(workspace):
    def run_with(seed):
        model = classifier()
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return weights(train(model, workspace, seed=seed))

    assert not same(run_with(1), run_with(2))


def test_seed_decides_a_fresh_head(host, workspace):
    """A host without a head gets one; a graft with another number of labels gets a new last layer."""
    assert same(weights(train(host, workspace, num_epochs=1)), weights(train(host, workspace, num_epochs=1)))


# ---- the paper's settings reach the trainer


def test_defaults_are_the_papers(graft, workspace, watched):
    finetune_model(graft, TRAIN, workspace=workspace, num_epochs=1)
    trainer = watched["trainers"][0]
    inner = trainer.optimizer.optimizer if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer
    assert type(inner) is torch.optim.Adam
    assert {group["lr"] for group in inner.param_groups} == {5e-5}
    assert {group["weight_decay"] for group in inner.param_groups} == {0.0}
    assert trainer.args.max_grad_norm == 5.0
    assert trainer.label_smoother.epsilon == 0.05
    assert trainer.args.per_device_train_batch_size == 32


def test_learning_rate_is_constant_or_falls(graft, workspace, watched):
    train(graft, workspace)
    train(graft, workspace, schedule="linear", warmup_ratio=0.5, optimizer="adamw")
    constant, linear = ([e["learning_rate"] for e in t.state.log_history if "loss" in e] for t in watched["trainers"])
    assert set(constant) == {2e-3}
    assert linear[0] < linear[len(linear) // 2] == max(linear)
    assert linear[-1] < max(linear)


def test_batches_hold_texts_of_like_length(graft, workspace, watched):
    def padding(index):
        loader = watched["trainers"][index].get_train_dataloader()
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in loader)

    many = TRAIN | {"train": rows(200)}
    train(graft, workspace, data=many, max_steps=1)
    train(graft, workspace, data=many, max_steps=1, group_by_length=False)
    assert padding(0) < 0.5 * padding(1)


def test_every_epoch_sees_every_example_once_in_another_order(graft, workspace, watched):
    train(graft, workspace, max_steps=1)
    sampler = watched["trainers"][0]._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert sorted(orders[0]) == list(range(48))
    assert orders[0] == orders[2] != orders[1]


def test_accumulation_steps_and_max_steps(graft, workspace, watched):
    result = train(graft, workspace, batch_size=4, gradient_accumulation_steps=3, max_steps=3)
    assert watched["trainers"][0].state.global_step == 3
    assert [epoch.step for epoch in result.history] == [3]


def test_early_stopping(graft, workspace):
    result = train(graft, workspace, learning_rate=1e-12, num_epochs=6, early_stopping_patience=2)
    assert len(result.history) == 3
    assert result.best_epoch == 1


def test_bf16(graft, workspace):
    result = train(graft, workspace, precision="bf16", num_epochs=1)
    assert {parameter.dtype for parameter in result.model.head.parameters()} == {torch.float32}


# ---- what is kept


def test_best_epoch_is_kept(workspace, monkeypatch):
    """The epochs' accuracies are set by hand: the second is best, and its weights are those in the end."""
    accuracies = iter([0.5, 0.9, 0.7])
    kept = {}
    original = SurgeonTrainer.evaluate

    def evaluate(self, *arguments, **keywords):
        kept[self.state.global_step] = {name: value.clone() for name, value in self.model.state_dict().items()}
        return original(self, *arguments, **keywords)

    def metrics(prediction, measure):
        return {"accuracy": next(accuracies), "macro_f1": 0.5, "cross_entropy": 0.5}

    monkeypatch.setattr(SurgeonTrainer, "evaluate", evaluate)
    monkeypatch.setattr(run, "compute_metrics", metrics)
    result = train(classifier(), workspace, num_epochs=3)
    assert result.best_epoch == 2
    assert same(weights(result), kept[result.history[1].step])
    assert not same(weights(result), kept[result.history[2].step])


def test_selection_by_loss_takes_the_lowest(workspace):
    result = train(classifier(), workspace, num_epochs=3, select_by="loss")
    losses = [epoch.loss for epoch in result.history]
    assert result.best_epoch == 1 + losses.index(min(losses))


def test_it_learns(graft, workspace):
    result = train(graft, workspace, num_epochs=12, learning_rate=1e-2)
    assert result.test.accuracy >= 0.9
    assert result.history[-1].training_loss < result.history[0].training_loss


def test_history_and_metrics_are_those_of_the_model(graft, workspace):
    result = train(graft, workspace)
    assert result.metrics["validation_accuracy"] == result.history[result.best_epoch - 1].accuracy
    assert result.validation.loss == pytest.approx(result.history[result.best_epoch - 1].loss, rel=1e-6)
    labels = [prediction.label for prediction in predict(result.path, [row["text"] for row in TRAIN["test"]])]
    assert result.test.accuracy == accuracy_score([str(row["label"]) for row in TRAIN["test"]], labels)


# ---- the folder


def test_folder(graft, workspace):
    result = train(graft, workspace)
    assert result.path == workspace.folder("run", "data-tiny-bert+tiny-llama-L3") == workspace.latest("run")
    assert {path.name for path in result.path.iterdir()} == {
        "README.md",
        "config.json",
        "donor",
        "loss_curve.png",
        "run.yaml",
        "model.safetensors",
        "results.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in result.path.parent.iterdir()] == [result.path.name]
    stored = json.loads((result.path / "results.json").read_text())
    assert stored == json.loads(json.dumps(result.as_dict()))
    assert stored["config"]["learning_rate"] == 2e-3
    assert stored["data"]["splits"]["train"]["per_class"] == {"0": 24, "1": 24}
    assert stored["parameters"]["trained"] + stored["parameters"]["frozen"] == stored["parameters"]["total"]
    assert stored["parameters"]["frozen"] == sum(p.numel() for p in result.model.donor.parameters())
    assert (result.path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_card(graft, workspace):
    result = train(graft, workspace)
    _, front, body = (result.path / "README.md").read_text().split("---\n", 2)
    index = yaml.safe_load(front)["model-index"][0]
    values = {
        (entry["dataset"]["split"], metric["name"]): metric["value"]
        for entry in index["results"]
        for metric in entry["metrics"]
    }
    assert values["test", "Accuracy"] == pytest.approx(result.test.accuracy, abs=1e-6)
    assert values["validation", "Macro F1"] == pytest.approx(result.validation.macro_f1, abs=1e-6)
    assert f"{result.num_trained_parameters:,} of {result.num_parameters:,} parameters" in body


def test_pipeline_takes_the_folder(workspace):
    result = train(classifier(), workspace)
    classify = pipeline("text-classification", model=str(result.path), device="cpu")
    assert classify("the film was good")[0]["label"] in ("0", "1")


def test_second_run_gets_a_number(graft, workspace):
    first, second = train(graft, workspace, max_steps=1), train(graft, workspace, max_steps=1)
    assert second.path == first.path.with_name(first.path.name + "-2")
    assert workspace.latest("run") == second.path


def test_output_in_use(graft, workspace, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(WorkspaceError, match="in use: it holds something else"):
        train(graft, workspace, output=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    train(graft, workspace, output=tmp_path / "run", max_steps=1)
    with pytest.raises(WorkspaceError, match="in use: it holds a finished run"):
        train(graft, workspace, output=tmp_path / "run", max_steps=1)


def test_output_that_can_not_be_written(graft, workspace, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="can't be written"):
        train(graft, workspace, output=tmp_path / "file" / "run")


# ---- progress


def test_progress(graft, workspace):
    progress = Recorder()
    train(graft, workspace, progress=progress)
    assert progress.steps == [
        ("Training", 12, "steps"),
        ("Validating", 16, "examples"),
        ("Testing", 12, "examples"),
    ]
    assert progress.amounts == [12, 16, 12]
    assert "data: 48 train, 16 validation, 12 test examples, 2 classes." in progress.notices
    assert any("val accuracy" in values for values in progress.values)
    assert sum("loss" in values for values in progress.values) == 12


def test_nothing_is_printed(graft, workspace, capfd, caplog):
    train(graft, workspace)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert caplog.records == []


def test_truncation_is_said(graft, workspace):
    progress = Recorder()
    result = train(graft, workspace, progress=progress, max_length=6, max_steps=1)
    cut = result.data["truncated"]["train"]
    assert 0 < cut < 48
    assert any(
        f"{cut} of 48 training texts" in notice and "longer than 6 tokens" in notice for notice in progress.notices
    )


# ---- models


def test_plain_model_from_a_folder_gets_the_datas_classes(host, workspace):
    three = [row | {"label": ("a", "b", "c")[i % 3]} for i, row in enumerate(rows(30))]
    result = train(host, workspace, data=three)
    loaded = AutoModelForSequenceClassification.from_pretrained(result.path)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert AutoTokenizer.from_pretrained(result.path).pad_token == "[PAD]"


def test_graft_gets_the_datas_classes(graft, workspace):
    three = [row | {"label": ("a", "b", "c")[i % 3]} for i, row in enumerate(rows(30))]
    result = train(graft, workspace, data=three)
    loaded = GraftedModel.from_pretrained(result.path)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert loaded.head.out.out_features == 3


def test_loaded_model_with_other_classes(workspace):
    with pytest.raises(GraftError, match="has 5 classes and the data 2"):
        train(classifier(num_labels=5), workspace)


def test_pairs(graft, workspace):
    pairs = [{"premise": r["text"], "hypothesis": "the end", "label": r["label"]} for r in rows(40)]
    result = train(graft, workspace, data=pairs, max_steps=2)
    assert result.data["columns"]["text_pair"] == "hypothesis"


def test_half_precision_weights_are_trained_in_float32(workspace, tmp_path):
    classifier().half().save_pretrained(tmp_path / "half")
    word_tokenizer().save_pretrained(tmp_path / "half")
    result = train(tmp_path / "half", workspace, max_steps=1)
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}


def test_graft_for_another_task(host, artifact, workspace):
    model = graft_layer(host, artifact, task="feature-extraction")
    with pytest.raises(GraftError, match="is for feature-extraction, which is not trained"):
        train(model, workspace)


def test_no_such_model(workspace, tmp_path):
    with pytest.raises(SourceNotFoundError, match="There is no model folder"):
        train(str(tmp_path / "nothing"), workspace)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFoundError, match=r"has no config\.json"):
        train(str(tmp_path / "empty"), workspace)
    with pytest.raises(GraftError, match="A dict is no transformers classification model"):
        finetune_model({}, TRAIN, workspace=workspace)


def test_no_tokenizer(workspace):
    with pytest.raises(ConfigError, match="Pass tokenizer="):
        finetune_model(classifier(), TRAIN, workspace=workspace)


def test_device_and_precision_that_are_not_there(graft, workspace):
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device is 'cuda', and this machine has: "):
            train(graft, workspace, device="cuda")
    with pytest.raises(ConfigError, match="needs a GPU"):
        train(graft, workspace, device="cpu", precision="fp16")


def test_no_room_for_a_token(graft, workspace):
    with pytest.raises(ConfigError, match="max_length is 2, and 2 tokens are special"):
        train(graft, workspace, max_length=2)


# ---- failures leave nothing behind


def test_bad_data_leaves_nothing(graft, workspace):
    with pytest.raises(DataError):
        train(graft, workspace, data=[{"text": "a", "label": 0}])
    assert not workspace.root.exists()


def test_diverging_loss(workspace):
    model = classifier()
    with torch.no_grad():
        model.classifier.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"The loss is nan at step 1: .*--learning-rate.* nothing is kept"):
        train(model, workspace)
    assert not workspace.root.exists()


@pytest.mark.parametrize(
    ("raised", "expected", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), TrainingError, "--batch-size"),
        (OSError(28, "No space left on device"), WorkspaceError, "No space left on device"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed"), WorkspaceError, "disk may be full"),
    ],
)
def test_errors_of_libraries_become_ours(workspace, monkeypatch, raised, expected, says):
    def fail(self, *arguments, **keywords):
        raise raised

    monkeypatch.setattr(SurgeonTrainer, "training_step", fail)
    with pytest.raises(expected) as error:
        train(classifier(), workspace)
    assert says in str(error.value)
    assert not workspace.root.exists()
