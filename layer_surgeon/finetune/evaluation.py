"""Evaluate a trained model on a data set, and predict with it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from layer_surgeon._folders import expand_home
from layer_surgeon._format import list_names
from layer_surgeon.errors import DataError, GraftError
from layer_surgeon.finetune.config import MODEL_SETTINGS, FinetuneConfig
from layer_surgeon.finetune.data import prepare_evaluation, settle_columns, with_known_columns
from layer_surgeon.finetune.examples import check_filled
from layer_surgeon.finetune.inference import run_model
from layer_surgeon.finetune.models import (
    ModelLike,
    check_machine,
    find_task,
    label_names_of,
    load_model,
    load_tokenizer,
    quiet,
)
from layer_surgeon.finetune.results import RESULTS, read_results
from layer_surgeon.finetune.sources import DataLike, Table, load_data, task_of_data
from layer_surgeon.finetune.tasks import FinetuneTask, TaskContext, finetune_task
from layer_surgeon.graft import GraftedModel
from layer_surgeon.graft.donor_loading import DonorInput
from layer_surgeon.graft.untrained import notice_if_untrained
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.tasks import DEFAULT_TASK


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of evaluating a model on a data set.

    Attributes:
        task: The model's task.
        data: The data set with its split, or the file.
        metrics: The task's metrics (`ClassificationMetrics`, ...).
        num_truncated: Number of examples truncated at the maximum length.
        seconds: Duration of the forward passes.
    """

    task: str
    data: str
    metrics: Any
    num_truncated: int
    seconds: float


