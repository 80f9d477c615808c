"""Load and check model, tokenizer and data before the first step, without writing anything."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from layer_surgeon.errors import ConfigError, GraftError
from layer_surgeon.finetune.config import FinetuneConfig
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
    set_padding,
)
from layer_surgeon.finetune.parts import PartsBefore, as_it_was, choose_trained, plain_model
from layer_surgeon.finetune.prepare_stream import begin_stream, prepare_stream
from layer_surgeon.finetune.sources import task_of_data
from layer_surgeon.finetune.summary import summary
from layer_surgeon.finetune.tasks import FinetuneTask, TaskContext, finetune_task
from layer_surgeon.finetune.tokenization import TokenizedDataset
from layer_surgeon.finetune.tracking import check_trackers
from layer_surgeon.finetune.train_stream import StreamedDataset
from layer_surgeon.graft import GraftedModel
from layer_surgeon.progress import Progress
from layer_surgeon.workspace import Workspace, short_name

# A run can be resumed with other trackers, or without the one that failed. `cache_states` doesn't change the results.
_CHANGEABLE = ("report_to", "cache_states")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A run that is ready to begin.

    Attributes:
        context: Model, tokenizer and settings, with all defaults resolved.
        data: The examples.
        sets: Tokenized examples by split. For a stream, `train` has only the checked rows.
        device: The device to train on.
        model_name: Name of the model.
        sources: Model, data, tokenizer and donor as the user passed them.
        before: What the model was before its parts were frozen or adapted.
    """

    context: TaskContext
    data: TaskData
    sets: dict[str, TokenizedDataset]
    device: torch.device
    model_name: str
    sources: Mapping[str, Any]
    before: PartsBefore

    @property
    def config(self) -> FinetuneConfig:
        """The settings."""
        return self.context.config

    def training_set(self, num_processes: int = 1) -> tuple[TokenizedDataset | StreamedDataset, FinetuneConfig]:
        """The training set, and the settings; for a stream, with `max_steps` filled in."""
        if self.data.stream is None:
            return self.sets["train"], self.config
        streamed = StreamedDataset(self.data.stream, self.context, num_processes)
        return streamed, replace(self.config, max_steps=self.data.stream.steps(self.config, num_processes)[1])

    @property
    def signature(self) -> dict[str, Any]:
        """What must be equal to resume a run."""
        return {
            "config": {name: value for name, value in asdict(self.config).items() if name not in _CHANGEABLE},
            "data": self.data.facts(),
            "model": self.model_name,
            **_graft_facts(plain_model(self.context.model)),
            "parameters": count_parameters(self.context.model),
        }

    def default_folder(self, workspace: Workspace) -> Path:
        """The folder of the run if the user does not name one."""
        return workspace.folder("run", f"{short_name(self.data.name)}-{self.model_name}")


def prepare_run(sources: Mapping[str, Any], config: FinetuneConfig, progress: Progress) -> Preparation:
    """Load and check model, tokenizer and data.

    Args:
        sources: graft, dataset, validation, test, tokenizer and donor, as `finetune_model` takes them.
        config: The settings.
        progress: Receives notices about the data.

    Raises:
        ConfigError, DataError, GraftError, SourceNotFoundError: As `finetune_model`.
    """
    model_or_path, train = sources["graft"], sources["dataset"]
    device = check_machine(config)
    check_trackers(config)
    task = finetune_task(find_task(model_or_path, config.task, task_of_data(train)))
    config = _resolve_for_task(config, task)
    opened = begin_stream(train, config, task, progress) if config.streaming else None
    set_seed(config.seed)  # A host without a head gets a new one.
    donor = sources["donor"]
    model = load_model(model_or_path, task.name, donor=donor)
    if task.record.labels and isinstance(model, GraftedModel) and model.config.num_labels == 1:
        raise GraftError(
            "The graft has one output (num_labels is 1), which is regression, but surgeon finetune trains classes. For "
            "classes, make the graft without num_labels. For regression, train it with transformers' Trainer: "
            "docs/trainer.md has an example."
        )
    tokenizer = load_tokenizer(model_or_path, model, sources["tokenizer"])
    model_names = label_names_of(model) if task.record.labels else ()
    others = sources["validation"], sources["test"], config
    common: dict[str, Any] = {"task": task, "model_names": model_names, "progress": progress}
    if opened is None:
        data = prepare_data(train, *others, **common)
    else:
        data = prepare_stream(opened, *others, **common)
    config = task.resolve(config, data.train)
    set_seed(config.seed)
    if task.record.labels:
        if _needs_new_head(model_or_path, model, data):
            model = load_model(model_or_path, task.name, num_labels=len(data.label_names))
            set_padding(model, tokenizer)
        set_labels(model, data.label_names)
    task.prepare_model(model)
    name = _model_name(model_or_path, model)
    before = PartsBefore.of(model)
    model = choose_trained(model, config, task.record)
    context = TaskContext(tokenizer=tokenizer, model=model, config=config, label_names=data.label_names)
    try:
        sets = _tokenize_all(data, context, progress)
    except BaseException:
        as_it_was(model, config, before, merge=False)
        raise
    return Preparation(
        context=context,
        data=data,
        sets=sets,
        device=device,
        model_name=name,
        sources=sources,
        before=before,
    )


def _tokenize_all(data: TaskData, context: TaskContext, progress: Progress) -> dict[str, TokenizedDataset]:
    sets = {name: data.task.tokenize(part, context) for name, part in data.splits.items()}
    for line in summary(data, sets, context.config):
        progress.notice(line)
    return sets


def _resolve_for_task(config: FinetuneConfig, task: FinetuneTask) -> FinetuneConfig:
    """Resolve the settings that depend on the task.

    Raises:
        ConfigError: `select_by` is not a score of this task.
    """
    select_by = config.select_by or task.record.selections[0]
    if select_by not in task.record.selections:
        raise ConfigError(
            f"select_by is {select_by!r}; for {task.name} it must be one of {', '.join(task.record.selections)}."
        )
    return replace(config, task=task.name, select_by=select_by)


def _needs_new_head(model_or_path: ModelLike, model: Any, data: TaskData) -> bool:
    can_reload = isinstance(model_or_path, str | os.PathLike) and not isinstance(model, GraftedModel)
    return can_reload and model.config.num_labels != len(data.label_names)


def _graft_facts(model: Any) -> dict[str, Any]:
    """The settings of a graft, and its donor's weights, which are in no checkpoint."""
    if not isinstance(model, GraftedModel) or model.config.donor is None:
        return {}
    return {"graft": model.config.graft, "donor": model.config.donor.get("sha256")}


def _model_name(model_or_path: ModelLike, model: Any) -> str:
    if isinstance(model_or_path, str | os.PathLike):
        return short_name(os.fspath(model_or_path))
    return short_name(model.name_or_path or type(model).__name__)
