"""The scaffold: the family's own model without all weights except one layer's.

A decoder layer needs what its model prepares for it: the mask for its attention type, positions, rotary embeddings. The
scaffold is that model. Its forward runs as usual, with two changes:

- An `_Entrance` replaces the chosen layer. It calls the layer with the hidden states of the current run, without
  embedding scaling, learned positions or embedding norms. A `_Passage` replaces each other layer and skips it.
- A `_LeftOut` replaces every other module that has weights, and returns NaN. If a layer depends on weights outside of
  it, `probe` finds the NaN; otherwise the layer would silently compute something else.

Only buffers remain, such as rotary embeddings: the scaffold of a 70B model takes a few kilobytes.
"""

from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel

from layer_surgeon.donor.family import find_stack, model_class


@dataclass(kw_only=True)
class Run:
    """One pass of hidden states through one layer.

    Attributes:
        layer: The layer that the entrance calls.
        hidden_states: Its input, [batch, seq, donor_hidden].
        extras: How a skipped layer returns its hidden states. None: as a tensor. n: as the first element of a tuple of
            n + 1 elements.
        filler: The value of the other elements of that tuple.
        cache_layer: The layer's cache, one of `Cache.layers` of transformers. It receives the keys and values of this
            pass. None: run without cache.
        arrived: The hidden states that the scaffold's own forward passed to the entrance; the probe checks them.
        result: The layer's return value; None before the call.
        left_out_calls: Receives the path of each left-out module that is called.
        num_calls_before: How many of these calls came before the first layer.
    """

    layer: Callable[..., Any]
    hidden_states: Tensor
    extras: int | None = None
    filler: Any = None
    cache_layer: Any = None
    arrived: Any = None
    result: Any = None
    left_out_calls: list[str] = field(default_factory=list)
    num_calls_before: int = 0

    @property
    def output(self) -> Tensor | None:
        """The hidden states that the layer returned, [batch, seq, donor_hidden]; None before the call."""
        output: Tensor | None = self.result[0] if isinstance(self.result, (tuple, list)) else self.result
        return output


# The argument of a model's forward that takes a cache, since transformers 5.24 and before.
CACHE_ARGUMENTS = ("cache", "past_key_values")
# A module attribute would not work: several threads may run one model, and DataParallel copies modules.
_CURRENT: ContextVar[Run | None] = ContextVar("layer_surgeon_run", default=None)


class _Traced:
    """The run that torch.compile is tracing. It doesn't support context variables, and traces one thread at a time."""

    run: Run | None = None


_TRACED = _Traced()


def _find_current() -> Run | None:
    return _TRACED.run if torch.compiler.is_dynamo_compiling() else _CURRENT.get()


def _current() -> Run:
    run = _find_current()
    if run is None:
        raise RuntimeError("A scaffold was called outside of run_scaffold, which sets the run.")
    return run


def has_cache() -> bool:
    """Whether the layer that is running has a cache."""
    run = _find_current()
    return run is not None and run.cache_layer is not None


class _Stub(nn.Module):
    """Replaces a module but keeps its attributes: models read attributes of their layers, such as `attention_type`.

    The replaced module is not registered as a submodule. Its remaining weights, if any, are on the meta device.
    """

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.__dict__["replaced"] = replaced

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "replaced":  # not set yet while the stub is being copied
                raise
            return getattr(self.replaced, name)


class _Passage(_Stub):
    """Replaces a layer and skips it: returns its hidden states unchanged."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = _current()
        if run.result is not None:
            return run.result
        return _as_layer_output(args[0] if args else kwargs["hidden_states"], run)


def _as_layer_output(hidden_states: Any, run: Run) -> Any:
    return hidden_states if run.extras is None else (hidden_states, *[run.filler] * run.extras)


def _arrive(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """Record in the current run what the model passes to its first layer."""
    run = _current()
    run.arrived = args[0] if args else kwargs["hidden_states"]
    run.num_calls_before = len(run.left_out_calls)
    return run


class _Arrival(_Stub):
    """Replaces the first layer where only the modules before it run: keeps what arrives, and skips all layers."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = _arrive(args, kwargs)
        run.result = _as_layer_output(run.arrived, run)
        return run.result


