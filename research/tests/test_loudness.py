"""The numbers of research.loudness at tiny sizes are those computed by hand."""

import copy
import json
import math
from unittest import mock
from xml.etree import ElementTree

import pytest
import torch

from layer_surgeon.graft.matching import matching_batch
from layer_surgeon.progress import NullProgress
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.layout import StudyFolder, read_json
from layer_surgeon.study.models import build_model
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.records import as_json
from research.figures import PANELS, draw_loudness
from research.loudness import build, make_plan, train
from research.loudness_start import measure_model, measure_start, measure_sweep, own_scale
from research.loudness_watch import (
    Taps,
    Watch,
    as_text,
    cosine,
    effective_rank,
    rms,
    rounded,
)
from tests.support.studies import tiny_parts, tiny_plan

ARMS = ("host", "graft", "gated", "wide-head")
OTHERS = (
    {"name": "quiet", "like": "graft"},
    {"name": "matched", "like": "graft", "graft": {"projection_init": "matched"}},
    {"name": "folded", "like": "matched"},
)
RATE = 1e-3


class Kept(Watch):
    """A watch that keeps what its numbers were made of, for the first step."""

    def attach(self, trainer):
        super().attach(trainer)
        self.first = None

    def read_backward(self, loss):
        super().read_backward(loss)
        if self.first is None:
            gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
            self.first = {"seen": dict(self.taps.seen), "gradients": gradients, "model": copy.deepcopy(self.model)}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("loudness")
    parts = tiny_parts(root / "parts")
    finetune = {"max_steps": 2, "batch_size": 8, "learning_rate": RATE, "max_grad_norm": 0.1}
    films, shops = parts["data"]
    data = {"name": "films", "train": films, "validation": shops, "test": shops}
    plan = tiny_plan(parts | {"data": [data], "finetune": finetune, "seeds": [1]}, arms=[*ARMS, *OTHERS])
    folder = StudyFolder(root=root / "study")
    prepare_study(plan, folder, NullProgress())
    plan.write(folder.plan)
    return {cell.arm.name: cell for cell in plan.cells()}, folder


@pytest.fixture(scope="module")
def watched(study):
    cells, folder = study
    watches = {}
    for name in ARMS:
        watch, cell = Kept(), cells[name]
        with mock.patch("research.loudness.Watch", lambda watch=watch: watch):
            train(cell, folder, folder.root / "series" / f"{name}.json")
        watches[name] = watch
    return watches


def test_numbers_of_vectors():
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert rms(values) == pytest.approx(2.5)
    assert cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])) == pytest.approx(math.sqrt(2) / 3)
    # Along a line; and equally far in two directions.
    assert effective_rank(torch.tensor([[1.0, 2.0], [2.0, 4.0], [5.0, 10.0]])) == pytest.approx(1)
    assert effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])) == pytest.approx(2)
    assert rounded(123.456) == 123.5
    assert rounded(None) is None


def test_vectors_of_a_step_are_those_between_the_parts(watched):
    first, series = watched["graft"].first, watched["graft"].series
    model, seen = first["model"], first["seen"]
    inside = seen["host"] @ model.proj_in.weight.detach().T
    torch.testing.assert_close(seen["inside"], inside)
    with torch.no_grad():
        answer = model.donor(inside.unsqueeze(1), causal=True).squeeze(1)
    torch.testing.assert_close(seen["donor"], answer)
    assert series["rms_added"][0] == pytest.approx(rms(answer - inside), rel=1e-5)
    assert series["rms_out"][0] == pytest.approx(rms(answer @ model.proj_out.weight.detach().T), rel=1e-5)
    assert series["cosine_added"][0] == pytest.approx(cosine(answer - inside), rel=1e-4)
    assert torch.equal(seen["head"], seen["out"])
    assert series["saturated"][0] == float((seen["gelu"].abs() > 3).float().mean())
    with torch.no_grad():
        logits = model.head.out(torch.nn.functional.gelu(seen["gelu"]))
    assert series["rms_logits"][0] == pytest.approx(rms(logits), rel=1e-5)


def test_gradients_are_those_before_clipping(watched):
    watch = watched["graft"]
    gradients = watch.first["gradients"]
    whole = torch.cat([value.flatten() for value in gradients.values()]).norm().item()
    assert whole > 0.1
    assert watch.series["gradient"][0] == pytest.approx(whole, rel=1e-5)
    assert watch.series["clip"][0] == pytest.approx(0.1 / whole, rel=1e-4)
    assert watch.series["gradient_proj_out"][0] == pytest.approx(gradients["proj_out.weight"].norm().item(), rel=1e-5)
    parts = [watch.series[f"gradient_{part}"][0] for part in ("host", "proj_in", "proj_out", "head")]
    assert math.hypot(*parts) == pytest.approx(whole, rel=1e-5)


def test_adams_first_step_moves_each_weight_by_the_learning_rate(watched):
    watch = watched["graft"]
    weight = watch.first["model"].proj_out.weight.detach()
    expected = RATE * math.sqrt(weight.numel()) / weight.norm().item()
    assert watch.series["update_proj_out"][0] == pytest.approx(expected, rel=1e-3)


def test_a_steps_change_of_u_is_no_more_than_adam_allows(watched):
    watch = watched["graft"]
    model = watch.first["model"].eval()
    with torch.no_grad(), (taps := Taps(model)).listening() as seen:
        type(model).forward(model, **watch._probe)
    assert taps.seen is seen
    bound = RATE * seen["donor"].abs().sum(dim=-1).square().mean().sqrt().item()
    assert 0.1 * bound < watch.series["step_out_by_proj_out"][0] <= bound * 1.001


