"""The rows that a study trains, validates and tests on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from layer_surgeon.errors import ConfigError, DataError, WorkspaceError
from layer_surgeon.study.arms import DonorSpec
from layer_surgeon.study.data import DataSpec
from layer_surgeon.study.donor_layers import open_layer, prepare_layers
from layer_surgeon.study.estimate import estimate_study
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.local_models import remember_models
from layer_surgeon.study.prepare import prepare_data_set, prepare_study
from layer_surgeon.study.rehearsal import rehearsal
from tests.support.classification import Recorder, rows, write_csv
from tests.support.hub_reading import read_from
from tests.support.loopback_hub import LoopbackHub
from tests.support.studies import tiny_parts, tiny_plan
from tests.support.tiny_models import save_quietly, tiny_llama


@pytest.fixture
def folder(tmp_path):
    """A data set with 8, 6 and 10 rows for training, validation and tests."""
    (tmp_path / "data").mkdir()
    for seed, (name, count) in enumerate({"train": 8, "validation": 6, "test": 10}.items()):
        write_csv(tmp_path / "data" / f"{name}.csv", rows(count, seed=seed))
    return str(tmp_path / "data")


def prepared(spec, tmp_path):
    progress = Recorder()
    prepare_data_set(spec, tmp_path / "prepared", 0.2, progress, task="text-classification")
    examples = json.loads((tmp_path / "prepared/data.json").read_text())["examples"]
    return examples, any("are in its validation part too" in notice for notice in progress.notices)


def test_each_part_of_a_named_folder_is_the_split_of_its_role(folder, tmp_path):
    """The best epoch is chosen on the validation part, so it must not be the test split."""
    spec = DataSpec(name="x", train=(folder,), validation=(folder,), test=(folder,))
    assert prepared(spec, tmp_path) == ({"train": 8, "validation": 6, "test": 10}, False)


@pytest.mark.parametrize("limit", [None, 4])
def test_the_same_rows_for_validation_and_test_are_noticed(folder, tmp_path, limit):
    test = f"{folder}/test.csv"
    spec = DataSpec(name="x", train=(folder,), validation=(test,), test=(test,), max_test_samples=limit)
    for _ in range(2):  # The second call finds what the first one has written.
        assert prepared(spec, tmp_path) == ({"train": 8, "validation": 10, "test": limit or 10}, True)


def test_parts_of_an_earlier_spec_are_removed(folder, tmp_path):
    test = f"{folder}/test.csv"
    train = f"{folder}/train.csv"
    assert prepared(DataSpec(name="x", train=(train,), validation=(test,), test=(test,)), tmp_path)[1]
    assert prepared(DataSpec(name="x", train=(train,), test=(test,)), tmp_path) == ({"train": 8, "test": 10}, False)


def test_files_of_somebody_else_are_not_replaced(folder, tmp_path):
    mine = tmp_path / "prepared"
    mine.mkdir()
    (mine / "validation.jsonl").write_text("mine")
    with pytest.raises(WorkspaceError, match="prepared holds validation.jsonl, which no study has written"):
        prepared(DataSpec(name="x", train=(f"{folder}/train.csv",)), tmp_path)
    assert [(path.name, path.read_text()) for path in mine.iterdir()] == [("validation.jsonl", "mine")]


def test_a_changed_file_is_noticed_also_after_other_settings(folder, tmp_path):
    """Else the trainings of before and after the change would be in one table."""
    train = Path(folder, "train.csv")
    specs = [DataSpec(name="x", train=(str(train),), max_test_samples=limit) for limit in (None, 2)]
    prepared(specs[0], tmp_path)
    write_csv(train, rows(9, seed=0))
    for spec in specs:
        with pytest.raises(ConfigError, match="train.csv has changed since the study's trainings"):
            prepared(spec, tmp_path)


def test_labels_may_be_in_some_sources_only(tmp_path):
    for name, labels in (("numbers", "01"), ("words", ("neg", "pos")), ("test", ("pos",))):
        lines = [f"text {number} of {name},{labels[number % len(labels)]}\n" for number in range(8)]
        (tmp_path / f"{name}.csv").write_text("".join(["text,label\n", *lines]))
    labels = {"0": "neg", "1": "pos", "neg": "neg", "pos": "pos"}
    numbers, words, test = (str(tmp_path / f"{name}.csv") for name in ("numbers", "words", "test"))
    spec = DataSpec(name="x", train=(numbers, words), test=(test,), labels=labels)
    assert prepared(spec, tmp_path)[0] == {"train": 16, "test": 8}
    with pytest.raises(DataError, match=r"x has no label '2'\. Its labels are: 0, 1, neg, pos\. Change labels"):
        prepared(replace(spec, labels=labels | {"2": "pos"}), tmp_path)


def test_a_test_set_with_other_labels_is_refused_before_the_first_training(tmp_path):
    parts = tiny_parts(tmp_path / "parts")
    lines = [f"a text {number},{('bad', 'good')[number % 2]}\n" for number in range(20)]
    (tmp_path / "other.csv").write_text("".join(["text,label\n", *lines]))
    plan = tiny_plan(parts, data=[*parts["data"], str(tmp_path / "other.csv")], tests="all", arms=["host"])
    with pytest.raises(DataError, match=r"The test part of other has the label 'bad', but models trained on .* know"):
        prepare_study(plan, StudyFolder(root=tmp_path / "study"), Recorder())


def test_layers_of_two_versions_of_a_donor_are_not_mixed(tmp_path):
    folder, donor = StudyFolder(root=tmp_path / "study"), tmp_path / "llm"
    donors = [DonorSpec(source=str(donor), layers=(layer,)) for layer in range(2)]
    save_quietly(tiny_llama(seed=5), donor)
    prepare_layers(donors[:1], folder, Recorder())
    save_quietly(tiny_llama(seed=6), donor)
    with pytest.raises(ConfigError, match="llm has changed since the study's trainings"):
        prepare_layers(donors, folder, Recorder())


def test_layers_that_are_added_later_are_of_the_same_commit(tmp_path, monkeypatch):
    folder, donors = StudyFolder(root=tmp_path / "study"), [DonorSpec(source="o/llm", layers=(k,)) for k in range(2)]
    save_quietly(tiny_llama(seed=5), tmp_path / "llm")
    with LoopbackHub() as hub:
        repo = hub.add_repo("o/llm", tmp_path / "llm")
        read_from(hub.endpoint, monkeypatch)
        prepare_layers(donors[:1], folder, Recorder())
        first = repo.refs["main"]
        save_quietly(tiny_llama(seed=6), tmp_path / "new")
        repo.commit(tmp_path / "new")
        prepare_layers(donors, folder, Recorder())
    commits = {open_layer(donor, folder).config["source"]["commit"] for donor in donors}
    assert commits == {first}


def test_a_changed_host_or_artifact_is_refused(tmp_path):
    """Else a row of a table would mix the results of two models."""
    folder, host = StudyFolder(root=tmp_path / "study"), tmp_path / "host"
    host.mkdir()
    (host / "config.json").write_text("{}")
    (host / "model.safetensors").write_bytes(b"1")
    folder.root.mkdir()
    remember_models([str(host), "owner/name"], folder)
    folder.path("cells").mkdir()
    folder.failure("x").write_text("{}")
    (host / "tokenizer.json").write_text("{}")  # Before the first result, it may still be repaired.
    remember_models([str(host), "owner/name"], folder)
    folder.result("x").write_text("{}")
    for name in ("README.md", ".DS_Store", "results.json"):
        (host / name).write_text("another file")
    remember_models([str(host)], folder)
    (host / "model.safetensors").write_bytes(b"2")
    before = folder.models.read_bytes()
    with rehearsal(folder.root) as trial:
        remember_models([str(tmp_path)], trial)
        assert folder.models.read_bytes() == before
        for used in (folder, trial):
            with pytest.raises(ConfigError, match="host has changed since the study's trainings"):
                remember_models(["owner/name", str(host)], used)


def test_an_estimate_writes_only_some_synthetic_texts(tmp_path, monkeypatch):
    parts = tiny_parts(tmp_path)
    asked = []

    def write(config, output, progress):
        asked.append(config.per_label)
        texts = [{"text": f"text {n}", "label": label} for n in range(config.per_label) for label in config.labels]
        output.write_text("".join(json.dumps(row) + "\n" for row in texts))

    monkeypatch.setattr("layer_surgeon.study.prepare.synthesize", write)
    estimates = []
    for count in (100, 10_000):
        arm = {"name": "zerogen", "synthetic": {"model": "owner/writer", "per_label": count}}
        plan = tiny_plan({**parts, "data": parts["data"][:1]}, arms=[arm], seeds=[1])
        estimates.append(estimate_study(plan, tmp_path / "study", Recorder()))
    assert max(asked) <= 64
    # A hundred times as many texts; only the start takes the same time.
    assert estimates[1].seconds > 20 + 500 * estimates[1].seconds_by_arm["zerogen"]