class _Departure(_Stub):
    """Replaces the first layer where only the modules after the last layer run: returns the run's hidden states."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = _arrive(args, kwargs)
        run.result = _as_layer_output(run.hidden_states, run)
        return run.result


class _Entrance(_Stub):
    """Replaces the chosen layer, and calls the layer of the current run with the run's hidden states."""

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
    """Replaces a module that has weights, and returns NaN in the shape of that module's output."""

    def __init__(self, replaced: nn.Module, path: str) -> None:
        super().__init__(replaced)
        self.path = path
        self.is_embedding = isinstance(replaced, nn.Embedding)
        self.width = next(
            (getattr(replaced, name) for name in ("embedding_dim", "out_features") if hasattr(replaced, name)), None
        )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        _current().left_out_calls.append(self.path)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if self.is_embedding:  # opt also passes the mask to its position embedding, so put integers first
            tensors.sort(key=Tensor.is_floating_point)
        reference = tensors[0] if tensors else _current().hidden_states
        if self.is_embedding and has_cache():
            # That mask also covers the cached positions, which opt cuts off itself.
            reference = reference[..., -_current().hidden_states.shape[1] :]
        if self.width is None:
            shape = reference.shape
        else:
            shape = torch.Size((*(reference.shape if self.is_embedding else reference.shape[:-1]), self.width))
        dtype = reference.dtype if reference.is_floating_point() else _current().hidden_states.dtype
        return torch.full(shape, torch.nan, dtype=dtype, device=reference.device)


class _ReadableLeftOut(_LeftOut):
    """A left-out module whose weights can be read; they are NaN. llama4 asks its table of tokens for its device."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        run = _find_current()
        if run is None or not isinstance(value, nn.Parameter):
            return value
        nan = torch.full((), torch.nan, dtype=value.dtype, device=run.hidden_states.device)
        return nan.expand(value.shape)


def scaffold_class(config: PretrainedConfig, index: int) -> type[PreTrainedModel]:
    """Make a class whose instances are scaffolds around layer `index`. The instances still contain the layer.

    The class has the name and module of the family's class, because transformers looks up weight conversions by them.
    """
    base = model_class(config)

    def init(self: PreTrainedModel, config: PretrainedConfig) -> None:
        base.__init__(self, config)
        _hollow(self, index)
        # Allows pickling: pickle can't find a class that is not in a module.
        self.__class__ = base

    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})


def _hollow(model: PreTrainedModel, index: int) -> None:
    path = find_stack(model)
    stack = model.get_submodule(path)
    width = _embedding_width(model)
    for position, layer in enumerate(stack):
        if position != index:
            stack[position] = _Passage(layer)
    _leave_out(model, "", f"{path}.{index}")
    model.all_tied_weights_keys = {}
    model.surgeon_stack_path = path
    model.surgeon_embedding_width = width


def surroundings_class(
    base: type[PreTrainedModel],
    kept: Collection[str],
    *,
    before: bool,
    prepare: Callable[[PreTrainedModel], None] | None = None,
) -> type[PreTrainedModel]:
    """Make a class whose instances have no layers, and of the other modules with weights only those in `kept`.

    Args:
        base: The family's class, with or without a head.
        kept: Paths of the modules that keep their weights.
        before: Keep what arrives at the first layer. False: start from hidden states after the last layer.
        prepare: Called with a new instance, before it gets its weights.
    """

    def init(self: PreTrainedModel, config: PretrainedConfig) -> None:
        base.__init__(self, config)
        path = find_stack(self)
        stack = self.get_submodule(path)
        width = _embedding_width(self)
        head = None if before else self.get_output_embeddings()
        self.surgeon_head_path = next((name for name, module in self.named_modules() if module is head), None)
        self.surgeon_tied_weights = dict(self.all_tied_weights_keys)
        for position, layer in enumerate(stack):
            stack[position] = _Passage(layer) if position else (_Arrival if before else _Departure)(layer)
        _leave_out(self, "", f"{path}.0", kept, _ReadableLeftOut)
        self.all_tied_weights_keys = {}
        self.surgeon_stack_path = path
        self.surgeon_embedding_width = width
        if prepare is not None:
            prepare(self)
        self.__class__ = base

    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})


def run_surroundings(model: PreTrainedModel, run: Run, **arguments: Any) -> Any:
    """Run the forward of an instance of a `surroundings_class`, without a cache. Returns its output."""
    return _call(model, run, use_cache=False, **arguments)


def _call(model: PreTrainedModel, run: Run, **arguments: Any) -> Any:
    if torch.compiler.is_dynamo_compiling():
        _TRACED.run = run
        output = model(**arguments)
        _TRACED.run = None
        return output
    token = _CURRENT.set(run)
    try:
        return model(**arguments)
    finally:
        _CURRENT.reset(token)


def _embedding_width(model: PreTrainedModel) -> int:
    """Width of the token embeddings. In some families, it differs from that of the layers (electra, opt-350m)."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    return int(getattr(embedding, "embedding_dim", model.config.hidden_size))


