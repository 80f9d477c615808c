"""Training changes host, projections and head, but never the donor."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, Trainer, TrainingArguments

from layer_surgeon.donor import DonorLayer
from layer_surgeon.errors import ConfigError
from layer_surgeon.graft import GraftedModel, GraftedModelForSequenceClassification, graft_layer
from tests.graft.conftest import host_model, make_inputs


def trained_step(model, labels=(0, 1, 1)):
    """Run one optimizer step over all trained parameters, and return the weights before it."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**make_inputs(), labels=torch.tensor(labels)).loss.backward()
    optimizer.step()
    return before


def changed_parts(model, before):
    return {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_step_changes_all_but_the_donor(model_type, artifact):
    model = graft_layer(host_model(model_type), artifact)
    before = trained_step(model)
    assert changed_parts(model, before) == {"host", "proj_in", "proj_out", "head"}
    assert not model.donor.training
    assert all(p.grad is None and not p.requires_grad for p in model.donor.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    assert model.proj_in.weight.grad.abs().sum() > 0


def test_every_trained_parameter_gets_a_gradient(artifact):
    """No unused part, such as a pooler, is in the optimizer, where distributed training would wait for its gradient."""
    model = graft_layer(host_model("bert"), artifact)
    trained_step(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_unfrozen_donor_is_frozen_again(artifact):
    model = graft_layer(host_model("bert"), DonorLayer.from_pretrained(artifact).unfreeze())
    assert "donor" not in changed_parts(model, trained_step(model))
    assert not model.donor.training


def test_manually_built_model_keeps_its_weights(artifact):
    donor, host = DonorLayer.from_pretrained(artifact), host_model("bert")
    before = {name: value.clone() for name, value in donor.state_dict().items()}
    config = graft_layer(host, artifact).config
    model = GraftedModelForSequenceClassification(config, host=host, with_donor=False).attach_donor(donor)
    assert model.donor is donor
    assert all(torch.equal(value, before[name]) for name, value in donor.state_dict().items())


def test_dropout_in_the_head(artifact):
    head = graft_layer(host_model("bert"), artifact, dropout=0.5).head
    vectors = torch.randn(4, 24)
    assert torch.equal(head(vectors), head(vectors))
    head.train()
    assert not torch.equal(head(vectors), head(vectors))


def test_train_donor(artifact):
    model = graft_layer(host_model("bert"), artifact, train_donor=True)
    before = trained_step(model)
    assert changed_parts(model, before) == {"host", "proj_in", "donor", "proj_out", "head"}
    assert model.donor.training
    total, trained = model.parameter_counts()["donor"]
    assert total == trained > 0


@pytest.mark.parametrize("first", [True, False])
def test_grafts_of_one_loaded_layer_train_their_own(first, artifact):
    layer = DonorLayer.from_pretrained(artifact)
    models = {
        is_trained: graft_layer(host_model("bert"), layer, train_donor=is_trained) for is_trained in (first, not first)
    }
    assert models[False].donor is layer
    assert "donor" in changed_parts(models[True], trained_step(models[True]))
    assert "donor" not in changed_parts(models[False], trained_step(models[False]))
    again = graft_layer(host_model("bert"), models[True].donor)
    assert models[True].donor.training
    assert not again.donor.training


def test_gate_learns_first(artifact):
    model = graft_layer(host_model("bert"), artifact, residual="gated")
    before = trained_step(model)
    # Behind a gate of zero the projections get no gradient in the first step.
    assert changed_parts(model, before) == {"host", "residual_gate", "head"}
    assert changed_parts(model, trained_step(model)) == {"host", "residual_gate", "head", "proj_in", "proj_out"}


def test_parameter_counts(artifact):
    model = graft_layer(host_model("bert"), artifact, projection_bias=True, num_labels=3)
    counts = model.parameter_counts()
    assert counts["proj_in"] == (24 * 32 + 32, 24 * 32 + 32)
    assert counts["proj_out"] == (32 * 24 + 24, 32 * 24 + 24)
    assert counts["head"] == (24 * 24 + 24 + 24 * 3 + 3,) * 2
    assert counts["donor"] == (sum(p.numel() for p in model.donor.parameters()), 0)
    assert sum(total for total, _ in counts.values()) == model.num_parameters()


def test_fresh_weights_follow_the_seed(artifact):
    host = host_model("bert")

    def fresh(seed):
        torch.manual_seed(seed)
        return graft_layer(host, artifact).state_dict()

    first, again, other = fresh(1), fresh(1), fresh(2)
    same = {name for name, value in first.items() if torch.equal(value, other[name])}
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert same == {name for name in first if name.startswith(("host", "donor"))}


def test_fresh_weights_are_pytorchs(artifact):
    model = graft_layer(host_model("bert"), artifact)
    assert model.proj_in.bias is None
    for layer in (model.proj_in, model.proj_out, model.head.dense, model.head.out):
        bound = layer.in_features**-0.5
        assert 0.5 * bound < layer.weight.abs().max() <= bound


def test_random_donor(artifact):
    torch.manual_seed(1)
    model = graft_layer(host_model("bert"), artifact, donor_init="random")
    pretrained = graft_layer(host_model("bert"), artifact)
    assert {k: v.shape for k, v in model.donor.state_dict().items()} == {
        k: v.shape for k, v in pretrained.donor.state_dict().items()
    }
    key = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.donor.state_dict()[key], pretrained.donor.state_dict()[key])
    assert changed_parts(model, trained_step(model)) == {"host", "proj_in", "proj_out", "head"}


def test_set_labels(artifact):
    model = graft_layer(host_model("bert"), artifact)
    old = model.head.out
    model.set_labels(["bad", "good"])
    assert model.head.out is old
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.label2id == {"bad": 0, "good": 1}
    model.set_labels(["bad", "so so", "good"])
    assert model.head.out.out_features == 3
    assert model.config.num_labels == 3
    assert model(**make_inputs(), labels=torch.tensor([0, 1, 2])).logits.shape == (3, 3)
    for names in ([], ["a", "a"], ["a", ""]):
        with pytest.raises(ConfigError, match="at least one, each a different non-empty string"):
            model.set_labels(names)


def test_set_labels_resets_the_loss(artifact):
    model = graft_layer(host_model("bert"), artifact, num_labels=1)
    model(**make_inputs(), labels=torch.tensor([0.1, 0.2, 0.3]))
    model.set_labels(["bad", "good"])
    model(**make_inputs(), labels=torch.tensor([0, 1, 1]))
    assert model.config.problem_type == "single_label_classification"


def test_gradient_checkpointing_gives_the_same_gradients(artifact):
    def gradients(checkpointing):
        torch.manual_seed(0)
        model = graft_layer(host_model("llama"), artifact, dropout=0.0)
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable()
        model.train()
        model(**make_inputs(), labels=torch.tensor([0, 1, 1])).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, msg=name)


def test_resizing_the_vocabulary(artifact):
    model = graft_layer(host_model("bert"), artifact)
    model.resize_token_embeddings(50, mean_resizing=False)
    assert model.host.get_input_embeddings().num_embeddings == 50
    assert model.config.host_config.vocab_size == 50


@pytest.mark.parametrize(
    ("auto", "name", "task"),
    [
        (AutoModelForCausalLM, "gpt2", "causal-lm"),
        (AutoModelForCausalLM, "llama", "causal-lm"),
        (AutoModelForSeq2SeqLM, "t5", "seq2seq"),
        (AutoModelForSeq2SeqLM, "bart", "seq2seq"),
    ],
)
def test_resizing_the_vocabulary_of_a_model_that_generates(auto, name, task, artifact, tmp_path):
    model = graft_layer(host_model(name, auto=auto), artifact, task)
    model.resize_token_embeddings(50, mean_resizing=False)
    batch = {"input_ids": torch.tensor([[45, 5, 6]]), "labels": torch.tensor([[49, 5, 6]])}
    expected = model.eval()(**batch)
    assert expected.logits.shape[-1] == 50
    model.save_pretrained(tmp_path)
    loaded = GraftedModel.from_pretrained(tmp_path).eval()(**batch)
    assert torch.equal(loaded.logits, expected.logits)
    assert loaded.loss == expected.loss


@pytest.mark.parametrize("smoothing", [0.0, 0.05])
def test_trainer(smoothing, artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = make_inputs(batch=8)
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": index % 2}
        for index, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True))
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        label_smoothing_factor=smoothing,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    assert not trainer.model_accepts_loss_kwargs
    trainer.train()
    assert changed_parts(model, before) == {"host", "proj_in", "proj_out", "head"}
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held.isdisjoint(id(p) for p in model.donor.parameters())
    assert trainer.predict(rows).predictions.shape == (8, 2)
