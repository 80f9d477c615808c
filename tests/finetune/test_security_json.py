"""JSON in data files and results that is too deep, or has numbers that are too long."""

import pytest

from layer_surgeon._table_files import read_file
from layer_surgeon.errors import DataError
from layer_surgeon.finetune.results import read_results
from layer_surgeon.finetune.tasks.question_answering import _read_answers
from layer_surgeon.finetune.tasks.token_classification import _as_list

DEEP = "[" * 100_000
ODD = [DEEP, '{"text": ' + DEEP, '{"text": ' + "1" * 5000 + "}"]


@pytest.mark.parametrize("content", ODD)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_data_files(tmp_path, content, suffix):
    (tmp_path / f"data{suffix}").write_text(content)
    with pytest.raises(DataError, match=r"data\.json.*the JSON can't be read"):
        read_file(tmp_path / f"data{suffix}")


@pytest.mark.parametrize("content", ODD)
def test_results(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    assert read_results(tmp_path) is None


def test_results_of_strangers_need_not_be_whole(tmp_path):
    (tmp_path / "results.json").write_text('{"best_epoch": 1, "config": {}, "data": {}}')
    assert read_results(tmp_path) is None


def test_cells():
    assert _as_list(DEEP) == [DEEP]
    assert _read_answers(DEEP, DEEP, "row 1") == ((0, DEEP),)
