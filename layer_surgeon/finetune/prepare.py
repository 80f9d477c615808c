"""Everything before the first step: model, tokenizer and data, checked and brought together; nothing is written."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import set_seed

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import FinetuneConfig, Selection
from layer_surgeon.finetune.data import TaskData, prepare_data
from layer_surgeon.finetune.models import (
    ModelLike,
    check_machine,
    count_parameters,
    find_task,
    label_names_of,
    load_model,
    load_tokenizer,
    set_labels,
)
from layer_surgeon.finetune.parts import choose_trained
from layer_surgeon.finetune.sources import task_of_data
from layer_surgeon.finetune.streaming import begin_stream, prepare_stream
from layer_surgeon.finetune.summary import summary
from layer_surgeon.finetune.tasks import FINETUNE_TASKS, FinetuneTask, TaskContext
from layer_surgeon.finetune.tokenization import TokenizedDataset
from layer_surgeon.finetune.tracking import check_trackers
from layer_surgeon.finetune.train_stream import StreamedDataset
from layer_surgeon.graft import GraftedModel
from layer_surgeon.progress import Progress
from layer_surgeon.workspace import Workspace, short_name


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A run that could begin.

    Attributes:
        context: Model, tokenizer and settings, with what was left open filled in.
        data: The examples.
        sets: Their tokens, by split; of a stream those of the rows that were checked, as `data` has them.
        device: Where it will run.
        model_name: What to call the model.
        places: What was trained on what, as it was said.
    """

    context: TaskContext
    data: TaskData
    sets: dict[str, TokenizedDataset]
    device: torch.device
    model_name: str
    places: Mapping[str, Any]

    @property
    def config(self) -> FinetuneConfig:
        """The settings."""
        return self.context.config

    def training_set(self, num_processes: int = 1) -> tuple[TokenizedDataset | StreamedDataset, FinetuneConfig]:
        """What is trained on, and the settings; of a stream with the number of steps, which the processes share."""
        if self.data.stream is None:
            return self.sets["train"], self.config
        streamed = StreamedDataset(self.data.stream, self.context, num_processes)
        return streamed, replace(self.config, max_steps=self.data.stream.steps(self.config, num_processes)[1])

    @property
    def signature(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {
            # Who watches is no part of the run: one whose tracker has died goes on without it.
            "config": {name: value for name, value in asdict(self.config).items() if name != "report_to"},
            "data": self.data.facts(),
            "model": self.model_name,
            "parameters": count_parameters(self.context.model),
        }

    def default_folder(self, workspace: Workspace) -> Path:
        """Where the run goes if nothing else was said."""
        return workspace.folder("run", f"{short_name(self.data.name)}-{self.model_name}")


def prepare_run(places: Mapping[str, Any], config: FinetuneConfig, progress: Progress) -> Preparation:
    """Load and check everything.

    Args:
        places: graft, dataset, validation, test, tokenizer and donor, as `finetune_model` takes them.
        config: The settings.
        progress: Is told about the data.

    Raises:
        ConfigError, DataError, GraftError, SourceNotFoundError: As `finetune_model` says.
    """
    model_or_path, train = places["graft"], places["dataset"]
    device = check_machine(config)
    check_trackers(config)
    task = FINETUNE_TASKS[find_task(model_or_path, config.task, task_of_data(train))]
    config = _for_task(config, task)
    opened = begin_stream(train, config, task, progress) if config.streaming else None
    set_seed(config.seed)  # a host without a head gets one with fresh weights
    donor = places["donor"]
    model = load_model(model_or_path, task.name, donor=donor)
    tokenizer = load_tokenizer(model_or_path, model, places["tokenizer"])
    model_names = label_names_of(model) if task.has_classes else ()
    others = places["validation"], places["test"], config
    common: dict[str, Any] = {"task": task, "model_names": model_names, "progress": progress}
    if opened is None:
        data = prepare_data(train, *others, **common)
    else:
        data = prepare_stream(opened, *others, **common)
    config = task.resolve(config, data.train)
    set_seed(config.seed)
    if task.has_classes:
        if _needs_other_head(model_or_path, model, data):
            model = load_model(model_or_path, task.name, num_labels=len(data.label_names))
        set_labels(model, data.label_names)
    task.prepare_model(model)
    name = _model_name(model_or_path, model)
    model = choose_trained(model, config, task.name)
    context = TaskContext(tokenizer=tokenizer, model=model, config=config, label_names=data.label_names)
    sets = _tokenize_all(data, context, progress)
    return Preparation(context=context, data=data, sets=sets, device=device, model_name=name, places=places)


def _tokenize_all(data: TaskData, context: TaskContext, progress: Progress) -> dict[str, TokenizedDataset]:
    sets = {name: data.task.tokenize(part, context, training=name == "train") for name, part in data.splits.items()}
    for line in summary(data, sets, context.config):
        progress.notice(line)
    return sets


def _for_task(config: FinetuneConfig, task: FinetuneTask) -> FinetuneConfig:
    """The settings with those filled in that follow from the task.

    Raises:
        ConfigError: The best epoch is to be chosen by a score that the task doesn't have.
    """
    select_by = config.select_by or task.selections[0]
    if select_by not in task.selections:
        raise ConfigError(
            f"select_by is {select_by!r}; for {task.name} it must be one of {', '.join(task.selections)}."
        )
    return replace(config, task=task.name, select_by=cast(Selection, select_by))


def _needs_other_head(model_or_path: ModelLike, model: Any, data: TaskData) -> bool:
    stored = isinstance(model_or_path, str | os.PathLike) and not isinstance(model, GraftedModel)
    return stored and model.config.num_labels != len(data.label_names)


def _model_name(model_or_path: ModelLike, model: Any) -> str:
    if isinstance(model_or_path, str | os.PathLike):
        return short_name(os.fspath(model_or_path))
    return short_name(model.name_or_path or type(model).__name__)
