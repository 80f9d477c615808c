"""`surgeon run`: its output, its JSON document, its default folder, and exit codes."""

import json

import pytest

from tests.support.command_line import surgeon_here


@pytest.fixture
def folder(source, texts, tmp_path):
    (tmp_path / "model").symlink_to(source)
    (tmp_path / "reviews.txt").write_text("\n".join(texts))
    return tmp_path


def test_run(folder):
    result = surgeon_here("run", "model", "--texts", "reviews.txt", "--layers", "0,2:4", "--score", cwd=folder)
    assert result.code == 0, result.err
    lines = dict(line.split("  ", 1) for line in result.out.splitlines())
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    assert facts["texts"] == "5 (38 tokens)"
    assert facts["states"] == "after 0, 2, 3 of 4 layers, 32 wide"
    assert facts["folder"] == "surgery/states/model-reviews"
    assert float(facts["perplexity"]) > 1
    assert "layers 0 to 3: 152 of 152 tokens" in result.err
    assert json.loads((folder / "surgery" / "workspace.json").read_text()) == {"states": "states/model-reviews"}


def test_json(folder):
    arguments = ("run", "model", "--texts", "reviews.txt", "--layers", "-1", "--output", "out", "--json")
    document = surgeon_here(*arguments, cwd=folder).document()
    assert document["path"] == "out"
    assert document["layers"] == [4]
    assert document["num_tokens"] == 38
    again = surgeon_here(*arguments, cwd=folder)
    assert again.document() == document
    assert "out already holds these states; nothing was computed." in again.err


def test_exit_codes(folder):
    assert surgeon_here("run", "model", cwd=folder).code == 2
    wrong = surgeon_here("run", "model", "--texts", "reviews.txt", "--batch-tokens", "0", cwd=folder)
    assert (wrong.code, "batch_tokens is 0" in wrong.err) == (2, True)
    none = surgeon_here("run", "model", "--texts", "reviews.txt", "--workers", "0", cwd=folder)
    assert (none.code, "workers is 0; it must be a whole number of at least 1" in none.err) == (2, True)
    missing = surgeon_here("run", "model", "--texts", "none.txt", "--json", cwd=folder)
    assert missing.code == 1
    assert missing.document()["error"]["type"] == "DataError"
    deep = surgeon_here("run", "model", "--texts", "reviews.txt", "--layers", "9", cwd=folder)
    assert (deep.code, "no states after 9" in deep.err) == (1, True)
