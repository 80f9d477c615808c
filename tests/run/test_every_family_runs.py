"""For every family: states of each depth, and log-likelihoods, are those of the whole model for each text alone.

One build and one run per family. Batches are chosen so that the longest text is alone, and the others are padded.
"""

import json

import pytest
import torch
import transformers

from layer_surgeon.errors import CheckpointError
from layer_surgeon.run import run_layers
from tests.support.exactness import find_layers
from tests.support.numbered_texts import as_text, random_tokens
from tests.support.tiny_models import save_quietly
from tools import generate_families as tool

TABLE = json.loads(tool.OUTPUT.read_text())
SAME_VERSION = transformers.__version__ == TABLE["transformers"]
LENGTHS = (7, 19, 4, 9)
BATCH_TOKENS = 27
# Families whose layers are exact, but whose checkpoints can't be run. The messages say why.
REFUSED = {
    "dory": "The config states 8 layers, but the tensors form no such stack",
}


def whole_model(model, tokens):
    """What enters the first layer, what each layer returns, and the log-likelihood of each token but the first."""
    states = []
    handles = []

    def before(_, args, kwargs):
        states.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    def after(_, args, output):
        states.append((output[0] if isinstance(output, (tuple, list)) else output).detach().clone())

    for index, layer in enumerate(find_layers(model)):
        if index == 0:
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after))
    ids = torch.tensor([tokens])
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    # Some families count differently: mamba's first hidden states are those after layer 0.
    hidden = output.hidden_states or [state[0] for state in states]
    assert all(any(torch.equal(state, listed) for listed in hidden) for state in states[1:-1])
    likelihoods = output.logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return [state[0] for state in states], likelihoods


@pytest.fixture(autouse=True)
def known_tokens(numbered_tokenizer, monkeypatch):
    """transformers loads some families' tokenizers with classes of their own, which split our words.

    The vocabulary of 96 tokens is scored in three slices.
    """
    monkeypatch.setattr("layer_surgeon.run.scoring.SLICE_ROWS", 40)
    monkeypatch.setattr("layer_surgeon.run.inputs.load_checkpoint_tokenizer", lambda _: numbered_tokenizer)


def make(family):
    overrides = {"is_decoder": True} if TABLE["families"][family].get("needs_is_decoder") else {}
    return tool.make_model(family, **overrides)


@pytest.mark.slow
@pytest.mark.skipif(not SAME_VERSION, reason="the table was made with another version of transformers")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(TABLE["families"].keys() - REFUSED))
def test_family_runs(family, tmp_path):
    model = make(family)
    save_quietly(model, tmp_path / "model")
    texts = random_tokens(LENGTHS)
    states = run_layers(
        tmp_path / "model", [as_text(tokens) for tokens in texts], pool="none", batch_tokens=BATCH_TOKENS, score=True
    )
    offsets = states.offsets.tolist()
    for index, tokens in enumerate(texts):
        expected, likelihoods = whole_model(model, tokens)
        rows = slice(offsets[index], offsets[index + 1])
        for depth in range(states.info["num_layers"] + 1):
            got = states[depth][rows]
            if len(tokens) == max(LENGTHS):
                assert torch.equal(got, expected[depth]), depth
            else:
                scale = expected[depth].abs().max()
                assert (got - expected[depth]).abs().max() <= 1e-5 * scale, depth
        torch.testing.assert_close(states.log_likelihoods[rows][1:], likelihoods, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not SAME_VERSION, reason="the table was made with another version of transformers")
@pytest.mark.parametrize("family", sorted(REFUSED))
def test_family_is_refused(family, tmp_path):
    save_quietly(make(family), tmp_path)
    with pytest.raises(CheckpointError, match=REFUSED[family]):
        run_layers(tmp_path, ["w3"])


def test_enough_families_run():
    assert len(TABLE["families"].keys() - REFUSED) >= 130
