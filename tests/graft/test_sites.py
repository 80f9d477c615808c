"""Grafts inside the host, and after its embeddings without any layer of the host."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import GraftedModel, graft_layer
from layer_surgeon.graft.sites import checkpoints_hooks
from tests.graft.conftest import (
    DECODERS,
    host_model,
    make_inputs,
)
from tests.graft.conftest import (
    HOSTS as ALL_HOSTS,
)
from tests.support.decode_by_hand import decode_greedily
from tests.support.graft_reference import run_graft, run_head, tokens_of
from tests.support.graft_suite import LENGTHS, padded_inputs

# torch 2.11 says so where transformers compiles parts of DeBERTa.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

HOSTS = tuple(name for name in ALL_HOSTS if name != "albert")
FEATURES = "feature-extraction"
# What families do behind their last layer.
NORMS = {
    **dict.fromkeys(("llama", "qwen2"), "norm"),
    **dict.fromkeys(("t5", "mt5"), "final_layer_norm"),
    **dict.fromkeys(("mbart", "pegasus"), "layer_norm"),
    "gpt2": "ln_f",
    "gpt_neox": "final_layer_norm",
    "opt": "decoder.final_layer_norm",
    "modernbert": "final_norm",
}


def stack_of(host):
    return host.get_encoder() if host.config.is_encoder_decoder else host


def additive(mask, *, causal=False):
    length = mask.shape[1]
    seen = mask.bool()[:, None, None, :].expand(-1, 1, length, -1)
    if causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def run_bert(host, states, mask, start):
    for layer in host.encoder.layer[start:]:
        states = first(layer(states, additive(mask)))
    return states


def run_llama(host, states, mask, start):
    positions = torch.arange(states.shape[1])[None]
    rotary = host.rotary_emb(states, positions)
    for layer in host.layers[start:]:
        states = first(
            layer(
                states,
                attention_mask=additive(mask, causal=True),
                position_ids=positions,
                position_embeddings=rotary,
            )
        )
    return host.norm(states)


def run_bart(host, states, mask, start):
    for layer in host.layers[start:]:
        states = first(layer(states, additive(mask)))
    return states


RUN = {"bert": run_bert, "llama": run_llama, "bart": run_bart}


@pytest.mark.parametrize("site", [0, 1, -2])
@pytest.mark.parametrize("model_type", RUN)
@torch.no_grad()
def test_graft_after_a_layer_equals_manual_computation(model_type, site, llm, artifact):
    host = host_model(model_type)
    model = graft_layer(host, artifact, FEATURES, site=site, residual="gated")
    model.gate.fill_(0.7)
    assert model.config.settings.site == site % 2
    inputs = padded_inputs()
    mask, stack = inputs["attention_mask"], stack_of(host)
    states = stack(**inputs, output_hidden_states=True).hidden_states[0]
    layers = {"bert": lambda: stack.encoder.layer, "llama": lambda: stack.layers, "bart": lambda: stack.layers}
    number = site % 2
    everything = layers[model_type]()
    # The first layers by themselves, without what the family does behind the last.
    norm, before = NORMS.get(model_type), list(everything)
    kept = stack.get_submodule(norm) if norm else None
    if norm:
        setattr(stack, norm, nn.Identity())
    del everything[number + 1 :]
    states = RUN[model_type](stack, states, mask, 0)
    everything.extend(before[number + 1 :])
    if norm:
        setattr(stack, norm, kept)
    states = run_graft(llm, model, states, mask, causal=model_type == "llama", gate=0.7)
    expected = RUN[model_type](stack, states, mask, number + 1)
    found = model(**inputs).last_hidden_state
    torch.testing.assert_close(tokens_of(found, mask), tokens_of(expected, mask), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("model_type", HOSTS)
@torch.no_grad()
def test_graft_after_the_last_layer(model_type, artifact):
    """It equals a graft after the host, if the host does nothing after its last layer."""
    host = host_model(model_type)
    torch.manual_seed(1)
    inside = graft_layer(host, artifact, FEATURES, site=-1)
    torch.manual_seed(1)
    behind = graft_layer(host, artifact, FEATURES)
    inputs = padded_inputs()
    mask = inputs["attention_mask"]
    found = tokens_of(inside(**inputs).last_hidden_state, mask)
    other = tokens_of(behind(**inputs).last_hidden_state, mask)
    assert torch.allclose(found, other, rtol=1e-6, atol=1e-6) == (model_type not in NORMS)


@pytest.mark.parametrize("site", [0, 1])
@pytest.mark.parametrize("model_type", HOSTS)
@torch.no_grad()
def test_gated_graft_starts_as_the_host(model_type, site, artifact):
    host = host_model(model_type)
    model = graft_layer(host, artifact, FEATURES, site=site, residual="gated")
    inputs = padded_inputs()

    def states(each):
        return tokens_of(each(**inputs).last_hidden_state, inputs["attention_mask"])

    expected = states(stack_of(host))
    assert torch.equal(states(model), expected)
    model.gate.fill_(1.0)
    assert not torch.allclose(states(model), expected)
    # The caller's own model is not changed.
    assert torch.equal(states(stack_of(host)), expected)


@pytest.mark.parametrize("model_type", [name for name in HOSTS if name != "deberta-v2"])
@torch.no_grad()
def test_no_layer_of_the_host(model_type, llm, artifact):
    """Table 15 of the paper: the donor layer alone."""
    host = host_model(model_type)
    before = host.num_parameters()
    model = graft_layer(host, artifact, site="embeddings")
    inputs = padded_inputs()
    mask, stack = inputs["attention_mask"], stack_of(host)
    hidden = stack(**inputs, output_hidden_states=True).hidden_states[0]
    if model_type in NORMS:
        hidden = stack.get_submodule(NORMS[model_type])(hidden)
    causal = model_type in DECODERS
    states = run_graft(llm, model, hidden, mask, causal=causal)
    rows = {
        "cls": lambda row: states[row, 0],
        "last": lambda row: states[row, LENGTHS[row] - 1],
        "mean": lambda row: states[row, : LENGTHS[row]].mean(0),
    }[model.pooling]
    expected = run_head(model.head, torch.stack([rows(row) for row in range(3)]))
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-6, atol=1e-6)
    assert host.num_parameters() == before
    assert sum(isinstance(module, nn.ModuleList) and len(module) for module in model.host.modules()) == 0
    assert model.parameter_counts()["host"][0] < before


@pytest.mark.parametrize("site", [0, "embeddings"])
@pytest.mark.parametrize("model_type", ["bert", "llama", "t5", "bart"])
@torch.no_grad()
def test_padding_and_round_trip(model_type, site, artifact, tmp_path):
    model = graft_layer(host_model(model_type), artifact, site=site)
    for side in ("right", "left") if model_type == "llama" else ("right",):
        inputs = padded_inputs(side)
        together = model(**inputs).logits
        for row, length in enumerate(LENGTHS):
            place = slice(0, length) if side == "right" else slice(9 - length, 9)
            alone = model(**{name: value[[row], place] for name, value in inputs.items()}).logits
            torch.testing.assert_close(together[[row]], alone, rtol=1e-5, atol=2e-6)
    model.save_pretrained(tmp_path / "graft")
    loaded, info = GraftedModel.from_pretrained(tmp_path / "graft", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.config.settings.site == site
    twin = copy.deepcopy(loaded)
    twin.proj_out.weight.zero_()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert not torch.equal(twin(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_generation_with_a_graft_inside(llm, artifact):
    host = host_model("bart", auto=AutoModelForSeq2SeqLM)
    model = graft_layer(host, artifact, "seq2seq", site=0)
    inputs = padded_inputs()
    mask, encoder = inputs["attention_mask"], host.get_encoder()
    states = encoder(**inputs, output_hidden_states=True).hidden_states[1]
    states = run_bart(encoder, run_graft(llm, model, states, mask, causal=False), mask, 1)
    encoded = BaseModelOutput(last_hidden_state=states)
    settings = {"num_beams": 3, "max_new_tokens": 6, "no_repeat_ngram_size": 1}
    expected = host.generate(encoder_outputs=encoded, attention_mask=mask, **settings)
    assert torch.equal(model.generate(**inputs, **settings), expected)

    decoder = graft_layer(host_model("llama", auto=AutoModelForCausalLM), artifact, "causal-lm", site=0)
    ids = make_inputs(batch=1)["input_ids"]
    by_hand = decode_greedily(lambda text: decoder(input_ids=text).logits[:, -1], ids[0].tolist(), eos=2, steps=5)
    found = decoder.generate(input_ids=ids, max_new_tokens=5, do_sample=False, no_repeat_ngram_size=1, pad_token_id=0)
    assert found[0].tolist() == by_hand


@pytest.mark.parametrize(
    ("auto", "model_type", "task"),
    [(AutoModelForSeq2SeqLM, "t5", "seq2seq"), (AutoModelForCausalLM, "gpt2", "causal-lm")],
)
@torch.no_grad()
def test_generation_without_layers_of_the_host(auto, model_type, task, artifact, tmp_path):
    model = graft_layer(host_model(model_type, auto=auto), artifact, task, site="embeddings")
    model.save_pretrained(tmp_path / "graft")
    loaded = GraftedModel.from_pretrained(tmp_path / "graft")
    texts = [each.generate(**make_inputs(), max_new_tokens=4, pad_token_id=0) for each in (model, loaded)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("site", [0, 1, "embeddings"])
def test_a_step_changes_all_but_the_donor(site, artifact):
    model = graft_layer(host_model("bert"), artifact, site=site)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model(**padded_inputs(), labels=torch.tensor([0, 1, 1])).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"host", "proj_in", "proj_out", "head"}
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("site", [0, "encoder_output"])
def test_gradient_checkpointing(site, artifact):
    def gradients(checkpointing):
        torch.manual_seed(0)
        model = graft_layer(host_model("llama"), artifact, "token-classification", site=site, dropout=0.0)
        layer = model.host.layers[0]
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        if checkpointing and site == 0 and checkpoints_hooks(layer):
            with pytest.raises(ValueError, match="does not support gradient checkpointing"):
                enable()
        elif checkpointing:
            enable()
        model.train()
        # Two batches with other masks before either goes backward.
        labels = torch.ones(3, 9, dtype=torch.long)
        losses = [model(**inputs, labels=labels).loss for inputs in (padded_inputs(), make_inputs())]
        (losses[0] + losses[1]).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, msg=name)


def test_checkpointing_by_modules(artifact):
    """FSDP's checkpointing runs the site and its hook again in the backward pass, with the mask of that batch."""

    def gradients(checkpointing):
        torch.manual_seed(0)
        model = graft_layer(host_model("bert"), artifact, "token-classification", site=0, dropout=0.0)
        if checkpointing:
            layers = set(model.host.encoder.layer)
            apply_activation_checkpointing(model.host, check_fn=lambda module: module in layers)
        model.train()
        for inputs in (padded_inputs(), make_inputs()):
            model(**inputs, labels=torch.ones(3, 9, dtype=torch.long)).loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in grads.items()}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, msg=name)


