"""Short trainings of tiny classifiers, and their weights."""

from typing import Any

import torch

from layer_surgeon.finetune import FinetuneResult, finetune_model
from layer_surgeon.workspace import Workspace
from tests.support.classification import rows, word_tokenizer

TRAIN = {"train": rows(48), "validation": rows(16, seed=1), "test": rows(12, seed=2)}
_FAST = {"num_epochs": 2, "batch_size": 8, "learning_rate": 2e-3}


def train(model: Any, workspace: Workspace, data: Any = TRAIN, **arguments: Any) -> FinetuneResult:
    tokenizer = {} if isinstance(model, str) or hasattr(model, "is_dir") else {"tokenizer": word_tokenizer()}
    return finetune_model(model, data, workspace=workspace, **tokenizer, **(_FAST | arguments))


def weights(result: FinetuneResult) -> dict[str, Any]:
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
