"""Encoder-decoder hosts: the graft is between encoder and decoder, and `generate` works."""

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.modeling_outputs import BaseModelOutput

from layer_surgeon.errors import ConfigError
from layer_surgeon.graft import GraftedModel, GraftedModelForSeq2SeqLM, graft_layer, save_graft
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import ENCODER_DECODERS, host_model, make_inputs, word_tokenizer
from tests.support.decode_by_hand import decode_greedily, decode_with_beams
from tests.support.graft_reference import run_graft
from tests.support.graft_suite import LENGTHS, padded_inputs

TASK = "seq2seq"
STEPS = 8


def whole_host(model_type, **overrides):
    """A host with its language head, whose next tokens vary more than those of a new model."""
    host = host_model(model_type, auto=AutoModelForSeq2SeqLM, forced_eos_token_id=None, **overrides)
    with torch.no_grad():
        for parameter in host.parameters():
            # Matrices only: a large bias would make all tokens alike.
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return host


def make_targets():
    return make_inputs(length=5, seed=2)["input_ids"]


def by_formula(llm, model, host, inputs, decoder_ids):
    """p(y) = Dec(L_out(L_LLM(L_in(Enc(x)))), y_<t), paper section 3.2, with the unchanged host."""
    mask = inputs["attention_mask"]
    hidden = host.get_encoder()(**inputs).last_hidden_state
    states = run_graft(llm, model, hidden, mask, causal=False)
    return host(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        decoder_input_ids=decoder_ids,
        use_cache=False,
    ).logits


def make_identity(model):
    """The two projections cancel each other, and the donor layer returns its input."""
    with torch.no_grad():
        model.proj_in.weight.copy_(torch.eye(*model.proj_in.weight.shape))
        model.proj_out.weight.copy_(torch.eye(*model.proj_out.weight.shape))
        model.donor.layers[0].self_attn.o_proj.weight.zero_()
        model.donor.layers[0].mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("model_type", ["t5", "bart"])
@torch.no_grad()
def test_generation_equals_manual_decoding(model_type, beams, llm, artifact):
    host = whole_host(model_type)
    model = graft_layer(host, artifact, TASK)
    inputs = padded_inputs()
    start, eos = model.generation_config.decoder_start_token_id, model.generation_config.eos_token_id
    expected = []
    for row, length in enumerate(LENGTHS):
        source = {name: value[[row], :length] for name, value in inputs.items()}

        def next_logits(ids, source=source):
            repeated = {name: value.expand(len(ids), -1) for name, value in source.items()}
            return by_formula(llm, model, host, repeated, ids)[:, -1]

        if beams == 1:
            expected.append(decode_greedily(next_logits, [start], eos=eos, steps=STEPS))
        else:
            expected.append(decode_with_beams(next_logits, [start], eos=eos, steps=STEPS, beams=beams))
    settings = {"num_beams": beams, "max_new_tokens": STEPS, "do_sample": False, "no_repeat_ngram_size": 1}
    found = model.generate(**inputs, **settings)
    rows = [row[: len(ids)] for row, ids in zip(found.tolist(), expected, strict=True)]
    assert rows == expected
    # A constant text would show nothing.
    assert len({token for ids in expected for token in ids}) > 10
    assert found.tolist() != host.generate(**inputs, **settings).tolist()


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
@torch.no_grad()
def test_identity_graft_generates_like_its_host(model_type, artifact):
    host = whole_host(model_type)
    model = make_identity(graft_layer(host, artifact, TASK))
    inputs, targets = padded_inputs(), make_targets()
    assert torch.equal(
        model(**inputs, decoder_input_ids=targets).logits, host(**inputs, decoder_input_ids=targets).logits
    )
    for settings in (
        {},
        {"num_beams": 5},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2},
        {"do_sample": True, "top_k": 10, "temperature": 1.5},
        {"use_cache": False},
    ):
        texts = []
        for each in (host, model):
            torch.manual_seed(3)
            texts.append(each.generate(**inputs, max_new_tokens=STEPS, **settings))
        assert torch.equal(*texts), settings


