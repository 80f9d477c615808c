"""Streamed training data made of rows, for the tests of what comes out of it."""

import functools

from layer_surgeon.finetune import FinetuneConfig
from layer_surgeon.finetune.columns import ColumnChoice
from layer_surgeon.finetune.labels import declared_label_map
from layer_surgeon.finetune.row_stream import RowStream
from layer_surgeon.finetune.tasks import TaskContext, finetune_task
from layer_surgeon.finetune.train_stream import StreamedDataset, TrainStream
from tests.support.classification import classifier, word_tokenizer
from tests.support.finetune_tasks import task_tokenizer

CLASSIFICATION = finetune_task("text-classification")


def features_of(made, *, task=CLASSIFICATION, columns=None, num_processes=1, **settings):
    """A streamed data set of rows, 40 features long by default."""
    made = made if callable(made) else functools.partial(iter, made)
    stream = TrainStream(
        source=RowStream(location="the rows", begin=made),
        columns=columns or ColumnChoice(text="text", text_pair=None, label="label", guessed=False),
        task=task,
        labels=declared_label_map(("0", "1")) if task.record.labels else None,
    )
    config = FinetuneConfig(streaming=True, **({"max_steps": 10, "eval_steps": 10, "batch_size": 4} | settings))
    tokenizer = word_tokenizer() if task is CLASSIFICATION else task_tokenizer()
    return StreamedDataset(stream, TaskContext(tokenizer=tokenizer, model=classifier(), config=config), num_processes)


def taken(data, epoch=0):
    """The token ids of every feature of an epoch, in order."""
    data.set_epoch(epoch)
    return [tuple(feature["input_ids"]) for feature in data]
