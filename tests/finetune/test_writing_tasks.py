"""Tasks that write: translation, and language modelling."""

import json
import math

import pytest
import torch

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune import FinetuneConfig, evaluate_model, predict
from layer_surgeon.finetune.data import prepare_data
from layer_surgeon.finetune.tasks import finetune_task
from layer_surgeon.graft import GraftedModel, graft_layer
from tests.support.classification import Recorder
from tests.support.finetune_tasks import (
    context_of,
    refused,
    task_tokenizer,
    tiny_bart,
    tiny_gpt2,
    train,
    translated_rows,
)

# ---- writing


def test_translator_learns_and_writes(workspace):
    data = {"train": translated_rows(150), "validation": translated_rows(12, seed=1)}
    result = train(tiny_bart(), workspace, data, num_epochs=12, learning_rate=5e-3, max_target_length=8, num_beams=2)
    assert result.validation.bleu > result.history[0].scores["bleu"]
    assert result.validation.rouge_1 > 0.25 > result.history[0].scores["rouge_1"]
    assert result.validation.meteor > 0.15
    (prediction,) = predict(result.path, ["two three"])
    assert set(prediction.written.split()) & {"eins", "zwei", "drei", "vier"}


def test_loss_of_writing_is_over_all_tokens():
    model = tiny_bart().eval()
    rows = translated_rows(10)
    measured = evaluate_model(model, rows, tokenizer=task_tokenizer(), max_target_length=4, num_beams=1).metrics
    total = count = 0
    tokenizer = task_tokenizer()
    for row in rows:
        labels = tokenizer(text_target=row["de"], truncation=True, max_length=4, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(**tokenizer(row["en"], return_tensors="pt"), labels=labels).loss
        total, count = total + float(loss) * labels.numel(), count + labels.numel()
    assert measured.loss == pytest.approx(total / count, rel=1e-5)


def test_written_text_equals_generate():
    model, tokenizer = tiny_bart(3).eval(), task_tokenizer()
    predictions = predict(model, ["one two", "four"], tokenizer=tokenizer, num_beams=3, max_target_length=5)
    for prediction in predictions:
        ids = model.generate(**tokenizer(prediction.text, return_tensors="pt"), num_beams=3, max_new_tokens=5)
        assert prediction.written == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_prefix_is_put_before_sources(workspace):
    result = train(tiny_bart(), workspace, translated_rows(20), max_steps=1, source_prefix="the day ", num_beams=1)
    assert json.loads((result.path / "results.json").read_text())["config"]["source_prefix"] == "the day "
    task = finetune_task("seq2seq")
    features = task.tokenize(task.inputs(["one"]), context_of(result.model, source_prefix="the day "))
    assert task_tokenizer().decode(features.features[0]["input_ids"]) == "[CLS] the day one [SEP]"


def test_cut_targets_are_counted():
    measured = evaluate_model(tiny_bart(), translated_rows(10), tokenizer=task_tokenizer(), max_target_length=4)
    assert measured.num_truncated == sum(len(row["de"].split()) > 2 for row in translated_rows(10))


def test_empty_target(workspace):
    refused(
        tiny_bart(), workspace, [*translated_rows(), {"en": "one", "de": " "}], "column 'de': 1 empty texts (rows 41)"
    )


def test_two_columns_of_sentences_are_source_and_target(workspace):
    progress = Recorder()
    rows = [{"id": 3, "english": row["en"], "german": row["de"]} for row in translated_rows(20)]
    train(tiny_bart(), workspace, rows, max_steps=1, progress=progress, num_beams=1)
    assert any(
        "Guessed columns of the given rows: text = 'english', label = 'german'" in notice for notice in progress.notices
    )


def test_one_column_is_not_enough(workspace):
    rows = [{"english": row["en"]} for row in translated_rows(20)]
    refused(tiny_bart(), workspace, rows, "has no source column. Its columns are: english.")


def test_targets_are_cut_to_the_positions_of_the_decoder(workspace):
    rows = [row | {"de": " ".join([row["de"]] * 40)} for row in translated_rows(20)]
    result = train(tiny_bart(), workspace, rows, task="seq2seq", max_steps=1, max_target_length=100)
    assert result.data["truncated"] == {"train": 16, "validation": 4}
    assert len(predict(result.path, ["one two"], num_beams=1)) == 1


# ---- language modelling


def test_blocks_lose_nothing():
    task, tokenizer = finetune_task("causal-lm"), task_tokenizer()
    rows = [{"text": row["de"]} for row in translated_rows(10)]
    data = prepare_data(rows, rows[:1], None, FinetuneConfig(), task=task)
    dataset = task.tokenize(data.train, context_of(tiny_gpt2(), max_length=7))
    joined = [token for feature in dataset.features for token in feature["input_ids"]]
    whole = [token for row in rows for token in tokenizer(row["text"])["input_ids"]]
    assert joined == whole[: len(joined)]
    assert len(whole) - len(joined) <= 1
    assert {len(feature["input_ids"]) for feature in dataset.features[:-1]} == {7}


def test_perplexity_is_over_all_tokens():
    model, tokenizer = tiny_gpt2().eval(), task_tokenizer()
    rows = [{"text": row["de"]} for row in translated_rows(10)]
    measured = evaluate_model(
        model, rows, tokenizer=tokenizer, task="causal-lm", max_length=7, eval_batch_size=3
    ).metrics
    whole = [token for row in rows for token in tokenizer(row["text"])["input_ids"]]
    total = count = 0
    for start in range(0, len(whole), 7):
        block = torch.tensor([whole[start : start + 7]])
        if block.shape[1] > 1:
            with torch.no_grad():
                loss = float(model(input_ids=block, labels=block).loss)
            total, count = total + loss * (block.shape[1] - 1), count + block.shape[1] - 1
    assert measured.loss == pytest.approx(total / count, rel=1e-5)
    assert measured.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert (measured.tokens, measured.examples) == (count, 10)


def test_language_model_learns(workspace):
    rows = [{"text": row["de"]} for row in translated_rows(200)]
    result = train(tiny_gpt2(), workspace, rows, num_epochs=4, task="causal-lm", learning_rate=2e-2)
    assert result.history[-1].loss < result.history[0].loss
    assert result.validation.perplexity < 8


def test_training_loss_of_a_language_model_is_moved_by_one(artifact):
    model = graft_layer(tiny_gpt2(), artifact, task="causal-lm").eval()
    task = finetune_task("causal-lm")
    ids = torch.tensor([[1, 5, 9, 2], [1, 7, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask, labels=labels)
    ours = task.loss_function(FinetuneConfig(label_smoothing=0.0))(outputs, labels)
    assert float(ours) == pytest.approx(float(outputs.loss), rel=1e-5)


def test_stored_graft_of_a_language_model_predicts_the_same(artifact, workspace):
    result = train(
        graft_layer(tiny_gpt2(), artifact, task="causal-lm"), workspace, [{"text": "eins zwei drei"}] * 10, max_steps=1
    )
    texts = ["eins", "eins zwei drei vier"]
    stored = predict(result.path, texts, max_target_length=5, num_beams=1)
    loaded = GraftedModel.from_pretrained(result.path).eval()
    for prediction in stored:
        ids = task_tokenizer()(prediction.text, return_tensors="pt")
        written = loaded.generate(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=5, do_sample=False
        )
        expected = task_tokenizer().decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert prediction.written == expected.strip()


def test_continuation_stays_within_the_positions(workspace):
    result = train(tiny_gpt2(), workspace, [{"text": "eins zwei drei"}] * 10, task="causal-lm", max_steps=1)
    long_text = "eins zwei drei " * 40
    (prediction,) = predict(result.path, [long_text], max_target_length=20, max_length=1000, num_beams=1)
    assert prediction.text == long_text
    with pytest.raises(ConfigError, match="max_target_length is 64, but the model takes at most 64 tokens"):
        predict(result.path, [long_text], max_target_length=64, num_beams=1)
