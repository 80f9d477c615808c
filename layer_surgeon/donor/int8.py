"""Quantise the weights of a frozen donor to 8-bit integers, a quarter of the size of float32, with torchao.

Only weights are quantised, with one scale per row of a linear map's weight. Activations, norms and other modules (fused
experts, gpt2's Conv1D) stay in float32. Files keep the donor's own bytes: the weights are quantised on loading.
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
    """Check that int8 weights are available.

    Raises:
        ConfigError: torchao is not installed.
    """
    if not is_available():
        raise ConfigError(
            "int8 weights need the package torchao, which is not installed. Install it with "
            "pip install torchao, or choose bfloat16."
        )


def quantise(donor: PreTrainedModel) -> None:
    """Quantise the weights of a donor's linear maps in place, one matrix after the other.

    Args:
        donor: A frozen donor with floating-point weights.

    Raises:
        ConfigError: torchao is not installed.
    """
    check_available()
    # The import takes seconds, so it only happens if it is needed.
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig(set_inductor_config=False)
    for module in donor.layers.modules():
        for name, parameter in module.named_parameters(recurse=False):
            float32_parameter = nn.Parameter(parameter.detach().to(torch.float32), requires_grad=False)
            setattr(module, name, float32_parameter)
        if _make_linear(module):
            quantize_(module, config)
    for _, module in list(installed(donor)):
        if module.needed.blocks > 1:
            # torchao's tensors support slices, but not the reshape that several blocks need.
            module.one_key = False


def _make_linear(module: nn.Module) -> bool:
    """Turn a linear map of a family's own class (falcon) into an `nn.Linear`, in place.

    Returns:
        Whether the module is now an `nn.Linear`. False if its class computes something else.
    """
    if not isinstance(module, nn.Linear):
        return False
    linear: Any = module
    is_one_key = isinstance(module, OneKeyLinear)
    own_class: type[nn.Linear] = linear.full_class if is_one_key else type(module)
    if own_class is nn.Linear:
        return True
    states = torch.randn(2, module.in_features, device=module.weight.device)
    output = own_class.forward(module, states)
    expected = nn.Linear.forward(module, states)
    if not isinstance(output, torch.Tensor) or not torch.allclose(expected, output, 1e-4, 1e-5):
        return False
    if is_one_key:
        linear.full_class = nn.Linear
    else:
        linear.__class__ = nn.Linear
    return True


def is_quantised(donor: nn.Module) -> bool:
    """Whether `quantise` was called on this donor."""
    return any(hasattr(parameter, "qdata") for parameter in donor.parameters())


def count_bytes(donor: Any) -> int:
    """Compute from its shapes how many bytes a donor's weights will take in memory once they are quantised."""
    linear_ids = {id(m.weight) for m in donor.modules() if isinstance(m, nn.Linear)}
    return sum(
        p.numel() + _SCALE_BYTES * p.shape[0] if id(p) in linear_ids else p.numel() * 4 for p in donor.parameters()
    )
