"""Files that earlier versions wrote still load, and compute what they computed then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import layer_surgeon as ls
from layer_surgeon.report.load import load_report
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.plan import StudyPlan
from tests.support.command_line import surgeon_here

FIXTURES = Path(__file__).parent / "fixtures/made_by_04c75f7"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A copy of the old files, as the current folder: the study names its data by relative paths."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((FIXTURES / "expected.json").read_text())


def logits(model: Any, text: str) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained("graft")
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


def close(values: torch.Tensor, expected: list[Any]) -> bool:
    return torch.allclose(values, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_layer_artifact(folder, expected):
    ls.LayerArtifact.open("layer").verify()
    donor = ls.DonorLayer.from_pretrained("layer")
    assert close(donor(torch.tensor(expected["hidden_states"])), expected["layer"])


@pytest.mark.parametrize("name", ["graft", "run"])
def test_a_graft_and_a_run(folder, expected, name):
    assert close(logits(ls.GraftedModel.from_pretrained(name), expected["text"]), expected[name])
    auto = AutoModelForSequenceClassification.from_pretrained(name)
    assert close(logits(auto, expected["text"]), expected[name])


def test_a_graft_without_its_donor_layer(folder, expected):
    model = ls.GraftedModel.from_pretrained("graft-without-donor", donor="layer")
    assert close(logits(model, expected["text"]), expected["graft"])


def test_a_study_is_read_and_has_nothing_left_to_run(folder, expected):
    before = json.loads(Path("study/summary.json").read_text())
    assert load_report(Path("study")).summary.verdict == expected["verdict"]
    result = run_study(StudyPlan.read(Path("study/study.yaml")), Path("study"))
    assert (result.done, result.ran, result.failed, result.missing) == (8, 0, {}, 0)
    after = json.loads(Path("study/summary.json").read_text())
    assert after.pop("equivalence") is None
    # The rule that judges differences has changed since, but not the differences.
    for old_table, new_table in zip(before["tables"], after["tables"], strict=True):
        comparisons = zip(old_table.pop("comparisons"), new_table.pop("comparisons"), strict=True)
        assert all(old[key] == new[key] for old, new in comparisons for key in ("arm", "against", "seeds", "by_seed"))
    # The sentence of the result may be worded in another way.
    assert after.pop("verdict")
    assert before.pop("verdict")
    assert after == before
    assert result.summary.verdict == load_report(Path("study")).summary.verdict


def test_the_commands_take_them(folder, expected):
    (prediction,) = surgeon_here("predict", expected["text"], "--model", "run", "--json", cwd=folder).document()
    assert prediction["label"] in ("negative", "positive")
    assert surgeon_here("report", "study", "--json", cwd=folder).document()["path"]
