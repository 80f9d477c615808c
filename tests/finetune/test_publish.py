"""A run onto a Hub of our own: asked before training, whole, without this machine's paths, and of use to others."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from layer_surgeon.finetune import finetune_model, predict
from layer_surgeon.finetune.registry import DATASETS
from layer_surgeon.finetune.run_facts import data_origins, make_card
from layer_surgeon.graft import SurgeonGraftConfig
from layer_surgeon.hub.published import published_files
from layer_surgeon_cli.main import app
from tests.support.classification import rows, save_host
from tests.support.hub_uploads import UploadRouter, serve_here
from tests.support.loopback_hub import LoopbackHub
from tests.support.preloaded import run_code

TEXTS = ["the film was good", "a dull plot and a very poor end of the story", "it is lovely"]


def write_csv(path, made):
    path.write_text("review,sentiment\n" + "".join(f"{row['text']},{row['label']}\n" for row in made))


def train(*arguments):
    fast = ("--num-epochs", "1", "--batch-size", "8", "--learning-rate", "5e-3", "--max-length", "7")
    return CliRunner().invoke(app, ["finetune", *map(str, arguments), *fast])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("somebody-s-files")
    write_csv(folder / "train.csv", rows(60, labels=("bad", "good")))
    write_csv(folder / "test.csv", rows(20, seed=4, labels=("bad", "good")))
    save_host(folder / "plain")
    return folder


@pytest.fixture(scope="module")
def hub(place, graft):
    """A Hub that a run of a graft was pushed to, and one of a plain model, by the option of the command."""
    with LoopbackHub() as server, pytest.MonkeyPatch.context() as patch:
        server.router = UploadRouter(server, {"hf_good"})
        serve_here(server, patch)
        patch.chdir(place)
        data = ("--dataset", place / "train.csv", "--test", "test.csv")
        done = train(graft, *data, "--output", "run", "--push-to-hub", "me/run", "--public")
        assert done.exit_code == 0, done.output
        assert f"{server.endpoint}/me/run" in done.stdout
        assert "has weights of other models; its licence is not stated" in done.stderr
        done = train(place / "plain", *data, "--output", "plain-run", "--push-to-hub", "me/plain", "--public", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["pushed"]["repo_id"] == "me/plain"
        assert "donor" not in done.stderr
        yield server


def uploaded(hub, repo_id):
    repo = hub.router.repos["models", repo_id]
    return {name: content.whole() for name, content in repo.commits[repo.refs["main"]].items() if name[0] != "."}


@pytest.mark.parametrize("name", ["run", "plain-run"])
def test_what_is_in_the_repo(hub, place, graft, name):
    found = uploaded(hub, f"me/{name.removesuffix('-run')}")
    folder = place / name
    there = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert set(found) == set(there)
    weights = [file for file in there if file.endswith(".safetensors")]
    assert all(found[file] == there[file] for file in weights)
    # The folder contains the paths, to repeat the run from any folder; the repo does not.
    assert str(place).encode() in there["run.yaml"]
    for file, content in found.items():
        for path in (place, graft.parent, place.parent):
            assert str(path).encode() not in content, file
    run = yaml.safe_load(found["run.yaml"])
    assert (run["dataset"], run["test"]) == (["./train.csv"], ["./test.csv"])
    assert json.loads(found["results.json"])["data"]["spec"] == ["./train.csv"]


@pytest.mark.parametrize(
    "name", [f"My Documents/{'people of a very long name and ' * 4}/a.csv", "Ann's: own #1/a.csv", "grün/ß a.csv"]
)
@pytest.mark.parametrize("width", [80, 10_000])
def test_paths_are_shortened_in_every_spelling(tmp_path, name, width):
    path = f"/home/ann/{name}"
    (tmp_path / "results.json").write_text(json.dumps({"data": {"spec": [path]}}))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"dataset": path}, allow_unicode=True, width=width))
    for content in published_files(tmp_path, "me/run").values():
        text = content.decode()
        assert not [word for word in ("/home", "ann", "Ann", "Documents", "people", "grün", "gr\\u") if word in text], (
            text
        )


def test_repo_ids_that_end_like_a_path_are_kept(tmp_path):
    config = {
        "path": "/model",
        "base_model": "meta-llama/model-7b",
        "url": "https://host.org/model",
        "note": "in /model",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    content = json.loads(published_files(tmp_path, "me/run")["config.json"])
    assert content == {**config, "path": "./model", "note": "in ./model"}


def test_logs_and_checkpoints_stay_here(place, hub):
    for name in ("logs/events.out.tfevents.1.host", "checkpoint-3/optimizer.pt", "runs/x", "model.tmp", ".git/config"):
        (place / "run" / name).parent.mkdir(exist_ok=True)
        (place / "run" / name).write_text("mine")
    assert set(published_files(place / "run", "me/run")) == set(uploaded(hub, "me/run"))


def test_the_card(hub):
    text = uploaded(hub, "me/run")["README.md"].decode()
    front = yaml.safe_load(text.split("---\n")[1])
    results = json.loads(uploaded(hub, "me/run")["results.json"])
    entries = front["model-index"][0]["results"]
    assert [entry["dataset"]["name"] for entry in entries] == [
        "train.csv (20% of the training data, held out)",
        "test.csv",
    ]
    for entry, name in zip(entries, ("validation", "test"), strict=True):
        values = {metric["type"]: metric["value"] for metric in entry["metrics"]}
        assert values["accuracy"] == pytest.approx(results[name]["accuracy"], abs=1e-6)
        assert f"| {name} | {results[name]['examples']} | {results[name]['accuracy']:.4f} |" in text
        assert re.search(rf"\| {name}, by class .*\n.*\n\| bad \|", text)
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-classification")
    assert "| train | train.csv | 48 | " in text
    assert "| learning_rate | 0.005 |" in text
    assert "| host | tiny-bert | not stated |" in text
    assert "path/to" not in text


def test_the_card_of_what_is_on_the_hub(graft, workspace):
    """Names and licences of models, and splits of data, as the Hub would link them."""
    result = finetune_model(graft, rows(40), test=rows(8), num_epochs=1, workspace=workspace)
    cola = {"name": "cola", "spec": ["cola"], "validation_spec": ["cola"], "test_spec": ["cola"]}
    result = replace(result, data={**result.data, **cola, "validation_held_out_from_train": True})
    origins = data_origins(result)
    assert (origins["validation"].hub_id, origins["validation"].split) == (DATASETS["cola"].hub_id, "train")
    assert (origins["test"].subset, origins["test"].split) == ("cola", "validation")
    config = SurgeonGraftConfig.from_pretrained(graft)
    config.host = {"name": "google/host", "commit": "1", "license": "apache-2.0"}
    config.donor = {**config.donor, "name": "meta/donor", "base_model": "meta/donor", "license": "llama3.1"}
    front = yaml.safe_load(make_card(result, config).split("---\n")[1])
    assert front["base_model"] == ["google/host", "meta/donor"]
    assert (front["license"], front["license_name"]) == ("other", "apache-2.0-and-llama3.1")
    assert front["datasets"] == ["nyu-mll/glue"]
    assert front["model-index"][0]["results"][1]["dataset"]["config"] == "cola"


_ELSEWHERE = """
import json, re, sys
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSequenceClassification, pipeline

