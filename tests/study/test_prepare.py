"""The rows that a study trains, validates and tests on."""

import json

import pytest

from layer_surgeon.study.data import DataSpec
from layer_surgeon.study.prepare import prepare_data_set
from tests.support.classification import Recorder, rows, write_csv


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
