"""TRAIN: tasks, data, metrics, transformers.Trainer.

config, registry   plain data, light to import (the command line reads its options and names from them)
files, sources     name, Hub id, files or a Dataset -> splits as they are
columns, labels    which columns are text and label; label values <-> class ids
examples           rows of any task: counted, chosen from, held out
tasks              one module per task: its columns, tokens, loss, metrics and predictions. The rest knows no task
data               all these -> checked, split, counted `TaskData`; summary: what a person sees of it
parts              which parts are trained, and how fast: frozen hosts, LoRA, a rate for each part
models             the model and its tokenizer, with the data's classes, on the right device
tokenization       texts -> ids, and how many were cut
trainer            transformers.Trainer with the optimizer, sampler, checkpoints and events that we want
prepare            everything before the first step: checked and brought together, nothing written
run                `finetune_model`: the order of all that
plan, repeat       `plan_finetuning`: a run that is only looked at; `finetune_seeds`: one with several seeds
processes          several processes that train together: who writes, and what all must know
folder             the run's folder, unfinished and finished; what can be resumed
record             run.yaml, from which the command line repeats a run
results, report    what came out: typed, as JSON, as a picture, as a model card
inference, metrics what a model says of a set; what all metrics share, and those of classification
squad, written     metrics of answers and of written texts; scorers: those that need a model of their own
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

# Lazy, because the command line needs `config` and `registry` for its help, and must not import torch for that.
_HOME = {
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
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

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
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'layer_surgeon.finetune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"layer_surgeon.finetune.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
