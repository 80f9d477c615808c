"""Measure a trained model on other data, and label texts with it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.columns import choose_columns
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.data import Examples, check_texts, prepare_evaluation
from layer_surgeon.finetune.inference import compute_logits
from layer_surgeon.finetune.metrics import ClassificationMetrics, log_softmax, measure
from layer_surgeon.finetune.models import (
    ModelLike,
    check_machine,
    label_names_of,
    load_model,
    load_tokenizer,
    quiet,
)
from layer_surgeon.finetune.results import read_results
from layer_surgeon.finetune.sources import DataLike, Table, load_data
from layer_surgeon.finetune.tokenization import longest_input, tokenize
from layer_surgeon.progress import NullProgress, Progress

Text = str | tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model was measured to do on a data set.

    Attributes:
        data: The data set, its split or its file.
        metrics: The metrics.
        num_truncated: Examples that were cut at the maximum length.
        seconds: Time for the forward passes.
    """

    data: str
    metrics: ClassificationMetrics
    num_truncated: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one text.

    Attributes:
        text: The text.
        text_pair: The second text of a pair; None for a single text.
        label: The most probable class.
        score: Its probability.
        probabilities: Every class's, by name.
    """

    text: str
    text_pair: str | None
    label: str
    score: float
    probabilities: dict[str, float]


def evaluate_model(
    model_or_path: ModelLike,
    data: DataLike,
    *,
    split: str | None = None,
    config: FinetuneConfig | None = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure a trained model on a data set.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        data: In the forms that `finetune_model` takes.
        split: Which split; default: test, else the only one.
        config: Settings; of these the columns, the length, the device, the batch and `max_eval_samples` count. Of a
            run's folder the length and, where the data has them, the columns are the run's own by default.
        tokenizer: A tokenizer, or where one lies; default: the one beside the model.
        progress: Is told about every batch.
        settings: Fields of `FinetuneConfig`, laid over `config`.

    Raises:
        ConfigError: A setting can't be used.
        DataError: The data can't be used, or its labels are not the model's.
    """
    progress = progress or NullProgress()
    with quiet():
        config, columns = _settings_of(model_or_path, config, settings)
        model, tokenizer = _ready(model_or_path, tokenizer, config)
        place, examples = prepare_evaluation(
            data, label_names_of(model), config, split=split, known_columns=columns, progress=progress
        )
        dataset = tokenize(tokenizer, examples, longest_input(tokenizer, model, config.max_length))
        started = time.monotonic()
        logits = compute_logits(
            model,
            dataset,
            tokenizer,
            batch_size=config.evaluation_batch_size,
            description="Evaluating",
            progress=progress,
        )
        seconds = time.monotonic() - started
    metrics = measure(logits, examples.labels, label_names_of(model))
    return Evaluation(data=place, metrics=metrics, num_truncated=dataset.num_truncated, seconds=seconds)


def predict(
    model_or_path: ModelLike,
    texts: Sequence[Text],
    *,
    config: FinetuneConfig | None = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Prediction]:
    """Label texts, or pairs of texts, with a trained model; the order is kept.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        texts: Texts, or pairs as tuples; not both.
        config: Settings; of these the length, the device and the batch count.
        tokenizer: A tokenizer, or where one lies; default: the one beside the model.
        progress: Is told about every batch.
        settings: Fields of `FinetuneConfig`, laid over `config`.

    Raises:
        ConfigError: A setting can't be used.
        DataError: A text is empty, or texts and pairs are mixed.
    """
    if isinstance(texts, str):
        raise DataError("predict takes a list of texts, and was given one text. Put it into a list: [text].")
    examples = _unlabelled(texts)
    if not len(examples):
        return []
    with quiet():
        config, _ = _settings_of(model_or_path, config, settings)
        model, tokenizer = _ready(model_or_path, tokenizer, config)
        dataset = tokenize(tokenizer, examples, longest_input(tokenizer, model, config.max_length))
        logits = compute_logits(
            model, dataset, tokenizer, batch_size=config.evaluation_batch_size, progress=progress or NullProgress()
        )
    names = label_names_of(model)
    results = []
    for index, row in enumerate(log_softmax(logits)):
        probabilities = dict(zip(names, map(float, np.exp(row)), strict=True))
        best = names[int(row.argmax())]
        results.append(
            Prediction(
                text=examples.texts[index],
                text_pair=examples.pairs[index] if examples.pairs is not None else None,
                label=best,
                score=probabilities[best],
                probabilities=probabilities,
            )
        )
    return results


def load_texts(files: Sequence[str | os.PathLike[str]], config: FinetuneConfig) -> list[Text]:
    """The texts of files to be labelled: one per line of .txt, else the text column (or pair of columns).

    Raises:
        DataError: A file can't be read, or its text column can't be told.
    """
    texts: list[Text] = []
    for file in files:
        path = Path(file)
        if path.suffix.lower() == ".txt":
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
            texts += [line for line in lines if line.strip()]
        else:
            texts += _texts_of(load_data(path).train, config)
    if not texts:
        raise DataError(f"{', '.join(map(str, files))}: no text in it.")
    return texts


def _texts_of(table: Table, config: FinetuneConfig) -> list[Text]:
    columns = choose_columns(table, config, with_label=False)
    first = check_texts(table.columns[columns.text], f"{table.place}, column {columns.text!r}")
    if columns.text_pair is None:
        return list(first)
    second = check_texts(table.columns[columns.text_pair], f"{table.place}, column {columns.text_pair!r}")
    return list(zip(first, second, strict=True))


def _unlabelled(texts: Sequence[Text]) -> Examples:
    pairs = [text for text in texts if isinstance(text, tuple | list)]
    if pairs and len(pairs) != len(texts):
        raise DataError("Texts and pairs of texts are mixed; give one kind at a time.")
    if any(len(pair) != 2 for pair in pairs):
        raise DataError("A pair has two texts: (text, text).")
    first = check_texts([text[0] for text in pairs] if pairs else texts, "The given texts")
    second = check_texts([text[1] for text in pairs], "The given pairs") if pairs else None
    return Examples(texts=first, pairs=second, labels=(0,) * len(texts))


def _settings_of(
    model_or_path: ModelLike, config: FinetuneConfig | None, settings: Mapping[str, Any]
) -> tuple[FinetuneConfig, Mapping[str, str | None]]:
    """The settings, and the columns the model was trained on; both from the run's results where nothing was said."""
    given = FinetuneConfig.from_settings(config, settings)
    run = read_results(Path(model_or_path)) if isinstance(model_or_path, str | os.PathLike) else None
    if run is None:
        return given, {}
    if config is None and "max_length" not in settings:
        given = replace(given, max_length=int(run["config"]["max_length"]))
    return given, run["data"]["columns"]


def _ready(model_or_path: ModelLike, tokenizer: Any, config: FinetuneConfig) -> tuple[Any, Any]:
    device = check_machine(config)
    model = load_model(model_or_path)
    tokenizer = load_tokenizer(model_or_path, model, tokenizer)
    return model.to(device), tokenizer
