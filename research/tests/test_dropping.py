"""Layers that are dropped in memory are passed over, and perplexity is that of transformers' own loss."""

import pytest
import torch

from layer_surgeon._io import read_json
from research import dropping
from research.evidence import RESEARCH, load_plans
from tests.support.tiny_models import tiny_model

ROWS = [[3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14, 15]]


@pytest.fixture(scope="module")
def model():
    return tiny_model("gemma3_text", num_hidden_layers=6)


def test_dropped_layers_are_passed_over(model):
    ids = torch.tensor(ROWS[2:])
    shallow = dropping.without_layers(model, [1, 4])

    def pass_over(_module, arguments, _named, output):
        return arguments[0] if isinstance(output, torch.Tensor) else (arguments[0], *output[1:])

    with torch.no_grad():
        dropped = shallow(input_ids=ids, use_cache=False).logits
        hooks = [model.model.layers[index].register_forward_hook(pass_over, with_kwargs=True) for index in (1, 4)]
        expected = model(input_ids=ids, use_cache=False).logits
        for hook in hooks:
            hook.remove()
    assert torch.equal(dropped, expected)
    assert (len(model.model.layers), len(shallow.model.layers)) == (6, 4)


def test_perplexity_is_that_of_each_text_alone(model):
    with torch.no_grad():
        losses = [float(model(torch.tensor([row]), labels=torch.tensor([row])).loss) * (len(row) - 1) for row in ROWS]
    expected = torch.tensor(sum(losses) / sum(len(row) - 1 for row in ROWS)).exp()
    assert dropping.perplexity(model, ROWS) == pytest.approx(float(expected), rel=1e-4)


def test_every_arm_drops_as_many_layers_as_it_says():
    chosen = {rule: {str(count): list(range(count)) for count in dropping.COUNTS} for rule in ("influence", "block")}
    arms = list(dropping.choices(chosen, 18))
    assert len(arms) == 1 + len(dropping.COUNTS) * (3 + dropping.NUM_DRAWS)
    for _, count, dropped in arms:
        assert len(set(dropped)) == count
        assert all(0 <= layer < 18 for layer in dropped)


@pytest.mark.parametrize("count", dropping.COUNTS)
def test_the_plans_that_train_afterwards_drop_the_same_layers(count):
    measured = read_json(dropping.RESULTS)["models"]["gemma-3-270m"]
    dropped = {entry["arm"]: entry["dropped"] for entry in measured["perplexity"] if entry["count"] == count}
    arms = {arm.name: arm for arm in load_plans(RESEARCH / "reading" / "plans")[f"k-cut-{count}"].arms}
    for name, measured_as in (("influence", "influence"), ("last", "last"), ("random", "random-0")):
        assert sorted(set(range(18)) - set(arms[name].donor.layers)) == dropped[measured_as]
