"""Measures of a model that runs layer by layer equal those of the whole model in memory."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from layer_surgeon import measure_layers
from layer_surgeon.errors import CheckpointError, ConfigError, DataError
from layer_surgeon.run import measures as measures_module
from layer_surgeon.run import run_layers
from layer_surgeon.run.measures import format_layers
from layer_surgeon.run.states import STATES_FILE
from tests.support.numbered_texts import as_text, random_tokens, save_numbered_tokenizer
from tests.support.tiny_models import save_quietly, tiny_llama

NUM_LAYERS = 6
IDLE = 3
TOKENS = random_tokens([5, 9, 1, 14, 7, 7, 12, 3, 20, 2])
TEXTS = [as_text(tokens) for tokens in TOKENS]
FIELDS = ("block_influence", "angular_distance", "rms_in", "rms_added", "loudness", "massive_share", "linear_r2")


@pytest.fixture(scope="module")
def model():
    """A model of 6 layers, of which layer 3 adds nothing."""
    model = tiny_llama(num_hidden_layers=NUM_LAYERS)
    with torch.no_grad():
        model.model.layers[IDLE].self_attn.o_proj.weight.zero_()
        model.model.layers[IDLE].mlp.down_proj.weight.zero_()
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_quietly(model, folder)
    save_numbered_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def measured(folder):
    return measure_layers(folder, TEXTS, block=2, batch_tokens=32, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def states(model):
    """All states of the whole model in memory for each text alone: by depth, [tokens, width] in float64."""
    # transformers applies the final norm to the last states.
    model.model.norm = torch.nn.Identity()
    with torch.no_grad():
        outputs = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in TOKENS]
    return [[text[depth][0].double() for text in outputs] for depth in range(NUM_LAYERS + 1)]


@pytest.mark.parametrize("length", [1, 2])
def test_definitions_on_the_whole_model(measured, states, length):
    measures = measured.layers if length == 1 else measured.blocks
    assert [measure.layer for measure in measures] == list(range(NUM_LAYERS + 1 - length))
    for measure in measures:
        texts_before, texts_after = states[measure.layer], states[measure.layer + length]
        before, after = torch.cat(texts_before), torch.cat(texts_after)
        cosine = torch.nn.functional.cosine_similarity(before, after)
        assert measure.block_influence == pytest.approx(float(1 - cosine.mean()), abs=1e-6)
        last_cosine = torch.stack(
            [
                torch.nn.functional.cosine_similarity(a[-1], b[-1], dim=0)
                for a, b in zip(texts_before, texts_after, strict=True)
            ]
        )
        angles = last_cosine.clamp(-1, 1).arccos() / math.pi
        # An angle of 1e-4 has a cosine that differs from 1 by the rounding of float32.
        assert measure.angular_distance == pytest.approx(
            float(angles.mean()), abs=1e-6 if angles.min() > 0.01 else 1e-4
        )
        assert measure.rms_in == pytest.approx(float(before.square().mean().sqrt()), rel=1e-5)
        assert measure.rms_added == pytest.approx(float((after - before).square().mean().sqrt()), rel=1e-5, abs=1e-6)
        assert measure.num_layers == length


def test_the_layer_that_does_nothing_is_the_first_to_drop(measured):
    assert measured.suggest_drop(1) == (IDLE,)
    assert IDLE in measured.suggest_drop(3)
    assert measured.suggest_drop(1, "block") == (IDLE,)
    assert IDLE in measured.suggest_drop(2, "block")
    assert measured.layers[IDLE].rms_added == 0


def test_states_of_an_earlier_run_give_the_same_measures(folder, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(measures_module, "_BATCH_TOKENS", 20)
    run_layers(folder, TEXTS, pool="none", output=tmp_path / "states", dtype="float32", device="cpu")
    again = measure_layers(tmp_path / "states", block=2)
    assert (again.num_texts, again.num_tokens) == (measured.num_texts, measured.num_tokens) == (10, 80)
    # `--suggest-drop` cuts layers out of the model, and not out of the states.
    assert again.source == measured.source
    for one, other in zip((*again.layers, *again.blocks), (*measured.layers, *measured.blocks), strict=True):
        for field in FIELDS:
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-4, abs=1e-5)


def test_states_that_are_not_finite(folder, tmp_path):
    """Earlier versions stored them, and then any layers would be the ones to drop."""
    states = run_layers(folder, TEXTS, pool="none", output=tmp_path / "states", device="cpu")
    path = states.path / STATES_FILE
    tensors = load_file(path)
    for tensor in filter(torch.is_floating_point, tensors.values()):
        tensor.fill_(torch.nan)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="The states of some tokens are infinite or NaN"):
        measure_layers(states.path)


def test_states_that_are_not_enough(folder, tmp_path):
    pooled = run_layers(folder, TEXTS, pool="mean", device="cpu", output=tmp_path / "pooled")
    with pytest.raises(DataError, match="with pool mean.*run the model again with --pool none"):
        measure_layers(pooled)
    some = run_layers(folder, TEXTS, pool="none", layers="0,2,3", device="cpu", output=tmp_path / "some")
    with pytest.raises(DataError, match="the states after 0,2:4 layers"):
        measure_layers(some)
    with pytest.raises(ConfigError, match="states of an earlier run, so texts, a revision and settings"):
        measure_layers(pooled, TEXTS)


def test_impossible_arguments(folder, measured):
    with pytest.raises(DataError, match="Texts are missing"):
        measure_layers(folder)
    for block in (1, NUM_LAYERS + 1):
        with pytest.raises(ConfigError, match=f"A block has {block} layers; it must have 2 to 6"):
            measure_layers(folder, TEXTS, block=block)
    with pytest.raises(ConfigError, match="6 of 6 layers can't be dropped"):
        measured.suggest_drop(6)
    with pytest.raises(ConfigError, match="Blocks of 3 layers were not measured, but of 2"):
        measured.suggest_drop(3, "block")


@pytest.mark.parametrize(
    ("layers", "text"), [((3,), "3"), ((3, 7), "3,7"), ((3, 4, 7, 10, 11, 12), "3:5,7,10:13"), ((0, 1), "0:2")]
)
def test_layers_as_assemble_takes_them(layers, text):
    assert format_layers(layers) == text