def evaluate_model(
    model_or_path: ModelLike,
    data: DataLike,
    *,
    split: str | None = None,
    config: FinetuneConfig | None = None,
    tokenizer: Any = None,
    donor: DonorInput = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a trained model on a data set.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        data: Data in any form that `finetune_model` accepts.
        split: The split to use. Default: the test split, else the only split.
        config: Settings, of which columns, lengths, device, batch size and `max_eval_samples` are used. Without it,
            for the folder or repo of a run, the lengths and, if the data has them, the columns are those of the run.
        tokenizer: A tokenizer, or its folder or repo id. Default: the tokenizer stored with the model.
        donor: The donor layer, for a graft that was saved without it: a layer artifact, as a folder or repo id.
        progress: Receives every batch.
        settings: Fields of `FinetuneConfig` that override `config`.

    Raises:
        ConfigError: A setting is invalid.
        DataError: The data can't be used, or it has labels that the model does not know.
    """
    progress = progress or NullProgress()
    with quiet():
        config, columns = _settings_of(model_or_path, config, settings)
        task, context = _load_task_and_model(model_or_path, tokenizer, config, task_of_data(data), donor)
        _check_model(model_or_path, task, context, progress)
        data_name, examples = prepare_evaluation(
            data, context.label_names, config, split=split, task=task, known_columns=columns, progress=progress
        )
        dataset = task.tokenize(examples, context)
        started = time.monotonic()
        outputs = run_model(task, dataset, context, description="Evaluating", progress=progress)
        seconds = time.monotonic() - started
        metrics = task.measure(outputs, dataset, examples, context)
        metrics = task.add_scores(metrics, outputs, examples, context, progress)
    return Evaluation(
        task=task.name, data=data_name, metrics=metrics, num_truncated=dataset.num_truncated, seconds=seconds
    )


def predict(
    model_or_path: ModelLike,
    texts: Sequence[Any],
    *,
    config: FinetuneConfig | None = None,
    tokenizer: Any = None,
    donor: DonorInput = None,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Any]:
    """Predict on texts, or on pairs of texts.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        texts: Texts, or pairs as tuples, but not both. For question answering: (question, context).
        config: Settings, of which lengths, device and batch size are used. Without it, the lengths are those of the run
            that made the model.
        tokenizer: A tokenizer, or its folder or repo id. Default: the tokenizer stored with the model.
        donor: The donor layer, for a graft that was saved without it: a layer artifact, as a folder or repo id.
        progress: Receives every batch.
        settings: Fields of `FinetuneConfig` that override `config`.

    Returns:
        One prediction per text, in order: `Prediction`, `TagPrediction`, `AnswerPrediction` or `TextPrediction`.

    Raises:
        ConfigError: A setting is invalid.
        DataError: A text is empty, or texts and pairs are mixed.
    """
    if isinstance(texts, str):
        raise DataError("predict takes a list of texts, but got a single string. Pass [text].")
    if not len(texts):
        return []
    with quiet():
        config, _ = _settings_of(model_or_path, config, settings)
        examples = finetune_task(find_task(model_or_path, config.task)).inputs(texts)
        task, context = _load_task_and_model(model_or_path, tokenizer, config, None, donor)
        _check_model(model_or_path, task, context, progress or NullProgress())
        dataset = task.tokenize(examples, context)
        outputs = run_model(task, dataset, context, progress=progress)
        return task.predictions(outputs, dataset, examples, context)


def _check_model(model_or_path: ModelLike, task: FinetuneTask, context: TaskContext, progress: Progress) -> None:
    """Refuse a model of another kind of classification, and send a notice if the model is not trained."""
    model, problem = context.model, getattr(context.model.config, "problem_type", None)
    if task.record.one_label_per_text and len(context.label_names) == 1:
        problem = "regression"
    if problem in ("regression", "multi_label_classification"):
        raise GraftError(
            f"The model was trained for {problem.replace('_', ' ')}, but evaluate and predict are for texts with one "
            "class each. Use transformers' pipeline."
        )
    path = os.fspath(model_or_path) if isinstance(model_or_path, str | os.PathLike) else None
    if isinstance(model, GraftedModel):
        notice_if_untrained(model, path, progress)
    elif new_weights := getattr(model, "new_weights", ()):
        progress.notice(
            f"{path or 'The model'} has no trained weights for this task ({list_names(new_weights)} are random), so "
            f"its results mean nothing. Train it first: surgeon finetune {path or 'MODEL'}"
        )


def trained_task(model_or_path: ModelLike, config: FinetuneConfig | None = None) -> str:
    """Find the task of a model: from its run, its graft, or its model class.

    Raises:
        SourceNotFoundError: The folder does not exist.
        GraftError: The graft is for a different task than the one in `config`.
    """
    with quiet():
        run_config, _ = _settings_of(model_or_path, None, {"task": config.task} if config and config.task else {})
        return find_task(model_or_path, run_config.task)


def load_texts(
    files: Sequence[str | os.PathLike[str]],
    config: FinetuneConfig,
    task: str = DEFAULT_TASK,
    *,
    model: ModelLike | None = None,
    progress: Progress | None = None,
) -> list[Any]:
    """Read the texts to predict on: one per line of a .txt file, else from the text column or columns.

    Args:
        files: The files.
        config: Names of columns.
        task: The model's task.
        model: The folder or repo of a run, whose columns are used if a file has them and `config` names no others.
        progress: Receives notices about guessed columns.

    Raises:
        DataError: A file can't be read, or its text column can't be determined.
    """
    texts: list[Any] = []
    known = {} if model is None else _settings_of(model, config, {})[1]
    for file in files:
        path = Path(file)
        if path.suffix.lower() == ".txt":
            try:
                # Not splitlines(): it also splits at characters inside a text, such as U+2028.
                lines = path.read_text(encoding="utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
            texts += [line for line in lines if line.strip()]
        else:
            table = load_data(path, task=task).train
            settings = with_known_columns(config, known, table, with_label=False)
            texts += _texts_of(table, settings, finetune_task(task), progress or NullProgress())
    if not texts:
        raise DataError(f"There is no text in {', '.join(map(str, files))}. Add at least one text.")
    return texts


def _texts_of(table: Table, config: FinetuneConfig, task: FinetuneTask, progress: Progress) -> list[Any]:
    columns = settle_columns(table, config, None, task, progress, with_label=False)
    for name in columns.texts:
        check_filled(table.columns[name], f"{table.location}, column {name!r}")
    if columns.text_pair is None:
        return list(table.columns[columns.text])
    return list(zip(table.columns[columns.text], table.columns[columns.text_pair], strict=True))


def _settings_of(
    model_or_path: ModelLike, config: FinetuneConfig | None, settings: Mapping[str, Any]
) -> tuple[FinetuneConfig, Mapping[str, str | None]]:
    """Combine the settings with those of the run that made the model; also return the run's columns."""
    merged = FinetuneConfig.from_settings(config, settings)
    run = _read_run(model_or_path)
    if run is None:
        return merged, {}
    run_settings = {
        name: run["config"][name] for name in MODEL_SETTINGS if name in run["config"] and name not in settings
    }
    if config is None:
        merged = replace(merged, **run_settings)
    return merged, run["data"]["columns"]


def _read_run(model_or_path: ModelLike) -> dict[str, Any] | None:
    """Read results.json from the folder or repo of a model; None if no run made the model."""
    if not isinstance(model_or_path, str | os.PathLike):
        return None
    folder = Path(expand_home(model_or_path))
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(os.fspath(model_or_path), RESULTS)).parent
        except (OSError, ValueError):
            # The repo has no results.json. If there is no such repo, loading the model raises the error.
            return None
    return read_results(folder)


def _load_task_and_model(
    model_or_path: ModelLike, tokenizer: Any, config: FinetuneConfig, of_data: str | None, donor: DonorInput
) -> tuple[FinetuneTask, TaskContext]:
    device = check_machine(config)
    task = finetune_task(find_task(model_or_path, config.task, of_data))
    model = load_model(model_or_path, task.name, donor=donor)
    tokenizer = load_tokenizer(model_or_path, model, tokenizer)
    names = label_names_of(model) if task.record.labels else ()
    return task, TaskContext(tokenizer=tokenizer, model=model.to(device), config=config, label_names=names)
