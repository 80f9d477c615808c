"""Training: which weights change, reproducibility, and which files are kept."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune import FinetuneConfig, finetune_model, plan_finetuning, predict, run
from layer_surgeon.finetune.tokenization import longest_input
from layer_surgeon.finetune.trainer import SurgeonTrainer, training_arguments
from layer_surgeon.graft import GraftConfig, GraftedModel, graft_layer, save_graft
from tests.support.classification import classifier, rows, word_tokenizer
from tests.support.finetune_tasks import task_tokenizer, tiny_gpt2
from tests.support.tiny_models import save_artifact, tiny_model
from tests.support.training import TRAIN, same, train, weights


@pytest.fixture
def watched(monkeypatch):
    """The trainers that were created, and the contents of each complete checkpoint."""
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


def test_each_epoch_has_a_loss(tmp_path):
    config = FinetuneConfig(task="text-classification", select_by="accuracy", num_epochs=300, batch_size=4)
    # Three steps for each of 300 epochs: with only 200 logs in the run, some epochs would have none.
    assert training_arguments(config, tmp_path, torch.device("cpu"), 12).logging_steps == 3


def test_texts_are_cut_to_the_positions_of_the_host():
    tokenizer, model = task_tokenizer(), tiny_gpt2()
    tokenizer.model_max_length = 10**9
    assert longest_input(tokenizer, model, 4000) == 64


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


def test_trained_donor_is_in_checkpoints_and_in_the_run(host, artifact, workspace, watched):
    model = graft_layer(host, artifact, train_donor=True)
    before = {name: value.clone() for name, value in model.donor.state_dict().items()}
    result = train(model, workspace)
    assert not same(before, result.model.donor.state_dict())
    assert any(name.startswith("donor.") for name in watched["checkpoints"][0][1])


def test_a_stored_donor_with_dropout_can_be_trained(host, workspace, tmp_path):
    """The layer is probed in the first step, in which dropout must not look like attention to later positions."""
    layer = save_artifact(tiny_model("gpt2"), [2], tmp_path / "layer")
    graft = save_graft(host, layer, config=GraftConfig(train_donor=True), output=tmp_path / "graft", seed=7).path
    before = GraftedModel.from_pretrained(graft).donor.state_dict()
    assert not same(before, train(graft, workspace).model.donor.state_dict())


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


def test_seed_determines_a_new_head(host, workspace):
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
    assert trainer.compute_loss_func.epsilon == 0.05
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


@pytest.mark.parametrize("label_smoothing", [0.0, 0.05])
@pytest.mark.parametrize("grafted", [False, True])
def test_accumulated_batches_weigh_as_one(grafted, label_smoothing, graft, workspace):
    """Also if the last batch has fewer texts: each text counts the same."""
    settings = {"num_epochs": 1, "group_by_length": False, "learning_rate": 1e-9, "label_smoothing": label_smoothing}
    data = {"train": rows(9), "validation": rows(8, seed=1)}
    losses = []
    for size, steps in ((9, 1), (8, 2)):
        model = GraftedModel.from_pretrained(graft) if grafted else classifier()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        settings |= {"batch_size": size, "gradient_accumulation_steps": steps}
        result = finetune_model(model, data, workspace=workspace, tokenizer=word_tokenizer(), device="cpu", **settings)
        losses.append(result.history[0].training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_model_trained_in_half_precision_computes_as_before(graft, workspace):
    result = train(graft, workspace, precision="bf16")
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    expected = GraftedModel.from_pretrained(result.path)(**batch).logits
    assert torch.equal(result.model.eval()(**batch).logits, expected)


@pytest.mark.parametrize("train_host", ["frozen", "lora"])
@pytest.mark.parametrize("call", [finetune_model, plan_finetuning])
def test_what_was_trained_before_can_be_trained_again(call, train_host, workspace):
    model = classifier()
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    settings = {"train_host": train_host, "gradient_checkpointing": True, "max_steps": 1, "device": "cpu"}
    call(model, {"train": rows(16), "validation": rows(8)}, workspace=workspace, tokenizer=task_tokenizer(), **settings)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


@pytest.mark.parametrize("train_host", ["frozen", "lora"])
def test_a_model_is_as_it_was_after_a_failure(train_host, workspace, tmp_path, monkeypatch):
    model = classifier()
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}

    def stop(self, *arguments, **keywords):
        raise KeyboardInterrupt

    data = {"train": rows(16), "validation": rows(8)}
    settings = {"train_host": train_host, "workspace": workspace, "tokenizer": word_tokenizer(), "device": "cpu"}
    with pytest.raises(ConfigError, match="no trained projections"):
        finetune_model(model, data, projection_learning_rate=1e-3, **settings)
    monkeypatch.setattr(SurgeonTrainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune_model(model, data, **settings)
    after = dict(model.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, (value, _) in before.items())
    assert {name: value.requires_grad for name, value in after.items()} == {n: g for n, (_, g) in before.items()}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # used by peft
def test_a_plan_leaves_the_callers_adapters(workspace):
    model = get_peft_model(classifier(), LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    before = {name: value.requires_grad for name, value in model.named_parameters()}
    plan_finetuning(model, {"train": rows(16), "validation": rows(8)}, workspace=workspace, tokenizer=word_tokenizer())
    assert {name: value.requires_grad for name, value in model.named_parameters()} == before


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
