"""Tasks that read: labels of words, and answers to questions."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertForQuestionAnswering, BertForTokenClassification

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune import FinetuneConfig, evaluate_model, predict
from layer_surgeon.finetune.data import prepare_data
from layer_surgeon.finetune.tasks import finetune_task
from layer_surgeon.finetune.tasks.token_classification import TaggedTexts
from tests.support.finetune_tasks import (
    bert,
    context_of,
    question_rows,
    refused,
    tagged_rows,
    task_tokenizer,
    train,
)
from tests.support.small_tokenizers import byte_level, sentencepiece

# ---- tagging


def test_labels_are_at_first_tokens():
    tokenizer = task_tokenizer()
    task, model = finetune_task("token-classification"), bert(BertForTokenClassification)
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
    dataset = task.tokenize(examples, context_of(model))
    tokens = tokenizer.convert_ids_to_tokens(dataset.features[row]["input_ids"])
    assert tokens == ["[CLS]", "anna", "saw", "?", "and", "rome", "[SEP]"]
    expected = [-100, names.index("B-PER"), names.index("O"), -100, -100, names.index("B-LOC"), -100]
    assert dataset.features[row]["labels"] == expected
    assert dataset.num_truncated == 0


@pytest.mark.parametrize(
    ("make", "space"), [(byte_level, "Ġ"), (partial(sentencepiece, adds_space=False), "▁")], ids=["gpt2", "gemma"]
)
def test_words_are_read_as_in_a_text(make, space, tmp_path):
    """`Ġwent` after a space and `went` in a word are two tokens, and a pipeline's text has spaces."""
    words = ("anna", "went", "to-rome", "日本")
    tokenizer = AutoTokenizer.from_pretrained(make([f"{space}went", "anna", "went", "rome"], tmp_path))
    task = finetune_task("token-classification")
    examples = TaggedTexts(words=(words,), tags=((1, 0, 2, 2),))
    dataset = task.tokenize(examples, replace(context_of(bert(BertForTokenClassification)), tokenizer=tokenizer))
    (feature,) = dataset.features
    assert feature["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    assert "offset_mapping" not in feature
    tokens = tokenizer.convert_ids_to_tokens(feature["input_ids"])
    (firsts,) = dataset.alignments
    assert tokens[firsts[0]] == "anna"
    assert tokens[firsts[1]] == f"{space}went"
    assert [feature["labels"][firsts[word]] for word in range(4)] == [1, 0, 2, 2]
    assert sum(label != -100 for label in feature["labels"]) == 4


def test_truncated_words_count_as_outside():
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
        ({"tokens": ["anna", "went"], "ner_tags": ["O"]}, "2 words ('tokens'), but 1 labels ('ner_tags')"),
        ({"tokens": [], "ner_tags": []}, "1 empty texts (rows 41)"),
        ({"tokens": ["a", " "], "ner_tags": ["O", "O"]}, "row 41: ' ' is not a word"),
        ({"tokens": ["a"], "ner_tags": None}, "1 rows have no list of labels (rows 41)"),
    ],
)
def test_bad_rows_of_a_tagger(row, says, workspace):
    refused(bert(BertForTokenClassification), workspace, [*tagged_rows(), row], says)


# ---- questions


def windows(rows, **settings):
    task, model = finetune_task("question-answering"), bert(BertForQuestionAnswering)
    data = prepare_data(rows, rows[:1], None, FinetuneConfig(), task=task)
    return data.train, task.tokenize(data.train, context_of(model, **settings))


def test_windows_cover_the_text_and_find_the_answer():
    long = " ".join(["the day and"] * 20) + " anna went to rome ."
    row = {
        "question": "who went ?",
        "context": long,
        "answers": {"text": ["anna"], "answer_start": [long.index("anna")]},
    }
    examples, dataset = windows([row, row], max_length=20, doc_stride=5)
    pieces = [w for w in dataset.alignments if w.example == 0]
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
    """By hand: the logits point at two words; the text between them, including spaces, is the answer."""
    rows = [{"question": "where ?", "context": "the  day anna   went to rome .", "answers": "anna   went"}]
    examples, dataset = windows(rows * 2, max_length=30)
    task, (window, _) = finetune_task("question-answering"), dataset.alignments
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
    asked = task.inputs([(row["question"], row["context"]) for row in rows * 2])
    answered = task.predictions((outputs[0], outputs[1]), dataset, asked, context_of(None))[0]
    assert answered.answer == "anna   went"
    short = task.predictions((outputs[0], outputs[1]), dataset, examples, context_of(None, max_answer_length=1))[0]
    assert len(short.answer.split()) == 1


def test_best_answer_of_several_windows():
    rows = [{"question": "where ?", "context": "anna went to rome . bob went to paris .", "answers": "paris"}]
    examples, dataset = windows(rows * 2, max_length=13, doc_stride=2)
    task = finetune_task("question-answering")
    mine = [index for index, w in enumerate(dataset.alignments) if w.example == 0]
    assert len(mine) > 1
    outputs = np.zeros((2, len(dataset), 13), dtype=np.float32)
    where = next(index for index in mine if dataset.alignments[index].start)
    outputs[0, where, dataset.alignments[where].start] = outputs[1, where, dataset.alignments[where].end] = 5
    assert task.predictions((outputs[0], outputs[1]), dataset, examples, context_of(None))[0].answer == "paris"


def test_questions_on_one_text_stay_together():
    rows = [row | {"context": row["context"], "id": str(i)} for i in range(3) for row in question_rows(20)]
    data = prepare_data(rows, None, None, FinetuneConfig(), task=finetune_task("question-answering"))
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
    task = finetune_task("question-answering")
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
        ({"text": ["zoe"], "answer_start": [0]}, "at character 0 of the text; the text does not contain it"),
        ({"text": ["rome"], "answer_start": [3]}, "is not at character 3 of the text; it begins at 13"),
        ({"text": ["rome"], "answer_start": []}, "text and answer_start must be lists of the same length"),
        ([7], "7 is not an answer. Expected"),
        (1969, "1969 is not an answer. Expected"),
        ("milan", "the text does not contain it"),
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
