"""Measuring and predicting with a trained model."""

import json
import shutil

import pytest
import torch

from layer_surgeon.errors import ConfigError, DataError, GraftError
from layer_surgeon.finetune import FinetuneConfig, evaluate_model, finetune_model, predict
from layer_surgeon.finetune.evaluation import load_texts
from layer_surgeon.workspace import Workspace
from tests.support.classification import Recorder, classifier, rows, word_tokenizer
from tests.support.training import train

TEST = rows(30, seed=9, labels=("bad", "good"))


@pytest.fixture(scope="module")
def trained(graft, tmp_path_factory):
    """A run with its own columns and a short maximum length."""
    made = [{"words": row["text"], "kind": row["label"]} for row in rows(60, labels=("bad", "good"))]
    return finetune_model(
        graft,
        made,
        workspace=Workspace(tmp_path_factory.mktemp("runs")),
        num_epochs=2,
        batch_size=8,
        learning_rate=5e-3,
        max_length=9,
        text_column="words",
        label_column="kind",
    )


def test_a_folder_with_the_results_of_another_program(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "model")
    (tmp_path / "model/results.json").write_text(json.dumps({"best_epoch": 1}))
    (prediction,) = predict(tmp_path / "model", ["good film"])
    assert prediction.label in ("bad", "good")


def test_evaluation_equals_predictions(trained):
    measured = evaluate_model(trained.path, TEST)
    predicted = predict(trained.path, [row["text"] for row in TEST])
    right = sum(p.label == row["label"] for p, row in zip(predicted, TEST, strict=True))
    assert measured.metrics.accuracy == right / 30
    assert measured.metrics.examples == 30


def test_stored_and_loaded_model_agree(trained):
    stored = evaluate_model(trained.path, TEST)
    loaded = evaluate_model(trained.model, TEST, tokenizer=trained.path, max_length=9)
    assert stored.metrics == loaded.metrics


def test_length_is_the_runs(trained):
    assert evaluate_model(trained.path, TEST).num_truncated > 0
    assert evaluate_model(trained.path, TEST, max_length=50).num_truncated == 0


def test_columns_default_to_those_of_the_run(trained):
    made = [{"text": "x y", "words": row["text"], "kind": row["label"], "label": "z"} for row in TEST]
    assert evaluate_model(trained.path, made).metrics == evaluate_model(trained.path, TEST).metrics


def test_each_text_gets_its_own_prediction(trained):
    """Texts are run in another order, by length: alone and together they come to the same."""
    texts = [row["text"] for row in TEST[:8]]
    alone = [predict(trained.model, [text], tokenizer=trained.path)[0].score for text in texts]
    together = [p.score for p in predict(trained.model, texts, tokenizer=trained.path)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 6) for score in alone}) > 4


def test_batches_do_not_matter(trained):
    one = predict(trained.path, [row["text"] for row in TEST], eval_batch_size=1)
    many = predict(trained.path, [row["text"] for row in TEST], eval_batch_size=30)
    assert [p.text for p in one] == [row["text"] for row in TEST]
    assert [p.label for p in one] == [p.label for p in many]
    assert [p.score for p in one] == pytest.approx([p.score for p in many], abs=1e-5)


def test_prediction(trained):
    (prediction,) = predict(trained.path, ["the film was good"])
    assert set(prediction.probabilities) == {"bad", "good"}
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.score == max(prediction.probabilities.values()) == prediction.probabilities[prediction.label]
    tokenized = word_tokenizer()("the film was good", return_tensors="pt")
    with torch.no_grad():
        logits = trained.model.eval()(**tokenized).logits
    assert prediction.score == pytest.approx(float(logits.softmax(-1).max()), abs=1e-6)


