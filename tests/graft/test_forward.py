"""A grafted model computes the paper's formulas, which are written out here with the layer of the whole LLM."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import graft_layer
from tests.graft.conftest import (
    DECODERS,
    HOSTS,
    host_model,
    make_inputs,
)

# torch 2.11 says so where transformers compiles parts of DeBERTa.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def run_layer(llm, states):
    """Layer 3 of the whole Llama on [batch, 1, width] at position 0, called as in its own model."""
    positions = torch.zeros(states.shape[0], 1, dtype=torch.long)
    rotary = llm.model.rotary_emb(states, positions)
    out = llm.model.layers[3](states, position_embeddings=rotary, attention_mask=None, position_ids=positions)
    return out[0] if isinstance(out, tuple) else out


def reference(llm, model, pooled, *, gate=None):
    """y = Head(L_out(L_LLM(L_in(h)))), paper section 3.1; Head = Linear, Dropout (off), GELU, Linear."""
    z = pooled @ model.proj_in.weight.T
    u = run_layer(llm, z[:, None])[:, 0]
    v = u @ model.proj_out.weight.T
    if gate is not None:
        v = pooled + gate * v
    head = model.head
    return functional.gelu(v @ head.dense.weight.T + head.dense.bias) @ head.out.weight.T + head.out.bias


def pool(hidden, mask, pooling):
    rows = []
    for states, keep in zip(hidden, mask.bool(), strict=True):
        real = states[keep]
        rows.append(
            {"cls": real[0], "last": real[-1], "mean": real.mean(0), "mean_with_padding": states.mean(0)}[pooling]
        )
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "mean_with_padding", "last", "cls"])
@torch.no_grad()
def test_pooling(pooling, llm, artifact):
    host = host_model("bert")
    model = graft_layer(host, artifact, pooling=pooling)
    inputs = make_inputs()
    inputs["attention_mask"][1, 5:] = 0
    pooled = pool(host(**inputs).last_hidden_state, inputs["attention_mask"], pooling)
    torch.testing.assert_close(model(**inputs).logits, reference(llm, model, pooled), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model_type", HOSTS)
@torch.no_grad()
def test_mean_ignores_padding(model_type, artifact):
    model = graft_layer(host_model(model_type), artifact, pooling="mean")
    lengths = (9, 4, 6)
    ids = make_inputs()["input_ids"]
    alone = torch.cat([model(input_ids=ids[[row], :length]).logits for row, length in enumerate(lengths)])
    for side in ("right", "left") if model_type in DECODERS else ("right",):
        padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            place = slice(0, length) if side == "right" else slice(9 - length, 9)
            padded[row, place], mask[row, place] = ids[row, :length], 1
        together = model(input_ids=padded, attention_mask=mask).logits
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6, msg=lambda text, side=side: f"{side}: {text}")


@torch.no_grad()
def test_mean_with_padding_counts_padding(artifact):
    model = graft_layer(host_model("bert"), artifact, pooling="mean_with_padding")
    ids = make_inputs(batch=1)["input_ids"]
    longer = torch.nn.functional.pad(ids, (0, 3))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 3))
    assert not torch.allclose(model(input_ids=ids).logits, model(input_ids=longer, attention_mask=mask).logits)


@torch.no_grad()
def test_decoder_without_mask_finds_the_last_token(artifact):
    model = graft_layer(host_model("llama"), artifact)
    inputs = make_inputs()
    inputs["input_ids"][1, 5:], inputs["attention_mask"][1, 5:] = 0, 0
    torch.testing.assert_close(model(input_ids=inputs["input_ids"]).logits, model(**inputs).logits)


@pytest.mark.parametrize("site", ["encoder_output", 0])
@torch.no_grad()
def test_decoder_without_mask_ignores_padding_on_the_left(site, artifact):
    model = graft_layer(host_model("llama"), artifact, site=site)
    ids = make_inputs()["input_ids"]
    padded = torch.nn.functional.pad(ids, (4, 0))
    torch.testing.assert_close(model(input_ids=padded).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_decoder_without_mask_and_padding_token(artifact):
    model = graft_layer(host_model("llama", pad_token_id=None), artifact)
    ids = make_inputs()["input_ids"]
    assert model(input_ids=ids[:1]).logits.shape == (1, 2)
    with pytest.raises(GraftError, match="has no padding token.*Pass the attention_mask"):
        model(input_ids=ids)


@torch.no_grad()
def test_embeddings_instead_of_ids(artifact):
    model = graft_layer(host_model("bert"), artifact)
    inputs = make_inputs()
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(
        model(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).logits, model(**inputs).logits
    )


@torch.no_grad()
def test_segments_are_used_if_the_host_has_them(artifact):
    inputs = make_inputs()
    segments = torch.ones_like(inputs["input_ids"])
    for model_type, used in (("bert", True), ("distilbert", False), ("llama", False)):
        model = graft_layer(host_model(model_type), artifact)
        same = torch.equal(model(**inputs).logits, model(**inputs, token_type_ids=segments).logits)
        assert same != used, model_type


@torch.no_grad()
def test_gate_starts_at_the_host(llm, artifact):
    host = host_model("bert")
    torch.manual_seed(3)
    model = graft_layer(host, artifact, residual="gated")
    inputs = make_inputs()
    pooled = host(**inputs).last_hidden_state[:, 0]
    assert torch.equal(model.graft(pooled[:, None])[:, 0], pooled)
    assert torch.equal(model(**inputs).logits, model.head(pooled))
    model.gate.fill_(0.7)
    torch.testing.assert_close(model(**inputs).logits, reference(llm, model, pooled, gate=0.7), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_control_arm_is_the_host_with_the_same_head():
    host = host_model("bert")
    model = graft_layer(host, None)
    assert model.donor is None
    assert model.proj_in is None
    assert model.proj_out is None
    inputs = make_inputs()
    assert torch.equal(model(**inputs).logits, model.head(host(**inputs).last_hidden_state[:, 0]))
    assert set(model.parameter_counts()) == {"host", "head"}


@torch.no_grad()
def test_donor_in_bfloat16(llm, artifact):
    host = host_model("bert")
    model = graft_layer(host, artifact, donor_dtype="bfloat16")
    assert {p.dtype for p in model.donor.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.proj_in.parameters()} == {torch.float32}
    inputs = make_inputs()
    logits = model(**inputs).logits
    assert logits.dtype == torch.float32
    exact = reference(llm, model, host(**inputs).last_hidden_state[:, 0])
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(logits, exact)


def test_host_outputs_on_request(artifact):
    model = graft_layer(host_model("bert"), artifact)
    out = model(**make_inputs(), output_hidden_states=True)
    assert len(out.hidden_states) == 3
    assert model(**make_inputs()).hidden_states is None
    logits, *rest = model(**make_inputs(), return_dict=False)
    assert logits.shape == (3, 2)
    assert not rest


@pytest.mark.parametrize(
    ("auto", "host", "task", "field"),
    [
        (AutoModel, "bert", "text-classification", "hidden_states"),
        (AutoModelForCausalLM, "gpt2", "causal-lm", "hidden_states"),
        (AutoModelForSeq2SeqLM, "t5", "seq2seq", "encoder_hidden_states"),
    ],
)
def test_host_outputs_that_the_config_asks_for(auto, host, task, field, artifact):
    model = graft_layer(host_model(host, auto=auto), artifact, task).eval()
    inputs = make_inputs() | ({"labels": make_inputs()["input_ids"]} if task == "seq2seq" else {})
    assert getattr(model(**inputs), field) is None
    model.config.output_hidden_states = True
    assert len(getattr(model(**inputs), field)) == 3
    assert getattr(model(**inputs, output_hidden_states=False), field) is None


def test_masks_of_other_shapes_are_refused(artifact):
    model = graft_layer(host_model("bert"), artifact)
    inputs = make_inputs()
    with pytest.raises(GraftError, match=r"attention_mask has 4 dimensions; it must be \[batch, seq\]"):
        model(input_ids=inputs["input_ids"], attention_mask=torch.ones(3, 1, 9, 9))


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0]), "regression"),
        (3, torch.tensor([0, 2, 1]), "single_label_classification"),
        (3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]]), "multi_label_classification"),
    ],
)
def test_loss_follows_the_labels(num_labels, labels, problem_type, artifact):
    model = graft_layer(host_model("bert"), artifact, num_labels=num_labels)
    out = model(**make_inputs(), labels=labels)
    expected = {
        "regression": lambda: functional.mse_loss(out.logits.squeeze(), labels),
        "single_label_classification": lambda: functional.cross_entropy(out.logits, labels),
        "multi_label_classification": lambda: functional.binary_cross_entropy_with_logits(out.logits, labels),
    }[problem_type]()
    torch.testing.assert_close(out.loss, expected)
    assert model.config.problem_type == problem_type
