"""Load the model and the tokenizer of a run, choose the device, and set the model's class names."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets.utils.logging as datasets_logging
import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from layer_surgeon._devices import choose_device
from layer_surgeon._folders import expand_home
from layer_surgeon._loading import load_config
from layer_surgeon._loading import load_model as load_any_model
from layer_surgeon._loading import load_tokenizer as load_any_tokenizer
from layer_surgeon._model_types import ASSEMBLY_FILE, GRAFT
from layer_surgeon._text import first_line
from layer_surgeon.donor.quiet import quiet_transformers
from layer_surgeon.errors import ConfigError, GraftError, LayerSurgeonError, SourceNotFoundError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.graft import GraftedModel, GraftTokenizer, graft_layer
from layer_surgeon.graft.donor_loading import DonorInput
from layer_surgeon.graft.hosts import host_kind
from layer_surgeon.graft.translate import hub_errors
from layer_surgeon.tasks import DEFAULT_TASK, TASKS, Task, get_task

ModelLike = str | os.PathLike[str] | Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the output of transformers and datasets; `Progress` shows what the user needs to know."""
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


def load_model(model_or_path: ModelLike, task: str, *, num_labels: int | None = None, donor: DonorInput = None) -> Any:
    """Load a model for a task, with weights in float32. A model that is already loaded is returned as it is.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        task: The task to load the model for.
        num_labels: Number of classes, for a model that is not a graft. If the stored model has a different number, its
            last layer is re-initialised.
        donor: The donor layer, for a graft that was saved without it, as `GraftedModel.from_pretrained` takes it.

    Raises:
        SourceNotFoundError: The folder does not exist.
        GraftError: The model is not for this task, or a donor layer was passed that it can't take.
    """
    if not isinstance(model_or_path, str | os.PathLike):
        if not hasattr(model_or_path, "config") or not hasattr(model_or_path.config, "id2label"):
            raise GraftError(
                f"A {type(model_or_path).__name__} is not a transformers {task} model. Pass a "
                "folder, a repo id or a loaded model."
            )
        if donor is not None:
            raise GraftError("A donor layer was passed, but the model is already loaded. Omit the donor.")
        return _checked_graft(model_or_path, task)
    name = _checked_name(model_or_path)
    try:
        with hub_errors(f"The model {name!r}"):
            config = load_config(name)
            # Always train in float32: weights in half precision would lose Adam's small updates.
            if config.model_type == GRAFT:
                return _checked_graft(GraftedModel.from_pretrained(name, donor=donor, dtype=torch.float32), task)
            if donor is not None:
                raise GraftError(f"A donor layer was passed, but {name} is not a graft. Omit the donor.")
            if _is_assembled_decoder(name, config) and get_task(task).pools:
                labels: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
                return graft_layer(name, None, task, pooling="mean", **labels)
            label_options: dict[str, Any] = (
                {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
            )
            loader = getattr(transformers, get_task(task).auto)
            model, info = load_any_model(loader, name, dtype=torch.float32, output_loading_info=True, **label_options)
            model.new_weights = sorted(info["missing_keys"])
            return model
    except (ValueError, KeyError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        reason = first_line(error)
        raise GraftError(f"{name} can't be loaded as a {task} model: {reason}") from error


def _is_assembled_decoder(name: str, config: Any) -> bool:
    """Whether a folder is an assembled model, which has no head for texts yet.

    It gets our head with the mean over all tokens. transformers' own classifiers read the last token, but the layers
    that gather a text there may have been cut.
    """
    return (Path(name) / ASSEMBLY_FILE).is_file() and host_kind(config) == "decoder"


def _checked_graft(model: Any, task: str) -> Any:
    if isinstance(model, GraftedModel) and model.config.task != task:
        raise GraftError(_wrong_task_message(model.config.task, task))
    return model


def _wrong_task_message(graft_task: str, task: str) -> str:
    return f"The graft is for {graft_task}, not for {task}. Make a graft for {task}: surgeon graft HOST --task {task}"


def find_task(model_or_path: ModelLike, wanted: str | None, of_data: str | None = None) -> str:
    """Find the task: the graft's task, else `wanted`, else the data set's task, else the model class's task.

    Args:
        model_or_path: A folder, a repo id, or a loaded model.
        wanted: The task that the user asked for, if any.
        of_data: The task that the registry lists for the data set, if any.

    Raises:
        GraftError: The graft's task is not `wanted`, or can't be trained.
        SourceNotFoundError: The folder does not exist.
    """
    if isinstance(model_or_path, str | os.PathLike):
        name = _checked_name(model_or_path)
        try:
            with hub_errors(f"The model {name!r}"):
                config = load_config(name)
        except (ValueError, KeyError) as error:
            if isinstance(error, LayerSurgeonError):
                raise
            raise GraftError(f"{name} can't be loaded as a model: {first_line(error)}") from error
        model_classes = tuple(config.architectures or ())
    else:
        config = getattr(model_or_path, "config", None)
        model_classes = (type(model_or_path).__name__,)
    graft_task = getattr(config, "task", None) if getattr(config, "model_type", "") == GRAFT else None
    if graft_task is not None:
        if get_task(graft_task).finetune_class is None:
            raise GraftError(
                f"The graft is for {graft_task}, which can't be fine-tuned. Make a graft for another task: "
                f"surgeon graft HOST --task {DEFAULT_TASK}"
            )
        if wanted is not None and wanted != graft_task:
            raise GraftError(_wrong_task_message(graft_task, wanted))
        return str(graft_task)
    class_task = next((name for name, task in TASKS.items() if not _plain_models(task).isdisjoint(model_classes)), None)
    return wanted or of_data or class_task or DEFAULT_TASK


def _plain_models(task: Task) -> frozenset[str]:
    return frozenset() if task.plain_models is None else frozenset(getattr(modeling_auto, task.plain_models).values())


def _checked_name(model_or_path: str | os.PathLike[str]) -> str:
    name = os.fspath(model_or_path)
    path = Path(expand_home(name))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceNotFoundError(
                f"{name} is not a model folder: it has no config.json. Pass the folder of a graft or a run."
            )
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        raise SourceNotFoundError(
            f"There is no model folder {name}. Pass the folder of a graft or a run, or a repo id."
        )
    return name


def load_tokenizer(model_or_path: ModelLike, model: Any, tokenizer: Any = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer, by default from the model's folder or repo, and make sure that it has a padding token.

    Raises:
        ConfigError: The given tokenizer can't be loaded, or a tokenizer has neither a padding nor an end token.
        GraftError: The model's own tokenizer can't be loaded.
    """
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        model_source = model_or_path if isinstance(model_or_path, str | os.PathLike) else model.name_or_path
        tokenizer_source, commit = tokenizer or model_source, None
        if not tokenizer_source and isinstance(model, GraftedModel) and model.host_source is not None:
            tokenizer_source, commit = model.host_source
        if not tokenizer_source:
            raise ConfigError("The model was built in memory, so its tokenizer can't be loaded. Pass tokenizer=...")
        try:
            tokenizer = load_any_tokenizer(tokenizer_source, revision=commit)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            problem = f"There is no usable tokenizer at {tokenizer_source} ({first_line(error)})."
            if tokenizer is not None:
                raise ConfigError(problem) from error
            raise GraftError(f"{problem} Save one there, or pass tokenizer=... in Python.") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError("The tokenizer has neither a padding token nor an end token. Set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(model, GraftedModel) and model.config.settings.donor_tokens == "own":
        _check_both_tokens(tokenizer)
    set_padding(model, tokenizer)
    checked: PreTrainedTokenizerBase = tokenizer
    return checked


def set_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the padding id of a model that has none.

    Decoder hosts classify from the last token that is not padding, and need the id to find it.
    """
    for config in (model.config, getattr(getattr(model, "host", None), "config", None)):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id


def _check_both_tokens(tokenizer: Any) -> None:
    if not isinstance(tokenizer, GraftTokenizer):
        raise ConfigError(
            f"The donor of this graft reads tokens of its own, but a {type(tokenizer).__name__} "
            "only gives the host's. Use a graft that surgeon graft has saved, or pass "
            "tokenizer=GraftTokenizer.from_tokenizers(host_tokenizer, donor_tokenizer)."
        )


def label_names_of(model: Any) -> tuple[str, ...]:
    """The model's class names, ordered by class id."""
    id2label = model.config.id2label
    return tuple(str(id2label[index]) for index in range(len(id2label)))


def set_labels(model: Any, names: Sequence[str]) -> None:
    """Set the model's class names to the data's. A graft with a different number of classes gets a new last layer.

    Raises:
        GraftError: The model has a different number of classes and is not a graft.
    """
    if label_names_of(model) == tuple(names):
        return
    if isinstance(model, GraftedModel):
        model.set_labels(names)
        return
    if model.config.num_labels != len(names):
        raise GraftError(
            f"The model has {model.config.num_labels} classes, but the data has {len(names)} classes. Pass the model's "
            f"folder or repo id, or load the model with from_pretrained(..., num_labels={len(names)})."
        )
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}


def check_machine(config: FinetuneConfig) -> torch.device:
    """Choose the device, and check that it supports the configured precision.

    Raises:
        ConfigError: The device is not available, or does not support the precision.
    """
    device = choose_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision is 'fp16', which needs a GPU; this run is on the CPU. Use bf16 or fp32.")
    if config.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision is 'bf16', which this GPU does not support. Use fp16 or fp32.")
    return device


def count_parameters(model: Any) -> dict[str, int]:
    """Count the model's parameters: total, trained and frozen."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total = sum(size for size, _ in sizes)
    trained = sum(size for size, is_trained in sizes if is_trained)
    return {"total": total, "trained": trained, "frozen": total - trained}
