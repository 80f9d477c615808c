"""`surgeon compare`, `sweep`, `select` and `synthesize`, called as from a shell."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

from layer_surgeon.errors import WorkspaceError
from layer_surgeon.report.load import load_report
from layer_surgeon.study import compare
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.synthesis_config import SynthesisConfig
from layer_surgeon.study.synthesize import synthesize
from layer_surgeon.workspace import Workspace
from layer_surgeon_cli.compare import make_plan
from layer_surgeon_cli.errors import UsageError
from layer_surgeon_cli.main import app
from layer_surgeon_cli.sweep import sweep_plan
from layer_surgeon_cli.ui import Ui
from tests.support.finetune_tasks import task_tokenizer, tiny_gpt2
from tests.support.studies import read_cells, run_in_this_process, tiny_parts
from tests.support.tiny_models import save_quietly


def surgeon(*arguments):
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def plan_file(parts, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**parts, "arms": ["host", "wide-head"], "data": parts["data"][:1]}))
    return path


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(compare, "run_local", run_in_this_process)


def test_the_same_options_continue_a_study_and_others_are_refused(tmp_path):
    donor = {"source": "b/llm", "layer": 3}
    overrides = {"host": "a/bert", "donor": donor, "arms": ["host", "graft"], "data": ["sst2"]}
    options = {"config": None, "preset": None, "scale": "full", "output": tmp_path, "num_seeds": 2, "ui": None}
    settings = {"finetune": {"learning_rate": 5e-5, "num_epochs": 2.0}}
    first = make_plan(**options, overrides=overrides, settings=settings)
    first.write(tmp_path / "study.yaml")
    assert make_plan(**options, overrides=overrides, settings=settings) == first
    with pytest.raises(UsageError, match="these options make a different one"):
        make_plan(**options, overrides=overrides, settings={})


def test_the_options_for_a_donor_replace_those_of_the_plan(tmp_path):
    plan = tmp_path / "mine.yaml"
    plan.write_text(
        yaml.safe_dump({"donor": {"source": "b/llm", "revision": "v1"}, "layers": [1, 2], "data": ["sst2"]})
    )
    options = {"config": plan, "preset": None, "scale": "full", "output": tmp_path, "num_seeds": 1, "ui": None}

    def donors(**donor):
        made = make_plan(**options, overrides={"donor": donor}, settings={})
        return {(arm.donor.source, arm.donor.revision, arm.donor.layers) for arm in made.arms if arm.donor}

    assert donors(source=None, layer=3) == {("b/llm", "v1", (3,))}
    assert donors(source="c/llm", layer=3) == {("c/llm", None, (3,))}
    for named, several in (({"donors": ["b/llm", "c/llm"]}, "several"), ({}, "none")):
        plan.write_text(yaml.safe_dump({**named, "data": ["sst2"]}))
        with pytest.raises(UsageError, match=f"--layer needs one donor, but the plan names {several}"):
            donors(source=None, layer=3)


def test_an_empty_name_and_unordered_seeds(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": None, "arms": ["host"], "seeds": [2025, 2023]}))
    options = {"config": path, "preset": None, "scale": "full", "output": tmp_path, "settings": {}, "ui": None}
    made = make_plan(**options, overrides={}, num_seeds=4)
    assert (made.name, made.seeds) == ("mine", (2025, 2023, 2026, 2027))


def test_a_part_of_a_plan_is_chosen_by_name_and_has_the_same_trainings(tmp_path):
    path = tmp_path / "mine.yaml"
    plan = {
        "donor": "b/llm",
        "arms": [
            "host",
            {"name": "slow", "like": "graft", "finetune": {"learning_rate": 1e-5}},
            {"name": "slow-mean", "like": "slow", "graft": {"pooling": "mean"}},
        ],
        "data": [{"name": "cr", "train": "cr.csv", "max_test_samples": 9}, "sst2"],
        "seeds": [7, 8],
        "focus": "slow",
    }
    path.write_text(yaml.safe_dump(plan))
    options = {"config": path, "preset": None, "scale": "full", "output": tmp_path, "settings": {}, "ui": None}
    whole = make_plan(**options, overrides={}, num_seeds=None)
    part = make_plan(**options, overrides={"arms": ["host", "slow-mean"], "data": ["cr"]}, num_seeds=1)
    wanted = {("host", "cr", 7), ("slow-mean", "cr", 7)}
    assert {cell.id for cell in part.cells()} == {
        cell.id for cell in whole.cells() if (cell.arm.name, cell.data, cell.seed) in wanted
    }
    assert (part.focus, len(part.cells())) == (None, 2)
    # Built-in arms and other data sets are still known by their names, and seeds go on after the last one.
    other = make_plan(**options, overrides={"arms": ["host", "slow", "wide-head"], "data": ["cola"]}, num_seeds=4)
    assert [arm.name for arm in other.arms] == ["host", "slow", "wide-head"]
    assert ([spec.train for spec in other.data], other.seeds, other.focus) == ([("cola",)], (7, 8, 9, 10), "slow")


def test_compare_runs_a_plan_file_and_repeats_it_from_its_folder(plan_file, here, tmp_path):
    place = tmp_path / "study"
    first = surgeon("compare", "--config", str(plan_file), "--output", str(place), "--num-seeds", "1", "--json")
    assert first.exit_code == 0, first.stderr
    document = json.loads(first.stdout)
    assert (document["done"], document["ran"], document["failed"]) == (2, 2, {})
    assert document["tables"] == json.loads((place / "summary.json").read_text())["tables"]
    again = surgeon("compare", "--output", str(place))
    assert again.exit_code == 0, again.stderr
    assert "2 done, 0 of them now" in again.stdout
    assert "wide-head" in again.stdout
    refused = surgeon("compare", "--output", str(place), "--set", "finetune.num_epochs=2")
    assert refused.exit_code == 2
    assert "holds the complete plan of a study" in refused.stderr
    # The page at the end, and the command that it names.
    assert document["report"] == str(place / "report" / "report.html")
    assert "report/report.html" in again.stdout
    assert (place / "report" / "report.html").read_text().startswith("<!doctype html>")
    repeated = surgeon(*shlex.split(load_report(place).command)[1:], "--json")
    assert repeated.exit_code == 0, repeated.stderr
    rows = json.loads(repeated.stdout)["tables"][0]["rows"]
    assert [row["by_seed"] for row in rows] == [row["by_seed"] for row in document["tables"][0]["rows"]]
    assert (tmp_path / "study-again" / "summary.json").is_file()


def test_columns_are_named_with_set_and_a_study_that_failed_on_its_data_does_not_block_its_folder(
    parts, here, tmp_path
):
    reviews = tmp_path / "mine.csv"
    texts = (f"{word} film was the plot {number}" for number in range(12) for word in ("good", "bad"))
    reviews.write_text("comment,kind,topic\n" + "".join(f"{text},x,{text.split()[0]}\n" for text in texts))
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({**parts, "arms": ["host"], "data": [str(reviews)], "seeds": [1]}))
    command = ("compare", "--config", str(plan), "--output", str(tmp_path / "study"), "--json")
    failed = surgeon(*command)
    assert (failed.exit_code, "mine.csv has no label column" in failed.output) == (1, True), failed.output
    assert not (tmp_path / "study" / "study.yaml").exists()
    columns = ("--set", "finetune.label_column=topic", "--set", "finetune.text_column=comment")
    corrected = surgeon(*command, *columns)
    assert corrected.exit_code == 0, corrected.stdout
    assert json.loads(corrected.stdout)["done"] == 1
    test_rows = (tmp_path / "study" / "data" / "mine" / "test.jsonl").read_text().splitlines()
    assert {json.loads(row)["label"] for row in test_rows} == {"good", "bad"}


def test_a_dry_run_counts_trainings_and_estimates_their_time(plan_file, tmp_path):
    place = tmp_path / "study"
    result = surgeon("compare", "--config", str(plan_file), "--output", str(place), "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["cells"], document["done"]) == (4, 0)
    assert set(document["seconds_per_step"]) == {"host", "wide-head"}
    assert document["seconds"] > 0
    assert not list(place.glob("cells/*"))


def test_zero_is_a_value(tmp_path, plan_file):
    messages = {
        "--num-seeds": "--num-seeds is 0; it must be at least 1.",
        "--equivalence": "equivalence is 0.0; it must be a positive number.",
        "--workers": "Input should be greater than or equal to 1",
    }
    for option, message in messages.items():
        refused = surgeon("compare", "--config", str(plan_file), "--output", str(tmp_path / "study"), option, "0")
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
    several = yaml.safe_load(plan_file.read_text())
    several["donors"] = [several.pop("donor")]
    plan_file.write_text(yaml.safe_dump(several))
    swept = surgeon("sweep", "--config", str(plan_file), "--output", str(tmp_path / "sweep"))
    assert (swept.exit_code, "A sweep compares the layers of one donor" in swept.stderr) == (2, True)


def test_wrong_options_are_refused(tmp_path, plan_file):
    both = surgeon("compare", "--config", str(plan_file), "--preset", "table-5")
    assert (both.exit_code, "one plan" in both.stderr) == (2, True)
    unknown = surgeon("compare", "--preset", "table-99")
    assert (unknown.exit_code, "There is no preset" in unknown.stderr) == (2, True)
    # Nothing is trained for this table, so the command names those that measure its rows.
    profiled = surgeon("compare", "--preset", "table-16")
    assert (profiled.exit_code, "surgeon profile google-bert" in profiled.stdout) == (0, True)
    taken = tmp_path / "taken.jsonl"
    taken.touch()
    there = surgeon("synthesize", "gpt2", "-l", "a", "-l", "b", "--output", str(taken))
    assert (there.exit_code, "--force" in there.stderr) == (2, True)


def test_synthesize_writes_texts_for_each_label(tmp_path):
    folder = tmp_path / "writer"
    save_quietly(tiny_gpt2(), folder)
    task_tokenizer().save_pretrained(folder)
    result = synthesize(
        SynthesisConfig(model=str(folder), labels=("good", "bad"), per_label=7, max_new_tokens=6, batch_size=4),
        output=tmp_path / "texts.jsonl",
    )
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert result.counts == {"good": 7, "bad": 7}
    assert [row["label"] for row in rows] == ["good"] * 7 + ["bad"] * 7
    assert len({(row["text"], row["label"]) for row in rows}) == 14
    assert all(row["text"].strip() == row["text"] != "" for row in rows)

    settings = ("--per-label", "3", "--max-new-tokens", "6", "--prompt", "{label} is :")
    done = surgeon(
        "synthesize", str(folder), "-l", "good", "-l", "bad", "-o", str(tmp_path / "more.jsonl"), *settings, "--json"
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == {"good": 3, "bad": 3}
    for option, value, message in (
        ("--max-new-tokens", "999", r"prompt has \d+ tokens and max_new_tokens is 999, but .* has only \d+ positions"),
        ("--seed", "-1", "seed is -1; it must be a whole number from 0 to 4294967295"),
    ):
        refused = surgeon(
            "synthesize", str(folder), "-l", "a", "-l", "b", "-o", str(tmp_path / "no.jsonl"), option, value
        )
        assert refused.exit_code == 2, refused.output
        assert re.search(message, " ".join(refused.stderr.split())), refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a group of processes")
def test_a_killed_study_continues(plan_file, here, tmp_path):
    """After kill -9 of the command and its trainings, the study continues, and its table is the same as without."""
    command = [sys.executable, "-m", "layer_surgeon_cli.main", "compare", "--config", str(plan_file), "--quiet"]
    killed = subprocess.Popen(
        [*command, "--output", str(tmp_path / "killed")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    cells = tmp_path / "killed" / "cells"
    while not any(cells.glob("*.json")):
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 1 <= len(done) < 4

    for place in ("killed", "whole"):
        continued = surgeon("compare", "--config", str(plan_file), "--quiet", "--output", str(tmp_path / place))
        assert continued.exit_code == 0, continued.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    results = [
        {cell.id: (cell.tests, cell.history) for cell in read_cells(StudyFolder(root=tmp_path / place))}
        for place in ("killed", "whole")
    ]
    assert len(results[0]) == 4
    assert results[0] == results[1]


def test_a_sweep_has_the_layers_of_its_plan_unless_others_are_named(parts, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**parts, "data": parts["data"][:1], "layers": [0, [0, 1]]}))
    options = {"donor": None, "host": None, "data": None, "config": path, "scale": "full", "num_seeds": 1}
    options |= {"assignments": None, "folder": tmp_path / "sweep", "ui": None}

    def layers(chosen, candidates):
        arms = sweep_plan(**options, layers=chosen, candidates=candidates).arms
        return {arm.donor.layers for arm in arms if arm.donor}

    assert layers(None, "layers") == {(0,), (0, 1)}
    assert layers("1", "layers") == {(1,)}
    with pytest.raises(UsageError, match="layers"):
        layers(None, "pairs")


def test_only_a_plan_with_grafts_takes_the_latest_layer(tmp_path):
    path = tmp_path / "plan.yaml"
    plan = {
        "host": "a/bert",
        "arms": [{"name": "mean", "like": "host", "graft": {"pooling": "mean"}}],
        "data": ["sst2"],
    }
    options = {"config": path, "preset": None, "scale": "full", "output": tmp_path, "num_seeds": 1}
    path.write_text(yaml.safe_dump(plan))
    assert make_plan(**options, overrides={}, settings={}, ui=None).arms[0].donor is None
    path.write_text(yaml.safe_dump({**plan, "arms": ["host", "graft"]}))
    ui = Ui(as_json=False, quiet=True, debug=False, workspace=Workspace(tmp_path / "empty"))
    with pytest.raises(WorkspaceError, match="holds no layer yet"):
        make_plan(**options, overrides={}, settings={}, ui=ui)
