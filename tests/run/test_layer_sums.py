"""The measures of layers equal their published definitions, and those of scikit-learn, whatever the batches are."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from layer_surgeon.run import layer_sums
from layer_surgeon.run.layer_sums import HELD_OUT_EVERY, BlockSums
from layer_surgeon.run.moments import RIDGE_PENALTY

LENGTHS = [9, 1, 14, 30, 6, 12, 8, 17, 3, 11, 25, 7]
WIDTH = 6


def random_states(seed=0):
    """The states of all texts before and after a layer that is partly linear, with one massive dimension."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(sum(LENGTHS), WIDTH, generator=generator) * torch.tensor([1, 1, 2, 0.5, 1, 40.0]) + 3
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / 3
    after = before + before @ mixing + 0.7 * torch.randn(before.shape, generator=generator)
    return before, after


def measure(before, after, batches, *, linear=True, texts=None):
    """Measure in batches of texts; the states are in the order of the texts."""
    sums = BlockSums(4, 2, linear=linear)
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    for batch in batches:
        tokens = np.concatenate([np.arange(starts[text], starts[text + 1]) for text in batch])
        sums.add(batch, [LENGTHS[text] for text in batch], before[tokens], after[tokens])
    return sums.measure()


ONE_BATCH = [list(range(len(LENGTHS)))]
SEVERAL = [[1, 8, 4], [11, 6, 0, 9], [5, 2, 7], [10], [3]]


@pytest.mark.parametrize("batches", [ONE_BATCH, SEVERAL], ids=["one batch", "several"])
@pytest.mark.parametrize("chunk", [1, 1024])
def test_published_definitions(batches, chunk, monkeypatch):
    monkeypatch.setattr(layer_sums, "_CHUNK_TOKENS", chunk)
    before, after = random_states()
    measured = measure(before, after, batches)
    a, b = before.double(), after.double()
    cosines = torch.nn.functional.cosine_similarity(a, b, dim=1)
    last = torch.tensor(LENGTHS).cumsum(0) - 1
    assert (measured.layer, measured.num_layers) == (4, 2)
    assert measured.block_influence == pytest.approx(float(1 - cosines.mean()), abs=1e-12)
    assert measured.angular_distance == pytest.approx(float(cosines[last].arccos().mean()) / math.pi, abs=1e-9)
    assert measured.rms_in == pytest.approx(float(a.square().mean().sqrt()))
    assert measured.rms_added == pytest.approx(float((b - a).square().mean().sqrt()))
    assert measured.loudness == pytest.approx(float((b.square().mean() / a.square().mean()).sqrt()))
    energy = b.square().sum(0)
    assert measured.massive_dimension == int(energy.argmax()) == 5
    assert measured.massive_share == pytest.approx(float(energy.max() / energy.sum()))


@pytest.mark.parametrize("batches", [ONE_BATCH, SEVERAL], ids=["one batch", "several"])
def test_linear_maps_equal_those_of_scikit_learn(batches):
    before, after = random_states()
    measured = measure(before, after, batches)
    held_out = np.repeat([text % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for text in range(len(LENGTHS))], LENGTHS)
    x, y = before.double().numpy(), after.double().numpy()
    scaler = StandardScaler().fit(x[~held_out])
    for target, r2 in ((y, measured.linear_r2), (y - x, measured.linear_r2_added)):
        ridge = Ridge(alpha=RIDGE_PENALTY * int((~held_out).sum()))
        ridge.fit(scaler.transform(x[~held_out]), target[~held_out])
        expected = r2_score(target[held_out], ridge.predict(scaler.transform(x[held_out])))
        assert r2 == pytest.approx(expected, abs=1e-8)
    assert 0.1 < measured.linear_r2_added < measured.linear_r2 < 1


def test_constant_dimensions_are_left_out():
    before, after = random_states()
    before[:, 2], after[:, 2] = 0, 0
    before[:, 3] = 5
    measured = measure(before, after, ONE_BATCH)
    assert math.isfinite(measured.linear_r2)
    assert math.isfinite(measured.linear_r2_added)


def test_a_layer_that_does_nothing():
    before, _ = random_states()
    measured = measure(before, before, SEVERAL)
    assert measured.block_influence == pytest.approx(0, abs=1e-12)
    assert measured.angular_distance == pytest.approx(0, abs=1e-7)
    assert measured.rms_added == 0
    assert measured.loudness == pytest.approx(1)
    assert measured.linear_r2 == pytest.approx(1, abs=1e-4)
    assert measured.linear_r2_added is None


def test_without_linear_maps_or_with_too_few_texts():
    before, after = random_states()
    assert measure(before, after, ONE_BATCH, linear=False).linear_r2 is None
    assert measure(before, after, [[0, 1, 2, 3]]).linear_r2 is None
    assert measure(before, after, [[0, 1, 2, 3]]).block_influence > 0


def test_states_of_zeros_give_numbers():
    zeros = torch.zeros(sum(LENGTHS), WIDTH)
    measured = measure(zeros, zeros, ONE_BATCH)
    assert (measured.block_influence, measured.rms_in, measured.massive_share) == (1, 0, 0)
    assert measured.loudness is None


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="no tokens to measure"):
        BlockSums(0, 1, linear=True).measure()
