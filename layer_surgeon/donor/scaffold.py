"""The family's own model with everything but one layer left out.

A decoder layer is only exact with what its model prepares for it: the mask of its own attention type, positions,
rotary embeddings. The scaffold is that model. Its forward runs as ever, but

- other layers are passed over (`_Passage`), and the chosen one is replaced by an `_Entrance`, which calls the layer
  with the hidden states of the current run, untouched by embedding scaling, learned positions or embedding norms;
- everything else that has weights is left out (`_LeftOut`) and gives NaN, so that a layer that depends on weights
  outside of it is noticed (`probe`) instead of computing something else.

Only rotary and similar buffers remain, so a scaffold of a 70B model takes some kilobytes.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from layer_surgeon.donor.family import find_stack, model_class


@dataclass(kw_only=True)
class Run:
    """One pass of hidden states through one layer.

    Attributes:
        layer: What to call at the entrance.
        hidden_states: What to call it with, [batch, seq, donor_hidden].
        extras: How a layer that is passed over returns its hidden states: None as they are, n as the first of a tuple
            of n + 1.
        filler: What the rest of that tuple is.
        arrived: What the scaffold's own forward would have called it with; the probe looks at it.
        result: What the layer returned; None before it was called.
    """

    layer: Callable[..., Any]
    hidden_states: Tensor
    extras: int | None = None
    filler: Any = None
    arrived: Any = None
    result: Any = None

    @property
    def output(self) -> Tensor | None:
        """The layer's hidden states, [batch, seq, donor_hidden]."""
        output: Tensor | None = self.result[0] if isinstance(self.result, (tuple, list)) else self.result
        return output


# Not an attribute of the modules: several threads may run one model, and DataParallel copies modules, not closures.
_CURRENT: ContextVar[Run] = ContextVar("layer_surgeon_run")


class _Traced:
    """The run that torch.compile is tracing. It can't follow context variables, and traces in one thread at a time."""

    run: Run | None = None


_TRACED = _Traced()


def _current() -> Run:
    run = _TRACED.run if torch.compiler.is_dynamo_compiling() else None
    return _CURRENT.get() if run is None else run


class _Stub(nn.Module):
    """Answers for the attributes of the module it replaces; forwards read some of layers, such as `attention_type`.

    That module stays outside of the tree of modules: its weights, if any are left, are on the meta device.
    """

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.__dict__["replaced"] = replaced

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "replaced":  # not there yet, while a copy is made
                raise
            return getattr(self.replaced, name)


class _Passage(_Stub):
    """Stands where a layer was that the hidden states pass over."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = _current()
        if run.result is not None:
            return run.result
        hidden_states = args[0] if args else kwargs["hidden_states"]
        return hidden_states if run.extras is None else (hidden_states, *[run.filler] * run.extras)


class _Entrance(_Stub):
    """Stands where the chosen layer was, and calls it with the current run's hidden states."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = _current()
        run.arrived = args[0] if args else kwargs["hidden_states"]
        if args:
            args = (run.hidden_states, *args[1:])
        else:
            kwargs["hidden_states"] = run.hidden_states
        run.result = run.layer(*args, **kwargs)
        return run.result


class _LeftOut(_Stub):
    """Stands where a module with weights was, and gives NaN of the shape that it gave."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__(replaced)
        self.looks_up = isinstance(replaced, nn.Embedding)
        self.width = next(
            (getattr(replaced, name) for name in ("embedding_dim", "out_features") if hasattr(replaced, name)), None
        )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if self.looks_up:  # opt hands its embedding of positions the mask too
            tensors.sort(key=Tensor.is_floating_point)
        like = tensors[0] if tensors else _current().hidden_states
        if self.width is None:
            shape = like.shape
        else:
            shape = torch.Size((*(like.shape if self.looks_up else like.shape[:-1]), self.width))
        dtype = like.dtype if like.is_floating_point() else _current().hidden_states.dtype
        return torch.full(shape, torch.nan, dtype=dtype, device=like.device)


def scaffold_class(config: PretrainedConfig, index: int) -> type[PreTrainedModel]:
    """A class whose instances are scaffolds around layer `index`, which they still hold.

    It has the name and module of the family's class, by which transformers finds the family's weight conversions.
    """
    base = model_class(config)

    def init(self: PreTrainedModel, config: PretrainedConfig) -> None:
        base.__init__(self, config)
        _hollow(self, index)
        # So that it can be pickled: the class made here has no place in any module.
        self.__class__ = base

    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})


def _hollow(model: PreTrainedModel, index: int) -> None:
    path = find_stack(model)
    stack = model.get_submodule(path)
    width = _embedding_width(model)
    for position, layer in enumerate(stack):
        if position != index:
            stack[position] = _Passage(layer)
    kept = f"{path}.{index}"
    _leave_out(model, "", kept)
    model.all_tied_weights_keys = {}
    model.surgeon_stack_path = path
    model.surgeon_embedding_width = width


def _embedding_width(model: PreTrainedModel) -> int:
    """Some families embed tokens in another width than that of their layers (electra, opt-350m)."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    return int(getattr(embedding, "embedding_dim", model.config.hidden_size))


def _leave_out(module: nn.Module, prefix: str, kept: str) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if path == kept:
            continue
        if child._parameters and not kept.startswith(f"{path}."):
            setattr(module, name, _LeftOut(child))
        else:
            _leave_out(child, f"{path}.", kept)
    # Weights of the model itself, which can't be replaced by a stub. As buffers they are nobody's parameters.
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            del module._parameters[name]
            module.register_buffer(name, torch.full_like(parameter, torch.nan), persistent=False)
    module._non_persistent_buffers_set.update(module._buffers)


def stack_path(scaffold: PreTrainedModel) -> str:
    """Where the layers lie in a scaffold, such as `layers` or `decoder.layers`."""
    return str(scaffold.surgeon_stack_path)


def take_layer(scaffold: PreTrainedModel, index: int) -> nn.Module:
    """Take the layer that a new scaffold holds, and put an entrance in its place."""
    stack = scaffold.get_submodule(stack_path(scaffold))
    layer = stack[index]
    stack[index] = _Entrance(layer)
    return layer  # type: ignore[no-any-return]  # transformers is untyped here


def run_scaffold(
    scaffold: PreTrainedModel,
    run: Run,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
) -> Run:
    """Run the scaffold's forward, which calls `run.layer` once.

    Args:
        scaffold: A scaffold whose layer was taken.
        run: What to call with what; filled with what the layer returned.
        attention_mask: [batch, seq] of 1 and 0, or [batch, 1, seq, seq], added to the attention scores.
        position_ids: [batch, seq].
    """
    # Only their size, type and place matter. Not the hidden states themselves: ctrl scales its embeddings in place.
    shape = (*run.hidden_states.shape[:-1], scaffold.surgeon_embedding_width)
    embeddings = run.hidden_states.new_full(shape, torch.nan)
    arguments: dict[str, Any] = {"inputs_embeds": embeddings, "use_cache": False}
    if attention_mask is not None:
        arguments["attention_mask"] = attention_mask
    if position_ids is not None:
        arguments["position_ids"] = position_ids
    if torch.compiler.is_dynamo_compiling():
        _TRACED.run = run
        scaffold(**arguments)
        _TRACED.run = None
        return run
    token = _CURRENT.set(run)
    try:
        scaffold(**arguments)
    finally:
        _CURRENT.reset(token)
    return run
