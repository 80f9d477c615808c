"""Find the outputs of a layer's linear maps that don't affect its result if each sequence has one key.

No code here is specific to a family. The layer runs inside its scaffold with stand-ins for its weights. The result then
doesn't depend on the actual weights (they may all be zero), and layers on the meta device work too. The stand-in of a
linear map is a product of two random vectors, which is cheap. Candidates are the outputs without gradient. They are
left out one map after the other, and a map stays shortened if the layer's result is the same to the last bit.
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

_ROWS = 4  # Half of the rows are the negatives of the others: no channel before a ReLU is zero in all of them.
_LENGTH = 7
_CHECKED_ROWS = 3
_MAX_DIFFERENCE = 1e-6  # relative to the largest output, in float32


@dataclass(kw_only=True)
class _Trial:
    """Settings and recorded outputs of the stand-ins of one layer.

    Attributes:
        left_out: For each map, a mask of channels [out]: True sets the channel to zero.
        outputs: For each map, its output in each call of the latest run; None for a call that didn't have exactly one
            position per sequence.
    """

    left_out: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, list[Tensor | None]] = field(default_factory=dict)


class _ThinLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _thin(self, input, self.out_features)


class _ThinConv1D(Conv1D):  # type: ignore[misc]  # transformers is untyped here
    def forward(self, x: Tensor) -> Tensor:
        return _thin(self, x, self.nf)


class _ThinProducts(TorchFunctionMode):
    """Multiplies by matrices of equal columns (the stand-ins of experts) without expanding them in memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and len(args) == 2 and args[1].stride(-1) == 0:
            return args[0].sum(dim=-1, keepdim=True) * args[1][:, 0]
        return func(*args, **(kwargs or {}))


def shorten(scaffold: PreTrainedModel, layer: nn.Module, extras: int | None, hidden_size: int) -> None:
    """Make a layer skip the outputs that don't count with one key per sequence, if the result stays exact.

    Args:
        scaffold: The layer's scaffold.
        layer: The layer, with its weights. It stays unchanged if the shortcut would change its result.
        extras: See `Run.extras`.
        hidden_size: Width of the layer's hidden states.
    """
    uninstall(layer)
    needed = _try_to_find(scaffold, layer, extras, hidden_size)
    if not needed:
        return
    parameter = next(layer.parameters())
    ramp = torch.arange(_CHECKED_ROWS * hidden_size, device=parameter.device, dtype=torch.float32)
    states = (ramp * 0.7).sin().reshape(_CHECKED_ROWS, 1, hidden_size).to(parameter.dtype)
    outputs = []
    with torch.no_grad():
        for with_shortcut in (False, True):
            if with_shortcut:
                install(layer, needed)
            run = Run(layer=layer, hidden_states=states, extras=extras)
            outputs.append(run_scaffold(scaffold, run, None, _positions(scaffold, states)).output)
    full, shortcut = outputs
    if full is None or shortcut is None or not _agree(full, shortcut):
        uninstall(layer)


def _agree(full: Tensor, shortcut: Tensor) -> bool:
    """Whether two outputs differ only as much as the order of summation in a matrix product can explain."""
    tolerance = _MAX_DIFFERENCE if full.dtype == torch.float32 else 2 * torch.finfo(full.dtype).eps
    difference = (full.float() - shortcut.float()).abs().max()
    return bool(difference <= tolerance * full.float().abs().max())