def test_threads_have_masks_of_their_own(artifact):
    model = graft_layer(host_model("gpt2", auto=AutoModelForCausalLM), artifact, "causal-lm").eval()
    masks = [torch.ones(1, 3), torch.ones(1, 9), torch.tensor([[0] * 4 + [1] * 5]), torch.tensor([[0] * 2 + [1] * 7])]
    inputs = [{"input_ids": torch.arange(4, 4 + mask.shape[1])[None], "attention_mask": mask.long()} for mask in masks]

    @torch.no_grad()
    def run(number):
        return model(**inputs[number % len(inputs)]).logits

    expected = [run(number) for number in range(len(inputs))]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(run, range(80)))
    assert all(torch.equal(output, expected[number % len(inputs)]) for number, output in enumerate(outputs))


@torch.no_grad()
@pytest.mark.parametrize("site", [0, "encoder_output"])
def test_copies_apply_their_own_graft(site, artifact):
    model = graft_layer(host_model("bart", auto=AutoModelForSeq2SeqLM), artifact, "seq2seq", site=site)
    inputs = {**padded_inputs(), "decoder_input_ids": make_inputs(length=5)["input_ids"]}
    expected = model(**inputs).logits
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(twin(**inputs).logits, expected)
        twin.proj_out.weight.zero_()
        assert not torch.equal(twin(**inputs).logits, expected)
    assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("model_type", "site", "message"),
    [
        ("bert", 2, "site is 2, but the host has 2 layers: choose 0 to 1"),
        ("bert", -3, "site is -3, but the host has 2 layers"),
        ("t5", 7, "site is 7, but the host has 2 layers"),
        (
            "albert",
            0,
            "has 0 lists of 2 layers; expected one. .*layers share.*Choose site 'encoder_output'",
        ),
        ("albert", "embeddings", "Choose site 'encoder_output'"),
        ("deberta-v2", "embeddings", "can't run with site 'embeddings': .*Choose another site or another host"),
    ],
)
def test_sites_that_a_host_doesnt_have(model_type, site, message, artifact):
    with pytest.raises(GraftError, match=message):
        graft_layer(host_model(model_type), artifact, site=site)
