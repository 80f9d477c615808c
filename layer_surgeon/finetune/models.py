"""The model and the tokenizer of a run: from a folder or a repo id, on the right device, with the data's labels."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import datasets.utils.logging as datasets_logging
import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from layer_surgeon._loading import load_config
from layer_surgeon._loading import load_model as load_any_model
from layer_surgeon._loading import load_tokenizer as load_any_tokenizer
from layer_surgeon.errors import ConfigError, GraftError, LayerSurgeonError, SourceNotFoundError
from layer_surgeon.finetune.config import Device, FinetuneConfig, TaskName
from layer_surgeon.graft import GraftedModel
from layer_surgeon.graft.quiet import quiet_transformers
from layer_surgeon.graft.tasks import TASKS
from layer_surgeon.graft.translate import hub_errors

ModelLike = str | os.PathLike[str] | Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what transformers and datasets print by themselves; what a person should know, `Progress` is told."""
    verbosity, bars = datasets_logging.get_verbosity(), datasets_logging.is_progress_bar_enabled()
    datasets_logging.set_verbosity_error()
    datasets_logging.disable_progress_bar()
    try:
        with quiet_transformers():
            yield
    finally:
        datasets_logging.set_verbosity(verbosity)
        if bars:
            datasets_logging.enable_progress_bar()


