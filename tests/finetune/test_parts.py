"""What is trained, and how fast: rates by part, a frozen host, LoRA; recomputing, compiling."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration, T5ForQuestionAnswering

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune import FinetuneConfig, finetune_model
from layer_surgeon.finetune.parts import choose_trained, part_of
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.graft import GraftedModel, graft_layer
from layer_surgeon.tasks import get_task
from tests.support.classification import classifier, rows, word_tokenizer

DATA = {"train": rows(24), "validation": rows(8, seed=1)}
RATES = {"host_learning_rate": 1e-3, "projection_learning_rate": 2e-3, "head_learning_rate": 3e-3}


def train(model, workspace, **settings):
    settings = {"num_epochs": 2, "batch_size": 8} | settings
    if not isinstance(model, str | Path):
        settings["tokenizer"] = word_tokenizer()
    return finetune_model(model, DATA, workspace=workspace, **settings)


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that are made."""
    made, original = [], SurgeonTrainer.__init__

    def init(self, **arguments):
        original(self, **arguments)
        made.append(self)

    monkeypatch.setattr(SurgeonTrainer, "__init__", init)
    return made


def changed(before, after):
    """The parts of a graft whose weights differ."""
    weights = {name: value for name, value in after.state_dict().items() if not name.startswith("donor.")}
    old = before.state_dict()
    return {part_of(name, after) for name, value in weights.items() if not torch.equal(value, old[name])}


def test_each_part_has_its_rate(graft, workspace, trainers):
    result = train(graft, workspace, **RATES, weight_decay=0.1, schedule="linear")
    names = {parameter: name for name, parameter in result.model.named_parameters()}
    found = {}
    for group in trainers[0].optimizer.param_groups:
        for parameter in group["params"]:
            found.setdefault(part_of(names[parameter], result.model), set()).add(group["initial_lr"])
            assert group["weight_decay"] == (
                0 if "bias" in names[parameter] or "LayerNorm" in names[parameter] else 0.1
            )
    assert found == {"host": {1e-3}, "projections": {2e-3}, "head": {3e-3}}


def test_rate_of_one_part_keeps_the_others(graft, workspace, trainers):
    train(graft, workspace, head_learning_rate=3e-3, learning_rate=1e-4)
    assert {group["initial_lr"] for group in trainers[0].optimizer.param_groups} == {1e-4, 3e-3}


def test_equal_rates_are_the_plain_run(graft, workspace):
    plain = train(graft, workspace, learning_rate=1e-3)
    said = train(graft, workspace, learning_rate=5e-5, **dict.fromkeys(RATES, 1e-3))
    weights = plain.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in said.model.state_dict().items())


def test_frozen_host_stays(graft, workspace):
    before = GraftedModel.from_pretrained(graft)
    result = train(graft, workspace, train_host="frozen", learning_rate=1e-2)
    assert changed(before, result.model) == {"projections", "head"}
    assert result.num_trained_parameters == sum(
        value.numel() for name, value in before.named_parameters() if part_of(name, before) in ("projections", "head")
    )


def test_lora_trains_few_weights_and_produces_a_graft(graft, workspace):
    before = GraftedModel.from_pretrained(graft)
    result = train(graft, workspace, train_host="lora", lora_rank=2, learning_rate=1e-2)
    assert changed(before, result.model) == {"host", "projections", "head"}
    assert not torch.equal(
        before.host.encoder.layer[0].output.dense.weight, result.model.host.encoder.layer[0].output.dense.weight
    )
    assert torch.equal(
        before.host.embeddings.word_embeddings.weight, result.model.host.embeddings.word_embeddings.weight
    )
    assert result.num_trained_parameters < before.num_parameters()
    stored = load_file(result.path / "model.safetensors")
    assert not any("lora" in name or "modules_to_save" in name for name in stored)
    loaded = GraftedModel.from_pretrained(result.path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in result.model.state_dict().items())


def test_lora_leaves_a_trained_donor_trained(host, artifact, workspace):
    model = graft_layer(host, artifact, train_donor=True)
    before = {name: value.clone() for name, value in model.donor.state_dict().items()}
    result = train(model, workspace, train_host="lora", learning_rate=1e-2)
    assert type(result.model.donor).__name__ == "DonorLayer"
    assert not all(torch.equal(value, before[name]) for name, value in result.model.donor.state_dict().items())


def test_lora_resumes(graft, workspace, tmp_path, monkeypatch):
    settings = {"train_host": "lora", "learning_rate": 1e-2}
    whole = train(graft, workspace, output=tmp_path / "whole", **settings)
    original = SurgeonTrainer.training_step
    armed = [True]

    def training_step(self, *arguments, **keywords):
        if armed and self.state.global_step == 4:
            armed.clear()
            raise KeyboardInterrupt
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(SurgeonTrainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt, match="up to step 3"):
        train(graft, workspace, output=tmp_path / "stopped", **settings)
    resumed = train(graft, workspace, output=tmp_path / "stopped", resume=True, **settings)
    weights = whole.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.model.state_dict().items())


def test_lora_on_a_plain_model(workspace):
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = train(model, workspace, train_host="lora", learning_rate=1e-2)
    moved = {name for name, value in result.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"classifier.weight", "bert.encoder.layer.0.attention.self.query.weight"} <= moved
    assert "bert.embeddings.word_embeddings.weight" not in moved


def test_a_model_whose_class_holds_the_parts_of_its_host():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    for kind, head in ((T5ForConditionalGeneration, "lm_head"), (T5ForQuestionAnswering, "qa_outputs")):
        model = kind(T5Config(**sizes, num_labels=2, decoder_start_token_id=0))
        if head == "lm_head":
            model.lm_head.weight = torch.nn.Parameter(torch.zeros(40, 16))  # not tied, as in T5 1.1
        names = [name for name, _ in model.named_parameters()]
        of_head = [name for name in names if part_of(name, model) == "head"]
        assert of_head == [name for name in names if name.startswith(head)] != []
    lora = choose_trained(model, FinetuneConfig(train_host="lora"), get_task("question-answering"))
    trained = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "qa_outputs" in name for name in trained)
    assert any("qa_outputs" in name for name in trained)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"projection_learning_rate": 1e-3},
            "projection_learning_rate is 0.001, but this model has no trained projections",
        ),
        ({"train_host": "frozen", "host_learning_rate": 1e-3}, "this model has no trained host"),
        ({"host_learning_rate": 0.0}, "host_learning_rate is 0.0; it must be a positive number"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; it must be at least 0 and below 1"),
        ({"train_host": "half"}, "train_host is 'half'; it must be one of full, frozen, lora"),
    ],
)
def test_what_can_not_be(workspace, settings, says):
    with pytest.raises(ConfigError, match=says):
        train(classifier(), workspace, **settings)
    assert not workspace.root.exists()


def recomputes(model):
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_recomputed_activations_give_the_same_weights(graft, workspace, monkeypatch):
    seen, step = [], SurgeonTrainer.training_step

    def training_step(self, *arguments, **keywords):
        seen.append(recomputes(self.model))
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(SurgeonTrainer, "training_step", training_step)
    plain, again = (train(graft, workspace, gradient_checkpointing=wanted, max_steps=2) for wanted in (False, True))
    assert seen == [False, False, True, True]
    assert not recomputes(again.model)
    weights = plain.model.state_dict()
    for name, value in again.model.state_dict().items():
        assert torch.allclose(value, weights[name], atol=1e-6), name


def test_compile(graft, workspace, trainers, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **settings: compiled.append(model) or model)
    train(graft, workspace, compile=True, max_steps=1)
    assert compiled
    assert trainers[0].args.torch_compile
