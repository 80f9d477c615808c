"""Find the module of a host that a graft follows, from the host's structure, and apply the graft there.

A graft after the host's last layer is applied to the host's output. At every other site (after another layer; between
encoder and decoder; between a decoder and its language head) it is a hook that replaces the output of a module. The
host's own code then runs unchanged, with its `generate`.
"""

import copy
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.utils import ModelOutput

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import EMBEDDINGS, ENCODER_OUTPUT, GraftConfig
from layer_surgeon.graft.generation_cache import follow_cache
from layer_surgeon.graft.pooling import check_mask
from layer_surgeon.tasks import HostKind, get_task

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def find_reader(host: PreTrainedModel, kind: HostKind) -> PreTrainedModel:
    """Return the part of a host that reads a text: it takes ids and a mask, and returns hidden states.

    For encoder-decoders this is the encoder, for decoders the model below the language head. That is not always the
    host's `base_model`: some families (OPT) bypass their base model and call the stack inside it.
    """
    if kind == "encoder-decoder":
        return host.get_encoder()
    return host.get_decoder() if kind == "decoder" else host.base_model


def find_layers(reader: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the list of the host's layers, and its path from the reader.

    Raises:
        GraftError: There is no such list, or more than one.
    """
    num_layers = reader.config.get_text_config().num_hidden_layers
    layer_lists: list[tuple[str, nn.ModuleList]] = []
    for path, module in reader.named_modules():
        is_nested = any(path.startswith(f"{outer}.") for outer, _ in layer_lists)
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not is_nested:
            layer_lists.append((path, module))
    if len(layer_lists) != 1:
        raise GraftError(
            f"The host ({reader.config.model_type}) has {len(layer_lists)} lists of {num_layers} layers; expected one. "
            f"Its layers share their weights or are built in another way. Choose site {ENCODER_OUTPUT!r}."
        )
    return layer_lists[0]


def resolve_site(site: str | int, host: PreTrainedModel, kind: HostKind) -> str | int:
    """Return the site, with a negative layer number replaced by the one counted from 0.

    Raises:
        GraftError: The host has no such layer.
    """
    if isinstance(site, str):
        return site
    num_layers = len(find_layers(find_reader(host, kind))[1])
    if not -num_layers <= site < num_layers:
        raise GraftError(f"site is {site}, but the host has {num_layers} layers: choose 0 to {num_layers - 1}.")
    return site % num_layers


def prepare_host(
    host: PreTrainedModel, kind: HostKind, settings: GraftConfig
) -> tuple[PreTrainedModel, nn.Module | None]:
    """Prepare a host for its graft.

    Modules that get a hook or lose their layers are copied first, because the caller may also use the host. The copies
    share all parameters.

    Returns:
        The host, and the module whose output the graft replaces; None if the graft is applied to the host's output.
    """
    reader = find_reader(host, kind)
    path = _path_of(host, reader)
    if settings.site == EMBEDDINGS:
        layers_path, _ = find_layers(reader)
        host = _copy_along(host, f"{path}.{layers_path}".lstrip("."))
        parent, _, name = layers_path.rpartition(".")
        host.get_submodule(path).get_submodule(parent)._modules[name] = nn.ModuleList()
    if isinstance(settings.site, int):
        path = f"{path}.{find_layers(reader)[0]}.{settings.site}".lstrip(".")
    elif not get_task(settings.task).generates:
        return host, None
    host = _copy_along(host, path)
    return host, host.get_submodule(path)


@dataclass
class _Pass:
    """What a graft needs of its host's current or last pass.

    Attributes:
        mask: The reader's mask, [batch, seq].
        positions: The positions of the tokens that the reader was given, [batch, seq], if it was given no mask.
        donor_cache: The donor's cache.
        states: The donor's states of the text, [batch, seq, donor_hidden].
        next_states: The donor's states for the reader's next pass, instead of those that `read_text` would compute.
    """

    mask: Tensor | None = None
    positions: Tensor | None = None
    donor_cache: Cache | None = None
    states: Tensor | None = None
    next_states: Tensor | None = None


class _Thread(threading.local):
    """The passes of the threads that run a model: several may do so at the same time."""

    def __init__(self) -> None:
        self.passes: WeakKeyDictionary[SiteHooks, _Pass] = WeakKeyDictionary()


_THREAD = _Thread()


class SiteHooks:
    """The hooks of a graft inside a host: one replaces the output of the module at the graft site with the graft's.

    The graft also needs the mask and the cache, which the module at the site doesn't get. So a second hook takes them
    from the arguments of the reader. The mask is kept until the reader's next pass. It must outlive the pass: FSDP's
    activation checkpointing runs the module, and its hook, again in the backward pass.

    Args:
        graft: Called with the hidden states at the site, [batch, seq, host_hidden], the mask, [batch, seq] or None, the
            donor's cache or None, and the donor's states of the text or None; without a mask also with the positions of
            the tokens, if they are given (`position_ids`). Returns the states that replace them.
        target: The module at the site.
        reader: The part of the host that gets the mask. None if the graft needs no mask.
        new_donor_cache: Makes an empty cache for the donor, or returns None if the donor can't have one.
        read_text: Computes the donor's states from the ids that the reader gets, the mask and the cache. None if the
            donor doesn't read the text.
    """

    def __init__(
        self,
        graft: Callable[..., Tensor],
        target: nn.Module,
        reader: nn.Module | None,
        new_donor_cache: Callable[[], Cache | None],
        read_text: Callable[[Tensor | None, Tensor | None, Cache | None], Tensor] | None = None,
    ) -> None:
        self._graft = graft
        self._new_donor_cache = new_donor_cache
        self._read_text = read_text
        self._last = _Pass()
        self._names: tuple[str, ...] = ()
        if reader is not None:
            self._names = tuple(inspect.signature(reader.forward).parameters)
            reader.register_forward_pre_hook(self._keep_inputs, with_kwargs=True)
        target.register_forward_hook(self._replace_output)

    def expect(self, states: Tensor | None) -> None:
        """Take the donor's states for the reader's next pass in this thread; None lets `read_text` compute them."""
        self._begin().next_states = states

    def _begin(self) -> _Pass:
        """Return the pass of this thread, and let other threads of its backward pass find it."""
        if torch.compiler.is_dynamo_compiling():  # It traces one thread at a time, and doesn't support threads' values.
            return self._last
        # Not `return self._last`: another thread may set that in between.
        current = self._last = _THREAD.passes.setdefault(self, _Pass())
        return current

    def _current(self) -> _Pass:
        """Return the pass of this thread, or, in a thread of a backward pass, the last one of all threads."""
        return self._last if torch.compiler.is_dynamo_compiling() else _THREAD.passes.get(self, self._last)

    def _keep_inputs(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        current = self._begin()
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        # The name of the cache argument depends on the version of transformers.
        cache = next((value for value in kwargs.values() if hasattr(value, "get_seq_length")), None)
        current.donor_cache = follow_cache(cache, self._new_donor_cache)
        current.mask = kwargs.get("attention_mask")
        current.positions = kwargs.get("position_ids") if current.mask is None else None
        check_mask(current.mask)
        if self._read_text is not None:
            states, current.next_states = current.next_states, None
            if states is None:
                states = self._read_text(kwargs.get("input_ids"), current.mask, current.donor_cache)
            current.states = states

    def _replace_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, ModelOutput):
            hidden = self._run_graft(cast(Tensor, output.last_hidden_state))
            return type(output)(**{**output, "last_hidden_state": hidden})
        if isinstance(output, tuple):
            return (self._run_graft(output[0]), *output[1:])
        return self._run_graft(output)

    def _run_graft(self, hidden: Tensor) -> Tensor:
        # The cache is for one pass, and must not stay in memory after it.
        current = self._current()
        donor_cache, current.donor_cache = current.donor_cache, None
        states = current.states
        if not torch.is_grad_enabled():  # Only a backward pass may need them again.
            current.states = None
        packed = {} if current.positions is None else {"position_ids": current.positions}
        return self._graft(hidden, current.mask, donor_cache, states, **packed)


def checkpoints_hooks(layer: nn.Module) -> bool:
    """Whether gradient checkpointing runs a layer's hooks again in the backward pass.

    transformers did that until 5.17, because it checkpointed `__call__`. In the backward pass, the mask that
    `SiteHooks` keeps may already belong to another batch.
    """
    return type(layer).__call__ is not nn.Module.__call__


def _path_of(host: nn.Module, part: nn.Module) -> str:
    return next(str(path) for path, module in host.named_modules() if module is part)


def _copy_along(host: PreTrainedModel, path: str) -> PreTrainedModel:
    """Copy the host and the modules on a path, with separate hooks. Other modules and all parameters are shared."""
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
