"""Run the tutorial of docs/finetune.md step by step, with tiny models under the names of the large ones."""

import ast
import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from layer_surgeon.finetune import DATASETS
from tests.support.classification import tokenizer_of
from tests.support.hub_uploads import UploadRouter
from tests.support.loopback_hub import LoopbackHub
from tests.support.page_steps import Step, do, steps_of
from tests.support.tiny_models import save_quietly, tiny_llama

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "finetune.md").read_text()
TUTORIAL = PAGE.partition("## From a CSV to a published model\n")[2].partition("\n## ")[0]
MINE, _, OTHERS = TUTORIAL.partition("### Use the model on another machine\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """bert-base-uncased, two layers of 16, and Llama-3.1-8B, four of 32."""
    folder = tmp_path_factory.mktemp("models")
    with open(DATASETS["sentences-amazon"].packaged_path(), newline="", encoding="utf-8") as file:
        words = {word for row in csv.DictReader(file) for word in row["text"].split() if word.isalpha()}
    tokenizer = tokenizer_of(sorted(words))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    save_quietly(BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)), folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    (folder / "bert/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    save_quietly(tiny_llama(seed=5), folder / "llama")
    (folder / "llama/README.md").write_text("---\nlicense: llama3.1\n---\n")
    with LoopbackHub() as server:
        server.router = UploadRouter(server, {"hf_good"})
        server.add_repo("bert-base-uncased", folder / "bert")
        accepted = {"hf_good"}
        server.add_repo("meta-llama/Llama-3.1-8B", folder / "llama", gated="manual", accepted=accepted)
        yield server


@pytest.fixture(scope="module")
def here(hub, tmp_path_factory):
    """The folder after following the tutorial up to the upload, and the output of each step."""
    folder = tmp_path_factory.mktemp("here")
    steps = steps_of(MINE)
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_good"}
    printed = do(steps, folder, settings)
    return folder, dict(zip((step.text for step in steps), printed, strict=True))


def printed_by(printed, *words):
    (text,) = [text for command, text in printed.items() if all(word in command.split() for word in words)]
    return text


def test_tutorial_covers_all_commands():
    commands = [step.text.split()[1] for step in steps_of(MINE) if step.kind == "surgeon"]
    assert list(dict.fromkeys(commands)) == ["extract", "graft", "finetune", "evaluate", "predict", "push"]
    assert [step.kind for step in steps_of(OTHERS)] == ["python", "surgeon", "surgeon"]


@pytest.mark.slow
def test_output_and_files_of_each_step(here):
    folder, printed = here
    plan = printed_by(printed, "--dry-run")
    assert "Guessed columns of reviews.csv: text = 'review', label = 'sentiment'" in plan
    assert "640 train, 160 validation, 200 test examples" in plan
    assert "Nothing was trained or written" in plan
    results = json.loads((folder / "reviews-run/results.json").read_text())
    assert (results["labels"], len(results["history"])) == (["negative", "positive"], 3)
    assert f"{results['test']['accuracy']:.4f}" in printed["surgeon evaluate reviews-run"]
    assert "1,000 examples" in printed_by(printed, "evaluate", "sentences-yelp")
    assert "Broke after two days." in printed_by(printed, "predict", '"Works')
    with (folder / "labelled.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    assert {"label", "p(negative)", "p(positive)"} <= set(rows[0])
    assert "its licence is llama3.1. Check that you may share them" in printed_by(printed, "push")


@pytest.mark.slow
def test_steps_on_another_machine(here, hub, tmp_path):
    """Another folder, home and cache, and no token."""
    repo = hub.router.repos["models", "me/reviews"]
    card = repo.commits[repo.refs["main"]]["README.md"].whole().decode()
    assert "license_name: apache-2.0-and-llama3.1" in card
    assert "- bert-base-uncased\n- meta-llama/Llama-3.1-8B\n" in card
    steps = steps_of(OTHERS)
    classified, predicted, measured = do(steps, tmp_path, {"HF_ENDPOINT": hub.endpoint})
    (found,) = ast.literal_eval(classified)
    assert f"{found['score']:.4f}" in predicted
    assert "1,000 examples" in measured


def test_a_block_that_nobody_runs_is_found():
    with pytest.raises(AssertionError, match="yaml"):
        steps_of("```yaml\na: 1\n```\n")
    assert steps_of("```\nsurgeon env\n\nsurgeon push x\n```\n") == [
        Step("surgeon", "surgeon env"),
        Step("surgeon", "surgeon push x"),
    ]