def load_model(model_or_path: ModelLike, task: TaskName, *, num_labels: int | None = None) -> Any:
    """A model for a task from a folder or repo id, its weights in float32; a loaded model as it is.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        task: What it shall do.
        num_labels: Of a model that is no graft: how many classes it shall have; where that is another number than it
            was stored with, its last layer gets fresh weights.

    Raises:
        SourceNotFoundError: There is no such folder.
        GraftError: What is there is no model for that task.
    """
    if not isinstance(model_or_path, str | os.PathLike):
        if not hasattr(model_or_path, "config") or not hasattr(model_or_path.config, "id2label"):
            raise GraftError(
                f"A {type(model_or_path).__name__} is no transformers {_PLAIN.get(task, task)} model. Give a folder, a "
                "repo id or a loaded model."
            )
        return _checked_graft(model_or_path, task)
    name = _checked_name(model_or_path)
    try:
        with hub_errors(f"The model {name!r}"):
            config = load_config(name)
            if config.model_type == "surgeon_graft":
                return _checked_graft(GraftedModel.from_pretrained(name), task)
            # Half precision weights would lose Adam's small steps: what is trained is kept in float32 everywhere.
            sizes: dict[str, Any] = (
                {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
            )
            loader = getattr(transformers, TASKS[task].auto)
            return load_any_model(loader, name, dtype=torch.float32, **sizes)
    except (ValueError, KeyError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        first = str(error).strip().split("\n", 1)[0]
        raise GraftError(f"{name} can't be loaded as a {_PLAIN.get(task, task)} model: {first}") from error


# A word that people use for the first task, which most models are for.
_PLAIN: dict[str, str] = {"text-classification": "classification"}


def _checked_graft(model: Any, task: TaskName) -> Any:
    if isinstance(model, GraftedModel) and model.config.task != task:
        raise GraftError(_other_task(model.config.task, task))
    return model


def _other_task(made_for: str, task: TaskName) -> str:
    return f"The graft is for {made_for}, not for {task}. Make one for that: surgeon graft HOST --task {task}"


def find_task(model_or_path: ModelLike, wanted: TaskName | None, of_data: TaskName | None = None) -> TaskName:
    """What is to be learned: what a graft was made for; else what was said; else what the data or the model is for.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        wanted: What was said, if anything.
        of_data: What the data set is known to be for.

    Raises:
        GraftError: The graft is for another task than the one that was said, or for none that can be trained.
        SourceNotFoundError: There is no such folder.
    """
    if isinstance(model_or_path, str | os.PathLike):
        name = _checked_name(model_or_path)
        try:
            with hub_errors(f"The model {name!r}"):
                config = load_config(name)
        except (ValueError, KeyError) as error:
            if isinstance(error, LayerSurgeonError):
                raise
            first = str(error).strip().split("\n", 1)[0]
            raise GraftError(f"{name} can't be loaded as a model: {first}") from error
        classes = tuple(config.architectures or ())
    else:
        config = getattr(model_or_path, "config", None)
        classes = (type(model_or_path).__name__,)
    made_for = getattr(config, "task", None) if getattr(config, "model_type", "") == "surgeon_graft" else None
    if made_for is not None:
        if made_for not in get_args(TaskName):
            raise GraftError(f"The graft is for {made_for}, which is not trained. {_other_task(made_for, _DEFAULT)}")
        if wanted is not None and wanted != made_for:
            raise GraftError(_other_task(made_for, wanted))
        return cast(TaskName, made_for)
    of_class = next((task for task, names in _CLASS_NAMES.items() if any(name in names for name in classes)), None)
    return wanted or of_data or of_class or _DEFAULT


_DEFAULT: TaskName = "text-classification"
# By what a stored model says of itself. Not so for language models: most decoders on the Hub are stored as such, and
# are as often trained to classify.
_CLASS_NAMES: dict[TaskName, frozenset[str]] = {
    "token-classification": frozenset(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()),
    "question-answering": frozenset(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()),
    "seq2seq": frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()),
}


def _checked_name(model_or_path: str | os.PathLike[str]) -> str:
    name = os.fspath(model_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceNotFoundError(f"{name} is no model folder: it has no config.json. Name a graft or a run.")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        raise SourceNotFoundError(
            f"There is no model folder {name}. Name the folder of a graft or a run, or a repo id."
        )
    return name


def load_tokenizer(model_or_path: ModelLike, model: Any, tokenizer: Any = None) -> PreTrainedTokenizerBase:
    """The tokenizer: the given one, or the one beside the model; with a padding token.

    Raises:
        ConfigError: None was given, and there is none beside the model.
    """
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        place = tokenizer or (model_or_path if isinstance(model_or_path, str | os.PathLike) else model.name_or_path)
        if not place:
            raise ConfigError("A model that was built in memory has no tokenizer beside it. Pass tokenizer=...")
        try:
            tokenizer = load_any_tokenizer(place)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            first = str(error).strip().split("\n", 1)[0]
            raise ConfigError(f"There is no usable tokenizer at {place} ({first}). Pass tokenizer=...") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError("The tokenizer has neither a padding nor an end token. Set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
    # Decoder hosts look for the last token that is not padding, and need its id for that.
    for config in (model.config, getattr(getattr(model, "host", None), "config", None)):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    checked: PreTrainedTokenizerBase = tokenizer
    return checked


def label_names_of(model: Any) -> tuple[str, ...]:
    """The model's class names, in the order of their ids."""
    id2label = model.config.id2label
    return tuple(str(id2label[index]) for index in range(len(id2label)))


def set_labels(model: Any, names: Sequence[str]) -> None:
    """Give the model the data's classes; where their number differs, a fresh final layer of the right size.

    Raises:
        GraftError: The model has another number of classes and is no graft.
    """
    if label_names_of(model) == tuple(names):
        return
    if isinstance(model, GraftedModel):
        model.set_labels(names)
        return
    if model.config.num_labels != len(names):
        raise GraftError(
            f"The model has {model.config.num_labels} classes and the data {len(names)} classes. Give "
            f"its folder or repo id, or load it with from_pretrained(..., num_labels={len(names)})."
        )
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}


def choose_device(device: Device) -> torch.device:
    """The device to run on; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: The device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[device]:
        raise ConfigError(f"device is {device!r}, and this machine has: {', '.join(n for n, a in there.items() if a)}.")
    return torch.device(device)


def check_machine(config: FinetuneConfig) -> torch.device:
    """The device, if it can train in the wanted precision.

    Raises:
        ConfigError: The device is not there, or can't compute in that precision.
    """
    device = choose_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision is 'fp16', which needs a GPU; this run is on the CPU. Use bf16 or fp32.")
    if config.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision is 'bf16', and this GPU has none. Use fp16 or fp32.")
    return device


def count_parameters(model: Any) -> dict[str, int]:
    """How many parameters the model has, how many of them are trained, and how many are frozen."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total = sum(size for size, _ in sizes)
    trained = sum(size for size, wanted in sizes if wanted)
    return {"total": total, "trained": trained, "frozen": total - trained}
