"""Choose the parts of the model to train (a full host, a frozen host or LoRA), and the learning rate of each part."""

import importlib
import warnings
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.graft import GraftedModel, adapter_settings
from layer_surgeon.tasks import Task

HOST, PROJECTIONS, HEAD, DONOR = "host", "projections", "head", "donor"
_PART_OF = {
    "host": HOST,
    "proj_in": PROJECTIONS,
    "donor_norm": PROJECTIONS,
    "proj_out": PROJECTIONS,
    "proj_out_norm": PROJECTIONS,
    "residual_gate": PROJECTIONS,
    "donor": DONOR,
}
_HEADS = ("lm_head", "qa_outputs", "classifier", "score")


def choose_trained(model: Any, config: FinetuneConfig, task: Task) -> Any:
    """Prepare the model for training: freeze the host or add LoRA, and turn on gradient checkpointing.

    Raises:
        ConfigError: peft is not installed, nothing would be trained, a learning rate is set for a part that is not
            trained, or the model does not support gradient checkpointing.
    """
    if config.train_host == "frozen":
        for name, parameter in model.named_parameters():
            if part_of(name, model) == HOST:
                parameter.requires_grad_(False)
    elif config.train_host == "lora":
        model = _with_lora(model, config, task)
    if config.gradient_checkpointing:
        base = plain_model(model)
        if not base.supports_gradient_checkpointing:
            raise ConfigError("gradient_checkpointing is on, but this model does not support it. Turn it off.")
        # The trainer also has an argument for this, but its name changes between versions.
        _method(base, "enable")({"use_reentrant": False})
    parts = {part_of(name, model) for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parts:
        raise ConfigError(
            "train_host is 'frozen', and this model has no part other than the host, so nothing would be trained. Use "
            "train_host 'full' or 'lora'."
        )
    for part, rate in ((HOST, "host"), (PROJECTIONS, "projection"), (HEAD, "head")):
        if getattr(config, f"{rate}_learning_rate") is not None and part not in parts:
            raise ConfigError(
                f"{rate}_learning_rate is {getattr(config, f'{rate}_learning_rate')}, but this model has no trained "
                f"{part}. The trained parts are: {', '.join(sorted(parts))}."
            )
    return model


def trained_names(model: Any) -> frozenset[str]:
    """Return the names of the parameters that require gradients."""
    return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def as_it_was(model: Any, config: FinetuneConfig, was_trained: Collection[str]) -> Any:
    """Undo `choose_trained`: merge adapters into the weights, turn off gradient checkpointing, unfreeze.

    Args:
        model: The model that `choose_trained` returned.
        config: The settings that it got.
        was_trained: What `trained_names` returned before it.
    """
    if config.gradient_checkpointing:
        _method(plain_model(model), "disable")()
    model = model.merge_and_unload() if is_adapted(model) else model
    for name, parameter in model.named_parameters():
        if name in was_trained:
            parameter.requires_grad_(True)
    return model


def is_adapted(model: Any) -> bool:
    """Whether peft wraps the model."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def plain_model(model: Any) -> Any:
    """Unwrap a model that peft wraps."""
    return model.get_base_model() if is_adapted(model) else model


def part_of(name: str, model: Any) -> str:
    """The part that a parameter belongs to: host, projections, head or donor."""
    base = plain_model(model)
    submodule = name.removeprefix("base_model.model.").split(".", 1)[0]
    if isinstance(base, GraftedModel):
        return _PART_OF.get(submodule, HEAD)
    return HEAD if submodule in _head_names(base) else HOST


def _head_names(model: Any) -> list[str]:
    """Return the names of a plain model's parts that follow its host."""
    names = [name for name, part in model.named_children() if any(True for _ in part.parameters())]
    if model.base_model_prefix in names:
        return [name for name in names if name != model.base_model_prefix]
    # T5's classes for two stacks hold the parts of the host themselves.
    return [name for name in names if name in _HEADS]


def rates(model: Any, config: FinetuneConfig) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Yield the name, the parameter and the learning rate of every trained parameter."""
    part_rates = {
        HOST: config.host_learning_rate,
        PROJECTIONS: config.projection_learning_rate,
        HEAD: config.head_learning_rate,
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = part_rates.get(part_of(name, model))
            yield name, parameter, config.learning_rate if rate is None else rate


def _method(model: Any, name: str) -> Any:
    """Get `activation_checkpointing_<name>`, or its older name in transformers, `gradient_checkpointing_<name>`."""
    return getattr(model, f"activation_checkpointing_{name}", None) or getattr(model, f"gradient_checkpointing_{name}")


def _with_lora(model: Any, config: FinetuneConfig, task: Task) -> Any:
    try:
        # Imported here because the import takes a second, and only LoRA needs it.
        peft: Any = importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError("train_host is 'lora', but peft is not installed. Install it: pip install peft") from error
    if isinstance(model, GraftedModel):
        settings = adapter_settings(model)
    else:
        settings = {"target_modules": "all-linear", "task_type": task.peft_type}
        if not task.generates and (head_names := _head_names(model)):
            settings["modules_to_save"] = head_names
    lora = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, **settings
    )
    with warnings.catch_warnings():
        # peft uses deprecated names of transformers.
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, lora)
