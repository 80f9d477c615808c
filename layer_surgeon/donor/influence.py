"""Which outputs of a layer's linear maps change its result when there is one key per sequence: found by trying.

Nothing here knows a family. The layer runs inside its scaffold with stand-ins for its weights, so that nothing depends
on what the weights happen to be (all zeros, say) and a layer on the meta device can be examined too. Every linear map
stands as the product of two random vectors, which costs nothing. Outputs without any gradient are left out one map
after the other, and stay so where the layer's result is the same to the last bit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layer_surgeon.donor.config import SurgeonDonorConfig
from layer_surgeon.donor.one_key import Needed, install, is_one_key, uninstall
from layer_surgeon.donor.probe import FAILURES, find_extras, takes_position_ids
from layer_surgeon.donor.scaffold import Run, run_scaffold, scaffold_class, take_layer

_ROWS = 4  # Half of them are the others' negatives, so that no channel before a ReLU is off in all of them.
_LENGTH = 7
_CHECKED = 3
_DIFFERENCE = 1e-6  # of the largest output, in float32


@dataclass(kw_only=True)
class _Trial:
    """What the stand-ins of one layer do and see while it runs.

    Attributes:
        left_out: The mask of channels, [out], by map: True for those that give zero.
        given: What each map gave in the latest run, call by call: None for a call with other than one position per
            sequence.
    """

    left_out: dict[nn.Module, Tensor] = field(default_factory=dict)
    given: dict[nn.Module, list[Tensor | None]] = field(default_factory=dict)


class _ThinLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _thin(self, input, self.out_features)


class _ThinConv1D(Conv1D):  # type: ignore[misc]  # transformers is untyped here
    def forward(self, x: Tensor) -> Tensor:
        return _thin(self, x, self.nf)


class _ThinProducts(TorchFunctionMode):
    """Products with matrices of equal columns (experts have them), without making them whole first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and len(args) == 2 and args[1].stride(-1) == 0:
            return args[0].sum(dim=-1, keepdim=True) * args[1][:, 0]
        return func(*args, **(kwargs or {}))


def shorten(scaffold: PreTrainedModel, layer: nn.Module, extras: int | None, hidden_size: int) -> None:
    """Let a layer that has its weights leave out what doesn't count with one key per sequence, if that is exact.

    Args:
        scaffold: The layer's scaffold.
        layer: The layer. Where its result is not the same with and without, it stays as it is.
        extras: See `Run.extras`.
        hidden_size: Width of its hidden states.
    """
    uninstall(layer)
    needed = _try_to_find(scaffold, layer, extras, hidden_size)
    if not needed:
        return
    parameter = next(layer.parameters())
    ramp = torch.arange(_CHECKED * hidden_size, device=parameter.device, dtype=torch.float32)
    states = (ramp * 0.7).sin().reshape(_CHECKED, 1, hidden_size).to(parameter.dtype)
    results = []
    with torch.no_grad():
        for short in (False, True):
            if short:
                install(layer, needed)
            run = Run(layer=layer, hidden_states=states, extras=extras)
            results.append(run_scaffold(scaffold, run, None, _positions(scaffold, states)).output)
    full, short_of = results
    if full is None or short_of is None or not _agree(full, short_of):
        uninstall(layer)


def _agree(full: Tensor, short: Tensor) -> bool:
    """Whether they differ by no more than the order of sums in one and the same product."""
    most = _DIFFERENCE if full.dtype == torch.float32 else 2 * torch.finfo(full.dtype).eps
    difference = (full.float() - short.float()).abs().max()
    return bool(difference <= most * full.float().abs().max())


def needed_by_shape(config: SurgeonDonorConfig, index: int) -> dict[str, Needed]:
    """What `find_needed` finds for a layer of which there are no weights.

    Args:
        config: Of what donor.
        index: Which of its layers.

    Raises:
        UnsupportedArchitectureError: The donor's family can't be served.
    """
    family = config.family_config()
    with torch.device("meta"):
        scaffold = scaffold_class(family, index)(family)
    for module in scaffold.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cpu")
    scaffold.initialize_weights()
    layer = take_layer(scaffold.eval(), index)
    width = int(scaffold.config.hidden_size)
    return _try_to_find(scaffold, layer, find_extras(scaffold, torch.empty(0), width), width)


def _try_to_find(
    scaffold: PreTrainedModel, layer: nn.Module, extras: int | None, hidden_size: int
) -> dict[str, Needed]:
    try:
        return find_needed(scaffold, layer, extras, hidden_size)
    except FAILURES:
        return {}  # A layer that can't run with stand-ins is run in full.