@torch.no_grad()
def test_the_cache_changes_nothing_and_the_graft_runs_once(artifact):
    model = graft_layer(whole_host("bart"), artifact, TASK)
    runs = []
    model.proj_in.register_forward_hook(lambda *_: runs.append(1))
    for settings in ({}, {"num_beams": 5}, {"do_sample": True}):
        texts = []
        for cached in (True, False):
            runs.clear()
            torch.manual_seed(3)
            texts.append(model.generate(**padded_inputs(), max_new_tokens=STEPS, use_cache=cached, **settings))
            assert len(runs) == 1
        assert torch.equal(*texts), settings


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
@torch.no_grad()
def test_round_trip_is_exact(model_type, artifact, tmp_path):
    model = graft_layer(whole_host(model_type), artifact, TASK)
    model.generation_config.max_length = 17
    model.save_pretrained(tmp_path / "graft")
    inputs, targets = padded_inputs(), make_targets()
    for loader in (GraftedModel, AutoModelForSeq2SeqLM):
        loaded, info = loader.from_pretrained(tmp_path / "graft", output_loading_info=True)
        assert type(loaded) is GraftedModelForSeq2SeqLM
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(
            loaded(**inputs, decoder_input_ids=targets).logits, model(**inputs, decoder_input_ids=targets).logits
        )
        assert loaded.generation_config.max_length == 17
        assert torch.equal(loaded.generate(**inputs), model.generate(**inputs))
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


@torch.no_grad()
def test_callers_host_is_unchanged(artifact):
    host = whole_host("t5")
    inputs, targets = padded_inputs(), make_targets()
    before = host(**inputs, decoder_input_ids=targets).logits
    first, second = (graft_layer(host, artifact, TASK) for _ in range(2))
    assert torch.equal(host(**inputs, decoder_input_ids=targets).logits, before)
    # Nor do grafts into the same host run one another's layers.
    make_identity(first)
    assert torch.equal(first(**inputs, decoder_input_ids=targets).logits, before)
    assert not torch.equal(second(**inputs, decoder_input_ids=targets).logits, before)
    assert torch.equal(graft_layer(host, None, TASK)(**inputs, decoder_input_ids=targets).logits, before)
    gated = graft_layer(host, artifact, TASK, residual="gated")
    assert torch.equal(gated(**inputs, decoder_input_ids=targets).logits, before)


@torch.no_grad()
def test_source_that_is_already_encoded(artifact):
    model = graft_layer(whole_host("bart"), artifact, TASK)
    inputs, targets = padded_inputs(), make_targets()
    encoded = model.get_encoder()(**inputs)
    mask = inputs["attention_mask"]
    expected = model(**inputs, decoder_input_ids=targets)
    again = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=targets)
    assert torch.equal(again.logits, expected.logits)
    assert torch.equal(encoded.last_hidden_state, expected.encoder_last_hidden_state)
    as_tuple = model(**inputs, decoder_input_ids=targets, return_dict=False)
    assert torch.equal(as_tuple[0], expected.logits)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_trainer(model_type, artifact, tmp_path):
    model = graft_layer(whole_host(model_type), artifact, TASK)
    tokenizer = word_tokenizer()
    rows = [{"input_ids": [1, 5, 6 + row, 2], "labels": [7, 8 + row, 2]} for row in range(4)]
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        label_smoothing_factor=0.05,
        predict_with_generate=True,
        generation_max_length=6,
        generation_num_beams=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    before = model.proj_in.weight.clone()
    trainer.train()
    assert not torch.equal(model.proj_in.weight, before)
    assert len(trainer.predict(rows).predictions) == 4


def test_a_stored_host_keeps_its_language_head(artifact, tmp_path):
    host = whole_host("bart")
    host.save_pretrained(tmp_path / "bart")
    word_tokenizer().save_pretrained(tmp_path / "bart")
    config = graft_layer(host, artifact, TASK).config.settings
    result = save_graft(tmp_path / "bart", artifact, config=config, workspace=Workspace(tmp_path / "surgery"))
    model = GraftedModel.from_pretrained(result.path)
    assert torch.equal(model.get_output_embeddings().weight, host.get_output_embeddings().weight)
    assert set(result.parameters) == {"host", "proj_in", "donor", "proj_out"}
    card = (result.path / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card
    assert "Labels" not in card
    with pytest.raises(ConfigError, match="seq2seq has none"):
        model.set_labels(["a", "b"])