def test_pairs():
    model, tokenizer = classifier(), word_tokenizer()
    (pair,) = predict(model, [("good film", "bad end")], tokenizer=tokenizer)
    assert (pair.text, pair.text_pair) == ("good film", "bad end")
    inputs = tokenizer("good film", "bad end", return_tensors="pt")
    assert inputs["token_type_ids"].sum() == 3
    with torch.no_grad():
        assert pair.score == pytest.approx(float(model(**inputs).logits.softmax(-1).max()), abs=1e-6)


def test_a_model_without_a_trained_head_is_named(tmp_path):
    classifier().base_model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    progress = Recorder()
    predict(tmp_path, ["the film"], progress=progress)
    assert "no trained weights for this task (classifier.bias, classifier.weight are random)" in "".join(
        progress.notices
    )


def test_a_trained_model_is_not_called_untrained(tmp_path, workspace):
    classifier().base_model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    result = train(tmp_path, workspace)
    progress = Recorder()
    predict(result.model, ["the film"], tokenizer=word_tokenizer(), progress=progress)
    assert not progress.notices


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_kinds_of_classification_are_refused(problem, tmp_path):
    model = classifier()
    model.config.problem_type = problem
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(GraftError, match=f"trained for {problem.replace('_', ' ')}"):
        predict(tmp_path, ["the film"])


def test_models_with_one_output_are_refused():
    model = classifier(num_labels=1)
    with pytest.raises(GraftError, match="trained for regression"):
        predict(model, ["the film"], tokenizer=word_tokenizer())


def test_nothing_to_predict(trained):
    assert predict(trained.path, []) == []


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("one text", "got a single string"),
        (["fine", " "], "1 empty texts (rows 2)"),
        (["fine", ("a", "b")], "mix single texts and pairs"),
        ([("a", "b", "c")], "A pair must have two texts"),
        ([3], "expected a text"),
    ],
)
def test_texts_that_are_refused(trained, texts, says):
    with pytest.raises(DataError) as error:
        predict(trained.path, texts)
    assert says in str(error.value)


def test_unknown_setting(trained):
    with pytest.raises(ConfigError, match="There is no setting 'batchsize'"):
        predict(trained.path, ["fine"], batchsize=3)


def test_progress(trained):
    progress = Recorder()
    evaluate_model(trained.path, TEST, progress=progress)
    assert progress.steps == [("Evaluating", 30, "examples")]
    assert progress.amounts == [30]


def test_texts_are_in_the_column_of_the_run(trained, tmp_path):
    (tmp_path / "a.csv").write_text("text,words\nwrong,right\n")
    progress = Recorder()
    assert load_texts([tmp_path / "a.csv"], FinetuneConfig(), model=trained.path, progress=progress) == ["right"]
    assert progress.notices == []
    assert load_texts([tmp_path / "a.csv"], FinetuneConfig(text_column="text"), model=trained.path) == ["wrong"]
    (tmp_path / "b.csv").write_text("sentence\nother\n")
    assert load_texts([tmp_path / "b.csv"], FinetuneConfig(), model=trained.path, progress=progress) == ["other"]
    assert any("Guessed columns of" in notice for notice in progress.notices)


def test_texts_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("one good\n\ntwo bad\n")
    (tmp_path / "b.csv").write_text("id,text\n1,three\n2,four\n")
    (tmp_path / "c.jsonl").write_text(json.dumps({"premise": "five", "hypothesis": "six", "label": 1}))
    config = FinetuneConfig()
    assert load_texts([tmp_path / "a.txt", tmp_path / "b.csv"], config) == ["one good", "two bad", "three", "four"]
    assert load_texts([tmp_path / "c.jsonl"], config) == [("five", "six")]
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="There is no text in"):
        load_texts([tmp_path / "a.txt"], config)
    with pytest.raises(DataError, match="no text column 'body'"):
        load_texts([tmp_path / "b.csv"], FinetuneConfig(text_column="body"))
    with pytest.raises(DataError, match=r"nothing\.txt can't be read: No such file"):
        load_texts([tmp_path / "nothing.txt"], config)
