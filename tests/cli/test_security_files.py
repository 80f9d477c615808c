"""Files that commands write and read: links are not followed, cells are not formulas, errors are not tracebacks."""

import csv
import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from layer_surgeon.errors import LayerSurgeonError
from layer_surgeon_cli.command import _parse
from layer_surgeon_cli.errors import EXIT_USAGE, describe
from layer_surgeon_cli.finetune import read_config
from layer_surgeon_cli.main import app
from layer_surgeon_cli.predict import _write


def predictions(*rows):
    return [SimpleNamespace(as_row=lambda row=row: row) for row in rows]


def test_predictions_are_not_written_through_links(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("unchanged")
    for name in (".out.csv.tmp", "out.csv", ".out.jsonl.tmp", "out.jsonl"):
        (tmp_path / name).symlink_to(victim)
    for name in ("out.csv", "out.jsonl"):
        _write(predictions({"text": "a", "label": "b"}), tmp_path / name)
        assert not (tmp_path / name).is_symlink()
    assert victim.read_text() == "unchanged"


def test_cells_are_not_formulas(tmp_path):
    row = {
        "text": "=HYPERLINK(1)",
        "label": "@x",
        "score": -0.5,
        "probabilities": {"+a": 0.1},
        "words": ["-a"],
        "=b": "c\nd",
    }
    _write(predictions(row, row), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["text", "label", "score", "words", "'=b", "p(+a)"]
    assert lines == [["'=HYPERLINK(1)", "'@x", "-0.5", '["-a"]', "c\nd", "0.1"]] * 2


def test_no_predictions(tmp_path):
    _write([], tmp_path / "out.csv")
    _write([], tmp_path / "out.jsonl")
    assert (tmp_path / "out.csv").read_bytes() == b"text,label,score\r\n"
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "content",
    [
        b"a: " + b"[" * 5000,
        b"a: [",
        b"- 1",
        b"a: &x [1]\nb: *x",
        b"a: !!python/object/apply:os.system [id]",
        b"\xff\xfe\x00",
        b"batch_sise: 3",
        b"? [1, 2]\n: 3",
        b"a: 2001-13-40",
        b"x" * 2_000_000,
        b"batch_size: {a: 1}",
        b"output: [1]",
        b"graft: {a: b}",
        b"dataset: 3",
        b"tokenizer: true",
        b'output: "a\\0b"',
    ],
)
def test_malformed_configuration_files_are_usage_errors(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    done = CliRunner().invoke(app, ["finetune", "nowhere", "--json", "--config", str(tmp_path / "run.yaml")])
    message = json.loads(done.stdout)["error"]["message"]
    assert done.exit_code == EXIT_USAGE, message
    assert "Unexpected" not in message


def test_an_empty_configuration(tmp_path):
    (tmp_path / "run.yaml").write_text("")
    assert read_config(tmp_path / "run.yaml") == ({}, {})


@pytest.mark.parametrize("value", ["[" * 100_000, "{", "1" * 5000])
def test_malformed_values_on_the_command_line(value):
    with pytest.raises(LayerSurgeonError, match="is not valid JSON") as caught:
        _parse("id2label", value)
    assert describe(caught.value)[0] == EXIT_USAGE