@pytest.mark.parametrize(
    ("arm", "there", "absent"),
    [
        ("host", {"rms_host", "gradient_head", "step_host"}, {"rms_out", "gradient_proj_in", "gate", "rms_added"}),
        ("gated", {"gate", "update_gate", "rms_added"}, set()),
        ("wide-head", {"rms_inside", "update_proj_in", "update_proj_out", "step_out"}, {"rms_added", "gradient_block"}),
    ],
)
def test_each_arm_has_the_numbers_of_its_parts(watched, arm, there, absent):
    series = watched[arm].series
    assert there <= set(series)
    assert not absent & set(series)
    assert {len(values) for values in series.values()} == {2}
    if arm == "gated":
        assert series["update_gate"][0] is None
        assert abs(series["gate"][0]) == pytest.approx(RATE, rel=1e-3)


def test_watching_changes_nothing(study, watched):
    cells, folder = study
    before = read_json(folder.result(cells["gated"].id))
    folder.result(cells["gated"].id).unlink()
    after = run_cell(cells["gated"], folder)
    assert list(after.history) == before["history"]
    assert as_json(after)["tests"] == before["tests"]


def test_what_is_written(study, watched):
    _, folder = study
    measured = read_json(folder.root / "series" / "graft.json")
    assert measured["series"] == watched["graft"].rounded()
    assert 0 <= measured["test_accuracy"] <= 1
    text = as_text({"a": {"b": [1.5, None, 2]}, "c": ["text"]})
    assert json.loads(text) == {"a": {"b": [1.5, None, 2]}, "c": ["text"]}
    assert "[1.5, null, 2]" in text


def test_before_training(study):
    cells, folder = study
    measured = measure_start(
        [cells[name].arm for name in ("host", "graft", "wide-head")], folder, "films", build, seed=1
    )
    graft = measured["graft"]
    assert graft["gain"] == pytest.approx(graft["rms_added"] / graft["rms_inside"], rel=1e-3)
    assert "rms_added" not in measured["wide-head"]
    assert measured["host"]["rms_host"] == graft["rms_host"]
    # A layer that begins with a norm hardly reacts to the size of its input, and does react to its direction.
    assert graft["louder"] < graft["nudged"]
    assert measured["wide-head"]["louder"] == pytest.approx(0.01, rel=0.5)


def test_layers_of_a_sweep_are_measured_with_each_seed(study):
    cells, folder = study
    graft = measure_sweep(folder)["graft"]
    assert set(graft) == {"rms_host", "rms_inside", "rms_added", "gain", "rms_out"}
    alone = measure_start([cells["graft"].arm], folder, "films", build, seed=1)["graft"]
    assert graft["gain"] == [alone["gain"]]


def test_at_its_own_scale_a_layer_adds_as_much_as_it_is_given(study):
    cells, folder = study
    model = build_model(cells["graft"].arm, "text-classification", 1, folder).eval()
    inside = torch.randn(6, model.donor.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scale = own_scale(model, inside)
        scaled = inside * (scale / rms(inside))
        added = model.donor(scaled.unsqueeze(1), causal=True).squeeze(1) - scaled
    assert rms(added) == pytest.approx(scale, rel=0.01)
    batch = {"input_ids": torch.ones(3, 4, dtype=torch.long), "attention_mask": torch.ones(3, 4, dtype=torch.long)}
    assert measure_model(model, batch | {"labels": torch.zeros(3, dtype=torch.long)})["loss"] > 0


def test_a_quiet_graft_is_as_loud_as_its_host(study):
    cells, folder = study
    plain, quiet = (build(cells[name].arm, "text-classification", 1, folder) for name in ("graft", "quiet"))
    with torch.no_grad(), (taps := Taps(quiet)).listening():
        quiet(**matching_batch(quiet))
    assert rms(taps.seen["out"]) == pytest.approx(rms(taps.seen["host"]), rel=1e-4)
    assert torch.equal(plain.proj_out.weight, quiet.proj_out.weight)
    torch.testing.assert_close(
        taps.seen["out"], taps.seen["proj_out_input"] @ quiet.proj_out.weight.detach().T, rtol=1e-4, atol=1e-5
    )


def test_a_folded_graft_says_the_same_and_is_moved_otherwise(study):
    cells, folder = study
    names = ("matched", "folded")
    models = [build(cells[name].arm, "text-classification", 1, folder) for name in names]
    with torch.no_grad():
        matched, folded = (model(**matching_batch(model)).logits for model in models)
    torch.testing.assert_close(matched, folded)
    measured = measure_start([cells[name].arm for name in names], folder, "films", build, seed=1)
    ratio = measured["folded"]["adam_step_out"] / measured["matched"]["adam_step_out"]
    assert ratio == pytest.approx(1 / float(models[0].proj_out.scale), rel=0.01)


def test_the_picture_is_the_same_each_time(watched):
    document = {"training": {name: {"series": watch.rounded()} for name, watch in watched.items()}}
    figure = draw_loudness(document)
    assert figure.stamp == draw_loudness(json.loads(json.dumps(document))).stamp
    picture = figure.svg()
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert all(f">{name}<" in picture for name in (*ARMS, *PANELS))


def test_the_plan_is_that_of_the_study(tmp_path):
    cells = make_plan(tmp_path, "packaged:gemma-3-270m").cells()
    assert [cell.arm.name for cell in cells][:2] == ["host", "graft"]
    assert {cell.seed for cell in cells} == {2023}
    assert all(cell.finetune["precision"] == "bf16" and cell.finetune["train_fraction"] == 0.1 for cell in cells)
