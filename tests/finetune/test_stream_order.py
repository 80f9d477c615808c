"""Training data that is read row by row: in which order, how much of it at a time, and by whom."""

import gc
import itertools

import pytest
from accelerate.data_loader import IterableDatasetShard

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.tasks import finetune_task
from layer_surgeon.finetune.tasks.text_classification import TextClassification
from layer_surgeon.finetune.tokenization import TokenizedDataset
from layer_surgeon.tasks import get_task
from tests.support.classification import rows
from tests.support.finetune_tasks import (
    question_rows,
)
from tests.support.streams import features_of, taken


def test_every_pass_has_every_row_once_in_another_order():
    made = [{"text": " ".join(["film"] * (i % 7 + 1) + ["good"] * (i // 7)), "label": 0} for i in range(20)]
    data = features_of(made, shuffle_buffer=8, group_by_length=False)
    both = taken(data)
    first, second = both[:20], both[20:]
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 20
    assert first != second
    again = taken(features_of(made, shuffle_buffer=8, group_by_length=False))
    assert again == [*first, *second]
    assert taken(features_of(made, shuffle_buffer=8, group_by_length=False, seed=1)) != again


def test_texts_of_similar_length_are_batched_together():
    def padding(**settings):
        batches = itertools.zip_longest(*[iter(taken(features_of(rows(200), **settings)))] * 4)
        return sum(4 * max(map(len, batch)) - sum(map(len, batch)) for batch in batches)

    wanted = {"max_steps": 50, "eval_steps": 50}
    assert padding(**wanted) < 0.5 * padding(group_by_length=False, **wanted)


class Row(dict):
    """A row that counts the instances in memory."""

    alive = most = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        Row.alive += 1
        Row.most = max(Row.most, Row.alive)

    def __del__(self):
        Row.alive -= 1


class OneToken(TextClassification):
    """Without the time that tokens take."""

    def tokenize(self, examples, context):
        return TokenizedDataset([{"input_ids": [1], "labels": label} for label in examples.labels], 0, 1)


def test_memory_does_not_grow_with_the_stream():
    """Memory is limited to the buffer and the row being read, for a tenth of the rows as for all of them."""
    kinds = rows(10)

    def most(count, steps):
        # Rows of the previous stream that are freed later must not be counted.
        gc.collect()
        Row.alive = Row.most = 0
        data = features_of(
            lambda: (Row(kinds[i % 10]) for i in range(count)),
            task=OneToken(get_task("text-classification")),
            shuffle_buffer=50,
            max_steps=steps,
            eval_steps=steps,
            batch_size=50,
        )
        seen = 0
        for _ in data:
            seen += 1
        assert seen == count
        return Row.most

    small, large = most(500, 10), most(5_000, 100)
    assert large == small <= 2 * 50 + 10


def test_processes_share_every_batch():
    alone = taken(features_of(rows(30), batch_size=8))
    shares = [
        taken_from(
            IterableDatasetShard(features_of(rows(30), num_processes=2), 4, num_processes=2, process_index=index)
        )
        for index in range(2)
    ]
    assert len(alone) == len(shares[0]) + len(shares[1]) == 80
    joined = [one for start in range(0, 40, 4) for share in shares for one in share[start : start + 4]]
    assert joined == alone


def taken_from(shard):
    return [tuple(feature["input_ids"]) for feature in shard]


@pytest.mark.parametrize("kind", ["text-classification", "question-answering", "causal-lm"])
def test_later_epoch_starts_at_its_position(kind):
    made, columns = {
        "text-classification": (rows(50), None),
        "question-answering": (
            question_rows(50),
            ColumnChoice(text="question", text_pair="context", label="answers", guessed=False),
        ),
        "causal-lm": (rows(50), ColumnChoice(text="text", text_pair=None, label=None, guessed=False)),
    }[kind]
    settings = {
        "task": finetune_task(kind),
        "columns": columns,
        "eval_steps": 4,
        "shuffle_buffer": 7,
        "max_length": 20,
    }
    whole = features_of(made, **settings)
    epochs = [taken(whole, epoch) for epoch in range(6)]
    for epoch in (0, 3, 5):
        assert taken(features_of(made, **settings), epoch) == epochs[epoch]
    # An epoch that was left in the middle starts over.
    whole.set_epoch(6)
    next(iter(whole))
    assert taken(whole, 2) == epochs[2]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"text": None}, "the rows, row 134, column 'text': the text is empty"),
        ({"text": 7}, "the rows, row 134, column 'text': found 7 of the type int, but expected a text"),
        ({"label": None}, "the rows, row 134: the label is missing."),
        ({"label": "3"}, "the rows, row 134 has labels that were not seen in training: 3"),
    ],
)
def test_a_bad_row_is_named(changed, says):
    made = [row | (changed if index == 133 else {}) for index, row in enumerate(rows(150))]
    with pytest.raises(DataError) as error:
        taken(features_of(made, shuffle_buffer=50, max_steps=38, eval_steps=38))
    assert says in str(error.value), str(error.value)
    del made[133]["label"]
    with pytest.raises(DataError, match="row 134: there is no column 'label'. The columns are: text"):
        taken(features_of(made, shuffle_buffer=50, max_steps=38, eval_steps=38))
