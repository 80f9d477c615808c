"""Choose the device to compute on."""

import torch

from layer_surgeon.errors import ConfigError


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
