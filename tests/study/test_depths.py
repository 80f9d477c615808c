"""`select_depth`: planted truth, states of an earlier run, only training data, the command and its errors."""

import json
import random
from pathlib import Path

import pytest
import torch

from layer_surgeon import run_layers
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.study.data import parse_data
from layer_surgeon.study.depths import select_depth
from tests.support.command_line import surgeon_here
from tests.support.numbered_texts import as_text, save_numbered_tokenizer
from tests.support.tiny_models import save_quietly, tiny_llama

# Tokens whose embeddings are e, -e, f and -f. A text has the first class if its tokens are of the first pair.
PAIRS = ((10, 11), (20, 21))
LAYER = 2


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    """A Llama whose layers do nothing, except that layer 2 writes |e.x| - |f.x| into the last dimension.

    Which of a pair's tokens a text has is random, so the mean of the embeddings says nothing about the class.
    """
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        table = model.model.embed_tokens.weight
        table.zero_()
        for dimension, (plus, minus) in enumerate(PAIRS):
            table[plus, dimension], table[minus, dimension] = 1.0, -1.0
        mlp = model.model.layers[LAYER].mlp
        mlp.gate_proj.weight.zero_()
        mlp.up_proj.weight.zero_()
        for unit in range(2):
            # silu(x) x is positive for x and for -x.
            mlp.gate_proj.weight[unit, unit] = mlp.up_proj.weight[unit, unit] = 1.0
            mlp.down_proj.weight[-1, unit] = 1.0 - 2.0 * unit
    folder = tmp_path_factory.mktemp("planted") / "planted"
    save_quietly(model, folder)
    save_numbered_tokenizer(folder)
    return folder


def write_rows(path, count, seed):
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % 2
        tokens = generator.choices(PAIRS[label], k=generator.randrange(1, 5))
        rows.append({"text": as_text(tokens), "label": ("dull", "fine")[label]})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    train, test = write_rows(folder / "train.jsonl", 80, 1), write_rows(folder / "test.jsonl", 10, 2)
    return parse_data({"name": "films", "train": train, "test": test})


def test_the_planted_layer_is_found(donor, data, tmp_path):
    selection = select_depth(str(donor), data, tmp_path)
    accuracy = {score.depth: score.accuracy for score in selection.scores}
    assert list(accuracy) == [0, 1, 2, 3, 4]
    assert max(accuracy[depth] for depth in (0, 1, 2)) < 0.75
    assert accuracy[3] == accuracy[4] == 1
    assert (selection.best, selection.smallest) == (LAYER + 1, LAYER + 1)
    assert selection.command == f"surgeon extract {donor} --layer 0:3 --embeddings"
    assert selection.majority == 0.5
    behind = selection.scores[0]
    assert behind.behind == pytest.approx(1 - behind.accuracy)
    assert 0.02 < behind.behind_error < 0.06
    stored = json.loads((tmp_path / "depths.json").read_text())
    assert (stored["best"], stored["num_texts"], len(stored["scores"])) == (3, 80, 5)
    # The states are reused.
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("states.safetensors")}
    assert select_depth(str(donor), data, tmp_path) == selection
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("states.safetensors")}


def test_only_the_training_part_is_read(donor, tmp_path):
    """Rows that a study would hold out for its test don't reach the donor."""
    rows = write_rows(tmp_path / "all.jsonl", 100, 3)
    selection = select_depth(str(donor), parse_data(rows), tmp_path / "out", max_texts=1000)
    held_out = read(tmp_path / "out" / "data" / "all" / "test.jsonl")
    train = read(tmp_path / "out" / "data" / "all" / "train.jsonl")
    assert (len(held_out), len(train), selection.num_texts) == (20, 80, 80)
    texts = read(next((tmp_path / "out").glob("states-*/texts.jsonl")))
    assert [row["text"] for row in texts] == [row["text"] for row in train]


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_states_of_an_earlier_run(donor, data, tmp_path, pool):
    expected = select_depth(str(donor), data, tmp_path / "a", config=RunConfig(batch_tokens=64))
    texts = [row["text"] for row in read(tmp_path / "a" / "data" / "films" / "train.jsonl")]
    states = run_layers(donor, ["w5 w6", *reversed(texts)], pool=pool, output=tmp_path / "states")
    selection = select_depth(None, data, tmp_path / "b", states=states.path)
    assert [score.accuracy for score in selection.scores] == [score.accuracy for score in expected.scores]
    assert (selection.best, selection.source, selection.pool) == (3, str(donor), "mean")


