"""Decoder hosts that generate text: the graft is between the last layer and the language head."""

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

from layer_surgeon.graft import GraftedModel, graft_layer, save_graft
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import DECODERS, host_model, make_inputs, word_tokenizer
from tests.support.decode_by_hand import decode_greedily, decode_with_beams
from tests.support.graft_reference import run_graft
from tests.support.graft_suite import LENGTHS, padded_inputs

TASK = "causal-lm"
STEPS = 6


def whole_host(model_type, **overrides):
    """A host with its language head, whose next tokens vary more than those of a new model."""
    host = host_model(model_type, auto=AutoModelForCausalLM, **overrides)
    with torch.no_grad():
        for parameter in host.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return host


def by_formula(llm, model, host, inputs):
    """Head(L_out(L_LLM(L_in(h)))) with the host's own language head; no token sees later tokens."""
    hidden = host.base_model(**inputs).last_hidden_state
    return host.get_output_embeddings()(run_graft(llm, model, hidden, inputs["attention_mask"], causal=True))


@torch.no_grad()
def test_donor_positions_dont_count_padding(artifact):
    model = graft_layer(whole_host("llama"), artifact, TASK)
    seen = []
    model.donor.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    model(**padded_inputs("left"))
    assert seen[0][1].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3]


@torch.no_grad()
def test_no_token_sees_later_tokens(artifact):
    model = graft_layer(whole_host("llama"), artifact, TASK)
    inputs = make_inputs()
    first = model(**inputs).logits
    inputs["input_ids"][:, 5:] = 7
    second = model(**inputs).logits
    torch.testing.assert_close(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5], second[:, 5])


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("model_type", DECODERS)
@torch.no_grad()
def test_generation_equals_full_forward_passes(model_type, beams, llm, artifact):
    host = whole_host(model_type)
    model = graft_layer(host, artifact, TASK)
    inputs = padded_inputs("left")

    expected = []
    for row, length in enumerate(LENGTHS):
        # With the padding, which no_repeat_ngram_size counts too, and the model must not.
        start = inputs["input_ids"][row].tolist()

        def next_logits(ids, padding=9 - length):
            real = ids[:, padding:]
            return by_formula(llm, model, host, {"input_ids": real, "attention_mask": torch.ones_like(real)})[:, -1]

        if beams == 1:
            ids = decode_greedily(next_logits, start, eos=2, steps=STEPS)
        else:
            ids = decode_with_beams(next_logits, start, eos=2, steps=STEPS, beams=beams)
        expected.append(ids[9:])
    settings = {"num_beams": beams, "max_new_tokens": STEPS, "do_sample": False, "no_repeat_ngram_size": 1}
    found = model.generate(**inputs, pad_token_id=0, **settings)[:, 9:].tolist()
    assert [row[: len(ids)] for row, ids in zip(found, expected, strict=True)] == expected
    assert found != host.generate(**inputs, pad_token_id=0, **settings)[:, 9:].tolist()


@pytest.mark.parametrize("model_type", DECODERS)
@torch.no_grad()
def test_identity_graft_generates_like_its_host(model_type, artifact):
    host = whole_host(model_type)
    gated = graft_layer(host, artifact, TASK, residual="gated")
    control = graft_layer(host, None, TASK)
    inputs = padded_inputs("left")
    for settings in ({}, {"num_beams": 3}, {"do_sample": True, "top_k": 10}):
        texts = []
        for each in (host, gated, control):
            torch.manual_seed(3)
            texts.append(each.generate(**inputs, max_new_tokens=STEPS, pad_token_id=0, **settings))
        assert torch.equal(texts[0], texts[1]), settings
        assert torch.equal(texts[0], texts[2]), settings


def test_loss(artifact):
    model = graft_layer(whole_host("llama"), artifact, TASK)
    inputs = make_inputs()
    labels = inputs["input_ids"].clone()
    labels[1, 5:] = -100
    out = model(**inputs, labels=labels)
    expected = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


@torch.no_grad()
def test_logits_of_the_last_token_only(artifact):
    model = graft_layer(whole_host("llama"), artifact, TASK)
    inputs = make_inputs()
    # The graft still sees the whole text.
    last = model(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(last, model(**inputs).logits[:, -1:])


def test_pipeline_and_trainer(artifact, tmp_path):
    whole_host("llama").save_pretrained(tmp_path / "llama")
    word_tokenizer(padding_side="left").save_pretrained(tmp_path / "llama")
    config = graft_layer(whole_host("llama"), artifact, TASK).config.settings
    workspace = Workspace(tmp_path / "surgery")
    folder = save_graft(tmp_path / "llama", artifact, config=config, workspace=workspace).path
    assert "pipeline_tag: text-generation" in (folder / "README.md").read_text()
    write = pipeline("text-generation", model=str(folder))
    found = write(["the film was", "a story"], max_new_tokens=3, do_sample=False, batch_size=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = GraftedModel.from_pretrained(folder)
    for text, (entry,) in zip(["the film was", "a story"], found, strict=True):
        ids = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=3, do_sample=False)
        written = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert entry["generated_text"].replace(" ", "") == written.replace(" ", "")

    rows = [{"input_ids": [1, 5, 6 + row, 2], "attention_mask": [1] * 4} for row in range(4)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collator)
    before = model.proj_in.weight.clone()
    trainer.train()
    assert not torch.equal(model.proj_in.weight, before)
    assert trainer.evaluate()["eval_loss"] > 0
