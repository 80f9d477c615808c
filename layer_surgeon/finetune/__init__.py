"""TRAIN: tasks, data, metrics, transformers.Trainer.

config, registry   settings and named data sets; light to import, because the command line's help reads them
files, sources     load data from a name, a Hub id, files or memory
columns, labels    choose the text and label columns; map label values to class ids
examples           the checked rows of a split: subsets, hold-out, fingerprint
tasks              one module per task: columns, tokens, loss, metrics, predictions. Other modules are task-independent
data               load, check and split the data of a run; summary: describe it to the user
row_stream, prepare_stream, train_stream
                   the same for data that is read row by row: open it, check it, train on it
parts              choose what to train: the whole host, a frozen host or LoRA; one learning rate per part
models             load the model and the tokenizer; choose the device
tokenization       tokenize texts, and count the truncated ones
sampling           the order of the examples, and the number of steps
trainer            transformers.Trainer with our optimizer and checkpoints; sharding: FSDP
watching, tracking progress on the terminal; trackers such as TensorBoard
prepare            everything before the first step; writes nothing
run                `finetune_model`, which calls all of the above in order
plan, repeat       `plan_finetuning` (a dry run) and `finetune_seeds` (several seeds)
processes          several processes that train together
folder             the run folder: claim, resume, finish; checkpoints: which ones are complete
record             run.yaml, from which the command line repeats a run
results, report    the result: typed, results.json, charts; run_facts: the facts of the model card
inference, metrics run a model over a set; common metrics code and classification metrics
squad, written     metrics for answers and for generated text; scorers: metrics that need their own model
evaluation         `evaluate_model` and `predict`
"""

import lazy_loader

# Lazy, because the command line's help needs `config` and `registry`, and must not import torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