def needed_by_shape(config: SurgeonDonorConfig, index: int) -> tuple[dict[str, Needed], int | None]:
    """Run `find_needed` for a layer without its weights.

    Args:
        config: The donor's config.
        index: Index of the layer in the donor.

    Returns:
        What `find_needed` returns, and the layer's `Run.extras`.

    Raises:
        UnsupportedArchitectureError: The donor's family is not supported.
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
    extras = find_extras(scaffold, torch.empty(0), width)
    return _try_to_find(scaffold, layer, extras, width), extras


def _try_to_find(
    scaffold: PreTrainedModel, layer: nn.Module, extras: int | None, hidden_size: int
) -> dict[str, Needed]:
    try:
        return find_needed(scaffold, layer, extras, hidden_size)
    except FAILURES:
        return {}  # A layer that can't run with stand-ins is computed in full.


def find_needed(scaffold: PreTrainedModel, layer: nn.Module, extras: int | None, hidden_size: int) -> dict[str, Needed]:
    """Find the linear maps with outputs that don't count with one key per sequence.

    Args:
        scaffold: The layer's scaffold. Its buffers must not be on the meta device.
        layer: The layer. Its own weights are not used.
        extras: See `Run.extras`.
        hidden_size: Width of the layer's hidden states.

    Returns:
        The outputs that count, for each such map by its name.
    """
    layer_device = next(layer.parameters()).device
    device = torch.device("cpu") if layer_device.type == "meta" else layer_device
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(_ROWS // 2, 1, hidden_size, generator=generator)
    states = torch.cat([half, -half]).to(device)
    stand_ins = _stand_ins(layer, device, generator)
    names = {module: name for name, module in layer.named_modules()}
    needed_of_map: dict[str, Needed] = {}
    with (
        torch.inference_mode(False),
        sdpa_kernel(SDPBackend.MATH),
        _thin_maps(scaffold, layer, device, generator) as trial,
    ):

        def run(hidden_states: Tensor) -> Tensor:
            trial.outputs.clear()
            scaffold_run = Run(
                layer=lambda *args, **kwargs: functional_call(layer, stand_ins, args, kwargs),
                hidden_states=hidden_states,
                extras=extras,
            )
            output = run_scaffold(scaffold, scaffold_run, None, _positions(scaffold, hidden_states)).output
            if not isinstance(output, Tensor):
                raise TypeError("the layer returned no hidden states")
            return output

        with torch.enable_grad():
            full = run(states.clone().requires_grad_())
            map_outputs = {module: calls[0] for module, calls in trial.outputs.items() if len(calls) == 1}
            candidates = _without_gradient(full, map_outputs)
        with torch.no_grad():
            # Run one sequence of several positions. Rule out maps that see it as several sequences of one position.
            run(torch.randn(1, _LENGTH, hidden_size, generator=generator).to(device))
            misled = {module for module, calls in trial.outputs.items() if any(output is not None for output in calls)}
            for module, unneeded in reversed(candidates.items()):
                needed = _describe(~unneeded)
                if module in misled or needed is None:
                    continue
                trial.left_out[module] = unneeded
                if torch.equal(run(states), full):
                    needed_of_map[names[module]] = needed
                else:
                    del trial.left_out[module]
    return needed_of_map


def _without_gradient(output: Tensor, map_outputs: Mapping[nn.Module, Tensor | None]) -> dict[nn.Module, Tensor]:
    """For each map, a mask [out] of the channels without gradient. Maps without such channels are left out."""
    maps = {module: states for module, states in map_outputs.items() if states is not None and states.requires_grad}
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.device)
    gradients = torch.autograd.grad((output.float() * weights).sum(), list(maps.values()), allow_unused=True)
    channels = {}
    for (module, states), gradient in zip(maps.items(), gradients, strict=True):
        gradient_or_zeros = torch.zeros_like(states) if gradient is None else gradient
        channels[module] = (gradient_or_zeros == 0).flatten(0, -2).all(dim=0)
    return {module: unneeded for module, unneeded in channels.items() if unneeded.any()}


def _describe(needed_channels: Tensor) -> Needed | None:
    """Describe a mask of channels [out] as one range in each of several equal blocks; None if that is impossible."""
    if not needed_channels.any():
        return Needed(blocks=1, start=0, stop=0)
    width = len(needed_channels)
    for blocks in range(1, width + 1):
        if width % blocks:
            continue
        by_block = needed_channels.reshape(blocks, -1)
        channels = by_block[0].nonzero().flatten()
        if len(channels) and bool((by_block == by_block[0]).all()) and len(channels) == channels[-1] - channels[0] + 1:
            return Needed(blocks=blocks, start=int(channels[0]), stop=int(channels[-1]) + 1)
    return None


def _positions(scaffold: PreTrainedModel, states: Tensor) -> Tensor | None:
    if not takes_position_ids(scaffold):
        return None
    batch, length, _ = states.shape
    first = torch.arange(batch, device=states.device) % _LENGTH + 1
    return first[:, None] + torch.arange(length, device=states.device)


def _stand_ins(layer: nn.Module, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    """Make random stand-ins for all weights except those of linear maps.

    The columns of a matrix are equal: it is an expanded vector and takes almost no memory.
    """
    linear_ids = {id(parameter) for module in layer.modules() if _is_map(module) for parameter in module.parameters()}
    values = {}
    for name, parameter in layer.named_parameters():
        if id(parameter) not in linear_ids:
            shape = parameter.shape if parameter.ndim < 2 else (*parameter.shape[:-1], 1)
            value = torch.rand(shape, generator=generator) + 0.5
            values[name] = value.to(device).expand(parameter.shape)
    return values


@contextmanager
def _thin_maps(
    scaffold: PreTrainedModel, layer: nn.Module, device: torch.device, generator: torch.Generator
) -> Iterator[_Trial]:
    """Replace the linear maps of a layer by products of two vectors, and record their outputs."""
    trial = _Trial()
    maps: list[tuple[Any, type]] = [(module, type(module)) for module in layer.modules() if _is_map(module)]
    for module, _ in maps:
        is_linear = isinstance(module, nn.Linear)
        inputs, outputs = module.weight.shape[::-1] if is_linear else module.weight.shape
        vectors = [torch.randn(size, generator=generator).to(device) for size in (inputs, outputs, outputs)]
        module.__dict__["surgeon_trial"] = (trial, vectors[0] / inputs**0.5, vectors[1], vectors[2])
        module.__class__ = _ThinLinear if is_linear else _ThinConv1D
    config, experts_implementation = scaffold.config, scaffold.config._experts_implementation
    try:
        # "eager" computes one expert after the other. The other implementations need the full matrices.
        config._experts_implementation = "eager"
        with _ThinProducts():
            yield trial
    finally:
        config._experts_implementation = experts_implementation
        for module, original in maps:
            module.__class__ = original
            del module.__dict__["surgeon_trial"]


def _is_map(module: nn.Module) -> bool:
    """Whether a module maps [..., in] to [..., out]. Of `nn.Linear`'s subclasses, falcon's does, phimoe's doesn't."""
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
    trial, in_vector, out_vector, bias = module.__dict__["surgeon_trial"]
    output: Tensor = (states * in_vector).sum(dim=-1, keepdim=True) * out_vector + bias
    output = output.to(states.dtype)
    if module in trial.left_out:
        output = output.masked_fill(trial.left_out[module], 0)
    trial.outputs.setdefault(module, []).append(output if is_one_key(states) else None)
    return output
