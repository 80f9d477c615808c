"""`projection_init: matched` in a study applies to grafts, and not to hosts alone and controls."""

import json

import pytest
import torch
from transformers import BertModel

from layer_surgeon.graft.matching import is_loud, matching_batch, measure_loudness
from layer_surgeon.study import probe
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study
from tests.support.classification import Recorder, bert_config
from tests.support.finetune_tasks import task_tokenizer
from tests.support.tiny_models import save_quietly, tiny_llama

MATCHED = {"graft": {"projection_init": "matched"}}
TEXTS = ["a b", "b c", "c d", "d a"] * 5


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    save_quietly(BertModel(bert_config()), folder / "host")
    task_tokenizer().save_pretrained(folder / "host")
    save_quietly(tiny_llama(seed=5), folder / "tiny-llama")
    rows = [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "host": str(folder / "host"),
        "donor": str(folder / "tiny-llama"),
        "arms": ["host", "lora", "graft", "random", "projections-only", "wide-head"],
        "data": [{"name": "one", "train": str(folder / "train.jsonl")}],
        "seeds": [1],
    }


def ids(plan):
    return {cell.arm.name: cell.id for cell in plan.cells()}


def test_matched_applies_only_to_arms_with_a_donor(content):
    plain, matched = (StudyPlan.from_dict({**content, **settings}) for settings in ({}, MATCHED))
    assert {arm.name: "projection_init" in arm.graft for arm in matched.arms} == {
        "host": False,
        "lora": False,
        "graft": True,
        "random": True,
        "projections-only": False,
        "wide-head": False,
    }
    changed = {name for name, value in ids(matched).items() if value != ids(plain)[name]}
    assert changed == {"graft", "random"}
    assert all("projection_init" not in arm.graft for arm in plain.arms)


def test_arms_of_a_study_have_the_papers_initialisation(content, tmp_path):
    """A study's results must not change with the defaults of `surgeon graft`. Warnings are errors here."""
    llm = tiny_llama(seed=5)
    with torch.no_grad():
        llm.model.layers[3].mlp.down_proj.weight.mul_(20000)
    save_quietly(llm, tmp_path / "loud")
    folder = StudyFolder(root=tmp_path)
    plan = StudyPlan.from_dict({**content, "donor": str(tmp_path / "loud"), "arms": ["graft"]})
    prepare_study(plan, folder, Recorder())
    model = build_model(plan.arms[0], "text-classification", 1, folder)
    assert is_loud(model.config.settings, measure_loudness(model))
    assert model.config.settings.projection_init == "default"


def test_every_arm_of_a_matched_study_is_built(content, tmp_path):
    arms = [arm for arm in content["arms"] if arm != "lora"]
    folder = StudyFolder(root=tmp_path)
    plan = StudyPlan.from_dict({**content, **MATCHED, "arms": arms})
    prepare_study(plan, folder, Recorder())
    models = {arm.name: build_model(arm, "text-classification", 1, folder) for arm in plan.arms}
    assert {name: model.config.settings.projection_init for name, model in models.items()} == {
        "host": "default",
        "graft": "matched",
        "random": "matched",
        "projections-only": "default",
        "wide-head": "default",
    }


def test_a_probe_matches_every_draw(content, tmp_path, monkeypatch):
    folder = StudyFolder(root=tmp_path)
    plan = StudyPlan.from_dict({**content, **MATCHED, "arms": ["graft"]})
    prepare_study(plan, folder, Recorder())
    (arm,) = plan.arms
    models, ratios = [], []

    def build(*args):
        models.append(build_model(*args))
        return models[0]

    def score(*args):
        seen = []
        hook = models[0].donor.register_forward_hook(lambda _, args, out: seen.append((args[0], out - args[0])))
        with torch.no_grad():
            models[0](**matching_batch(models[0]))
        hook.remove()
        inside, added = (values.square().mean().sqrt().item() for values in seen[0])
        ratios.append(inside / added)
        return 0.5

    monkeypatch.setattr(probe, "build_model", build)
    monkeypatch.setattr(probe, "_accuracy", score)
    probe.probe_arm(arm, TEXTS, ["a", "b"] * 10, folder, seeds=[1, 2, 3])
    assert ratios == pytest.approx([1, 1, 1], rel=0.01)
