"""Measure a trained model on other data, and label texts with it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.columns import choose_columns
from layer_surgeon.finetune.config import MODEL_SETTINGS, FinetuneConfig, TaskName
from layer_surgeon.finetune.data import prepare_evaluation
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
from layer_surgeon.finetune.tasks import FINETUNE_TASKS, FinetuneTask, TaskContext
from layer_surgeon.graft.donors import DonorInput
from layer_surgeon.progress import NullProgress, Progress


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model was measured to do on a data set.

    Attributes:
        task: What the model does.
        data: The data set, its split or its file.
        metrics: The task's metrics (`ClassificationMetrics`, ...).
        num_truncated: Examples that were cut at the maximum length.
        seconds: Time for the forward passes.
    """

    task: TaskName
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
    """Measure a trained model on a data set.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        data: In the forms that `finetune_model` takes.
        split: Which split; default: test, else the only one.
        config: Settings; of these the columns, the length, the device, the batch and `max_eval_samples` count. Of a
            run's folder or repo the length and, where the data has them, the columns are the run's own by default.
        tokenizer: A tokenizer, or where one lies; default: the one beside the model.
        donor: The donor layer of a graft that was saved without it: a layer artifact, as folder or repo id.
        progress: Is told about every batch.
        settings: Fields of `FinetuneConfig`, laid over `config`.

    Raises:
        ConfigError: A setting can't be used.
        DataError: The data can't be used, or its labels are not the model's.
    """
    progress = progress or NullProgress()
    with quiet():
        config, columns = _settings_of(model_or_path, config, settings)
        task, context = _ready(model_or_path, tokenizer, config, task_of_data(data), donor)
        place, examples = prepare_evaluation(
            data, context.label_names, config, split=split, task=task, known_columns=columns, progress=progress
        )
        dataset = task.tokenize(examples, context, training=False)
        started = time.monotonic()
        outputs = run_model(task, dataset, context, description="Evaluating", progress=progress)
        seconds = time.monotonic() - started
        metrics = task.measure(outputs, dataset, examples, context)
        metrics = task.add_scores(metrics, outputs, examples, context, progress)
    return Evaluation(task=task.name, data=place, metrics=metrics, num_truncated=dataset.num_truncated, seconds=seconds)


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
    """What a trained model says of texts, or of pairs of texts; the order is kept.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        texts: Texts, or pairs as tuples; not both. For question answering: (question, context).
        config: Settings; of these the length, the device and the batch count.
        tokenizer: A tokenizer, or where one lies; default: the one beside the model.
        donor: The donor layer of a graft that was saved without it: a layer artifact, as folder or repo id.
        progress: Is told about every batch.
        settings: Fields of `FinetuneConfig`, laid over `config`.

    Returns:
        One prediction of the task for each: `Prediction`, `TagPrediction`, `AnswerPrediction` or `TextPrediction`.

    Raises:
        ConfigError: A setting can't be used.
        DataError: A text is empty, or texts and pairs are mixed.
    """
    if isinstance(texts, str):
        raise DataError("predict takes a list of texts, and was given one text. Put it into a list: [text].")
    if not len(texts):
        return []
    with quiet():
        config, _ = _settings_of(model_or_path, config, settings)
        examples = FINETUNE_TASKS[find_task(model_or_path, config.task)].inputs(texts)
        task, context = _ready(model_or_path, tokenizer, config, None, donor)
        dataset = task.tokenize(examples, context, training=False)
        outputs = run_model(task, dataset, context, progress=progress)
        return task.predictions(outputs, dataset, examples, context)


def trained_task(model_or_path: ModelLike, config: FinetuneConfig | None = None) -> TaskName:
    """What a model does: what its run says, what its graft was made for, or what kind of model it is.

    Raises:
        SourceNotFoundError: There is no such folder.
        GraftError: It is for another task than the one in `config`.
    """
    with quiet():
        known, _ = _settings_of(model_or_path, None, {"task": config.task} if config and config.task else {})
        return find_task(model_or_path, known.task)


def load_texts(
    files: Sequence[str | os.PathLike[str]], config: FinetuneConfig, task: TaskName = "text-classification"
) -> list[Any]:
    """The texts of files to be predicted on: one per line of .txt, else the text column (or pair of columns).

    Raises:
        DataError: A file can't be read, or its text column can't be told.
    """
    texts: list[Any] = []
    for file in files:
        path = Path(file)
        if path.suffix.lower() == ".txt":
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
            texts += [line for line in lines if line.strip()]
        else:
            texts += _texts_of(load_data(path, task=task).train, config, FINETUNE_TASKS[task])
    if not texts:
        raise DataError(f"{', '.join(map(str, files))}: no text in it.")
    return texts


def _texts_of(table: Table, config: FinetuneConfig, task: FinetuneTask) -> list[Any]:
    columns = choose_columns(table, config, with_label=False, roles=task.roles)
    for name in columns.texts:
        check_filled(table.columns[name], f"{table.place}, column {name!r}")
    if columns.text_pair is None:
        return list(table.columns[columns.text])
    return list(zip(table.columns[columns.text], table.columns[columns.text_pair], strict=True))


def _settings_of(
    model_or_path: ModelLike, config: FinetuneConfig | None, settings: Mapping[str, Any]
) -> tuple[FinetuneConfig, Mapping[str, str | None]]:
    """The settings, and the columns the model was trained on; both from the run's results where nothing was said."""
    given = FinetuneConfig.from_settings(config, settings)
    run = _run_of(model_or_path)
    if run is None:
        return given, {}
    kept = {name: run["config"][name] for name in MODEL_SETTINGS if name in run["config"] and name not in settings}
    if config is None:
        given = replace(given, **kept)
    return given, run["data"]["columns"]


def _run_of(model_or_path: ModelLike) -> dict[str, Any] | None:
    """The results of the run that a model came from, out of its folder or its repo; None where it is no run's."""
    if not isinstance(model_or_path, str | os.PathLike):
        return None
    folder = Path(model_or_path).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(os.fspath(model_or_path), RESULTS)).parent
        except (OSError, ValueError):
            # No such file in it; or no such repo, and then loading the model says what is wrong.
            return None
    return read_results(folder)


def _ready(
    model_or_path: ModelLike, tokenizer: Any, config: FinetuneConfig, of_data: TaskName | None, donor: DonorInput
) -> tuple[FinetuneTask, TaskContext]:
    device = check_machine(config)
    task = FINETUNE_TASKS[find_task(model_or_path, config.task, of_data)]
    model = load_model(model_or_path, task.name, donor=donor)
    tokenizer = load_tokenizer(model_or_path, model, tokenizer)
    names = label_names_of(model) if task.has_classes else ()
    return task, TaskContext(tokenizer=tokenizer, model=model.to(device), config=config, label_names=names)