card = open(hf_hub_download("me/plain", "README.md")).read()
exec(re.search(r"```python\\n(.*?)```", card, re.S)[1])
plain = pipeline("text-classification", model="me/plain")(TEXTS)
assert not any(name.startswith("layer_surgeon") for name in sys.modules), "a plain model needs nothing of ours"

card = open(hf_hub_download("me/run", "README.md")).read()
for block in re.findall(r"```python\\n(.*?)```", card, re.S):
    exec(block)
from layer_surgeon.finetune import predict
from layer_surgeon.graft import GraftedModel
model = GraftedModel.from_pretrained("me/run")
print(json.dumps({
    "plain": [row["score"] for row in plain],
    "donor": sum(p.numel() for p in model.donor.parameters()),
    "run": [p.probabilities for p in predict("me/run", TEXTS)],
}))
"""


@pytest.mark.slow
def test_loads_on_another_machine(hub, place, tmp_path):
    """On a machine that has neither a token nor anything of the run: the card's own examples, and the same numbers."""
    code = f"TEXTS = {TEXTS!r}\n{_ELSEWHERE}"
    done = run_code(code, cwd=tmp_path, env={"HF_ENDPOINT": hub.endpoint}, bare=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Cut at the run's own length, which the repo's results.json says.
    assert found["run"] == [p.probabilities for p in predict(place / "run", TEXTS)]
    assert found["donor"] > 0
    assert all(0 < score < 1 for score in found["plain"])


def test_a_failed_upload_loses_nothing(hub, place, monkeypatch):
    monkeypatch.chdir(place)
    serve_here(hub, monkeypatch)
    hub.router.refuses_commits = True
    arguments = (place / "plain", "--dataset", "train.csv", "--output", "kept", "--push-to-hub", "me/full", "--public")
    try:
        done = train(*arguments)
    finally:
        hub.router.refuses_commits = False
    assert done.exit_code == 1
    message = " ".join(done.stderr.split())
    assert "(status 403)" in message
    assert "Training is finished and the run in kept is complete; only the upload failed" in message
    assert "accuracy" in done.stdout
    again = re.search(r"Try it again with: surgeon (push me/full kept --public)", message)[1]
    done = CliRunner().invoke(app, again.split())
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in uploaded(hub, "me/full")


def test_hub_is_checked_before_training(hub, place, monkeypatch):
    monkeypatch.chdir(place)
    serve_here(hub, monkeypatch)
    made = set(hub.router.created)
    wanted = (place / "plain", "--dataset", "train.csv", "--output", "never", "--push-to-hub")
    done = train(*wanted, "you/run")
    assert done.exit_code == 1
    assert "logged in to the Hub as me, which may not create a repo of you" in " ".join(done.stderr.split())
    assert train(*wanted, "no repo").exit_code == 2
    assert train(*wanted, "me/run", "--seeds", "2").exit_code == 2
    assert train(*wanted[:-1], "--public").exit_code == 2
    assert train(*wanted, "me/new", "--dry-run").exit_code == 0
    assert not list(place.glob("never*"))
    assert set(hub.router.created) == made
