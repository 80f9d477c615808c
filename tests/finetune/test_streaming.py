"""Training data that is read row by row: the same rows, checked before training, found again after a stop."""

import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import BertForQuestionAnswering, BertForTokenClassification

from layer_surgeon.checkpoint.sources.hub_errors import CLIENT_ERROR
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune import FinetuneConfig, finetune_model, plan_finetuning, sources
from layer_surgeon.finetune.prepare_stream import begin_stream, prepare_stream
from layer_surgeon.finetune.row_stream import RowStream, open_stream
from layer_surgeon.finetune.sources import load_data
from layer_surgeon.finetune.tasks import finetune_task
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.progress import NullProgress
from layer_surgeon.workspace import Workspace
from tests.support.classification import Recorder, classifier, rows, word_tokenizer
from tests.support.finetune_tasks import (
    bert,
    question_rows,
    tagged_rows,
    task_tokenizer,
    tiny_bart,
    tiny_gpt2,
    translated_rows,
)

CLASSIFICATION = finetune_task("text-classification")
LABELS = ("bad", "good")


def write(path, made):
    """A file of rows, of the kind its name says."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(made[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(made)
    return path


def prepare(data, validation=None, test=None, *, task=CLASSIFICATION, model_names=(), progress=None, **settings):
    config, progress = FinetuneConfig(streaming=True, **settings), progress or NullProgress()
    opened = begin_stream(data, config, task, progress)
    return prepare_stream(opened, validation, test, config, task=task, model_names=model_names, progress=progress)


def train(data, workspace, model=None, **settings):
    settings = {"batch_size": 4, "learning_rate": 1e-3, "shuffle_buffer": 16, "eval_steps": 3} | settings
    tokenizer = settings.pop("tokenizer", None) or word_tokenizer()
    return finetune_model(
        model or classifier(), data, streaming=True, workspace=workspace, tokenizer=tokenizer, **settings
    )


# ---- what is read


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_streamed_file_has_the_rows_of_the_file(tmp_path, suffix):
    made = [row | {"text": f'{row["text"]}, "so"\nand on\tè', "id": i} for i, row in enumerate(rows(30, labels=LABELS))]
    paths = [write(tmp_path / f"{name}{suffix}", part) for name, part in (("a", made[:20]), ("b", made[20:]))]
    whole = load_data(paths).train
    opened = open_stream(paths, NullProgress())
    assert opened.train.table().columns == whole.columns
    assert opened.train.num_rows == (30 if suffix == ".parquet" else None)
    assert [number for number, _ in opened.train.rows()] == list(range(1, 31))
    assert len(opened.train.table(7)) == 7


def test_folder_with_splits(tmp_path):
    for name, count in (("train-1", 8), ("train-2", 8), ("dev", 4), ("test", 2)):
        write(tmp_path / f"{name}.jsonl", rows(count))
    opened = open_stream(tmp_path, NullProgress())
    assert [len(part.table()) for part in (opened.train, opened.validation, opened.test)] == [16, 4, 2]


def test_facts_cover_the_whole_set(tmp_path):
    """All labels, of both types, are counted, including those of rows after the checked ones."""
    made = [*rows(1500, labels=("1", "2")), *rows(300, labels=("1", "other"))]
    progress = Recorder()
    data = prepare(write(tmp_path / "a.csv", made), max_eval_samples=100, progress=progress)
    assert data.label_names == ("1", "2", "other")
    assert data.stream.num_rows == 1700
    assert sum(data.stream.per_class.values()) == 1700
    assert (len(data.validation), data.held_out) == (100, True)
    assert len(data.train) < 1000
    assert f"Reading {tmp_path / 'a.csv'} once to count the classes in column 'label'." in progress.notices
    encoded = [row for window in data.stream.windows(100) for row in data.stream.examples(window).labels]
    assert len(encoded) == 1700
    assert [encoded.count(index) for index in range(3)] == list(data.stream.per_class.values())


def test_held_out_rows_are_never_trained_on_and_lose_nothing(tmp_path):
    made = [row | {"text": f"{row['text']} {i}"} for i, row in enumerate(rows(200))]
    path = write(tmp_path / "a.jsonl", made)
    data = prepare(path)
    trained = [text for window in data.stream.windows(30) for text in window.table.columns["text"]]
    assert sorted([*trained, *data.validation.texts]) == sorted(row["text"] for row in made)
    assert 20 <= len(data.validation) <= 60
    assert prepare(path).validation == data.validation
    assert prepare(path, seed=1).validation != data.validation
    assert len(prepare(path, max_eval_samples=5).validation) == 5
    assert [row["text"] for _, row in prepare(path, max_train_samples=10).stream.rows()] == trained[:10]


def test_questions_on_one_text_are_held_out_together(tmp_path):
    made = [row | {"question": f"{row['question']} {i}"} for i, row in enumerate(question_rows(60) * 2)]
    path = write(tmp_path / "a.jsonl", made)
    data = prepare(path, task=finetune_task("question-answering"), max_steps=4, max_eval_samples=5)
    trained = {row["context"] for _, row in data.stream.rows()}
    assert len(data.validation) == 5
    assert not trained & set(data.validation.contexts)


def test_class_that_only_held_out_rows_have(tmp_path):
    """As for data in memory: with few rows and many classes, training and held-out rows may have different classes."""
    made = [{"text": "a film", "label": f"c{index // 10:02}"} for index in range(300)]
    data = prepare(write(tmp_path / "a.jsonl", made), max_train_samples=60)
    assert len(data.label_names) > 20
    assert {data.label_names[label] for label in data.validation.labels} <= set(data.label_names)
    assert data.stream.num_rows == sum(data.stream.per_class.values()) == 60


def test_separate_validation_and_test_data(tmp_path):
    parts = [write(tmp_path / f"{name}.csv", rows(count)) for name, count in (("a", 20), ("b", 6), ("c", 4))]
    data = prepare(*parts)
    assert (data.stream.num_rows, len(data.validation), len(data.test)) == (20, 6, 4)
    with pytest.raises(DataError, match="not seen in training: 7"):
        prepare(parts[0], [*rows(4), {"text": "a b", "label": 7}])


# ---- the Hub, and data sets of `datasets`


@pytest.fixture
def hub(monkeypatch):
    def answer(described=True, **splits):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=LABELS)})
        made = datasets.IterableDatasetDict()
        for name, part in splits.items():
            stream = datasets.Dataset.from_list(part, features=features).to_iterable_dataset()
            info = datasets.DatasetInfo(features=features if described else None)
            if described:
                info.splits = datasets.SplitDict({name: datasets.SplitInfo(name=name, num_examples=len(part))})
            made[name] = datasets.IterableDataset(stream._ex_iterable, info=info, split=datasets.NamedSplit(name))
        asked = []

        def load_dataset(*arguments, **keywords):
            asked.append((arguments, keywords))
            return made

        monkeypatch.setattr(sources, "load_dataset", load_dataset)
        return asked

    return answer


def test_hub_id(hub):
    odd = [{"text": None, "label": 0}]
    asked = hub(train=[*rows(40), *odd], validation=rows(30), test=rows(20))
    progress = Recorder()
    data = prepare("somebody/reviews", progress=progress, max_eval_samples=8)
    assert asked == [(("somebody/reviews", None), {"revision": None, "streaming": True})]
    assert (data.label_names, data.stream.num_rows, data.stream.per_class) == (LABELS, 41, None)
    assert (len(data.train), len(data.validation), len(data.test), data.held_out) == (40, 8, 8, False)
    assert "reviews (train), first 41 rows: skipped 1 of 41 rows, which have no text or label." in progress.notices
    assert not any("once, to count" in notice for notice in progress.notices)


def test_separate_validation_data_on_the_hub(hub, tmp_path):
    hub(train=rows(40), test=rows(20))
    data = prepare(write(tmp_path / "a.csv", rows(20, labels=(0, 1))), "somebody/reviews", max_eval_samples=6)
    assert len(data.validation) == 6


def test_unknown_number_of_rows_needs_max_steps_before_reading(hub, monkeypatch):
    hub(described=False, train=rows(40))
    with monkeypatch.context() as patch:
        patch.setattr(RowStream, "rows", lambda self: pytest.fail("rows were read"))
        with pytest.raises(ConfigError, match="is unknown. Set max_steps, or set max_train_samples"):
            prepare("somebody/reviews")
    assert prepare("somebody/reviews", max_steps=3).label_names == ("0", "1")
    assert prepare("somebody/reviews", max_train_samples=20).stream.num_rows == 20


def test_given_data_sets(tmp_path):
    whole = datasets.Dataset.from_list(rows(40))
    assert prepare(datasets.DatasetDict({"train": whole, "test": whole})).stream.num_rows < 40
    assert prepare(whole.to_iterable_dataset(), max_steps=3).stream.source.num_rows is None
    splits = datasets.SplitDict({"train": datasets.SplitInfo(name="train", num_examples=40)})
    described = datasets.IterableDataset(
        whole.to_iterable_dataset()._ex_iterable, info=datasets.DatasetInfo(splits=splits), split=datasets.Split.TRAIN
    )
    # The info is still that of the whole split.
    assert prepare(described.take(20), max_steps=3).stream.source.num_rows is None
    with pytest.raises(DataError, match="can only be streamed. Set streaming=True"):
        load_data(whole.to_iterable_dataset())


def test_rows_of_tensors_are_read_as_python(tmp_path):
    stream = datasets.Dataset.from_list(rows(40)).to_iterable_dataset().with_format("torch")
    assert prepare(stream, max_steps=3).label_names == ("0", "1")


def test_broken_connection_is_reported():
    def begin():
        yield from rows(3)
        raise CLIENT_ERROR("the server went away")

    with pytest.raises(DataError, match=r"reviews can't be read beyond row 3: the server went away\."):
        RowStream(location="reviews", begin=begin).table()


# ---- whole runs


@pytest.fixture
def stop_at(monkeypatch):
    original = SurgeonTrainer.training_step

    def arm(step):
        armed = [True]

        def training_step(self, *arguments, **keywords):
            if armed and self.state.global_step == step:
                armed.clear()
                raise KeyboardInterrupt
            return original(self, *arguments, **keywords)

        monkeypatch.setattr(SurgeonTrainer, "training_step", training_step)

    return arm


def test_a_stopped_run_ends_with_the_same_weights(tmp_path, workspace, stop_at):
    path = write(tmp_path / "a.csv", rows(30))
    settings = {
        "num_epochs": 2,
        "checkpoint_steps": 4,
        "gradient_accumulation_steps": 2,
        "eval_steps": 3,
        "max_length": 8,
        "max_eval_samples": 4,
    }
    whole = train(path, Workspace(tmp_path / "whole"), **settings)
    assert [epoch.step for epoch in whole.history] == [3, 6, whole.config.max_steps]
    stop_at(5)
    with pytest.raises(KeyboardInterrupt, match="step 4 is saved"):
        train(path, workspace, **settings)
    resumed = train(path, workspace, resume=True, **settings)
    mine, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert [epoch.scores for epoch in resumed.history] == [epoch.scores for epoch in whole.history]


def test_a_limit_above_the_number_of_rows_is_not_their_number(tmp_path):
    path = write(tmp_path / "pairs.jsonl", translated_rows(30))
    data = prepare(path, translated_rows(4, 1), task=finetune_task("seq2seq"), max_train_samples=5000)
    assert data.stream.num_rows == 30


def test_bad_row_late_in_a_stream_stops_the_run_and_keeps_the_checkpoint(tmp_path, workspace, monkeypatch):
    """With declared classes, no rows are read beforehand; once the row is corrected, the run resumes."""
    validation = rows(8, labels=LABELS)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=LABELS)})

    def data(**changed):
        made = [{"text": "a film", "label": i % 2} for i in range(60)]
        made[53] |= changed
        return datasets.Dataset.from_list(made, features=features)

    monkeypatch.setattr("layer_surgeon.finetune.prepare_stream.CHECKED", 20)
    settings = {
        "validation": validation,
        "max_steps": 7,
        "eval_steps": 5,
        "batch_size": 10,
        "shuffle_buffer": 5,
        "max_length": 6,
        "output": tmp_path / "run",
    }
    says = r"row 54, column 'text': the text is empty. Fill it in, or remove the row. Training up to step 5"
    with pytest.raises(DataError, match=says):
        train(data(text="  "), workspace, **settings)
    assert train(data(), workspace, resume=True, **settings).history[-1].step == 7


TASKS = {
    "token-classification": (lambda: bert(BertForTokenClassification, num_labels=3), tagged_rows, {"num_epochs": 1}),
    "question-answering": (lambda: bert(BertForQuestionAnswering), question_rows, {"max_steps": 3}),
    "seq2seq": (tiny_bart, translated_rows, {"num_epochs": 1, "num_beams": 1, "max_target_length": 5}),
    "causal-lm": (tiny_gpt2, lambda count: [{"text": row["en"]} for row in translated_rows(count)], {"max_steps": 3}),
}


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task(tmp_path, workspace, task):
    model, made, settings = TASKS[task]
    path = write(tmp_path / "a.jsonl", made(30))
    result = train(
        path, workspace, model(), task=task, tokenizer=task_tokenizer(), max_eval_samples=4, max_length=40, **settings
    )
    assert result.task == task
    assert result.data["stream"]["rows"] == (None if "max_steps" in settings else 26)
    assert result.config.max_steps == result.history[-1].step == settings.get("max_steps", 7)
    card = (result.path / "README.md").read_text()
    assert f"| train | a.jsonl | {'not counted' if 'max_steps' in settings else '26'} |" in card
    assert "| validation | rows near the start of the training data, held out" in card


def test_summary_before_training(tmp_path, workspace):
    progress = Recorder()
    made = [*({"text": "the film was good", "label": "good"} for _ in range(1200)), *rows(10, labels=LABELS)]
    path = write(tmp_path / "a.parquet", made)
    arguments = {"workspace": workspace, "tokenizer": word_tokenizer(), "max_length": 5, "progress": progress}
    plan = plan_finetuning(classifier(), path, streaming=True, max_eval_samples=10, num_epochs=1, **arguments)
    assert (plan.steps, plan.steps_per_epoch, plan.examples["train"]) == (38, 4, 1200)
    assert (
        "a: 1,200 streamed train, 10 validation examples; validation is from the first rows of the training data; "
        "2 classes." in (progress.notices)
    )
    assert any(line.startswith("Classes in training: good 9") for line in progress.notices)
    assert any("the stream seems to be sorted" in line and "10,000 rows at a time" in line for line in progress.notices)
    assert any("of the first 990 training texts (100.0%) are longer than 5 tokens" in line for line in progress.notices)
    assert not workspace.root.exists()


# ---- data that is rejected


@pytest.mark.parametrize(
    ("data", "settings", "says"),
    [
        ("-", {}, "stdin can be read only once"),
        (rows(4), {}, "A list is already in memory. Turn streaming off"),
        ({"train": rows(4)}, {}, "A dict is already in memory"),
        ("a.csv", {"train_fraction": 0.5}, "Use max_train_samples to train on the first rows."),
        ("a.csv", {"task": "causal-lm"}, "Set max_steps"),
        ("a.csv", {"task": "question-answering"}, "Set max_steps"),
    ],
)
def test_data_that_can_not_be_streamed(data, settings, says, workspace):
    model = {"causal-lm": tiny_gpt2, "question-answering": lambda: bert(BertForQuestionAnswering)}
    made = model.get(settings.get("task"), classifier)()
    with pytest.raises(ConfigError, match=says):
        finetune_model(made, data, streaming=True, workspace=workspace, tokenizer=word_tokenizer(), **settings)
    assert not workspace.root.exists()


def test_setting_that_needs_streaming():
    with pytest.raises(ConfigError, match="eval_steps is 5; it must be None unless streaming is on"):
        FinetuneConfig(eval_steps=5)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "[]", "can't be streamed: a .json file can only be read as a whole"),
        ("a.csv", "text,label\n", "a.csv has no rows"),
        ("a.csv", "text,label\na b,0\nc d\n", "line 3: 1 cells, but the header has 2"),
        ("a.jsonl", '{"text": "a b", "label": 0}\n{"text": "a"\n', "line 2: not valid JSON"),
        ("a.jsonl", '{"text": "a b", "label": 0}\n{"text": "a"}\n', "row 2: the columns differ from those of row 1"),
        ("a.parquet", "no", "is not a readable Parquet file"),
        ("a.csv", "text,label\n" + "a b,0\n" * 5, "only one class, 0"),
        ("a.csv", "text,label\n" + "a b,0\nc d,1\n" * 9 + "e f,\n" * 9, "row 19: the label is missing"),
        ("a.csv", "text,label\n" + "".join(f"a b,{i} x\n" for i in range(40)), "different labels in"),
        ("a.csv", "text,label\n" + "".join(f"a b,{i} x\n" for i in range(1500)), "more than 1,000 different labels"),
        ("a.csv", "text,label\n" + "a b,0\n ,1\n" * 5, "row 2, column 'text': the text is empty"),
        ("a.csv", "text,label\na b,0\n", "1 training rows are too few to hold out 20%"),
        ("a.csv", "text,stars\na b,0\n", "has no label column. Its columns are: text, stars."),
    ],
)
def test_bad_data_is_found_before_training(tmp_path, workspace, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        finetune_model(
            classifier(), tmp_path / name, streaming=True, workspace=workspace, tokenizer=word_tokenizer(), seed=4
        )
    assert says in str(error.value), str(error.value)
    assert not workspace.root.exists()
