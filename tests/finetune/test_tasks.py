"""All tasks alike, with tiny random models, from data to a trained model that predicts; and which task it is."""

import json

import numpy as np
import pytest
import torch
from transformers import BertForTokenClassification, BertModel

from layer_surgeon.errors import ConfigError, DataError, GraftError
from layer_surgeon.finetune import evaluate_model, finetune_model, predict
from layer_surgeon.finetune.inference import run_model
from layer_surgeon.finetune.models import find_task
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.graft import graft_layer
from tests.support.finetune_tasks import (
    bert,
    question_rows,
    tagged_rows,
    task_tokenizer,
    tiny_bart,
    tiny_gpt2,
    train,
    translated_rows,
)

pytestmark = pytest.mark.charts


@pytest.fixture
def hosts():
    """A host for each task."""
    return {
        "token-classification": bert(BertModel),
        "question-answering": bert(BertModel),
        "seq2seq": tiny_bart(),
        "causal-lm": tiny_gpt2(),
    }


ROWS = {
    "token-classification": tagged_rows,
    "question-answering": question_rows,
    "seq2seq": translated_rows,
    "causal-lm": lambda count, seed=0: [{"text": row["de"]} for row in translated_rows(count, seed)],
}
ITEMS = {
    "token-classification": ["anna went to rome", ["bob", "saw", "paris"]],
    "question-answering": [("who went ?", "the day anna went to rome ."), ("where ?", "bob went to paris .")],
    "seq2seq": ["one two", "three four one two"],
    "causal-lm": ["eins zwei", "drei vier eins zwei"],
}


# ---- all alike


@pytest.mark.parametrize("task", list(ROWS))
def test_graft_is_trained_measured_stored_and_used(task, hosts, artifact, workspace, tmp_path):
    model = graft_layer(hosts[task], artifact, task=task)
    data = {"train": ROWS[task](32), "validation": ROWS[task](9, seed=1), "test": ROWS[task](7, seed=2)}
    before = {name: value.clone() for name, value in model.donor.state_dict().items()}
    result = train(model, workspace, data, max_target_length=8, num_beams=2)
    assert all(torch.equal(value, before[name]) for name, value in result.model.donor.state_dict().items())
    assert result.task == result.config.task == task
    assert result.validation.examples == 9
    assert result.history[0].scores == pytest.approx(dict(result.validation.scores), rel=1e-5)
    assert result.config.select_by in result.validation.scores
    stored = json.loads((result.path / "results.json").read_text())
    assert stored["test"] == json.loads(json.dumps(result.test.as_dict()))
    assert f"Fine-tuned on data for {task}." in (result.path / "README.md").read_text()
    # From the folder alone: task and settings are the run's.
    measured = evaluate_model(result.path, data["test"])
    assert measured.task == task
    assert dict(measured.metrics.scores) == pytest.approx(dict(result.test.scores), rel=1e-5)
    together = predict(result.path, ITEMS[task])
    alone = [predict(result.path, [item])[0] for item in ITEMS[task]]
    assert [words_of(one) for one in together] == [words_of(one) for one in alone]


def words_of(prediction):
    """The predictions without scores, whose last digits depend on padding."""
    row = json.loads(json.dumps(prediction.as_row()))
    return {name: value for name, value in row.items() if not name.startswith("score")}


@pytest.mark.parametrize("task", list(ROWS))
def test_metrics_do_not_depend_on_batches(task, hosts, artifact):
    model = graft_layer(hosts[task], artifact, task=task)
    names = ("O", "B-PER", "B-LOC")
    if task == "token-classification":
        model.set_labels(names)
    rows = ROWS[task](11)
    scores = [
        dict(
            evaluate_model(
                model, rows, tokenizer=task_tokenizer(), eval_batch_size=size, max_length=40, max_target_length=6
            ).metrics.scores
        )
        for size in (1, 4, 11)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert scores[0] == pytest.approx(scores[2], rel=1e-4)


@pytest.mark.parametrize("task", list(ROWS))
def test_validation_in_training_counts_every_example_once(task, hosts, workspace, monkeypatch):
    """The trainer's own loop and ours see the same outputs, in the same order."""
    seen = {}

    def evaluate(self, *arguments, **keywords):
        output = original(self, *arguments, **keywords)
        context = self._context
        again = run_model(self._task, self.eval_dataset._dataset, context)
        seen["ours"] = again
        seen["loop"] = self.predict(self.eval_dataset).predictions, self.predict(self.eval_dataset).label_ids
        return output

    original = SurgeonTrainer.evaluate
    monkeypatch.setattr(SurgeonTrainer, "evaluate", evaluate)
    data = {"train": ROWS[task](16), "validation": ROWS[task](13, seed=1)}
    train(graft_layer(hosts[task], None, task=task), workspace, data, max_target_length=6, num_beams=1)
    outputs, index = seen["loop"]
    assert sorted(index) == list(range(len(seen["ours"][0])))
    for ours, loop in zip(seen["ours"], outputs, strict=True):
        for row, place in enumerate(index):
            width = min(ours.shape[1], loop.shape[1]) if ours.ndim > 1 else None
            left, right = (ours[place], loop[row]) if width is None else (ours[place][:width], loop[row][:width])
            assert np.allclose(left, right, atol=1e-4)


# ---- which task


def test_task_of_a_graft_wins_and_another_is_refused(artifact):
    model = graft_layer(bert(BertModel), artifact, task="question-answering")
    assert find_task(model, None) == find_task(model, None, "text-classification") == "question-answering"
    with pytest.raises(
        GraftError, match="The graft is for question-answering, not for seq2seq. Make a graft for seq2seq"
    ):
        find_task(model, "seq2seq")


def test_task_of_a_plain_model():
    tagger = bert(BertForTokenClassification)
    assert find_task(tagger, None) == "token-classification"
    assert find_task(tagger, "question-answering", "seq2seq") == "question-answering"
    assert find_task(tiny_bart(), None) == "seq2seq"
    assert find_task(tiny_bart(), None, "text-classification") == "text-classification"
    assert find_task(tiny_gpt2(), None) == "text-classification"
    assert find_task(tiny_gpt2(), "causal-lm") == "causal-lm"


def test_data_set_for_another_task(workspace):
    with pytest.raises(DataError, match="squad is a data set for question-answering, but the model is for seq2seq"):
        finetune_model(tiny_bart(), "squad", workspace=workspace, tokenizer=task_tokenizer(), task="seq2seq")


def test_score_that_the_task_does_not_have(workspace):
    with pytest.raises(ConfigError, match="select_by is 'accuracy'; for seq2seq it must be one of bleu, rouge_l"):
        train(tiny_bart(), workspace, translated_rows(), select_by="accuracy")
