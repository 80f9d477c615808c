"""Log-likelihoods: in slices of the vocabulary they are transformers' own, or the model is refused."""

import math
from types import SimpleNamespace

import pytest
import torch

from layer_surgeon import run_layers
from layer_surgeon.donor.exit import DonorExit, plan_exit
from layer_surgeon.donor.family import family_config
from layer_surgeon.errors import UnsupportedArchitectureError
from tests.support.numbered_texts import as_text, random_tokens
from tests.support.tiny_models import save_quietly, tiny_config, tiny_model

MODELS = {
    "llama untied": ("llama", {"tie_word_embeddings": False}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "gemma2 limits its logits": ("gemma2", {"final_logit_softcapping": 0.5}),
    "gemma3 tied": ("gemma3_text", {}),
    "cohere scales its logits": ("cohere", {"logit_scale": 0.25}),
    "granite scales its logits": ("granite", {"logits_scaling": 3.0}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {}),
    "phi has a bias": ("phi", {}),
    "bert transforms first": ("bert", {"is_decoder": True}),
    "falcon": ("falcon", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.fixture(autouse=True)
def small_slices(numbered_tokenizer, monkeypatch):
    monkeypatch.setattr("layer_surgeon.run.inputs.load_checkpoint_tokenizer", lambda _: numbered_tokenizer)
    monkeypatch.setattr("layer_surgeon.run.scoring.SLICE_ROWS", 40)


@pytest.mark.parametrize(("family", "settings"), MODELS.values(), ids=MODELS)
def test_loss_is_that_of_transformers(family, settings, tmp_path):
    model = tiny_model(family, **settings)
    save_quietly(model, tmp_path)
    tokens = random_tokens((6, 11, 4))
    states = run_layers(tmp_path, [as_text(ids) for ids in tokens], layers=1, score=True)
    assert states.layers == (1,)
    total = 0.0
    for ids, row in zip(tokens, states.texts(), strict=True):
        batch = torch.tensor([ids])
        with torch.no_grad():
            loss = model(input_ids=batch, labels=batch).loss.item()
        assert -row["log_likelihood"] / (len(ids) - 1) == pytest.approx(loss, rel=1e-5)
        total += loss * (len(ids) - 1)
    assert states.perplexity == pytest.approx(math.exp(total / sum(len(ids) - 1 for ids in tokens)), rel=1e-5)
    first = states.offsets[:-1]
    assert states.log_likelihoods.isnan().nonzero()[:, 0].tolist() == first.tolist()


def llama_exit():
    plan = plan_exit(family_config(tiny_config("llama").to_dict()))
    weights = {name: torch.randn(plan.shapes[name]) for name in plan.shapes}
    return plan, weights, DonorExit.from_tensors(plan, weights, dtype=torch.float32)


def test_logits_that_depend_on_each_other_are_refused(monkeypatch):
    plan, weights, head = llama_exit()
    rows = {name: weights[name] for name in plan.sliced}
    states = torch.randn(3, 32)
    head.check_slices(rows, states)
    forward = type(head.model).forward

    def normalised(self, **arguments):
        return SimpleNamespace(logits=forward(self, **arguments).logits.softmax(-1))

    monkeypatch.setattr(type(head.model), "forward", normalised)
    with pytest.raises(UnsupportedArchitectureError, match="doesn't compute its logits as a product with one matrix"):
        head.check_slices(rows, states)


def test_logits_of_another_size_are_refused(monkeypatch):
    plan, weights, head = llama_exit()
    forward = type(head.model).forward

    def cut(self, **arguments):
        return SimpleNamespace(logits=forward(self, **arguments).logits[..., :90])

    monkeypatch.setattr(type(head.model), "forward", cut)
    with pytest.raises(UnsupportedArchitectureError, match="LlamaForCausalLM doesn't compute its logits .*--score"):
        head.check_slices({name: weights[name] for name in plan.sliced}, torch.randn(3, 32))


def test_family_without_a_language_model_is_refused():
    config = tiny_config("llama")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("layer_surgeon.donor.exit.MODEL_FOR_CAUSAL_LM_MAPPING", {})
        with pytest.raises(UnsupportedArchitectureError, match="no causal language model for LlamaConfig"):
            plan_exit(config)
