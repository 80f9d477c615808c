"""The weights of a frozen donor as 8-bit integers, a quarter of float32: torchao's weight-only quantisation.

Each row of a linear map's weight gets a scale of its own. Activations, norms and what is no linear map (fused experts,
gpt2's Conv1D) stay in float32. Files keep the donor's own bytes: the integers are made when it is loaded.
"""

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from layer_surgeon.donor.one_key import OneKeyLinear, installed
from layer_surgeon.errors import ConfigError

_SCALE_BYTES = 4


def is_available() -> bool:
    """Whether torchao is installed."""
    return importlib.util.find_spec("torchao") is not None


def check_available() -> None:
    """See whether int8 can be had here.

    Raises:
        ConfigError: torchao is not installed.
    """
    if not is_available():
        raise ConfigError(
            "int8 weights need the library torchao, which is not installed. Install it with "
            "pip install layer-surgeon[int8], or choose bfloat16."
        )


def quantise(donor: PreTrainedModel) -> None:
    """Turn the weights of a donor's linear maps into integers, in place, one matrix after the other.

    Args:
        donor: A frozen donor with weights in any floating-point type.

    Raises:
        ConfigError: torchao is not installed.
    """
    check_available()
    # Loading it takes seconds, which nobody else should wait for.
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig(set_inductor_config=False)
    for module in donor.layers.modules():
        for name, parameter in module.named_parameters(recurse=False):
            wide = nn.Parameter(parameter.detach().to(torch.float32), requires_grad=False)
            setattr(module, name, wide)
        if _make_linear(module):
            quantize_(module, config)
    for _, module in list(installed(donor)):
        if module.needed.blocks > 1:
            # Such a weight can be cut, but not taken apart by blocks.
            module.one_key = False


def _make_linear(module: nn.Module) -> bool:
    """Make a linear map of a family's own class (falcon) an `nn.Linear`; False where it computes something else."""
    if not isinstance(module, nn.Linear):
        return False
    kept: Any = module
    short = isinstance(module, OneKeyLinear)
    own: type[nn.Linear] = kept.full_class if short else type(module)
    if own is nn.Linear:
        return True
    states = torch.randn(2, module.in_features, device=module.weight.device)
    given = own.forward(module, states)
    if not isinstance(given, torch.Tensor) or not torch.allclose(nn.Linear.forward(module, states), given, 1e-4, 1e-5):
        return False
    if short:
        kept.full_class = nn.Linear
    else:
        kept.__class__ = nn.Linear
    return True


def is_quantised(donor: nn.Module) -> bool:
    """Whether `quantise` was called on it."""
    return any(hasattr(parameter, "qdata") for parameter in donor.parameters())


def count_bytes(donor: Any) -> int:
    """The size in memory that a donor's weights will have as integers, from its shapes."""
    linear = {id(m.weight) for m in donor.modules() if isinstance(m, nn.Linear)}
    return sum(p.numel() + _SCALE_BYTES * p.shape[0] if id(p) in linear else p.numel() * 4 for p in donor.parameters())