def _leave_out(
    module: nn.Module,
    prefix: str,
    layer_path: str,
    kept: Collection[str] = (),
    left_out: type[_LeftOut] = _LeftOut,
) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if path == layer_path or path in kept:
            continue
        if child._parameters and not layer_path.startswith(f"{path}."):
            setattr(module, name, left_out(child, path))
        else:
            _leave_out(child, f"{path}.", layer_path, kept, left_out)
    # A stub can't replace the model's own weights. Turn them into buffers, which are not counted as parameters.
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            del module._parameters[name]
            module.register_buffer(name, torch.full_like(parameter, torch.nan), persistent=False)
    module._non_persistent_buffers_set.update(module._buffers)


def stack_path(scaffold: PreTrainedModel) -> str:
    """Path of the layers in a scaffold, such as `layers` or `decoder.layers`."""
    return str(scaffold.surgeon_stack_path)


def take_layer(scaffold: PreTrainedModel, index: int) -> nn.Module:
    """Take the layer out of a new scaffold, and put an entrance in its place."""
    stack = scaffold.get_submodule(stack_path(scaffold))
    layer = stack[index]
    stack[index] = _Entrance(layer)
    return layer  # type: ignore[no-any-return]  # transformers is untyped here


def cache_argument(model: PreTrainedModel) -> str | None:
    """Return the name of the argument of a model's forward that takes a cache; None if it takes none."""
    parameters = signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def run_scaffold(
    scaffold: PreTrainedModel,
    run: Run,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
) -> Run:
    """Run the scaffold's forward, which calls `run.layer` once.

    Args:
        scaffold: A scaffold after `take_layer`.
        run: The layer and its input. Receives the layer's return value.
        attention_mask: [batch, seq], 1 for tokens and 0 for padding; or [batch, 1, seq, seq], which is added to the
            attention scores. With a cache, [batch, cached + seq].
        position_ids: [batch, seq].

    Returns:
        `run`.
    """
    # Only the shape, dtype and device matter. Don't pass the hidden states: ctrl scales its embeddings in place.
    shape = (*run.hidden_states.shape[:-1], scaffold.surgeon_embedding_width)
    embeddings = run.hidden_states.new_full(shape, torch.nan)
    arguments: dict[str, Any] = {"inputs_embeds": embeddings, "use_cache": False}
    if attention_mask is not None:
        arguments["attention_mask"] = attention_mask
    if position_ids is not None:
        arguments["position_ids"] = position_ids
    if run.cache_layer is not None and (cache_name := cache_argument(scaffold)) is not None:
        # Only one layer runs, but the family's model may derive masks and positions from the cache of any layer. So
        # all of them get that layer's cache.
        arguments[cache_name] = Cache(layers=[run.cache_layer] * scaffold.config.num_hidden_layers)
        arguments["use_cache"] = True
    _call(scaffold, run, **arguments)
    return run
