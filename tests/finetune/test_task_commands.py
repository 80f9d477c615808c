"""`surgeon finetune`, `evaluate` and `predict` for tasks other than classification."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from layer_surgeon.graft import GraftConfig, save_graft
from layer_surgeon.workspace import Workspace
from layer_surgeon_cli.main import app
from tests.support.classification import rows
from tests.support.finetune_tasks import task_tokenizer, tiny_bart, translated_rows

FAST = ("--max-steps", 2, "--batch-size", 8)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in this process, in an empty folder; it has to succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SURGEON_WORKSPACE", raising=False)

    def invoke(*arguments, code=0, **keywords):
        done = CliRunner().invoke(app, [str(a) for a in arguments], **keywords)
        assert done.exit_code == code, done.output
        return done

    return invoke


def write(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def graft_for(task, host, artifact, root):
    workspace = Workspace(root / "surgery")
    return save_graft(
        host, artifact, config=GraftConfig(task=task), output=root / "graft", seed=1, workspace=workspace
    ).path


def test_questions(run, host, artifact, tmp_path):
    graft = graft_for("question-answering", host, artifact, tmp_path)
    made = [{"question": "was it very", "context": row["text"], "answers": row["text"].split()[0]} for row in rows(30)]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", made)
    write(tmp_path / "data" / "test.jsonl", made[:5])
    done = run("finetune", graft, "--dataset", "data", "--output", "run", *FAST)
    assert "exact match" in done.stdout
    document = json.loads(run("evaluate", "--json").stdout)
    assert (document["task"], document["examples"], document["version_2"]) == ("question-answering", 5, False)
    done = run("predict", "was it very\tthe film was good", "--json")
    (answer,) = json.loads(done.stdout)
    assert answer["answer"]
    assert answer["answer"] == "the film was good"[answer["start"] : answer["start"] + len(answer["answer"])]
    assert "answer" in run("predict", "--input", "data/test.jsonl").stdout
    assert "has no tab" in " ".join(run("predict", "was it?", code=2).stderr.split())


def test_words(run, host, artifact, tmp_path):
    graft = graft_for("token-classification", host, artifact, tmp_path)
    made = [
        {"tokens": row["text"].split(), "tags": ["B-X" if w in ("good", "bad") else "O" for w in row["text"].split()]}
        for row in rows(30)
    ]
    write(tmp_path / "train.jsonl", made)
    run("finetune", graft, "--dataset", "train.jsonl", "--output", "run", *FAST)
    assert "class" in run("evaluate", "--dataset", "train.jsonl").stdout
    assert "film/" in run("predict", "the film was good").stdout
    run("predict", "the film was good", "--output", "out.csv")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text()))
    assert json.loads(row["words"]) == ["the", "film", "was", "good"]
    assert set(json.loads(row["labels"])) <= {"O", "B-X"}


def test_plain_translator_from_stdin(run, tmp_path):
    tiny_bart().save_pretrained(tmp_path / "bart")
    task_tokenizer().save_pretrained(tmp_path / "bart")
    text = "".join(f"{row['en']}\t{row['de']}\n" for row in translated_rows(30))
    beams = ("--num-beams", 1, "--max-target-length", 6)
    done = run("finetune", "bart", "-d", "-", "-o", "run", *FAST, *beams, input=f"en\tde\n{text}")
    assert "BLEU" in done.stdout
    stored = json.loads((tmp_path / "run/results.json").read_text())
    assert stored["data"]["columns"] == {"text": "en", "text_pair": None, "label": "de"}
    (row,) = json.loads(run("predict", "one two", "--json").stdout)
    assert set(row) == {"text", "written"}


def test_task_and_graft_must_agree(run, graft, tmp_path):
    write(tmp_path / "train.jsonl", translated_rows(10))
    done = run("finetune", graft, "--dataset", "train.jsonl", "--task", "seq2seq", code=1)
    assert "The graft is for text-classification, not for seq2seq." in " ".join(done.stderr.split())