def find_needed(scaffold: PreTrainedModel, layer: nn.Module, extras: int | None, hidden_size: int) -> dict[str, Needed]:
    """The linear maps some of whose outputs don't count with one key per sequence, by name, and what of them does.

    Args:
        scaffold: The layer's scaffold, with buffers that are real.
        layer: The layer; its own weights are not looked at.
        extras: See `Run.extras`.
        hidden_size: Width of its hidden states.
    """
    reference = next(layer.parameters()).device
    device = torch.device("cpu") if reference.type == "meta" else reference
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(_ROWS // 2, 1, hidden_size, generator=generator)
    states = torch.cat([half, -half]).to(device)
    stand_ins = _stand_ins(layer, device, generator)
    names = {module: name for name, module in layer.named_modules()}
    found: dict[str, Needed] = {}
    with (
        torch.inference_mode(False),
        sdpa_kernel(SDPBackend.MATH),
        _thin_maps(scaffold, layer, device, generator) as trial,
    ):

        def run(hidden_states: Tensor) -> Tensor:
            trial.given.clear()
            call = Run(
                layer=lambda *args, **kwargs: functional_call(layer, stand_ins, args, kwargs),
                hidden_states=hidden_states,
                extras=extras,
            )
            output = run_scaffold(scaffold, call, None, _positions(scaffold, hidden_states)).output
            if not isinstance(output, Tensor):
                raise TypeError("the layer returned no hidden states")
            return output

        with torch.enable_grad():
            full = run(states.clone().requires_grad_())
            outputs = {module: given[0] for module, given in trial.given.items() if len(given) == 1}
            candidates = _without_gradient(full, outputs)
        with torch.no_grad():
            # One sequence of several positions: what takes it for several sequences of one position is out.
            run(torch.randn(1, _LENGTH, hidden_size, generator=generator).to(device))
            misled = {module for module, given in trial.given.items() if any(output is not None for output in given)}
            for module, unneeded in reversed(candidates.items()):
                needed = _describe(~unneeded)
                if module in misled or needed is None:
                    continue
                trial.left_out[module] = unneeded
                if torch.equal(run(states), full):
                    found[names[module]] = needed
                else:
                    del trial.left_out[module]
    return found


def _without_gradient(output: Tensor, outputs: Mapping[nn.Module, Tensor | None]) -> dict[nn.Module, Tensor]:
    """For each map the channels, [out], of which nothing reaches the output."""
    maps = {module: given for module, given in outputs.items() if given is not None and given.requires_grad}
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.device)
    gradients = torch.autograd.grad((output.float() * weights).sum(), list(maps.values()), allow_unused=True)
    channels = {}
    for (module, given), gradient in zip(maps.items(), gradients, strict=True):
        silent = torch.zeros_like(given) if gradient is None else gradient
        channels[module] = (silent == 0).flatten(0, -2).all(dim=0)
    return {module: unneeded for module, unneeded in channels.items() if unneeded.any()}


def _describe(counts: Tensor) -> Needed | None:
    """The channels that count, if they are one run in each of equal blocks."""
    if not counts.any():
        return Needed(blocks=1, start=0, stop=0)
    width = len(counts)
    for blocks in range(1, width + 1):
        if width % blocks:
            continue
        by_block = counts.reshape(blocks, -1)
        places = by_block[0].nonzero().flatten()
        if len(places) and bool((by_block == by_block[0]).all()) and len(places) == places[-1] - places[0] + 1:
            return Needed(blocks=blocks, start=int(places[0]), stop=int(places[-1]) + 1)
    return None


def _positions(scaffold: PreTrainedModel, states: Tensor) -> Tensor | None:
    if not takes_position_ids(scaffold):
        return None
    batch, length, _ = states.shape
    first = torch.arange(batch, device=states.device) % _LENGTH + 1
    return first[:, None] + torch.arange(length, device=states.device)


def _stand_ins(layer: nn.Module, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    """Random numbers for all weights but those of linear maps; matrices have equal columns and so take no memory."""
    linear = {id(parameter) for module in layer.modules() if _is_map(module) for parameter in module.parameters()}
    values = {}
    for name, parameter in layer.named_parameters():
        if id(parameter) not in linear:
            shape = parameter.shape if parameter.ndim < 2 else (*parameter.shape[:-1], 1)
            value = torch.rand(shape, generator=generator) + 0.5
            values[name] = value.to(device).expand(parameter.shape)
    return values


@contextmanager
def _thin_maps(
    scaffold: PreTrainedModel, layer: nn.Module, device: torch.device, generator: torch.Generator
) -> Iterator[_Trial]:
    """Let the linear maps of a layer be products of two vectors, and watch them."""
    trial = _Trial()
    maps: list[tuple[Any, type]] = [(module, type(module)) for module in layer.modules() if _is_map(module)]
    for module, _ in maps:
        is_linear = isinstance(module, nn.Linear)
        inputs, outputs = module.weight.shape[::-1] if is_linear else module.weight.shape
        vectors = [torch.randn(size, generator=generator).to(device) for size in (inputs, outputs, outputs)]
        module.__dict__["surgeon_trial"] = (trial, vectors[0] / inputs**0.5, vectors[1], vectors[2])
        module.__class__ = _ThinLinear if is_linear else _ThinConv1D
    config, experts = scaffold.config, scaffold.config._experts_implementation
    try:
        # One expert after the other: the other ways want their matrices whole.
        config._experts_implementation = "eager"
        with _ThinProducts():
            yield trial
    finally:
        config._experts_implementation = experts
        for module, original in maps:
            module.__class__ = original
            del module.__dict__["surgeon_trial"]


def _is_map(module: nn.Module) -> bool:
    """Whether it takes [..., in] and gives [..., out]; families have subclasses that do (falcon) and don't (phimoe)."""
    if type(module) in (nn.Linear, Conv1D):
        return True
    if not isinstance(module, nn.Linear):
        return False
    empty = {name: torch.empty_like(parameter, device="meta") for name, parameter in module.named_parameters()}
    states = torch.empty(1, 1, module.in_features, dtype=module.weight.dtype, device="meta")
    try:
        output = functional_call(module, empty, (states,))
    except FAILURES:
        return False
    return isinstance(output, Tensor) and output.shape == (1, 1, module.out_features)


def _thin(module: Any, states: Tensor, width: int) -> Tensor:
    trial, inwards, outwards, bias = module.__dict__["surgeon_trial"]
    output: Tensor = (states * inwards).sum(dim=-1, keepdim=True) * outwards + bias
    output = output.to(states.dtype)
    if module in trial.left_out:
        output = output.masked_fill(trial.left_out[module], 0)
    trial.given.setdefault(module, []).append(output if is_one_key(states) else None)
    return output