def test_the_command_names_the_commit_that_was_read(donor, data, tmp_path):
    texts = [row["text"] for row in read(Path(data.train[0]))]
    states = run_layers(donor, texts, output=tmp_path / "states")
    run = json.loads((states.path / "run.json").read_text())
    run["source"] |= {"kind": "hub", "name": "org/model", "commit": "abc"}
    (states.path / "run.json").write_text(json.dumps(run))
    selection = select_depth(None, data, tmp_path / "out", states=states.path)
    assert selection.command == "surgeon extract org/model --revision abc --layer 0:3 --embeddings"


def test_bad_input(donor, data, tmp_path):
    states = run_layers(donor, ["w10"], output=tmp_path / "states").path
    with pytest.raises(DataError, match=r"has no states of training text \d+, 'w.*Run the model on the training texts"):
        select_depth(None, data, tmp_path / "out", states=states)
    for arguments in ({}, {"states": states}):
        with pytest.raises(ConfigError, match="either a donor or the states of an earlier run, not both"):
            select_depth(str(donor) if arguments else None, data, tmp_path / "out", **arguments)
    with pytest.raises(ConfigError, match="num_seeds is 0 and max_texts is 2000; both must be at least 1"):
        select_depth(str(donor), data, tmp_path / "out", num_seeds=0)
    with pytest.raises(
        DataError, match=r"The 9 training texts of films have 2 classes, and 4 texts of the class 'fine'"
    ):
        select_depth(str(donor), data, tmp_path / "out", max_texts=9)
    (tmp_path / "pairs.csv").write_text("text,text_pair,label\n" + "w10,w11,a\nw20,w21,b\n" * 20)
    pairs = parse_data(
        {"name": "pairs", "train": str(tmp_path / "pairs.csv"), "columns": {"text_pair_column": "text_pair"}}
    )
    with pytest.raises(DataError, match="pairs has pairs of texts; the states of a donor need single texts"):
        select_depth(str(donor), pairs, tmp_path / "out")


def test_command(donor, tmp_path):
    (tmp_path / "planted").symlink_to(donor)
    write_rows(tmp_path / "films.jsonl", 100, 1)
    arguments = ("select", "planted", "--candidates", "depth", "--dataset", "films.jsonl", "--num-seeds", "1")
    done = surgeon_here(*arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "3 of 4 layers, 100.0 %" in done.out
    assert "surgeon extract planted --layer 0:3 --embeddings" in done.out
    picture = (tmp_path / "surgery" / "studies" / "depth" / "depths.svg").read_text()
    assert "planted on films, after each number of layers" in picture
    document = surgeon_here(*arguments, "--json", cwd=tmp_path).document()
    assert (document["best"], document["picture"]) == (3, "surgery/studies/depth/depths.svg")
    states = document["states"]
    again = surgeon_here(
        "select", "--candidates", "depth", "-d", "films.jsonl", "--states", states, "--json", cwd=tmp_path
    )
    assert again.document()["best"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("planted", "--candidates", "depth", "--host", "bert"),
            "--host does not go with --candidates depth",
        ),
        (("planted", "--candidates", "depth", "--no-probe"), "--no-probe does not go with --candidates depth"),
        (("planted", "--states", "s"), "--states does not go with --candidates layers, only with depth"),
        (("planted", "--max-texts", "9"), "--max-texts does not go with --candidates layers"),
        (("--candidates", "depth"), "Name the donor, or the folder of an earlier run with --states"),
        (("planted", "--candidates", "depth", "--states", "s"), "no donor can be named"),
        (("--candidates", "depth", "--states", "s", "--layers", "0:4"), "--layers and --workers change nothing"),
        (("planted", "--candidates", "depth", "--workers", "0"), "Invalid value for '--workers'"),
    ],
)
def test_usage_errors(tmp_path, arguments, message):
    done = surgeon_here("select", *arguments, cwd=tmp_path)
    assert (done.code, message in done.err) == (2, True), done.err
