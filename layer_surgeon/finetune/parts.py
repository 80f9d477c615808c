"""Choose the parts of the model to train (a full host, a frozen host or LoRA), and the learning rate of each part."""

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

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


@dataclass(frozen=True, kw_only=True)
class PartsBefore:
    """What `choose_trained` changes in a model, as it was before.

    Attributes:
        trained: The names of the parameters that required gradients.
        is_adapted: Whether peft wrapped the model.
    """

    trained: frozenset[str]
    is_adapted: bool

    @classmethod
    def of(cls, model: Any) -> Self:
        """Remember a model's parts."""
        names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
        return cls(trained=frozenset(names), is_adapted=is_adapted(model))


def choose_trained(model: Any, config: FinetuneConfig, task: Task) -> Any:
    """Prepare the model for training: freeze the host or add LoRA, and turn on gradient checkpointing.

    Raises:
        ConfigError: peft is not installed, nothing would be trained, a learning rate is set for a part that is not
            trained, or the model does not support gradient checkpointing. The model is then as it was.
    """
    before = PartsBefore.of(model)
    if config.train_host == "frozen":
        for name, parameter in model.named_parameters():
            if part_of(name, model) == HOST:
                parameter.requires_grad_(False)
    elif config.train_host == "lora":
        model = _with_lora(model, config, task)
    try:
        _check_trained(model, config)
    except ConfigError:
        as_it_was(model, config, before, merge=False)
        raise
    if config.gradient_checkpointing:
        # The trainer also has an argument for this, but its name changes between versions.
        _method(plain_model(model), "enable")({"use_reentrant": False})
    return model


def _check_trained(model: Any, config: FinetuneConfig) -> None:
    if config.gradient_checkpointing and not plain_model(model).supports_gradient_checkpointing:
        raise ConfigError("gradient_checkpointing is on, but this model does not support it. Turn it off.")
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


def as_it_was(model: Any, config: FinetuneConfig, before: PartsBefore, *, merge: bool = True) -> Any:
    """Undo `choose_trained`: turn off gradient checkpointing, merge or remove adapters, unfreeze.

    Args:
        model: The model that `choose_trained` returned.
        config: The settings that it got.
        before: What the model was before.
        merge: Merge adapters into the weights, also those that the model had before. False: remove new ones.
    """
    if config.gradient_checkpointing and plain_model(model).supports_gradient_checkpointing:
        _method(plain_model(model), "disable")()
    if is_adapted(model) and merge:
        model = model.merge_and_unload()
    elif is_adapted(model) and not before.is_adapted:
        model = model.unload()
    for name, parameter in model.named_parameters():
        if name in before.trained:
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
