"""Which parts of the model are trained, and how fast: the host whole, frozen or under LoRA; a rate for each part."""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import FinetuneConfig, TaskName
from layer_surgeon.graft import GraftedModel, adapter_settings

HOST, PROJECTIONS, HEAD, DONOR = "host", "projections", "head", "donor"
_PART_OF = {
    "host": HOST,
    "proj_in": PROJECTIONS,
    "proj_out": PROJECTIONS,
    "residual_gate": PROJECTIONS,
    "donor": DONOR,
}
_PEFT_TASKS: dict[TaskName, str] = {
    "text-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "seq2seq": "SEQ_2_SEQ_LM",
    "causal-lm": "CAUSAL_LM",
}


def choose_trained(model: Any, config: FinetuneConfig, task: TaskName) -> Any:
    """The model with its host frozen, or under LoRA, as the settings say; otherwise as it is.

    Raises:
        ConfigError: peft is not installed, nothing would be trained, a learning rate is for a part that is not there,
            or the model can't compute its activations again.
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
            raise ConfigError("gradient_checkpointing is on, and this model has none. Leave it out.")
        # Not by the trainer's argument, whose name changes from version to version too.
        _method(base, "enable")({"use_reentrant": False})
    parts = {part_of(name, model) for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parts:
        raise ConfigError("train_host is 'frozen', and this model has no part but the host: nothing would be trained.")
    for part, rate in ((HOST, "host"), (PROJECTIONS, "projection"), (HEAD, "head")):
        if getattr(config, f"{rate}_learning_rate") is not None and part not in parts:
            raise ConfigError(
                f"{rate}_learning_rate is {getattr(config, f'{rate}_learning_rate')}, and no {part} of this model is "
                f"trained. What is trained: {', '.join(sorted(parts))}."
            )
    return model


def as_it_was(model: Any, config: FinetuneConfig) -> Any:
    """An ordinary model again: adapters added into the weights, activations kept."""
    if config.gradient_checkpointing:
        _method(plain_model(model), "disable")()
    return model.merge_and_unload() if is_adapted(model) else model


def is_adapted(model: Any) -> bool:
    """Whether the model was wrapped by peft."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def plain_model(model: Any) -> Any:
    """The model itself, without peft's wrapping."""
    return model.get_base_model() if is_adapted(model) else model


def part_of(name: str, model: Any) -> str:
    """The part that a parameter belongs to: host, projections, head or donor."""
    base = plain_model(model)
    first = name.removeprefix("base_model.model.").split(".", 1)[0]
    if isinstance(base, GraftedModel):
        return _PART_OF.get(first, HEAD)
    return HOST if first == base.base_model_prefix else HEAD


def rates(model: Any, config: FinetuneConfig) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Every trained parameter with its name and its learning rate."""
    chosen = {
        HOST: config.host_learning_rate,
        PROJECTIONS: config.projection_learning_rate,
        HEAD: config.head_learning_rate,
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = chosen.get(part_of(name, model))
            yield name, parameter, config.learning_rate if rate is None else rate


def _method(model: Any, name: str) -> Any:
    """`activation_checkpointing_<name>`, which older versions of transformers call otherwise."""
    return getattr(model, f"activation_checkpointing_{name}", None) or getattr(model, f"gradient_checkpointing_{name}")


def _with_lora(model: Any, config: FinetuneConfig, task: TaskName) -> Any:
    try:
        # Here, for it takes a second, and little needs it.
        peft: Any = importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError("train_host is 'lora', which needs peft: pip install peft") from error
    if isinstance(model, GraftedModel):
        settings = adapter_settings(model)
    else:
        settings = {"target_modules": "all-linear", "task_type": _PEFT_TASKS[task]}
        fresh = [
            name
            for name, part in model.named_children()
            if name != model.base_model_prefix and any(True for _ in part.parameters())
        ]
        if task not in ("seq2seq", "causal-lm") and fresh:
            settings["modules_to_save"] = fresh
    lora = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, **settings
    )
    with warnings.catch_warnings():
        # peft calls transformers by names that newer versions have replaced.
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, lora)
