"""Every task, from data to a trained model that predicts, with tiny random models."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BertForQuestionAnswering, BertForTokenClassification, BertModel

from layer_surgeon.errors import ConfigError, DataError, GraftError
from layer_surgeon.finetune import FinetuneConfig, evaluate_model, finetune_model, predict
from layer_surgeon.finetune.data import prepare_data
from layer_surgeon.finetune.inference import run_model
from layer_surgeon.finetune.models import find_task
from layer_surgeon.finetune.tasks import FINETUNE_TASKS, TaskContext
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.graft import GraftedModel, graft_layer
from tests.support.classification import Recorder, bert_config
from tests.support.finetune_tasks import (
    question_rows,
    tagged_rows,
    task_tokenizer,
    tiny_bart,
    tiny_gpt2,
    translated_rows,
)

FAST = {"num_epochs": 1, "batch_size": 8, "learning_rate": 5e-3, "max_length": 40}


def train(model, workspace, data, **arguments):
    return finetune_model(model, data, workspace=workspace, tokenizer=task_tokenizer(), **(FAST | arguments))


def bert(kind, **settings):
    torch.manual_seed(0)
    return kind(bert_config(**settings))


def context_of(model, **settings):
    return TaskContext(tokenizer=task_tokenizer(), model=model, config=FinetuneConfig(**settings))


@pytest.fixture
def hosts():
    """A host for each task that reads."""
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
    assert "fine-tuned on data" in (result.path / "README.md").read_text()
    # From the folder alone: task and settings are the run's.
    measured = evaluate_model(result.path, data["test"])
    assert measured.task == task
    assert dict(measured.metrics.scores) == pytest.approx(dict(result.test.scores), rel=1e-5)
    together = predict(result.path, ITEMS[task])
    alone = [predict(result.path, [item])[0] for item in ITEMS[task]]
    assert [words_of(one) for one in together] == [words_of(one) for one in alone]


def words_of(prediction):
    """What is said, without scores, which depend on padding in the last digits."""
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
    with pytest.raises(GraftError, match="The graft is for question-answering, not for seq2seq. Make one for that"):
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
    with pytest.raises(DataError, match="squad is a data set for question-answering, and the model does seq2seq"):
        finetune_model(tiny_bart(), "squad", workspace=workspace, tokenizer=task_tokenizer(), task="seq2seq")


def test_score_that_the_task_does_not_have(workspace):
    with pytest.raises(ConfigError, match="select_by is 'accuracy'; for seq2seq it must be one of bleu, rouge_l"):
        train(tiny_bart(), workspace, translated_rows(), select_by="accuracy")


# ---- tagging


def test_labels_lie_at_first_tokens():
    tokenizer = task_tokenizer()
    task, model = FINETUNE_TASKS["token-classification"], bert(BertForTokenClassification)
    data = prepare_data(
        [*tagged_rows(9), {"tokens": ["anna", "saw?and", "rome"], "ner_tags": ["B-PER", "O", "B-LOC"]}],
        None,
        None,
        FinetuneConfig(validation_fraction=0.1),
        task=task,
    )
    names = data.label_names
    examples = data.train if ("anna", "saw?and", "rome") in data.train.words else data.validation
    row = examples.words.index(("anna", "saw?and", "rome"))
    dataset = task.tokenize(examples, context_of(model), training=True)
    tokens = tokenizer.convert_ids_to_tokens(dataset.features[row]["input_ids"])
    assert tokens == ["[CLS]", "anna", "saw", "?", "and", "rome", "[SEP]"]
    expected = [-100, names.index("B-PER"), names.index("O"), -100, -100, names.index("B-LOC"), -100]
    assert dataset.features[row]["labels"] == expected
    assert dataset.num_truncated == 0


def test_words_that_are_cut_off_count_as_outside():
    model = bert(BertForTokenClassification, num_labels=3)
    model.config.id2label = {0: "O", 1: "B-PER", 2: "B-LOC"}
    measured = evaluate_model(model, tagged_rows(10), tokenizer=task_tokenizer(), max_length=4)
    assert measured.num_truncated == 10
    assert measured.metrics.words == sum(len(row["tokens"]) for row in tagged_rows(10))
    (prediction,) = predict(model, ["anna went to rome"], tokenizer=task_tokenizer(), max_length=4)
    assert prediction.labels[2:] == (None, None)
    assert None not in prediction.labels[:2]


def test_tagger_learns(workspace):
    result = train(
        bert(BertForTokenClassification, num_labels=3), workspace, tagged_rows(80), num_epochs=6, learning_rate=2e-2
    )
    assert result.validation.f1 > 0.9
    assert set(result.validation.per_class) == {"PER", "LOC"}
    assert set(result.label_names) == {"O", "B-PER", "B-LOC"}
    assert result.data["splits"]["train"]["per_class"]["B-PER"] == 64


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tokens": ["anna", "went"], "ner_tags": ["O"]}, "2 words ('tokens') and 1 labels ('ner_tags')"),
        ({"tokens": [], "ner_tags": []}, "1 empty texts (rows 41)"),
        ({"tokens": ["a", " "], "ner_tags": ["O", "O"]}, "row 41: ' ' is no word"),
        ({"tokens": ["a"], "ner_tags": None}, "1 rows have no list of labels (rows 41)"),
    ],
)
def test_bad_rows_of_a_tagger(row, says, workspace):
    refused(bert(BertForTokenClassification), workspace, [*tagged_rows(), row], says)


def refused(model, workspace, data, says, **settings):
    """Before anything is trained or written."""
    with pytest.raises(DataError) as error:
        train(model, workspace, data, **settings)
    assert says in str(error.value), str(error.value)
    assert not workspace.root.exists()


# ---- questions


def windows(rows, **settings):
    task, model = FINETUNE_TASKS["question-answering"], bert(BertForQuestionAnswering)
    data = prepare_data(rows, rows[:1], None, FinetuneConfig(), task=task)
    return data.train, task.tokenize(data.train, context_of(model, **settings), training=True)


def test_windows_cover_the_text_and_find_the_answer():
    long = " ".join(["the day and"] * 20) + " anna went to rome ."
    row = {
        "question": "who went ?",
        "context": long,
        "answers": {"text": ["anna"], "answer_start": [long.index("anna")]},
    }
    examples, dataset = windows([row, row], max_length=20, doc_stride=5)
    pieces = [w for w in dataset.places if w.example == 0]
    assert all(len(feature["input_ids"]) <= 20 for feature in dataset.features)
    covered = [{o for o in w.offsets if o} for w in pieces]
    words = len(long.split())
    assert len(set.union(*covered)) == words
    assert all(len(one & two) == 5 for one, two in itertools.pairwise(covered))
    having = [w for w in pieces if w.start]
    assert having
    for window in having:
        begin, end = window.offsets[window.start][0], window.offsets[window.end][1]
        assert examples.contexts[0][begin:end] == "anna"
    assert all((w.start, w.end) == (0, 0) for w in pieces if w not in having)
    assert dataset.num_truncated == 0


def test_answers_are_mapped_back_to_the_text(workspace):
    """By hand: the logits point at two words; what is between them, blanks included, is the answer."""
    rows = [{"question": "where ?", "context": "the  day anna   went to rome .", "answers": "anna   went"}]
    examples, dataset = windows(rows * 2, max_length=30)
    task, (window, _) = FINETUNE_TASKS["question-answering"], dataset.places
    assert examples.contexts[0][window.offsets[window.start][0] : window.offsets[window.end][1]] == "anna   went"
    outputs = np.zeros((2, 2, len(window.offsets)), dtype=np.float32)
    outputs[0, :, window.start], outputs[1, :, window.end] = 9, 9
    # Better, but not of the text, or ending before it starts.
    outputs[0, :, 0] = outputs[1, :, 1] = 20
    context = context_of(None, unanswerable=False)
    (prediction, _) = task.predictions((outputs[0], outputs[1]), dataset, examples, context)
    assert (prediction.answer, prediction.start, prediction.score) == ("anna   went", 9, 18)
    assert task.measure((outputs[0], outputs[1]), dataset, examples, context).exact_match == 100
    # Where no answer is an answer, the first token of all speaks for it.
    outputs[1, :, 0] = 0
    empty = task.predictions((outputs[0], outputs[1]), dataset, examples, context_of(None, unanswerable=True))[0]
    assert (empty.answer, empty.score) == ("", 20)
    short = task.predictions((outputs[0], outputs[1]), dataset, examples, context_of(None, max_answer_length=1))[0]
    assert len(short.answer.split()) == 1


def test_best_answer_of_several_windows():
    rows = [{"question": "where ?", "context": "anna went to rome . bob went to paris .", "answers": "paris"}]
    examples, dataset = windows(rows * 2, max_length=13, doc_stride=2)
    task = FINETUNE_TASKS["question-answering"]
    mine = [index for index, w in enumerate(dataset.places) if w.example == 0]
    assert len(mine) > 1
    outputs = np.zeros((2, len(dataset), 13), dtype=np.float32)
    where = next(index for index in mine if dataset.places[index].start)
    outputs[0, where, dataset.places[where].start] = outputs[1, where, dataset.places[where].end] = 5
    assert task.predictions((outputs[0], outputs[1]), dataset, examples, context_of(None))[0].answer == "paris"


def test_questions_on_one_text_are_not_torn_apart():
    rows = [row | {"context": row["context"], "id": str(i)} for i in range(3) for row in question_rows(20)]
    data = prepare_data(rows, None, None, FinetuneConfig(), task=FINETUNE_TASKS["question-answering"])
    assert not set(data.train.contexts) & set(data.validation.contexts)
    assert len(data.train) + len(data.validation) == 60
    assert 6 <= len(data.validation) <= 20


def test_unanswerable_questions(workspace):
    data = {"train": question_rows(40, unanswerable=True), "validation": question_rows(16, 1, unanswerable=True)}
    result = train(bert(BertForQuestionAnswering), workspace, data)
    assert result.config.unanswerable is True
    assert result.validation.version_2
    assert result.validation.without_answer["examples"] == 4
    assert result.data["splits"]["train"]["without_answer"] == 10
    assert train(bert(BertForQuestionAnswering), workspace, question_rows(40)).config.unanswerable is False


def test_reader_learns(workspace):
    result = train(bert(BertForQuestionAnswering), workspace, question_rows(200), num_epochs=8, learning_rate=1e-2)
    assert result.validation.exact_match > 45
    assert result.validation.f1 >= result.validation.exact_match


def test_loss_of_spans_is_the_models_without_smoothing():
    model = bert(BertForQuestionAnswering).eval()
    examples, dataset = windows(question_rows(6), max_length=40)
    task = FINETUNE_TASKS["question-answering"]
    batch = dict(task.collator(context_of(model))([dataset[index] for index in range(len(dataset))]))
    labels = batch.pop("labels")
    with torch.no_grad():
        outputs = model(**batch, start_positions=labels[:, 0], end_positions=labels[:, 1])
    ours = task.loss_function(FinetuneConfig(label_smoothing=0.0))(outputs, labels)
    assert float(ours) == pytest.approx(float(outputs.loss), rel=1e-6)
    smoothed = task.loss_function(FinetuneConfig(label_smoothing=0.1))(outputs, labels)
    both = [
        cross_entropy(outputs[name], labels[:, column], label_smoothing=0.1)
        for column, name in enumerate(("start_logits", "end_logits"))
    ]
    assert float(smoothed) == pytest.approx(float(sum(both) / 2), rel=1e-6)
    assert examples.answers


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"text": ["zoe"], "answer_start": [0]}, "the answer 'zoe' is not at character 0 of the text; it is nowhere"),
        ({"text": ["rome"], "answer_start": [3]}, "is not at character 3 of the text; it begins at 13"),
        ({"text": ["rome"], "answer_start": []}, "text and answer_start must be lists, equally long"),
        ([7], "7 is no answer. Expected:"),
        ("milan", "it is nowhere in the text"),
    ],
)
def test_answers_that_are_not_in_the_text(answers, says, workspace):
    row = {"id": "x", "question": "where ?", "context": "anna went to rome .", "answers": answers}
    refused(bert(BertForQuestionAnswering), workspace, [*question_rows(), row], says)


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["rome"], "answer_start": [13]},
        [{"text": "rome", "answer_start": 13}],
        '{"text": ["rome"], "answer_start": [13]}',
        "rome",
        {"text": "rome", "answer_start": 13},
    ],
)
def test_forms_of_answers(answers):
    rows = [{"question": "where ?", "context": "anna went to rome .", "answers": answers}] * 2
    assert windows(rows)[0].answers[0] == ((13, "rome"),)


def test_question_that_leaves_no_room(workspace):
    with pytest.raises(ConfigError, match="question .* has 3 tokens, which leaves 4 .*share 5 .doc_stride"):
        train(bert(BertForQuestionAnswering), workspace, question_rows(), max_length=10, doc_stride=5)
    assert not workspace.root.exists()


def test_missing_context(workspace):
    rows = [{"question": "a b", "answers": "c"}] * 4
    refused(
        bert(BertForQuestionAnswering), workspace, rows, "has no context column. Its columns are: question, answers."
    )


# ---- writing


def test_translator_learns_and_writes(workspace):
    data = {"train": translated_rows(150), "validation": translated_rows(12, seed=1)}
    result = train(tiny_bart(), workspace, data, num_epochs=12, learning_rate=1e-2, max_target_length=8, num_beams=2)
    assert result.validation.bleu > result.history[0].scores["bleu"]
    assert result.validation.rouge_1 > 0.5 > result.history[0].scores["rouge_1"]
    assert result.validation.meteor > 0.4
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


def test_what_is_written_is_what_generate_writes():
    model, tokenizer = tiny_bart(3).eval(), task_tokenizer()
    predictions = predict(model, ["one two", "four"], tokenizer=tokenizer, num_beams=3, max_target_length=5)
    for prediction in predictions:
        ids = model.generate(**tokenizer(prediction.text, return_tensors="pt"), num_beams=3, max_new_tokens=5)
        assert prediction.written == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_prefix_is_put_before_sources(workspace):
    result = train(tiny_bart(), workspace, translated_rows(20), max_steps=1, source_prefix="the day ", num_beams=1)
    assert json.loads((result.path / "results.json").read_text())["config"]["source_prefix"] == "the day "
    task = FINETUNE_TASKS["seq2seq"]
    features = task.tokenize(task.inputs(["one"]), context_of(result.model, source_prefix="the day "), training=False)
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
    assert any("text = 'english', label = 'german' (guessed)" in notice for notice in progress.notices)


def test_one_column_is_not_enough(workspace):
    rows = [{"english": row["en"]} for row in translated_rows(20)]
    refused(tiny_bart(), workspace, rows, "has no source column. Its columns are: english.")


# ---- language modelling


def test_blocks_lose_nothing():
    task, tokenizer = FINETUNE_TASKS["causal-lm"], task_tokenizer()
    rows = [{"text": row["de"]} for row in translated_rows(10)]
    data = prepare_data(rows, rows[:1], None, FinetuneConfig(), task=task)
    dataset = task.tokenize(data.train, context_of(tiny_gpt2(), max_length=7), training=True)
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
    task = FINETUNE_TASKS["causal-lm"]
    ids = torch.tensor([[1, 5, 9, 2], [1, 7, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask, labels=labels)
    ours = task.loss_function(FinetuneConfig(label_smoothing=0.0))(outputs, labels)
    assert float(ours) == pytest.approx(float(outputs.loss), rel=1e-5)


def test_stored_graft_of_a_language_model_goes_on_the_same(artifact, workspace):
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
