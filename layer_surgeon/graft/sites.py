"""Where a graft sits in its host, found from the host's structure.

A graft behind the host's last layer is applied to what the host returns. Everywhere else (behind another layer; between
encoder and decoder; between a decoder and its language head) it is a hook on the module whose output it replaces, so
that the host's own code runs as it is, its `generate` included.
"""

import copy
from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import EMBEDDINGS, ENCODER_OUTPUT, GraftConfig
from layer_surgeon.graft.tasks import TASKS, HostKind

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def find_reader(host: PreTrainedModel, kind: HostKind) -> PreTrainedModel:
    """The part of a host that reads a text: it takes ids and a mask, and returns hidden states.

    The encoder of two stacks; the model below the language head. Not for every family the host's `base_model`: some
    (OPT) pass by their own base model and call the stack in it.
    """
    if kind == "encoder-decoder":
        return host.get_encoder()
    return host.get_decoder() if kind == "decoder" else host.base_model


def find_layers(reader: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of the host's layers, and its path from the reader.

    Raises:
        GraftError: There is no such list, or more than one that could be it.
    """
    number = reader.config.get_text_config().num_hidden_layers
    found: list[tuple[str, nn.ModuleList]] = []
    for path, module in reader.named_modules():
        inner = any(path.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) == number and not inner:
            found.append((path, module))
    if len(found) != 1:
        raise GraftError(
            f"The host ({reader.config.model_type}) has {len(found)} lists of {number} layers, where one was expected: "
            f"its layers share their weights, or are put together in another way. Choose site {ENCODER_OUTPUT!r}."
        )
    return found[0]


def resolve_site(site: str | int, host: PreTrainedModel, kind: HostKind) -> str | int:
    """The site with a layer counted from 0, where it was counted from the end.

    Raises:
        GraftError: The host has no such layer.
    """
    if isinstance(site, str):
        return site
    number = len(find_layers(find_reader(host, kind))[1])
    if not -number <= site < number:
        raise GraftError(f"site is {site}, but the host has {number} layers: choose 0 to {number - 1}.")
    return site % number


def prepare_host(
    host: PreTrainedModel, kind: HostKind, settings: GraftConfig
) -> tuple[PreTrainedModel, nn.Module | None]:
    """Make a host ready for its graft.

    The modules that a hook is set on, or a layer taken from, are copies that share all parameters, because somebody
    else may use the host too.

    Returns:
        The host, and the module whose output the graft replaces; None where the graft is applied behind the host.
    """
    reader = find_reader(host, kind)
    path = _path_of(host, reader)
    if settings.site == EMBEDDINGS:
        layers, _ = find_layers(reader)
        host = _copy_along(host, f"{path}.{layers}".lstrip("."))
        parent, _, name = layers.rpartition(".")
        host.get_submodule(path).get_submodule(parent)._modules[name] = nn.ModuleList()
    if isinstance(settings.site, int):
        path = f"{path}.{find_layers(reader)[0]}.{settings.site}".lstrip(".")
    elif not TASKS[settings.task].generates:
        return host, None
    host = _copy_along(host, path)
    return host, host.get_submodule(path)


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a layer or a model returns."""
    if isinstance(output, ModelOutput):
        return cast(Tensor, output.last_hidden_state)
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The same output with other hidden states."""
    if isinstance(output, ModelOutput):
        return type(output)(**{**output, "last_hidden_state": hidden})
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def checkpoints_hooks(layer: nn.Module) -> bool:
    """Whether gradient checkpointing runs a layer's hooks again in the backward pass.

    transformers did so until 5.17: it checkpoints `__call__`. By then the mask may be that of another batch.
    """
    return type(layer).__call__ is not nn.Module.__call__


def _path_of(host: nn.Module, part: nn.Module) -> str:
    return next(str(path) for path, module in host.named_modules() if module is part)


def _copy_along(host: PreTrainedModel, path: str) -> PreTrainedModel:
    """The host with copies, hooks apart, of the modules on a path; all others, and all parameters, are shared."""
    copied = _copy(host)
    module = copied
    for name in path.split(".") if path else ():
        child = _copy(module._modules[name])
        module._modules[name] = child
        module = child
    return copied


def _copy(module: Any) -> Any:
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    for name in _HOOKS:
        setattr(copied, name, OrderedDict(getattr(module, name)))
    return copied
