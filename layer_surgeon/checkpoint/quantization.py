"""Whether a checkpoint's weights are plain numbers, as its config says, and what can be done where they are not."""

from collections.abc import Mapping
from typing import Any

from layer_surgeon.checkpoint.stack import text_config

# Methods whose weights are 8-bit floats with scales beside them, and plain numbers once multiplied.
_FP8 = ("fp8", "fbgemm_fp8")


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of a config that tells how the weights were quantised; None where they are plain."""
    for part in (config, text_config(config)):
        settings = part.get("quantization_config") or part.get("compression_config")
        if isinstance(settings, Mapping):
            return settings
    return None


def describe_quantization(config: Mapping[str, Any]) -> str | None:
    """The quantisation method that a config names, such as `gptq, 4 bits`; None where there is none."""
    settings = quantization_config(config)
    if settings is None:
        return None
    bits = settings.get("bits")
    method = str(settings.get("quant_method") or "unnamed method")
    kind = settings.get("format")
    described = f"{method} ({kind})" if isinstance(kind, str) and method == "compressed-tensors" else method
    return f"{described}, {bits} bits" if bits else described


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Whether the weights are 8-bit floats with scales: the FP8 releases of Llama, DeepSeek, Qwen and others."""
    settings = quantization_config(config)
    if settings is None:
        return False
    method = settings.get("quant_method")
    return method in _FP8 or (method == "compressed-tensors" and settings.get("format") == "float-quantized")


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same model with plain weights."""
    names = ("quantization_config", "compression_config")
    plain = {name: value for name, value in config.items() if name not in names}
    for name, value in plain.items():
        if isinstance(value, Mapping) and any(key in value for key in names):
            plain[name] = {key: inner for key, inner in value.items() if key not in names}
    return plain
