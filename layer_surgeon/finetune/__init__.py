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

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layer_surgeon.finetune.config import FinetuneConfig
    from layer_surgeon.finetune.evaluation import Evaluation, evaluate_model, predict
    from layer_surgeon.finetune.metrics import ClassificationMetrics
    from layer_surgeon.finetune.plan import RunPlan, plan_finetuning
    from layer_surgeon.finetune.registry import DATASETS, DatasetRecord, find_dataset
    from layer_surgeon.finetune.repeat import SeedsResult, finetune_seeds
    from layer_surgeon.finetune.results import EpochResult, FinetuneResult
    from layer_surgeon.finetune.run import finetune_model
    from layer_surgeon.finetune.tasks.text_classification import Prediction

# Lazy, because the command line's help needs `config` and `registry`, and must not import torch.
_NAMES_BY_MODULE = {
    "config": ("FinetuneConfig",),
    "evaluation": ("Evaluation", "evaluate_model", "predict"),
    "metrics": ("ClassificationMetrics",),
    "plan": ("RunPlan", "plan_finetuning"),
    "registry": ("DATASETS", "DatasetRecord", "find_dataset"),
    "repeat": ("SeedsResult", "finetune_seeds"),
    "results": ("EpochResult", "FinetuneResult"),
    "run": ("finetune_model",),
    "tasks.text_classification": ("Prediction",),
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "DATASETS",
    "ClassificationMetrics",
    "DatasetRecord",
    "EpochResult",
    "Evaluation",
    "FinetuneConfig",
    "FinetuneResult",
    "Prediction",
    "RunPlan",
    "SeedsResult",
    "evaluate_model",
    "find_dataset",
    "finetune_model",
    "finetune_seeds",
    "plan_finetuning",
    "predict",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.finetune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.finetune.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
