"""Choose the device to compute on, and convert to float64 on any device."""

import torch

from layer_surgeon.errors import ConfigError


def as_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to float64; one on Apple's GPUs, which have no float64, goes to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def choose_device(name: str) -> torch.device:
    """Choose a device by name: `auto` is CUDA if available, else MPS, else the CPU.

    Raises:
        ConfigError: This machine has no such device.
    """
    candidates = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [candidate for candidate, is_available in candidates.items() if is_available]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise ConfigError(f"device is {name!r}, but this machine has only: {', '.join(available)}.")
    return torch.device(name)
